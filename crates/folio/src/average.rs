//! The uniform average of the weights of several checkpoints.
//!
//! Of one run's last checkpoints: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization". Of
//! several runs that began with the same weights: Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned
//! models improves accuracy without increasing inference time". Runs with different initial weights do not average well.

use serde_json::Value;

use crate::checkpoint::{Checkpoint, CheckpointName};
use crate::error::{Error, Result};
use crate::model::Parameters;
use crate::run_dir::{RunDir, RunState, UntrainedRun};
use crate::settings::Settings;
use crate::tokenizer::Tokenizer;

/// The average of some checkpoints' weights, computed in double precision.
///
/// # Errors
/// [`Error::Checkpoint`] if one has another model, tokenizer or split of the text than the first, or is damaged.
///
/// # Panics
/// If there are no checkpoints.
pub fn average(checkpoints: &[Checkpoint]) -> Result<Parameters> {
    let (first, others) = checkpoints.split_first().expect("at least one checkpoint");
    others.iter().try_for_each(|other| check_alike(first, other))?;
    let mut average = first.parameters()?;
    let mut sums: Vec<f64> = average.values().iter().map(|&weight| f64::from(weight)).collect();
    for other in others {
        let other = other.parameters()?;
        sums.iter_mut().zip(other.values()).for_each(|(sum, &weight)| *sum += f64::from(weight));
    }
    let count = checkpoints.len() as f64;
    average.values_mut().iter_mut().zip(sums).for_each(|(average, sum)| *average = (sum / count) as f32);
    Ok(average)
}

/// Checks that the weights of two checkpoints mean the same, and that neither was trained on what the other is evaluated on.
///
/// # Errors
/// [`Error::Checkpoint`] of the second one that names what differs.
pub fn check_alike(first: &Checkpoint, other: &Checkpoint) -> Result<()> {
    let (one, two) = (&first.state().identity, &other.state().identity);
    let path = first.directory().display();
    let sizes = [one, two].map(|identity| serde_json::to_value(identity.model).expect("sizes are JSON"));
    // Dropout is not part of a trained model.
    let fields = sizes.each_ref().map(|sizes| sizes.as_object().expect("a struct"));
    let names = fields[0].keys().chain(fields[1].keys()).filter(|name| *name != "dropout");
    let value = |index: usize, name: &String| {
        fields[index].get(name).map_or("its default".to_owned(), Value::to_string)
    };
    let mut sizes = names.map(|name| (name, value(0, name), value(1, name)));
    let reason = if let Some((name, one, two)) = sizes.find(|(_, one, two)| one != two) {
        format!("has {name} {two} and {path} has {one}: only checkpoints of the same model can be averaged")
    } else if one.tokenizer_sha256 != two.tokenizer_sha256 {
        format!(
            "was trained with another tokenizer than {path}: only checkpoints of one tokenizer can be averaged"
        )
    } else if let Some(what) = one.text_difference(two) {
        format!(
            "was trained with another {what} than {path}, so the evaluation text of one may be training text of the other; \
             leave it out"
        )
    } else {
        return Ok(());
    };
    Err(Error::Checkpoint { path: other.directory().to_path_buf(), reason })
}

/// Writes an average as a run with the settings of the run of its first checkpoint, a checkpoint of epoch 0, and neither losses
/// nor optimizer state. Returns the checkpoint's name.
///
/// # Errors
/// If the directory holds a run and `overwrite` is not set, or something cannot be written.
pub fn write_run(
    average: &Parameters,
    checkpoints: &[Checkpoint],
    settings: &Settings,
    tokenizer: &Tokenizer,
    run_dir: &RunDir,
    overwrite: bool,
) -> Result<CheckpointName> {
    let paths = checkpoints.iter().map(|checkpoint| checkpoint.directory().display().to_string());
    let settings = Settings {
        averaged_from: Some(paths.collect::<Vec<_>>().join(", ")),
        from_checkpoint_run_dir: None,
        from_checkpoint_step: None,
        restart_schedule: false,
        weights_only: false,
        new_text: false,
        extend_vocab: false,
        ..settings.clone()
    };
    let config = checkpoints[0].state().identity.model;
    let run = UntrainedRun {
        settings: &settings,
        config,
        parameters: average,
        tokenizer,
        state: RunState::Averaged,
    };
    run_dir.write_untrained(&run, overwrite)
}
