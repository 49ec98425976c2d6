//! Everything that a run is determined by.

use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::{SplitKind, Texts, training_text};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, Precision};
use crate::optim::AdamWConfig;
use crate::schedule::{Schedule, ScheduleKind, Unit};
use crate::text::TextFiles;
use crate::tokenizer::{END_OF_TEXT, Tokenizer, TokenizerKind};

mod traps;

pub use traps::Trap;

/// The settings of one run: the content of `hyperparameters.json`. Names are the ancestor's where it has them;
/// where it takes several values, this holds the one of this run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The text: a path, `tiny-shakespeare` for the embedded one, or `-` for stdin; a list of several files.
    pub data: TextFiles,
    /// The text's SHA-256, by which a resumption knows it again.
    pub data_sha256: String,
    /// The text to evaluate on, if it is one of its own; then the whole of `data` trains, and `split` divides nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_data: Option<TextFiles>,
    /// Its SHA-256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_data_sha256: Option<String>,
    /// Whether special tokens that are written in the text, such as `<|endoftext|>`, are single tokens.
    pub special_tokens: bool,
    /// How text becomes tokens.
    pub tokenizer_type: TokenizerKind,
    /// Tokens that `corpus_bpe` learns; none for other tokenizers, which know their own number.
    pub vocab_size: Option<usize>,
    /// How the text is divided into training and evaluation.
    pub split: SplitKind,
    /// The seed of every random stream of the run.
    pub seed: u64,
    /// C, the model's width.
    pub n_emb: usize,
    /// H, attention heads.
    pub n_heads: usize,
    /// L, transformer blocks.
    pub n_blocks: usize,
    /// Tokens per sequence.
    pub block_size: usize,
    /// Sequences per step.
    pub batch_size: usize,
    /// Micro-batches per step and process, which are computed one after the other.
    pub gradient_accumulation_steps: usize,
    /// The share that dropout drops.
    pub dropout: f64,
    /// In what numbers the model computes.
    pub precision: Precision,
    /// Epochs to train; from a checkpoint, further epochs.
    pub num_epochs: u64,
    /// Stops after so many optimizer steps in all, if epochs have not ended it before.
    pub max_steps: Option<u64>,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Whether biases and LayerNorm decay as well.
    pub decay_all_parameters: bool,
    /// AdamW's decay of the mean of gradients.
    pub beta1: f64,
    /// AdamW's decay of the mean of squared gradients.
    pub beta2: f64,
    /// AdamW's term in the denominator.
    pub eps: f64,
    /// The norm that gradients are clipped to; 0 clips nothing.
    pub grad_clip: f64,
    /// How the learning rate moves.
    pub lr_schedule: ScheduleKind,
    /// What the schedule counts.
    pub lr_schedule_unit: Unit,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// The floor of the cosine.
    pub cosine_final_lr: f64,
    /// Half a period, in the schedule's unit.
    #[serde(rename = "cosine_T_max")]
    pub cosine_t_max: u64,
    /// Growth of the period at each restart.
    #[serde(rename = "cosine_T_mult")]
    pub cosine_t_mult: u64,
    /// Factor on the whole rate at each restart.
    pub cosine_lr_restart_decay: f64,
    /// Whether the run was started with `--save_losses`. The losses of a run that has a directory are always saved.
    pub save_losses: bool,
    /// Whether a checkpoint of every epoch is kept, and not only the newest and the best.
    pub save_checkpoint: bool,
    /// Saves a resumable checkpoint every N steps too, inside epochs.
    pub save_every: Option<u64>,
    /// What is kept of the checkpoints of earlier epochs, with `save_checkpoint`.
    pub keep: Keep,
    /// Steps in a row whose loss or gradients may be not finite, and which are skipped, before training stops.
    pub max_skipped_steps: u64,
    /// Tokens of text that the model writes after every epoch, for the records; none for a hundred.
    pub sample_tokens: Option<usize>,
    /// Whether an event file for TensorBoard is written.
    pub tensorboard: bool,
    /// The run that this one goes on from, if any.
    pub from_checkpoint_run_dir: Option<String>,
    /// The epoch of that run after which it goes on.
    pub from_checkpoint_step: Option<u64>,
    /// Whether the schedule counts from there.
    pub restart_schedule: bool,
    /// Whether nothing but the weights is taken from there: AdamW is new, and the schedule counts from there.
    pub weights_only: bool,
    /// Whether the text is another than the one that was trained on there.
    pub new_text: bool,
    /// Whether the vocabulary is extended by the characters of the text that it lacks.
    pub extend_vocab: bool,
}

/// What is kept of the checkpoints of earlier epochs. The newest two and the one with the lowest evaluation loss are
/// always kept whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub enum Keep {
    /// Weights and optimizer.
    All,
    /// The weights: enough to generate, to evaluate, and to continue with a fresh optimizer, as in the original project.
    #[default]
    Weights,
    /// Nothing.
    Best,
}

impl TryFrom<String> for Keep {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl FromStr for Keep {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "all" => Ok(Self::All),
            "weights" => Ok(Self::Weights),
            "best" => Ok(Self::Best),
            _ => Err(Error::unknown_name("way to keep checkpoints", name, &["all", "weights", "best"])),
        }
    }
}

impl Keep {
    /// The bytes that the checkpoints of so many epochs will take at most, of a model with so many parameters: four a
    /// weight and eight for AdamW's means, besides some thousands for the histories. A checkpoint is written before an
    /// older one is given up.
    pub fn disk_bytes(self, parameters: u64, epochs: u64) -> u64 {
        let whole = match self {
            Self::All => epochs,
            // The newest, the best, the epoch before the newest, one inside an epoch, and the one being written.
            Self::Weights | Self::Best => epochs.min(4) + 1,
        };
        let weights_alone = if self == Self::Weights { epochs.saturating_sub(whole) } else { 0 };
        parameters.saturating_mul(whole.saturating_mul(12).saturating_add(weights_alone.saturating_mul(4)))
    }
}

/// The interface's defaults; those it leaves open follow nanoGPT's setting for characters (beta2 0.99, clipping
/// at 1).
impl Default for Settings {
    fn default() -> Self {
        Self {
            data: TextFiles::One(crate::text::EMBEDDED_NAME.to_owned()),
            data_sha256: tiny_shakespeare::SHA256.to_owned(),
            eval_data: None,
            eval_data_sha256: None,
            special_tokens: false,
            tokenizer_type: TokenizerKind::Chrs,
            vocab_size: None,
            split: SplitKind::Blocks,
            seed: 1337,
            n_emb: 384,
            n_heads: 6,
            n_blocks: 6,
            block_size: 256,
            batch_size: 64,
            gradient_accumulation_steps: 1,
            dropout: 0.2,
            precision: Precision::F32,
            num_epochs: 10,
            max_steps: None,
            learning_rate: 1e-3,
            weight_decay: 1e-2,
            decay_all_parameters: false,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            grad_clip: 1.0,
            lr_schedule: ScheduleKind::Const,
            lr_schedule_unit: Unit::Epoch,
            warmup_steps: 0,
            cosine_final_lr: 1e-6,
            cosine_t_max: 10,
            cosine_t_mult: 1,
            cosine_lr_restart_decay: 1.0,
            save_losses: false,
            save_checkpoint: false,
            save_every: None,
            keep: Keep::Weights,
            max_skipped_steps: 10,
            sample_tokens: None,
            tensorboard: false,
            from_checkpoint_run_dir: None,
            from_checkpoint_step: None,
            restart_schedule: false,
            weights_only: false,
            new_text: false,
            extend_vocab: false,
        }
    }
}

impl Settings {
    /// The settings that may change when a run is resumed: how long it trains and what it saves, nothing that decides how
    /// it learns. The text is compared by its hash, so that its path may change; so is the evaluation text.
    pub const MAY_CHANGE: [&str; 12] = [
        "num_epochs",
        "gradient_accumulation_steps",
        "max_steps",
        "save_every",
        "keep",
        "save_losses",
        "save_checkpoint",
        "max_skipped_steps",
        "sample_tokens",
        "tensorboard",
        "data",
        "eval_data",
    ];

    /// Checks every setting by itself and against the others.
    pub fn validate(&self) -> Result<()> {
        match (&self.tokenizer_type, self.vocab_size) {
            (TokenizerKind::CorpusBpe, Some(size)) if size < 256 => {
                let reason = format!("{size} is too few: 256 tokens are single bytes, so give at least 256");
                return Err(Error::setting("--vocab_size", reason));
            }
            (TokenizerKind::CorpusBpe, Some(_)) => _ = training_text("", self.split)?,
            (TokenizerKind::CorpusBpe, None) => {
                let reason = "corpus_bpe needs to know how many tokens to learn: give 1024, for example";
                return Err(Error::setting("--vocab_size", reason));
            }
            (other, Some(_)) => {
                let reason = format!("{other} has a vocabulary of its own: leave it out, or take corpus_bpe");
                return Err(Error::setting("--vocab_size", reason));
            }
            (_, None) => {}
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let reason = format!("{} is outside [0, 1): 0 drops nothing, 0.2 a fifth", self.dropout);
            return Err(Error::setting("--dropouts", reason));
        }
        if self.dropout as f32 == 1.0 {
            let reason =
                format!("{} is 1 in single precision, which drops everything: give less", self.dropout);
            return Err(Error::setting("--dropouts", reason));
        }
        // The vocabulary's size is known only with the text; any size stands for it here.
        let model = self.model_config(1);
        model.validate()?;
        self.precision.check(&model)?;
        let counts = [
            ("--batch_sizes", self.batch_size as u64),
            ("--num_epochs", self.num_epochs),
            ("--max_steps", self.max_steps.unwrap_or(1)),
            ("--save_every", self.save_every.unwrap_or(1)),
            ("--max_skipped_steps", self.max_skipped_steps),
            ("--cosine_T_max", self.cosine_t_max),
            ("--cosine_T_mult", self.cosine_t_mult),
        ];
        for (flag, count) in counts {
            if count == 0 {
                return Err(Error::setting(flag, "0 is too few: give a whole number of at least 1"));
            }
        }
        let positive = [("--learning_rates", self.learning_rate), ("--eps", self.eps)];
        let not_negative = [
            ("--weight_decays", self.weight_decay),
            ("--grad_clip", self.grad_clip),
            ("--cosine_final_lr", self.cosine_final_lr),
            ("--cosine_lr_restart_decay", self.cosine_lr_restart_decay),
        ];
        for (flag, value) in positive.into_iter().chain(not_negative) {
            let positive = positive.iter().any(|(name, _)| *name == flag);
            if !value.is_finite() || value < 0.0 || (positive && value == 0.0) {
                let range = if positive { "greater than 0" } else { "0 or more" };
                return Err(Error::setting(flag, format!("must be {range}, not {value}")));
            }
            let narrowed = !["--grad_clip", "--cosine_lr_restart_decay"].contains(&flag);
            if narrowed && value > f64::from(f32::MAX) {
                let reason = format!("{value:e} is too large for single precision: give at most 3.4e38");
                return Err(Error::setting(flag, reason));
            }
        }
        if self.eps < f64::from(f32::MIN_POSITIVE) {
            let reason = format!(
                "{:e} is too small for single precision, in which 0 / 0 is not a number: give at least 1.2e-38",
                self.eps
            );
            return Err(Error::setting("--eps", reason));
        }
        for (flag, beta) in [("--beta1", self.beta1), ("--beta2", self.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::setting(
                    flag,
                    format!("{beta} is outside [0, 1): 0.9 and 0.99 are usual"),
                ));
            }
        }
        Ok(())
    }

    /// The tokenizer of a new run on these texts. `chrs` has the characters of all of them; `corpus_bpe` learns from what
    /// is trained on alone, and with `special_tokens` has `<|endoftext|>`.
    ///
    /// # Errors
    /// If the text cannot give so large a vocabulary, or the tokenizer's file cannot be used.
    pub fn tokenizer(&self, texts: &Texts) -> Result<Tokenizer> {
        match &self.tokenizer_type {
            TokenizerKind::Chrs => {
                let all = |tokenizer: Tokenizer| {
                    tokenizer.decode(&(0..tokenizer.vocab_size() as u32).collect::<Vec<_>>())
                };
                let chars = Tokenizer::chars(&texts.data.text);
                let Some(eval) = &texts.eval else { return Ok(chars) };
                Ok(Tokenizer::chars(&(all(chars) + &all(Tokenizer::chars(&eval.text)))))
            }
            TokenizerKind::Bpe => Ok(Tokenizer::gpt2()),
            TokenizerKind::CorpusBpe => {
                let vocab_size = self.vocab_size.unwrap_or_default();
                let text = texts.training_text(self.split)?;
                if self.special_tokens {
                    // It is no word to learn.
                    return Tokenizer::train_bpe(
                        &text.replace(END_OF_TEXT, "\n"),
                        vocab_size,
                        &[END_OF_TEXT],
                    );
                }
                Tokenizer::train_bpe(text, vocab_size, &[])
            }
            TokenizerKind::File(path) => Tokenizer::read(path),
        }
    }

    /// What is kept of the checkpoints of earlier epochs.
    pub fn kept(&self) -> Keep {
        if self.save_checkpoint { self.keep } else { Keep::Best }
    }

    /// The settings that decide how the run learns from here on: a checkpoint keeps them, so that a run is not resumed
    /// with others by mistake.
    pub fn decisive(&self) -> Map<String, Value> {
        /// These say where the run began, which is over when it is resumed.
        const ORIGIN: [&str; 6] = [
            "from_checkpoint_run_dir",
            "from_checkpoint_step",
            "restart_schedule",
            "weights_only",
            "new_text",
            "extend_vocab",
        ];
        let Ok(Value::Object(mut settings)) = serde_json::to_value(self) else { unreachable!("a struct") };
        settings
            .retain(|name, _| !Self::MAY_CHANGE.contains(&name.as_str()) && !ORIGIN.contains(&name.as_str()));
        settings
    }

    /// The model of this run.
    pub fn model_config(&self, vocab_size: usize) -> ModelConfig {
        ModelConfig {
            vocab_size,
            n_blocks: self.n_blocks,
            n_emb: self.n_emb,
            n_heads: self.n_heads,
            block_size: self.block_size,
            dropout: self.dropout as f32,
        }
    }

    /// Notes that the run goes on from an epoch of another.
    pub fn continue_from(&mut self, run_dir: &Path, epoch: u64, restart_schedule: bool) {
        let run_dir = std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.to_path_buf());
        self.from_checkpoint_run_dir = Some(run_dir.display().to_string());
        self.from_checkpoint_step = Some(epoch);
        self.restart_schedule = restart_schedule;
    }

    /// The epochs of the whole history when this run has ended, those included that it goes on from.
    pub fn last_epoch(&self) -> u64 {
        self.from_checkpoint_step.unwrap_or(0).saturating_add(self.num_epochs)
    }

    /// The epochs before the first of this text.
    pub(crate) fn first_epoch_of_text(&self) -> u64 {
        self.from_checkpoint_step.filter(|_| self.new_text).unwrap_or(0)
    }

    /// The optimizer of this run.
    pub fn adamw(&self) -> AdamWConfig {
        AdamWConfig {
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: self.weight_decay,
            decay_all_parameters: self.decay_all_parameters,
            grad_clip: self.grad_clip,
        }
    }

    /// The learning-rate schedule of this run, without its warm-up.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            kind: self.lr_schedule,
            learning_rate: self.learning_rate,
            final_rate: self.cosine_final_lr,
            period: self.cosine_t_max,
            period_growth: self.cosine_t_mult,
            restart_decay: self.cosine_lr_restart_decay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(settings: Settings, flag: &str, part: &str) {
        let message = settings.validate().expect_err(flag).to_string();
        assert!(message.starts_with(flag) && message.contains(part), "{message}");
    }

    #[test]
    fn settings_that_single_precision_cannot_hold_are_refused() {
        let default = Settings::default;
        let huge = 1e39;
        check_refused(Settings { learning_rate: huge, ..default() }, "--learning_rates", "1e39");
        check_refused(Settings { weight_decay: huge, ..default() }, "--weight_decays", "3.4e38");
        check_refused(Settings { eps: huge, ..default() }, "--eps", "3.4e38");
        check_refused(Settings { cosine_final_lr: huge, ..default() }, "--cosine_final_lr", "3.4e38");
        for eps in [1e-50, 1e-39] {
            check_refused(Settings { eps, ..default() }, "--eps", "1.2e-38");
        }
        check_refused(Settings { dropout: 1.0 - 1e-12, ..default() }, "--dropouts", "0.999999999999 is 1 in");
        check_refused(Settings { dropout: -1e-60, ..default() }, "--dropouts", "outside [0, 1)");
        // What becomes 0 there would not have moved a weight, or dropped anything, either.
        let tiny = 1e-60;
        let small = Settings {
            learning_rate: tiny,
            weight_decay: tiny,
            cosine_final_lr: tiny,
            grad_clip: tiny,
            dropout: tiny,
            eps: 2e-38,
            ..default()
        };
        small.validate().unwrap();
    }
}
