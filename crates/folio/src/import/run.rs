//! A run directory of an imported model: a description, a tokenizer and a checkpoint of epoch 0.

use super::Imported;
use crate::checkpoint::CheckpointName;
use crate::error::Result;
use crate::run_dir::{RunDir, RunState, UntrainedRun};
use crate::settings::Settings;
use crate::text::TextFiles;

/// Writes a run that has a model but no text, no losses and no optimizer state. Returns its checkpoint's name. `overwrite`
/// replaces an earlier run.
///
/// # Errors
/// If the directory holds a run and `overwrite` is not set, or something cannot be written. Nothing is left half-written.
pub fn write_run(imported: &Imported, run_dir: &RunDir, overwrite: bool) -> Result<CheckpointName> {
    let settings = settings(imported)?;
    let model = UntrainedRun {
        settings: &settings,
        config: imported.config,
        parameters: &imported.parameters,
        tokenizer: &imported.tokenizer,
        state: RunState::Imported,
    };
    run_dir.write_untrained(&model, overwrite)
}

/// The settings of the run.
fn settings(imported: &Imported) -> Result<Settings> {
    let base = Settings {
        data: TextFiles::Several(Vec::new()),
        data_sha256: String::new(),
        block_size: imported.config.block_size,
        dropout: imported.dropout(),
        ..Settings::default()
    };
    imported.settings(base)
}
