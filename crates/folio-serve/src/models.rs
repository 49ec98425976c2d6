//! The models in memory: loaded on first use, evicted least recently used first.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use folio::error::Error;
use folio::model::{InferenceModel, WeightFormat};
use folio::run_dir::Saved;
use folio::tokenizer::Tokenizer;

use crate::catalog::{Listing, Run};
use crate::limits::Limits;
use crate::metrics::Metrics;

/// A model that is ready for inference.
pub(crate) struct LoadedModel {
    pub(crate) model: Arc<InferenceModel>,
    pub(crate) tokenizer: Arc<Tokenizer>,
}

/// Identifies a checkpoint at the time it was saved. A checkpoint that is overwritten gets another key.
#[derive(Clone, PartialEq, Eq)]
struct CheckpointKey {
    path: PathBuf,
    modified: SystemTime,
}

struct CacheEntry {
    key: CheckpointKey,
    model: Arc<LoadedModel>,
}

/// The models in memory.
pub(crate) struct ModelCache {
    /// The format of the weights; by default the precision that each model was trained in.
    format: Option<WeightFormat>,
    max_models: usize,
    max_bytes: u64,
    /// The most recently used entry is last.
    entries: Mutex<Vec<CacheEntry>>,
    /// Held while a model is loaded, so that concurrent requests for the same model load it once.
    loading: Mutex<()>,
}

impl ModelCache {
    pub(crate) fn new(format: Option<WeightFormat>, limits: &Limits) -> Self {
        let Limits { models, model_bytes, .. } = *limits;
        let (entries, loading) = (Mutex::default(), Mutex::default());
        Self { format, max_models: models.max(1), max_bytes: model_bytes, entries, loading }
    }

    /// The model of a checkpoint. Loads it if it is not in memory.
    ///
    /// # Errors
    /// If the checkpoint or the run's tokenizer is damaged or missing.
    pub(crate) fn get(
        &self,
        run: &Run,
        saved: &Saved,
        metrics: &Metrics,
    ) -> folio::error::Result<Arc<LoadedModel>> {
        let key = CheckpointKey { path: saved.path.clone(), modified: saved.modified };
        if let Some(model) = self.cached(&key) {
            return Ok(model);
        }
        let _guard = lock(&self.loading);
        if let Some(model) = self.cached(&key) {
            return Ok(model);
        }
        let model = Arc::new(self.load(run, saved)?);
        let mut entries = lock(&self.entries);
        // An overwritten checkpoint can no longer be requested.
        entries.retain(|entry| entry.key.path != key.path);
        entries.push(CacheEntry { key, model: Arc::clone(&model) });
        let bytes = |entries: &[CacheEntry]| -> u64 {
            entries.iter().map(|entry| entry.model.model.weight_bytes() as u64).sum()
        };
        while entries.len() > 1 && (entries.len() > self.max_models || bytes(&entries) > self.max_bytes) {
            entries.remove(0);
        }
        metrics.models.set(entries.len() as i64);
        Ok(model)
    }

    /// Loads the default model and opens the default checkpoints of the other runs, so that damage is reported at the
    /// start.
    ///
    /// # Errors
    /// If the first model cannot be loaded. Problems with the others are passed to `on_warning`.
    pub(crate) fn preload(
        &self,
        listing: &Listing,
        metrics: &Metrics,
        on_warning: &dyn Fn(&str),
    ) -> folio::error::Result<()> {
        let defaults = listing.runs.iter().filter_map(|run| Some((run, run.checkpoints.get(run.default)?)));
        for (index, (run, saved)) in defaults.enumerate() {
            let result = match index {
                0 => self.get(run, saved, metrics).map(drop),
                _ => run.directory.open_checkpoint(saved.name).map(drop),
            };
            match result {
                Err(error) if index == 0 => return Err(error),
                Err(error) => on_warning(&error.to_string()),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// The cached model with this key, which becomes the most recently used one.
    fn cached(&self, key: &CheckpointKey) -> Option<Arc<LoadedModel>> {
        let mut entries = lock(&self.entries);
        let index = entries.iter().position(|entry| entry.key == *key)?;
        let entry = entries.remove(index);
        let model = Arc::clone(&entry.model);
        entries.push(entry);
        Some(model)
    }

    fn load(&self, run: &Run, saved: &Saved) -> folio::error::Result<LoadedModel> {
        let tokenizer = run.directory.tokenizer()?;
        let checkpoint = run.directory.open_checkpoint(saved.name)?;
        checkpoint.check_tokenizer(&tokenizer)?;
        let config = checkpoint.state().identity.model;
        // An imported model may have more rows in its embedding than there are tokens.
        if config.vocab_size < tokenizer.vocab_size() {
            let [model, tokens] = [config.vocab_size, tokenizer.vocab_size()];
            let reason = format!(
                "is damaged: its vocabulary has {model} tokens, its tokenizer {tokens}; use another checkpoint"
            );
            return Err(Error::Checkpoint { path: saved.path.clone(), reason });
        }
        let format = match self.format {
            Some(format) => format,
            None => WeightFormat::of(run.directory.settings()?.precision),
        };
        format.check(&config)?;
        let model = InferenceModel::new(config, format, &checkpoint.parameters()?);
        Ok(LoadedModel { model: Arc::new(model), tokenizer: Arc::new(tokenizer) })
    }
}

/// Locks a mutex, also after another thread panicked while holding it: the data is consistent at all times.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
