//! Reads models of other programs: GPT-2s saved by Hugging Face's transformers, and checkpoints of nanoGPT and minGPT.
//!
//! ```text
//! DIR with config.json and model.safetensors, or shards with model.safetensors.index.json   transformers
//! DIR with config.json and pytorch_model.bin, or shards with an index                       transformers
//! ckpt.pt                                                                                   nanoGPT
//! model.pt                                                                                  minGPT
//! ```
//!
//! Nothing in a file is executed: of a pickle, plain data and the classes of a state dict are read. All sizes are checked
//! against the files before memory is allocated, and weights must be finite.
//!
//! [`write_run`] makes a run of a model, with a checkpoint of epoch 0; a run with [`Settings::init_from`] trains one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files::hexadecimal;
use crate::model::{ModelConfig, Parameters};
use crate::run_dir::{Place, locate};
use crate::settings::Settings;
use crate::tokenizer::{Tokenizer, TokenizerKind};

mod description;
mod pickle;
mod run;
mod safetensors;
mod tensors;
mod tokens;
mod torch;
mod weights;

use description::Description;
pub use run::write_run;
use tensors::{Container, Tensors};

/// The files of a directory that hold a model, in the order in which they are looked for.
const MODEL_FILES: [&str; 6] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "ckpt.pt",
    "model.pt",
];
const CONFIG_FILE: &str = "config.json";
/// Larger JSON files are refused. The index of GPT-2 XL has 50 kB.
const MAX_JSON_BYTES: u64 = 16 << 20;

/// The program that a model comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Hugging Face's transformers.
    Transformers,
    /// nanoGPT.
    NanoGpt,
    /// minGPT.
    MinGpt,
}

impl Origin {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transformers => "transformers",
            Self::NanoGpt => "nanoGPT",
            Self::MinGpt => "minGPT",
        }
    }
}

/// What the files of a model may not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hints {
    /// The attention heads, which a state dict of minGPT does not record.
    pub n_heads: Option<usize>,
    /// The tokenizer, if it is not beside the model: `bpe`, a `tokenizer.json` or nanoGPT's `meta.pkl`.
    pub tokenizer: Option<TokenizerKind>,
}

/// A model of another program.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Its sizes and variations. `vocab_size` may be larger than the tokenizer's vocabulary: some programs pad the
    /// embedding with rows that stand for no token.
    pub config: ModelConfig,
    /// Its weights.
    pub parameters: Parameters,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Where the tokenizer comes from.
    pub tokenizer_kind: TokenizerKind,
    /// The program that it comes from.
    pub origin: Origin,
    /// Where it was read from.
    pub path: PathBuf,
    /// The SHA-256 of the configuration and the weights, whatever files hold them.
    pub sha256: String,
}

impl Imported {
    /// The probability of dropout that it was last trained with.
    pub fn dropout(&self) -> f64 {
        decimal(self.config.dropout)
    }

    /// Checks that its context is long enough for a run.
    ///
    /// # Errors
    /// [`Error::Setting`] with its length.
    pub fn check_block_size(&self, wanted: usize) -> Result<()> {
        check_block_size(wanted, self.config.block_size)
    }

    /// Settings for a run with this model, which begins with its weights. `block_size` keeps its value if it is not larger
    /// than the model's.
    ///
    /// # Errors
    /// [`Error::Setting`] if it is larger.
    pub fn settings(&self, settings: Settings) -> Result<Settings> {
        self.check_block_size(settings.block_size)?;
        let ModelConfig { vocab_size, n_blocks, n_emb, n_heads, .. } = self.config;
        let ModelConfig { n_inner, activation, tie_word_embeddings, .. } = self.config;
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        Ok(Settings {
            n_blocks,
            n_emb,
            n_heads,
            n_inner,
            activation,
            layer_norm_epsilon: decimal(self.config.layer_norm_epsilon),
            tie_word_embeddings,
            embedding_rows: (vocab_size > self.tokenizer.vocab_size()).then_some(vocab_size),
            tokenizer_type: self.tokenizer_kind.clone(),
            vocab_size: None,
            init_from: Some(path.display().to_string()),
            init_from_sha256: Some(self.sha256.clone()),
            ..settings
        })
    }
}

/// The number in double precision with the same shortest decimal.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().expect("a number was just written")
}

/// Reads a model and its tokenizer from a file or a directory.
///
/// # Errors
/// [`Error::Import`] if something is missing, damaged or not supported; [`Error::Tokenizer`] if the tokenizer cannot be
/// used; [`Error::File`] if the system refuses to read a file.
pub fn read(path: &Path, hints: &Hints) -> Result<Imported> {
    let mut source = Source::open(path)?;
    let (config, parameters) = source.model(hints.n_heads)?;
    let (tokenizer, tokenizer_kind) = tokens::find(&source, hints.tokenizer.as_ref(), config.vocab_size)?;
    let sha256 = digest(&config, &parameters);
    let origin = source.description.origin;
    Ok(Imported { config, parameters, tokenizer, tokenizer_kind, origin, path: path.to_path_buf(), sha256 })
}

/// The weights that a run with [`Settings::init_from`] begins with, cropped to its `block_size`.
///
/// # Errors
/// As [`read`]; also if the model is not the one that the settings record, or has other sizes than `config`.
pub fn initial_parameters(settings: &Settings, config: &ModelConfig) -> Result<Parameters> {
    let path = Path::new(settings.init_from.as_deref().unwrap_or_default());
    let (found, parameters) = Source::open(path)?.model(Some(settings.n_heads))?;
    let recorded = settings.init_from_sha256.as_ref();
    if recorded.is_some_and(|recorded| *recorded != digest(&found, &parameters)) {
        let reason = "is no longer the model that the run begins with: restore it, or start a new run";
        return Err(wrong(path, reason));
    }
    check_block_size(config.block_size, found.block_size)?;
    let expected = ModelConfig { block_size: config.block_size, dropout: config.dropout, ..found };
    if expected != *config {
        let reason = format!("is a model of other sizes than the run's: {expected:?}, not {config:?}");
        return Err(wrong(path, reason));
    }
    Ok(parameters.first_rows(config))
}

/// Checks that a model's context is long enough for a run.
fn check_block_size(wanted: usize, longest: usize) -> Result<()> {
    if wanted <= longest {
        return Ok(());
    }
    let reason = format!(
        "`block_size {wanted}` is longer than the imported model's context: it has learned {longest} positions, and none for \
         later tokens; use at most {longest}"
    );
    Err(Error::setting("block_size", reason))
}

/// The SHA-256 of a model. Dropout is no property of its weights.
fn digest(config: &ModelConfig, parameters: &Parameters) -> String {
    let config = ModelConfig { dropout: 0.0, ..*config };
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(&config).expect("sizes are JSON"));
    for values in parameters.values().chunks(1 << 16) {
        if cfg!(target_endian = "little") {
            hash.update(bytemuck::cast_slice::<f32, u8>(values));
        } else {
            values.iter().for_each(|value| hash.update(value.to_le_bytes()));
        }
    }
    hexadecimal(&hash.finalize())
}

/// The files of a model.
struct Source {
    /// The file that was chosen, or the index of several.
    path: PathBuf,
    /// What describes the model.
    config_path: PathBuf,
    description: Description,
    /// Under the names of [`weights::bare`].
    tensors: Tensors,
    /// The name of the data set that a checkpoint of nanoGPT was trained on.
    dataset: Option<String>,
}

impl Source {
    /// Opens the files of a model and reads what describes it.
    fn open(given: &Path) -> Result<Self> {
        let path = model_file(given)?;
        let mut tensors = Tensors::new();
        let is_index = path.to_str().is_some_and(|name| name.ends_with(".index.json"));
        let files = if is_index { safetensors::shards(&path)? } else { vec![path.clone()] };
        let (mut of_nanogpt, mut dataset) = (None, None);
        for file in &files {
            let container = Container::open(file)?;
            let stored = match &container {
                Container::Safetensors(file) => file.tensors(),
                Container::Torch(torch) => {
                    let (pickle, root) = (torch.pickle(), torch.pickle().root());
                    if let Some(args) = pickle.get(root, "model_args") {
                        let found = Description::of_nanogpt(pickle, args);
                        of_nanogpt = Some(found.map_err(|reason| wrong(file, reason))?);
                        dataset = tokens::dataset(pickle);
                    }
                    torch.state_dict(file)?
                }
            };
            tensors.add(file, container, stored)?;
        }
        if is_index {
            safetensors::check_complete(&path, &tensors)?;
        }
        tensors.rename(|name| weights::bare(name).to_owned())?;
        let config_path = path.with_file_name(CONFIG_FILE);
        let description = match of_nanogpt {
            Some(found) => found,
            None if config_path.is_file() => {
                let json = read_json(&config_path)?;
                Description::of_json(&json).map_err(|reason| wrong(&config_path, reason))?
            }
            // A state dict alone, with the matrices of linear layers: (3C, C), not (C, 3C).
            None if tensors
                .get("h.0.attn.c_attn.weight")
                .is_some_and(|w| matches!(w.shape[..], [rows, columns] if rows > columns)) =>
            {
                Description::of_mingpt()
            }
            None => {
                let reason =
                    "is missing: transformers saves it with the model, and it says what the model is";
                return Err(wrong(&config_path, reason));
            }
        };
        Ok(Self { path, config_path, description, tensors, dataset })
    }

    /// The model and its weights.
    fn model(&mut self, n_heads: Option<usize>) -> Result<(ModelConfig, Parameters)> {
        let description = &mut self.description;
        description.n_heads = description.n_heads.or(n_heads);
        weights::read(description, &mut self.tensors, &self.config_path)
    }
}

/// The file of a model: the path itself, or a file of the directory.
fn model_file(given: &Path) -> Result<PathBuf> {
    if !given.exists() {
        return Err(wrong(
            given,
            "does not exist: give a directory that transformers saved, or a ckpt.pt of nanoGPT",
        ));
    }
    if given.is_file() {
        // A file of a checkpoint is refused like the checkpoint.
        if let Some(Ok(Place::Checkpoint(run, _))) = given.parent().map(locate) {
            model_of_run(given, &run)?;
        }
        return Ok(given.to_path_buf());
    }
    if let Ok(Place::Run(run) | Place::Checkpoint(run, _)) = locate(given) {
        return model_of_run(given, &run);
    }
    let found = MODEL_FILES.iter().map(|name| given.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let names = MODEL_FILES.join(", ");
        wrong(given, format!("holds no model that folio can read: none of {names} is in it"))
    })
}

/// The weights of a run that was imported. A run that was trained has a text, which must stay apart from what is evaluated.
fn model_of_run(given: &Path, run: &crate::run_dir::RunDir) -> Result<PathBuf> {
    if !run.settings()?.has_text() {
        return Ok(run.checkpoint(crate::checkpoint::CheckpointName::Epoch(0)).join(MODEL_FILES[0]));
    }
    let reason = "is a run of folio: continue it with --from_checkpoint and --weights_only, which keep its evaluation text \
                  apart from the training text";
    Err(wrong(given, reason))
}

/// The value in a JSON file.
fn read_json(path: &Path) -> Result<Value> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(Error::file("read", path))?;
    if bytes.len() as u64 > MAX_JSON_BYTES {
        return Err(wrong(path, format!("is larger than {} MiB", MAX_JSON_BYTES >> 20)));
    }
    let not_json = |error: serde_json::Error| wrong(path, format!("is not valid JSON: {error}"));
    serde_json::from_slice(&bytes).map_err(not_json)
}

fn wrong(path: &Path, reason: impl Into<String>) -> Error {
    Error::Import { path: path.to_path_buf(), reason: reason.into() }
}
