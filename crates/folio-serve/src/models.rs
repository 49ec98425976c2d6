//! Models in memory: read when they are first asked for, let go when others need their place.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use folio::error::Error;
use folio::model::{InferenceModel, WeightFormat};
use folio::run_dir::Saved;
use folio::tokenizer::Tokenizer;

use crate::catalogue::{Listing, Run};
use crate::limits::Limits;
use crate::metrics::Metrics;

/// A model that can be asked.
pub(crate) struct Model {
    pub(crate) predictor: Arc<InferenceModel>,
    pub(crate) tokenizer: Arc<Tokenizer>,
}

/// A checkpoint as it was at some time: one that is written anew is another.
#[derive(Clone, PartialEq, Eq)]
struct Key {
    path: PathBuf,
    modified: SystemTime,
}

/// The models in memory.
pub(crate) struct Models {
    /// Of the weights; if none is given, that in which a model was trained.
    format: Option<WeightFormat>,
    most: usize,
    most_bytes: u64,
    /// The one used last comes last.
    loaded: Mutex<Vec<(Key, Arc<Model>)>>,
    /// Held while one is read, so that many who ask for the same have it read once.
    reading: Mutex<()>,
}

impl Models {
    pub(crate) fn new(format: Option<WeightFormat>, limits: &Limits) -> Self {
        let Limits { models, model_bytes, .. } = *limits;
        let (loaded, reading) = (Mutex::default(), Mutex::default());
        Self { format, most: models.max(1), most_bytes: model_bytes, loaded, reading }
    }

    /// The model of a checkpoint. Reads files, unless it is in memory.
    ///
    /// # Errors
    /// If the checkpoint, or the run's tokenizer, is damaged or gone.
    pub(crate) fn get(
        &self,
        run: &Run,
        saved: &Saved,
        metrics: &Metrics,
    ) -> folio::error::Result<Arc<Model>> {
        let key = Key { path: saved.path.clone(), modified: saved.modified };
        if let Some(model) = self.use_loaded(&key) {
            return Ok(model);
        }
        let _turn = lock(&self.reading);
        if let Some(model) = self.use_loaded(&key) {
            return Ok(model);
        }
        let model = Arc::new(self.read(run, saved)?);
        let mut loaded = lock(&self.loaded);
        // An older state of the same checkpoint has nobody left to ask for it.
        loaded.retain(|(other, _)| other.path != key.path);
        loaded.push((key, Arc::clone(&model)));
        let bytes = |loaded: &[(Key, Arc<Model>)]| -> u64 {
            loaded.iter().map(|(_, model)| model.predictor.weight_bytes() as u64).sum()
        };
        while loaded.len() > 1 && (loaded.len() > self.most || bytes(&loaded) > self.most_bytes) {
            loaded.remove(0);
        }
        metrics.models.set(loaded.len() as i64);
        Ok(model)
    }

    /// Reads the models that a client is likely to ask for first, so that damage is told when the server starts.
    ///
    /// # Errors
    /// If the first of them cannot be read; of the others `on_warning` is told.
    pub(crate) fn get_first(
        &self,
        listing: &Listing,
        metrics: &Metrics,
        on_warning: &dyn Fn(&str),
    ) -> folio::error::Result<()> {
        let best = listing.runs.iter().filter_map(|run| Some((run, run.checkpoints.get(run.default)?)));
        for (place, (run, saved)) in best.enumerate() {
            let read = match place {
                0 => self.get(run, saved, metrics).map(drop),
                // Of the others what costs little.
                _ => run.directory.open_checkpoint(saved.name).map(drop),
            };
            match read {
                Err(error) if place == 0 => return Err(error),
                Err(error) => on_warning(&error.to_string()),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn use_loaded(&self, key: &Key) -> Option<Arc<Model>> {
        let mut loaded = lock(&self.loaded);
        let place = loaded.iter().position(|(other, _)| other == key)?;
        let used = loaded.remove(place);
        let model = Arc::clone(&used.1);
        loaded.push(used);
        Some(model)
    }

    fn read(&self, run: &Run, saved: &Saved) -> folio::error::Result<Model> {
        let tokenizer = run.directory.tokenizer()?;
        let checkpoint = run.directory.open_checkpoint(saved.name)?;
        checkpoint.check_tokenizer(&tokenizer)?;
        let config = checkpoint.state().identity.model;
        if config.vocab_size != tokenizer.vocab_size() {
            let [model, tokens] = [config.vocab_size, tokenizer.vocab_size()];
            let reason = format!(
                "is damaged: it knows {model} tokens, its tokenizer {tokens}; take another checkpoint"
            );
            return Err(Error::Checkpoint { path: saved.path.clone(), reason });
        }
        let format = match self.format {
            Some(format) => format,
            None => WeightFormat::of(run.directory.settings()?.precision),
        };
        format.check(&config)?;
        let predictor = InferenceModel::new(config, format, &checkpoint.parameters()?);
        Ok(Model { predictor: Arc::new(predictor), tokenizer: Arc::new(tokenizer) })
    }
}

/// Locks; what another left behind when it panicked is as good as before.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
