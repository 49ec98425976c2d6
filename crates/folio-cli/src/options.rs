//! The settings of `folio train` as flags, and as keys of a preset or config file.
//!
//! Each is optional here. Later sources give way to earlier ones: flags, `--config`, `--preset`, the run that
//! is continued, the defaults of [`Settings`].

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use folio::data::SplitKind;
use folio::error::Error;
use folio::model::{PrecisionChoice, resolve_precision};
use folio::schedule::{ScheduleKind, Unit};
use folio::settings::{Keep, Settings};
use folio::sweep::{Choice, Number, Plan, Space};
use folio::text::TextFiles;
use folio::tokenizer::TokenizerKind;
use serde::{Deserialize, Deserializer, Serialize};

#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[command(rename_all = "snake_case")]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// UTF-8 text to train on, packed with gzip or not: files, directories (the .txt and .gz files in them), patterns
    /// such as 'plays/*.txt', or - for stdin [default: the embedded tiny Shakespeare]
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Text")]
    #[serde(default, deserialize_with = "one_or_many_paths")]
    pub(crate) data: Option<Vec<PathBuf>>,
    /// Text to evaluate on, as --data takes it; the whole of --data is then trained on
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Text")]
    #[serde(default, deserialize_with = "one_or_many_paths")]
    pub(crate) eval_data: Option<Vec<PathBuf>>,
    /// Read special tokens that are written in the text, such as <|endoftext|>, as single tokens; corpus_bpe then has
    /// <|endoftext|>
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Text")]
    pub(crate) special_tokens: Option<bool>,
    /// How text becomes tokens: chrs (one per character), bpe (GPT-2's 50,257), corpus_bpe (a BPE learned from the
    /// training text) or the path of a tokenizer.json [default: chrs]
    #[arg(long, value_name = "NAME|FILE", help_heading = "Text")]
    pub(crate) tokenizer_type: Option<TokenizerKind>,
    /// Tokens that corpus_bpe learns [default: 1024]
    #[arg(long, value_name = "N", help_heading = "Text", value_parser = whole::<usize>)]
    pub(crate) vocab_size: Option<usize>,
    /// blocks (80/10/10, shuffled) or contiguous (first 90 % of the characters, last 10 %) [default: blocks;
    /// contiguous for corpus_bpe, which must not learn from evaluation text]
    #[arg(long, value_name = "NAME", help_heading = "Text")]
    pub(crate) split: Option<SplitKind>,

    /// Width of the model [default: 384]
    #[arg(long, value_name = "N", help_heading = "Model", value_parser = whole::<usize>)]
    pub(crate) n_emb: Option<usize>,
    /// Attention heads [default: 6]
    #[arg(long, value_name = "N", help_heading = "Model", value_parser = whole::<usize>)]
    pub(crate) n_heads: Option<usize>,
    /// Transformer blocks [default: 6]
    #[arg(long, value_name = "N", help_heading = "Model", value_parser = whole::<usize>)]
    pub(crate) n_blocks: Option<usize>,
    /// Tokens per sequence: the context length * [default: 256]
    #[arg(long, visible_alias = "block_size", value_name = "N", num_args = 1.., value_delimiter = ',', help_heading = "Model")]
    #[serde(default, alias = "block_size", deserialize_with = "one_or_many")]
    pub(crate) block_sizes: Option<Vec<Choice<usize>>>,
    /// Share dropped from embeddings, attention weights and both residual branches * [default: 0.2]
    #[arg(long, visible_alias = "dropout", value_name = "X", num_args = 1.., value_delimiter = ',', help_heading = "Model")]
    #[serde(default, alias = "dropout", deserialize_with = "one_or_many")]
    pub(crate) dropouts: Option<Vec<Choice<f64>>>,

    /// Numbers to compute in: f32, bf16, or auto for the faster on this machine [default: auto]
    #[arg(long, value_name = "NAME", help_heading = "Training")]
    pub(crate) precision: Option<PrecisionChoice>,
    /// Epochs to train; from a checkpoint, further epochs [default: 10]
    #[arg(long, visible_alias = "epochs", value_name = "N", help_heading = "Training", value_parser = whole::<u64>)]
    #[serde(alias = "epochs")]
    pub(crate) num_epochs: Option<u64>,
    /// Stop after N optimizer steps in all, even inside an epoch
    #[arg(long, value_name = "N", help_heading = "Training", value_parser = whole::<u64>)]
    pub(crate) max_steps: Option<u64>,
    /// Sequences per step * [default: 64]
    #[arg(long, visible_alias = "batch_size", value_name = "N", num_args = 1.., value_delimiter = ',', help_heading = "Training")]
    #[serde(default, alias = "batch_size", deserialize_with = "one_or_many")]
    pub(crate) batch_sizes: Option<Vec<Choice<usize>>>,
    /// AdamW's peak rate * [default: 1e-3]
    #[arg(long, visible_alias = "lr", value_name = "X", num_args = 1.., value_delimiter = ',', help_heading = "Training")]
    #[serde(default, alias = "lr", deserialize_with = "one_or_many")]
    pub(crate) learning_rates: Option<Vec<Choice<f64>>>,
    /// AdamW's decoupled weight decay * [default: 1e-2]
    #[arg(long, value_name = "X", num_args = 1.., value_delimiter = ',', help_heading = "Training")]
    #[serde(default, deserialize_with = "one_or_many")]
    pub(crate) weight_decays: Option<Vec<Choice<f64>>>,
    /// Decay biases and LayerNorm too, as the ancestor does, not only matrices
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Training")]
    pub(crate) decay_all_parameters: Option<bool>,
    /// AdamW's decay of the mean of gradients [default: 0.9]
    #[arg(long, value_name = "X", help_heading = "Training", value_parser = real::<f64>)]
    pub(crate) beta1: Option<f64>,
    /// AdamW's decay of the mean of squared gradients [default: 0.99]
    #[arg(long, value_name = "X", help_heading = "Training", value_parser = real::<f64>)]
    pub(crate) beta2: Option<f64>,
    /// AdamW's term in the denominator [default: 1e-8]
    #[arg(long, value_name = "X", help_heading = "Training", value_parser = real::<f64>)]
    pub(crate) eps: Option<f64>,
    /// Norm that gradients are clipped to; 0 clips nothing [default: 1]
    #[arg(long, value_name = "X", help_heading = "Training", value_parser = real::<f64>)]
    pub(crate) grad_clip: Option<f64>,
    /// Steps in a row to skip whose loss or gradients are not finite, before training stops [default: 10]
    #[arg(long, value_name = "N", help_heading = "Training", value_parser = whole::<u64>)]
    pub(crate) max_skipped_steps: Option<u64>,
    /// Seed of the weights, the split, the order of the blocks and dropout [default: 1337]
    #[arg(long, value_name = "N", help_heading = "Training", value_parser = whole::<u64>)]
    pub(crate) seed: Option<u64>,

    /// const, cosine or cosine_warm_restarts [default: const]
    #[arg(long, value_name = "NAME", help_heading = "Learning-rate schedule")]
    pub(crate) lr_schedule: Option<ScheduleKind>,
    /// What the schedule counts: epoch (one rate per epoch) or step [default: epoch]
    #[arg(long, value_name = "NAME", help_heading = "Learning-rate schedule")]
    pub(crate) lr_schedule_unit: Option<Unit>,
    /// Steps of linear warm-up [default: 0]
    #[arg(long, value_name = "N", help_heading = "Learning-rate schedule", value_parser = whole::<u64>)]
    pub(crate) warmup_steps: Option<u64>,
    /// Floor of the cosine * [default: 1e-6]
    #[arg(long, value_name = "X", num_args = 1.., value_delimiter = ',', help_heading = "Learning-rate schedule")]
    #[serde(default, deserialize_with = "one_or_many")]
    pub(crate) cosine_final_lr: Option<Vec<Choice<f64>>>,
    /// Half a period, in the schedule's unit * [default: 10]
    #[arg(long = "cosine_T_max", value_name = "N", num_args = 1.., value_delimiter = ',', help_heading = "Learning-rate schedule")]
    #[serde(default, rename = "cosine_T_max", deserialize_with = "one_or_many")]
    pub(crate) cosine_t_max: Option<Vec<Choice<u64>>>,
    /// Growth of the period at each restart * [default: 1]
    #[arg(long = "cosine_T_mult", value_name = "N", num_args = 1.., value_delimiter = ',', help_heading = "Learning-rate schedule")]
    #[serde(default, rename = "cosine_T_mult", deserialize_with = "one_or_many")]
    pub(crate) cosine_t_mult: Option<Vec<Choice<u64>>>,
    /// Factor on the whole rate at each restart * [default: 1]
    #[arg(long, value_name = "X", num_args = 1.., value_delimiter = ',', help_heading = "Learning-rate schedule")]
    #[serde(default, deserialize_with = "one_or_many")]
    pub(crate) cosine_lr_restart_decay: Option<Vec<Choice<f64>>>,

    /// Directory that the run is saved in; a sweep saves in run_1, run_2, … there [default: a new one in runs/]
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Accepted as in the original project; losses are always saved
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Files")]
    pub(crate) save_losses: Option<bool>,
    /// Keep checkpoint_N of every epoch N, not only the newest and the best
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Files")]
    pub(crate) save_checkpoint: Option<bool>,
    /// Also save a resumable checkpoint every N steps
    #[arg(long, value_name = "N", help_heading = "Files", value_parser = whole::<u64>)]
    pub(crate) save_every: Option<u64>,
    /// What to keep of earlier epochs' checkpoints: all, weights (without the optimizer's state), or best (only the newest
    /// and the best) [default: best; with --save_checkpoint weights]
    #[arg(long, value_name = "WHAT", help_heading = "Files")]
    pub(crate) keep: Option<Keep>,
    /// Write event files for TensorBoard, to be read with tensorboard --logdir DIR
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", help_heading = "Files")]
    pub(crate) tensorboard: Option<bool>,
    /// Tokens of text to write when training has ended; as many are recorded after every epoch [default: none; 100]
    #[arg(long, value_name = "N", help_heading = "Files", value_parser = whole::<usize>)]
    pub(crate) sample_tokens: Option<usize>,

    /// How to search: grid (every combination), random, or halving, which stops poor runs early [default: grid]
    #[arg(long, value_name = "NAME", help_heading = "Search")]
    pub(crate) search: Option<Search>,
    /// Points to draw at random; halving without it takes every combination
    #[arg(long, value_name = "N", help_heading = "Search", value_parser = whole::<usize>)]
    pub(crate) trials: Option<usize>,
    /// Of how many runs halving keeps one at each stage, which is as many times as long as the one before [default: 3]
    #[arg(long, value_name = "N", help_heading = "Search", value_parser = whole::<u64>)]
    pub(crate) halving_factor: Option<u64>,
}

/// How settings are searched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub(crate) enum Search {
    /// Every combination.
    #[default]
    Grid,
    /// Points drawn at random.
    Random,
    /// Either of them, by successive halving.
    Halving,
}

impl TryFrom<String> for Search {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl FromStr for Search {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "grid" => Ok(Self::Grid),
            "random" => Ok(Self::Random),
            "halving" => Ok(Self::Halving),
            _ => Err(Error::unknown_name("search", name, &["grid", "random", "halving"])),
        }
    }
}

impl Options {
    /// The names of all options: the flags without their hyphens, the keys of a file.
    pub(crate) fn names() -> Vec<String> {
        let command = Options::augment_args(clap::Command::new("options"));
        let names =
            command.get_arguments().flat_map(|arg| arg.get_long_and_visible_aliases().unwrap_or_default());
        names.map(str::to_owned).collect()
    }

    /// The names of the options that are given.
    pub(crate) fn flags(&self) -> anyhow::Result<Vec<String>> {
        Ok(toml::Table::try_from(self)?.keys().cloned().collect())
    }

    /// These options, and where they are silent those of `fallback`.
    pub(crate) fn or(self, fallback: &Options) -> anyhow::Result<Options> {
        let mut table = toml::Table::try_from(fallback)?;
        table.extend(toml::Table::try_from(&self)?);
        Ok(table.try_into()?)
    }

    /// These options, with nothing to be saved.
    pub(crate) fn without_saving(self) -> Self {
        Self {
            run_dir: None,
            save_losses: None,
            save_checkpoint: None,
            save_every: None,
            keep: None,
            tensorboard: None,
            ..self
        }
    }

    /// What a run that is continued passes on: its text, model, optimizer and schedule.
    pub(crate) fn inherited(settings: &Settings) -> Options {
        Options {
            data: (!settings.data.is_embedded()).then(|| settings.data.paths()),
            eval_data: settings.eval_data.as_ref().map(TextFiles::paths),
            special_tokens: Some(settings.special_tokens),
            tokenizer_type: Some(settings.tokenizer_type.clone()),
            vocab_size: settings.vocab_size,
            split: Some(settings.split),
            n_emb: Some(settings.n_emb),
            n_heads: Some(settings.n_heads),
            n_blocks: Some(settings.n_blocks),
            block_sizes: Some(vec![Choice::Value(settings.block_size)]),
            dropouts: Some(vec![Choice::Value(settings.dropout)]),
            precision: Some(settings.precision.into()),
            batch_sizes: Some(vec![Choice::Value(settings.batch_size)]),
            learning_rates: Some(vec![Choice::Value(settings.learning_rate)]),
            weight_decays: Some(vec![Choice::Value(settings.weight_decay)]),
            decay_all_parameters: Some(settings.decay_all_parameters),
            beta1: Some(settings.beta1),
            beta2: Some(settings.beta2),
            eps: Some(settings.eps),
            grad_clip: Some(settings.grad_clip),
            max_skipped_steps: Some(settings.max_skipped_steps),
            seed: Some(settings.seed),
            lr_schedule: Some(settings.lr_schedule),
            lr_schedule_unit: Some(settings.lr_schedule_unit),
            warmup_steps: Some(settings.warmup_steps),
            cosine_final_lr: Some(vec![Choice::Value(settings.cosine_final_lr)]),
            cosine_t_max: Some(vec![Choice::Value(settings.cosine_t_max)]),
            cosine_t_mult: Some(vec![Choice::Value(settings.cosine_t_mult)]),
            cosine_lr_restart_decay: Some(vec![Choice::Value(settings.cosine_lr_restart_decay)]),
            ..Options::default()
        }
    }

    /// All that a run was begun with.
    pub(crate) fn of(settings: &Settings) -> Options {
        Options {
            num_epochs: Some(settings.num_epochs),
            max_steps: settings.max_steps,
            save_losses: Some(settings.save_losses),
            save_checkpoint: Some(settings.save_checkpoint),
            save_every: settings.save_every,
            keep: Some(settings.keep),
            tensorboard: Some(settings.tensorboard),
            sample_tokens: settings.sample_tokens,
            ..Self::inherited(settings)
        }
    }

    /// The settings that all runs share, and the values that a search goes through.
    pub(crate) fn settings(&self) -> (Settings, Space) {
        let default = Settings::default();
        let (n_emb, n_heads) = (self.n_emb.unwrap_or(default.n_emb), self.n_heads.unwrap_or(default.n_heads));
        let tokenizer_type = self.tokenizer_type.clone().unwrap_or(default.tokenizer_type);
        let learns = tokenizer_type == TokenizerKind::CorpusBpe;
        let base = Settings {
            tokenizer_type,
            vocab_size: self.vocab_size.or(learns.then_some(1024)),
            split: self.split.unwrap_or(if learns || self.eval_data.is_some() {
                SplitKind::Contiguous
            } else {
                default.split
            }),
            special_tokens: self.special_tokens.unwrap_or(default.special_tokens),
            seed: self.seed.unwrap_or(default.seed),
            n_emb,
            n_heads,
            precision: resolve_precision(self.precision.unwrap_or_default(), n_emb, n_heads),
            n_blocks: self.n_blocks.unwrap_or(default.n_blocks),
            num_epochs: self.num_epochs.unwrap_or(default.num_epochs),
            max_steps: self.max_steps,
            decay_all_parameters: self.decay_all_parameters.unwrap_or(default.decay_all_parameters),
            beta1: self.beta1.unwrap_or(default.beta1),
            beta2: self.beta2.unwrap_or(default.beta2),
            eps: self.eps.unwrap_or(default.eps),
            grad_clip: self.grad_clip.unwrap_or(default.grad_clip),
            lr_schedule: self.lr_schedule.unwrap_or(default.lr_schedule),
            lr_schedule_unit: self.lr_schedule_unit.unwrap_or(default.lr_schedule_unit),
            warmup_steps: self.warmup_steps.unwrap_or(default.warmup_steps),
            save_losses: self.save_losses.unwrap_or(false),
            save_checkpoint: self.save_checkpoint.unwrap_or(self.keep.is_some_and(|keep| keep != Keep::Best)),
            save_every: self.save_every,
            keep: self.keep.unwrap_or_default(),
            max_skipped_steps: self.max_skipped_steps.unwrap_or(default.max_skipped_steps),
            sample_tokens: self.sample_tokens,
            tensorboard: self.tensorboard.unwrap_or(false),
            ..default
        };
        let single = Space::of(&base);
        let given = self.clone();
        let space = Space {
            block_sizes: given.block_sizes.unwrap_or(single.block_sizes),
            batch_sizes: given.batch_sizes.unwrap_or(single.batch_sizes),
            learning_rates: given.learning_rates.unwrap_or(single.learning_rates),
            weight_decays: given.weight_decays.unwrap_or(single.weight_decays),
            dropouts: given.dropouts.unwrap_or(single.dropouts),
            cosine_final_lr: given.cosine_final_lr.unwrap_or(single.cosine_final_lr),
            cosine_t_max: given.cosine_t_max.unwrap_or(single.cosine_t_max),
            cosine_t_mult: given.cosine_t_mult.unwrap_or(single.cosine_t_mult),
            cosine_lr_restart_decay: given.cosine_lr_restart_decay.unwrap_or(single.cosine_lr_restart_decay),
        };
        (base, space)
    }

    /// How far the runs of a search are trained, and their settings, over settings and a space from
    /// [`Options::settings`].
    ///
    /// # Errors
    /// If the flags of the search contradict each other.
    pub(crate) fn search(&self, base: &Settings, space: &Space) -> Result<(Plan, Vec<Settings>), Error> {
        let search = self.search.unwrap_or_default();
        let wrong = |setting, reason: &str| Err(Error::Setting { setting, reason: reason.to_owned() });
        match (search, self.trials, self.halving_factor) {
            (_, Some(0), _) => return wrong("--trials", "0 is too few: give at least 1"),
            (Search::Grid, Some(_), _) => return wrong("--trials", "goes with --search random or halving"),
            (Search::Random, None, _) => {
                return wrong("--search", "random needs to know how often to draw: add --trials");
            }
            (Search::Grid | Search::Random, _, Some(_)) => {
                return wrong("--halving_factor", "goes with --search halving");
            }
            (Search::Halving, _, Some(0 | 1)) => {
                return wrong("--halving_factor", "keeps one run of so many: give at least 2");
            }
            (Search::Halving, ..) if self.max_steps.is_some() => {
                return wrong("--max_steps", "halving counts epochs: give --num_epochs instead");
            }
            _ => {}
        }
        let plan = match search {
            Search::Grid | Search::Random => Plan::Full,
            Search::Halving => Plan::Halving { factor: self.halving_factor.unwrap_or(3) },
        };
        let runs = self.trials.map_or_else(|| space.grid(base), |trials| Ok(space.draw(base, trials)))?;
        Ok((plan, runs))
    }
}

/// Reads a count from the command line. The largest is TOML's, so that every flag can stand in a config file, or that of
/// the type if it is smaller.
pub(crate) fn whole<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    const LARGEST: [u64; 3] = [i64::MAX as u64, u32::MAX as u64, u16::MAX as u64];
    let largest = LARGEST.into_iter().find(|&number| T::try_from(number).is_ok()).unwrap_or(u8::MAX.into());
    let number = text.parse().ok().filter(|&number| number <= largest);
    let number = number.and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| format!("give a whole number from 0 to {largest}"))
}

/// Reads a number from the command line.
pub(crate) fn real<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| f64::EXPECTED.to_owned())
}

/// Reads `x` as well as `[x, y]`.
fn one_or_many<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "give a number, a range as in \"8..64:log\", or several as in [1, 2]")]
    enum OneOrMany<T> {
        One(T),
        Many(Vec<T>),
    }
    match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(value) => Ok(Some(vec![value])),
        OneOrMany::Many(values) if values.is_empty() => {
            Err(serde::de::Error::custom("an empty list: give at least one value, or leave the key out"))
        }
        OneOrMany::Many(values) => Ok(Some(values)),
    }
}

/// Reads `"a.txt"` as well as `["a.txt", "b.txt"]`.
fn one_or_many_paths<'de, D>(deserializer: D) -> Result<Option<Vec<PathBuf>>, D::Error>
where
    D: Deserializer<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "give a path, or several as in [\"a.txt\", \"b.txt\"]")]
    enum OneOrMany {
        One(PathBuf),
        Many(Vec<PathBuf>),
    }
    Ok(Some(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(path) => vec![path],
        OneOrMany::Many(paths) => paths,
    }))
}
