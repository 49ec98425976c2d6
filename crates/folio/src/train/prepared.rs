//! What a run consists of before its first step.

use std::path::PathBuf;
use std::sync::Arc;

use super::continuing::{self, Loaded};
use super::{NewBackend, Start};
use crate::checkpoint::{Identity, TrainingState};
use crate::data::{Dataset, Part, TokenStream};
use crate::error::Result;
use crate::import;
use crate::model::{Backend, Parameters};
use crate::records;
use crate::rng::{Rng, Stream};
use crate::settings::Settings;
use crate::teachers::Teachers;
use crate::text::TextPerToken;
use crate::tokenizer::Tokenizer;

/// A run before it starts. Rank 0 prepares it, and sends it to the others.
pub(super) struct Prepared {
    pub(super) settings: Settings,
    pub(super) dataset: Dataset,
    /// `None` on ranks other than 0.
    pub(super) tokenizer: Option<Arc<Tokenizer>>,
    /// `None` without teachers, and on ranks other than 0.
    pub(super) teachers: Option<Teachers>,
    pub(super) backend: Box<dyn Backend>,
    pub(super) state: TrainingState,
    pub(super) resumed_from: Option<PathBuf>,
    pub(super) has_optimizer: bool,
    pub(super) train_text: TextPerToken,
    pub(super) eval_text: TextPerToken,
}

impl Prepared {
    pub(super) fn new(
        new_backend: &NewBackend,
        mut settings: Settings,
        stream: Arc<TokenStream>,
        tokenizer: Arc<Tokenizer>,
        start: &Start,
    ) -> Result<Self> {
        settings.validate()?;
        records::check(&settings)?;
        if let Start::Checkpoint { run, number, restart_schedule } = start {
            settings.continue_from(run.path(), *number, *restart_schedule);
        }
        let dataset = Dataset::new(stream, settings.block_size, settings.seed)?;
        let identity = Identity::of(&settings, &tokenizer);
        let teachers = Teachers::open(&settings, &identity)?;
        let checkpoint = continuing::find(start, &settings)?;
        let has_optimizer =
            checkpoint.as_ref().is_none_or(|found| continuing::takes_optimizer(found, &settings));
        let resumed_from = checkpoint.as_ref().map(|checkpoint| checkpoint.directory().to_path_buf());
        let Loaded { parameters, moments, average, state } = match checkpoint {
            None => {
                let parameters = match settings.init_from {
                    Some(_) => import::initial_parameters(&settings, &identity.model)?,
                    None => Parameters::random(&identity.model, &mut Rng::new(settings.seed, Stream::Init)),
                };
                let state = TrainingState::new(identity, &settings);
                Loaded { parameters, moments: None, average: None, state }
            }
            Some(checkpoint) => continuing::load(&checkpoint, &settings, &tokenizer)?,
        };
        let average = state.averaged.then(|| average.unwrap_or_else(|| parameters.clone()));
        let mut backend = new_backend(state.identity.model, settings.precision, parameters);
        backend.freeze(settings.freeze);
        if let Some(moments) = moments {
            backend.load_moments(moments);
        }
        if let Some(average) = average {
            backend.load_average(average);
        }
        let [train_text, eval_text] =
            [Part::Train, Part::Eval].map(|part| dataset.text_per_token(part, &tokenizer));
        let tokenizer = Some(tokenizer);
        Ok(Self {
            settings,
            dataset,
            tokenizer,
            teachers,
            backend,
            state,
            resumed_from,
            has_optimizer,
            train_text,
            eval_text,
        })
    }
}
