//! Trained models.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use folio::checkpoint::Checkpoint;
use folio::error::{Error, Result};
use folio::generate::{Generator, PastContext, Request, Sampling};
use folio::memory::{check_generation, parallel_sequences};
use folio::model::{Backend, Batch, CpuBackend, InferenceModel, Precision, WeightFormat};
use folio::run_dir::find;
use folio::tokenizer::Tokenizer as FolioTokenizer;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::conversion::FromPyObjectOwned;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::raise;
use crate::tokenizer::{Tokenizer, check_ids};
use crate::values::to_python;

/// Sequences per pass when a text is evaluated: enough to occupy all cores, few enough for a machine with little memory.
const EVALUATION_BATCH: usize = 16;

/// A trained model and its tokenizer.
#[pyclass(frozen, module = "folio._folio")]
pub(crate) struct Model {
    checkpoint: PathBuf,
    eval_loss: Option<f64>,
    tokenizer: Arc<FolioTokenizer>,
    inference: Arc<InferenceModel>,
    /// The format of logits and losses.
    precision: Precision,
    /// Loaded when it is needed first, since generation does not need it.
    backend: Mutex<Option<CpuBackend>>,
}

#[pymethods]
impl Model {
    /// Loads the checkpoint that a path refers to: that of a run or a sweep with the lowest evaluation loss, or the one named.
    #[new]
    #[pyo3(signature = (path, precision = None))]
    fn new(py: Python<'_>, path: Option<PathBuf>, precision: Option<&str>) -> PyResult<Self> {
        py.detach(|| Self::load(path, precision)).map_err(raise)
    }

    /// The directory of the checkpoint.
    #[getter]
    fn checkpoint(&self) -> PathBuf {
        self.checkpoint.clone()
    }

    /// The evaluation loss of the checkpoint.
    #[getter]
    fn eval_loss(&self) -> Option<f64> {
        self.eval_loss
    }

    /// The tokenizer.
    #[getter]
    fn tokenizer(&self) -> Tokenizer {
        Tokenizer(Arc::clone(&self.tokenizer))
    }

    /// The format of the weights in generation.
    #[getter]
    fn precision(&self) -> &'static str {
        self.inference.format().name()
    }

    /// The sizes of the model.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, &serde_json::to_value(self.inference.config()).expect("a configuration is JSON"))
    }

    /// The number of parameters.
    #[getter]
    fn parameters(&self) -> u64 {
        self.inference.config().parameters()
    }

    /// Starts to generate `count` texts.
    fn generate(
        &self,
        py: Python<'_>,
        prompt: &str,
        count: usize,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Generation> {
        let special_tokens = option(options, "special_tokens")?.unwrap_or(false);
        let ids = if special_tokens {
            self.tokenizer.encode_special(prompt)
        } else {
            self.tokenizer.encode(prompt)
        };
        let request = request(options, ids.map_err(|error| raise(format!("prompt: {error}")))?)?;
        let generation = || {
            let mut running = RunningGeneration::new(self, request, count);
            running.begin()?;
            Ok(Generation(Mutex::new(running)))
        };
        py.detach(generation).map_err(|error: Error| raise(error))
    }

    /// The logits of the token that follows each token: (T, V).
    fn logits<'py>(&self, py: Python<'py>, ids: Vec<u32>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let config = self.inference.config();
        check_ids(&ids, config.vocab_size)?;
        let (tokens, room) = (ids.len(), config.block_size);
        if !(1..=room).contains(&tokens) {
            return Err(raise(format!(
                "{tokens} tokens: the model takes from 1 to {room} at once, its `block_size`"
            )));
        }
        let logits =
            py.detach(|| self.with_backend(|backend| Ok(backend.logits(&ids).to_vec()))).map_err(raise)?;
        logits.into_pyarray(py).reshape([tokens, config.vocab_size])
    }

    /// The loss of each token of a text after the first, in nats.
    fn losses<'py>(
        &self,
        py: Python<'py>,
        text: &str,
        special_tokens: bool,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let losses = || {
            let ids = match special_tokens {
                true => self.tokenizer.encode_special(text)?,
                false => self.tokenizer.encode(text)?,
            };
            self.losses_of(&ids)
        };
        Ok(py.detach(losses).map_err(raise)?.into_pyarray(py))
    }
}

impl Model {
    fn load(path: Option<PathBuf>, precision: Option<&str>) -> Result<Self> {
        let found = find(path.as_deref())?;
        let checkpoint = found.run.open_checkpoint(found.checkpoint.name)?;
        let tokenizer = found.run.tokenizer()?;
        checkpoint.check_tokenizer(&tokenizer)?;
        let config = checkpoint.state().identity.model;
        let trained_in = found.run.settings()?.precision;
        let format = precision.map(str::parse).transpose()?.unwrap_or(WeightFormat::of(trained_in));
        format.check(&config)?;
        check_generation(&config, format)?;
        Ok(Self {
            checkpoint: found.checkpoint.path,
            eval_loss: found.checkpoint.eval_loss,
            inference: Arc::new(InferenceModel::new(config, format, &checkpoint.parameters()?)),
            tokenizer: Arc::new(tokenizer),
            precision: if format == WeightFormat::Bf16 { Precision::Bf16 } else { Precision::F32 },
            backend: Mutex::new(None),
        })
    }

    fn with_backend<R>(&self, work: impl FnOnce(&mut CpuBackend) -> Result<R>) -> Result<R> {
        let mut backend = self.backend.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backend) = &mut *backend {
            return work(backend);
        }
        let parameters = Checkpoint::open(&self.checkpoint)?.parameters()?;
        work(backend.insert(CpuBackend::from_parameters(
            *self.inference.config(),
            self.precision,
            parameters,
        )))
    }

    /// The losses of all tokens after the first. Each block of `block_size` tokens is a sequence of its own, as in training.
    fn losses_of(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let Some(targets) = ids.get(1..).filter(|targets| !targets.is_empty()) else {
            let reason = format!("the text has {} tokens: a loss needs at least 2", ids.len());
            return Err(Error::Tokenizer { reason });
        };
        let block = self.inference.config().block_size;
        let whole = targets.len() / block * block;
        let (head, tail) =
            ((&ids[..whole], &targets[..whole]), (&ids[whole..targets.len()], &targets[whole..]));
        self.with_backend(|backend| {
            let mut losses = Vec::with_capacity(targets.len());
            let batches =
                head.0.chunks(EVALUATION_BATCH * block).zip(head.1.chunks(EVALUATION_BATCH * block));
            let batches = batches.map(|(inputs, targets)| Batch { inputs, targets, time: block });
            let last =
                (!tail.0.is_empty()).then_some(Batch { inputs: tail.0, targets: tail.1, time: tail.0.len() });
            for batch in batches.chain(last) {
                losses.extend_from_slice(backend.losses(batch));
            }
            Ok(losses)
        })
    }
}

/// Reads an option that may be missing or None.
fn option<'py, T>(options: &Bound<'py, PyDict>, name: &str) -> PyResult<Option<T>>
where
    T: FromPyObjectOwned<'py>,
{
    let Some(value) = options.get_item(name)?.filter(|value| !value.is_none()) else { return Ok(None) };
    let read: PyResult<T> = value.extract::<T>().map_err(Into::into);
    read.map(Some).map_err(|error| raise(format!("{name}: {}", error.value(options.py()))))
}

fn request(options: &Bound<'_, PyDict>, prompt: Vec<u32>) -> PyResult<Request> {
    let default = Request::default();
    let past_context: Option<String> = option(options, "past_context")?;
    let past_context = past_context.map(|name| name.parse::<PastContext>()).transpose().map_err(raise)?;
    Ok(Request {
        prompt,
        max_new_tokens: option(options, "max_new_tokens")?.unwrap_or(default.max_new_tokens),
        sampling: Sampling {
            temperature: option(options, "temperature")?.unwrap_or(default.sampling.temperature),
            top_k: option(options, "top_k")?,
            top_p: option(options, "top_p")?,
            min_p: option(options, "min_p")?,
            repetition_penalty: option(options, "repetition_penalty")?
                .unwrap_or(default.sampling.repetition_penalty),
        },
        seed: option(options, "seed")?.unwrap_or(default.seed),
        stop: option(options, "stop")?.unwrap_or_default(),
        past_context: past_context.unwrap_or_default(),
        ..default
    })
}

/// Texts that are being generated.
#[pyclass(frozen, module = "folio._folio")]
pub(crate) struct Generation(Mutex<RunningGeneration>);

struct RunningGeneration {
    generator: Generator,
    /// Requests that wait until there is room for their caches.
    waiting: VecDeque<Request>,
    /// The most sequences to generate at once.
    most: usize,
}

impl RunningGeneration {
    fn new(model: &Model, request: Request, count: usize) -> Self {
        let seeds = (0..count as u64).map(|index| request.seed.wrapping_add(index));
        Self {
            generator: Generator::new(Arc::clone(&model.inference), Arc::clone(&model.tokenizer)),
            waiting: seeds.map(|seed| Request { seed, ..request.clone() }).collect(),
            most: parallel_sequences(model.inference.cache_bytes()),
        }
    }

    /// Begins as many sequences as there is room for.
    fn begin(&mut self) -> Result<()> {
        while self.generator.active() < self.most
            && let Some(request) = self.waiting.pop_front()
        {
            self.generator.begin(request)?;
        }
        Ok(())
    }
}

#[pymethods]
impl Generation {
    /// One more token of each active text: the number of the text, and what it adds. None at the end.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Vec<(u64, String)>>> {
        let step = || {
            let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            running.begin()?;
            if running.generator.active() == 0 {
                return Ok(None);
            }
            let mut added = Vec::new();
            running.generator.step(|id, token| added.push((id.number(), token.text.to_owned())));
            Ok(Some(added))
        };
        py.detach(step).map_err(|error: Error| raise(error))
    }
}
