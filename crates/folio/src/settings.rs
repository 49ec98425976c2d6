//! The settings of a run: their declaration, their values, and what follows from them.

use std::path::Path;

use serde_json::{Map, Value};

use crate::data::{Split, Texts};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::named_enum;
use crate::optim::{AdamWConfig, MuonConfig, OptimizerKind};
use crate::schedule::{Schedule, linear};
use crate::tokenizer::{END_OF_TEXT, Tokenizer, TokenizerKind};

mod choice;
mod declaration;
mod given;
mod kind;
mod setting;
mod space;
mod traps;

pub use choice::Choice;
pub use declaration::{SETTINGS, Settings};
pub use given::Given;
pub use kind::Kind;
pub use setting::{Range, Section, Setting, SettingType};
pub use space::Space;
pub use traps::Trap;

/// The tokens of single bytes, with which every trained tokenizer begins.
const BYTES: usize = 256;

/// The setting with this name in `hyperparameters.json`.
pub fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// What to keep of the checkpoints of earlier epochs. The newest two and the one with the lowest evaluation loss are
/// always kept in full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Weights and optimizer state.
    All,
    /// Weights only: enough to generate, to evaluate, and to continue with a fresh optimizer, as the original project
    /// does.
    #[default]
    Weights,
    /// Nothing.
    Best,
}

named_enum!(Keep, "retention mode", { All => "all", Weights => "weights", Best => "best" });

impl Keep {
    /// The most checkpoints with the optimizer's state, and the most without it, that there are at once after `epochs` epochs. A
    /// checkpoint is written before an older one is deleted. `inside`: whether the run also saves inside epochs.
    fn most_checkpoints(self, epochs: u64, inside: bool) -> (u64, u64) {
        // Inside epochs: the newest, the best, and the one being written.
        let whole = match self {
            Self::All => epochs.saturating_add(if inside { 3 } else { 0 }),
            // The newest, the best, the one before the newest, one within an epoch, and the one being written.
            Self::Weights | Self::Best => epochs.saturating_add(if inside { 2 } else { 0 }).min(4) + 1,
        };
        (whole, if self == Self::Weights { epochs.saturating_sub(whole) } else { 0 })
    }
}

impl Settings {
    /// The most bytes that the checkpoints of `epochs` epochs take for a model with this many `parameters`: four bytes per weight,
    /// eight for AdamW's moments and four for a moving average, besides a few thousand for the histories.
    pub fn disk_bytes(&self, parameters: u64, epochs: u64) -> u64 {
        let inside = self.eval_every.is_some() || self.save_every.is_some();
        let (whole, weights_alone) = self.kept().most_checkpoints(epochs, inside);
        let bytes = if self.ema_decay > 0.0 { 16 } else { 12 };
        parameters.saturating_mul(whole.saturating_mul(bytes).saturating_add(weights_alone.saturating_mul(4)))
    }

    /// Checks every setting's range, and the settings against each other.
    ///
    /// # Errors
    /// [`Error::Setting`] with the value and a valid one.
    pub fn validate(&self) -> Result<()> {
        for setting in SETTINGS {
            (setting.number)(self).map_or(Ok(()), |x| setting.check(x))?;
        }
        self.check_tokenizer()?;
        let (steps, batch_size) = (self.gradient_accumulation_steps, self.batch_size);
        if steps > batch_size {
            let reason = format!(
                "`gradient_accumulation_steps {steps}` is more than `batch_size {batch_size}`; use at most {batch_size}"
            );
            return Err(Error::setting("gradient_accumulation_steps", reason));
        }
        if self.zero > 0 && self.optimizer == OptimizerKind::Muon {
            let reason =
                "`zero 1` divides AdamW's moments over ranks, and Muon needs whole matrices; use `zero 0`";
            return Err(Error::setting("zero", reason.to_owned()));
        }
        // The size of the vocabulary is known once the text is read; any size serves here.
        self.freeze.check(self.n_blocks)?;
        let model = self.model_config(1);
        model.validate()?;
        self.precision.check(&model)
    }

    /// Checks the settings of a tokenizer that is trained on the text.
    fn check_tokenizer(&self) -> Result<()> {
        let is_trained = self.tokenizer_type == TokenizerKind::CorpusBpe;
        let reason = match self.vocab_size {
            None if is_trained => "a corpus_bpe tokenizer needs a size, such as 1024".to_owned(),
            Some(size) if is_trained && size < BYTES => {
                format!("`vocab_size {size}` is too small; use at least {BYTES}, one token for each byte")
            }
            Some(_) if !is_trained => {
                let kind = &self.tokenizer_type;
                format!(
                    "applies to `tokenizer_type corpus_bpe` only, and {kind} has a fixed vocabulary; leave it out"
                )
            }
            _ if is_trained => return self.split.check_cuts_text(),
            _ => return Ok(()),
        };
        Err(Error::setting("vocab_size", reason))
    }

    /// The tokenizer of a new run on these texts. `chrs` has the characters of all texts; `corpus_bpe` is trained on the
    /// training text only, and has `<|endoftext|>` if `special_tokens` is set.
    ///
    /// # Errors
    /// If the text is too short for the vocabulary, or the tokenizer's file cannot be used.
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
            TokenizerKind::Bpe => Tokenizer::try_gpt2(),
            TokenizerKind::CorpusBpe => {
                let vocab_size = self.vocab_size.unwrap_or_default();
                let text = texts.training_text(self.split)?;
                if self.special_tokens {
                    // The special token must not be learned as a word.
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

    /// Whether the run has a text. An imported model that was not trained since has none.
    pub fn has_text(&self) -> bool {
        !self.data_sha256.is_empty()
    }

    /// What to keep of the checkpoints of earlier epochs.
    pub fn kept(&self) -> Keep {
        if self.save_checkpoint { self.keep } else { Keep::Best }
    }

    /// The settings that decide how the run learns. A checkpoint records them, so that a run is not resumed with others
    /// by mistake.
    pub fn decisive(&self) -> Map<String, Value> {
        let Ok(Value::Object(mut values)) = serde_json::to_value(self) else { unreachable!("a struct") };
        let decides = |name: &str| setting(name).is_some_and(|setting| !setting.may_change);
        values.retain(|name, _| decides(name));
        values
    }

    /// The model of this run, whose tokenizer has `vocab_size` tokens.
    pub fn model_config(&self, vocab_size: usize) -> ModelConfig {
        ModelConfig {
            vocab_size: self.embedding_rows.map_or(vocab_size, |rows| rows.max(vocab_size)),
            n_blocks: self.n_blocks,
            n_emb: self.n_emb,
            n_heads: self.n_heads,
            block_size: self.block_size,
            dropout: self.dropout as f32,
            n_inner: self.n_inner,
            activation: self.activation,
            layer_norm_epsilon: self.layer_norm_epsilon as f32,
            tie_word_embeddings: self.tie_word_embeddings,
        }
    }

    /// Records that the run continues from an epoch of another run.
    pub fn continue_from(&mut self, run_dir: &Path, epoch: u64, restart_schedule: bool) {
        let run_dir = std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.to_path_buf());
        self.from_checkpoint_run_dir = Some(run_dir.display().to_string());
        self.from_checkpoint_step = Some(epoch);
        self.restart_schedule = restart_schedule;
    }

    /// The epoch at which this run ends, counted from the beginning of the run that it continues, if any.
    pub fn last_epoch(&self) -> u64 {
        self.from_checkpoint_step.unwrap_or(0).saturating_add(self.num_epochs)
    }

    /// How the text is divided.
    pub fn text_split(&self) -> Split {
        Split { kind: self.split, test_fraction: self.test_fraction }
    }

    /// The optimizer's settings.
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

    /// Muon's settings, if it updates the blocks' matrices.
    pub fn muon(&self) -> Option<MuonConfig> {
        let relative_rate = self.muon_learning_rate.map_or(1.0, |rate| rate / self.learning_rate);
        let config = MuonConfig { momentum: self.muon_momentum, relative_rate };
        (self.optimizer == OptimizerKind::Muon).then_some(config)
    }

    /// The weight decay at `progress`, from 0 at the start of the schedule to 1 at its T_max.
    pub fn weight_decay_at(&self, progress: f64) -> f64 {
        self.weight_decay_final.map_or(self.weight_decay, |last| linear(self.weight_decay, last, progress))
    }

    /// The dropout rate at `progress`.
    pub fn dropout_at(&self, progress: f64) -> f64 {
        self.dropout_final.map_or(self.dropout, |last| linear(self.dropout, last, progress))
    }

    /// The decay rate of the moving average of the weights at step t of the optimizer, counting from 1:
    /// `min(ema_decay, (1 + t) / (10 + t))`, so that the random initial weights are forgotten soon (TensorFlow's
    /// `ExponentialMovingAverage` with `num_updates`).
    pub fn ema_decay_at(&self, t: u64) -> f64 {
        self.ema_decay.min((1 + t) as f64 / (10 + t) as f64)
    }

    /// The learning-rate schedule, without warm-up.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            kind: self.lr_schedule,
            learning_rate: self.learning_rate,
            final_rate: self.cosine_final_lr,
            period: self.cosine_t_max,
            period_growth: self.cosine_t_mult,
            restart_decay: self.cosine_lr_restart_decay,
            decay_share: self.wsd_decay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Activation, Precision};

    #[track_caller]
    fn check_refused(settings: Settings, start: &str, part: &str) {
        let message = settings.validate().expect_err(start).to_string();
        assert!(message.starts_with(&format!("`{start} ")) && message.contains(part), "{message}");
    }

    #[test]
    fn numbers_that_single_precision_cannot_hold_are_refused() {
        let default = Settings::default;
        let huge = 1e39;
        check_refused(Settings { learning_rate: huge, ..default() }, "learning_rate", "1e39");
        check_refused(Settings { weight_decay: huge, ..default() }, "weight_decay", "3.4e38");
        check_refused(Settings { eps: huge, ..default() }, "eps", "3.4e38");
        check_refused(Settings { cosine_final_lr: huge, ..default() }, "cosine_final_lr", "3.4e38");
        for eps in [1e-50, 1e-39] {
            check_refused(Settings { eps, ..default() }, "eps", "1.2e-38");
        }
        check_refused(Settings { dropout: 1.0 - 1e-12, ..default() }, "dropout", "from 0 to less than 1");
        check_refused(
            Settings { label_smoothing: 1.0 - 1e-12, ..default() },
            "label_smoothing",
            "from 0 to less than 1",
        );
        let too_many = Settings { gradient_accumulation_steps: 65, ..default() };
        check_refused(too_many, "gradient_accumulation_steps", "use at most 64");
        check_refused(Settings { dropout: -1e-60, ..default() }, "dropout", "from 0 to less than 1");
        // These become 0 in single precision, and would not have changed a weight or dropped anything anyway.
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

    #[test]
    fn checkpoints_inside_epochs_take_disk_too() {
        let of = |save_checkpoint, keep, eval_every| Settings {
            save_checkpoint,
            keep,
            eval_every,
            ..Settings::default()
        };
        let bytes = |settings: Settings| [1, 10].map(|epochs| settings.disk_bytes(1, epochs));
        assert_eq!(bytes(of(false, Keep::All, None)), [2 * 12, 5 * 12]);
        assert_eq!(bytes(of(false, Keep::All, Some(5))), [4 * 12, 5 * 12]);
        assert_eq!(bytes(of(true, Keep::Weights, Some(5))), [4 * 12, 5 * 12 + 5 * 4]);
        assert_eq!(bytes(of(true, Keep::All, None)), [12, 10 * 12]);
        assert_eq!(bytes(of(true, Keep::All, Some(5))), [4 * 12, 13 * 12]);
        let averaged = Settings { ema_decay: 0.9, save_every: Some(5), ..of(true, Keep::All, None) };
        assert_eq!(bytes(averaged), [4 * 16, 13 * 16]);
    }

    #[test]
    fn variations_of_a_model_are_inherited_and_recorded() {
        let varied = Settings {
            n_inner: Some(7),
            activation: Activation::Gelu,
            layer_norm_epsilon: 1e-6,
            tie_word_embeddings: false,
            embedding_rows: Some(70),
            precision: Precision::F32,
            ..Settings::default()
        };
        let (inherited, _) = Given::from_settings(&varied, |setting| setting.inherited).resolve();
        assert_eq!(Settings { precision: Precision::F32, ..inherited }, varied);
        let config = varied.model_config(65);
        assert_eq!((config.n_inner, config.activation), (Some(7), Activation::Gelu));
        assert_eq!(config.vocab_size, 70, "65 tokens in 70 rows");
        assert_eq!((config.layer_norm_epsilon, config.tie_word_embeddings), (1e-6, false));
        let recorded: Vec<&str> = SETTINGS.iter().filter(|row| row.of_model).map(|row| row.name).collect();
        assert!(recorded.iter().all(|name| varied.decisive().contains_key(*name)), "{recorded:?}");
        assert!(recorded.iter().all(|name| !Settings::default().decisive().contains_key(*name)));
    }

    #[test]
    fn ranges_are_checked_with_one_message() {
        let default = Settings::default;
        let check = |settings: Settings, want: &str| {
            assert_eq!(settings.validate().unwrap_err().to_string(), want);
        };
        check(
            Settings { beta2: 1.0, ..default() },
            "`beta2 1` is out of range; use a number from 0 to less than 1",
        );
        check(
            Settings { num_epochs: 0, ..default() },
            "`num_epochs 0` is out of range; use an integer of at least 1",
        );
        check(
            Settings { save_every: Some(0), ..default() },
            "`save_every 0` is out of range; use an integer of at least 1",
        );
        check(
            Settings { grad_clip: -1.0, ..default() },
            "`grad_clip -1` is out of range; use a number of at least 0",
        );
        check(
            Settings { grad_clip: f64::NAN, ..default() },
            "`grad_clip NaN` is out of range; use a number of at least 0",
        );
        check(
            Settings { learning_rate: 0.0, ..default() },
            "`learning_rate 0` is out of range; use a number greater than 0, at most 3.4e38",
        );
        check(
            Settings { n_emb: 385, ..default() },
            "`n_emb 385` is not divisible by `n_heads 6`; use 384 or 390",
        );
    }

    #[test]
    fn settings_that_decide_how_a_run_learns_are_recorded_in_its_checkpoints() {
        let decisive = Settings::default().decisive();
        for name in ["learning_rate", "seed", "data_sha256", "cosine_T_max", "n_emb"] {
            assert!(decisive.contains_key(name), "{name}");
        }
        assert!(
            Settings { freeze: "blocks:1".parse().unwrap(), ..Settings::default() }
                .decisive()
                .contains_key("freeze")
        );
        for name in ["num_epochs", "keep", "data", "max_skipped_steps", "weights_only", "tensorboard"] {
            assert!(!decisive.contains_key(name), "{name}");
        }
    }

    #[test]
    fn names_keys_and_help_are_complete() {
        let mut seen = std::collections::BTreeSet::new();
        for setting in SETTINGS {
            assert!(setting.keys().all(|key| seen.insert(key)), "{} is declared twice", setting.name);
            assert!(!setting.help().ends_with('.') && !setting.help().is_empty(), "{}", setting.name);
        }
        let default = serde_json::to_value(Settings::default()).unwrap();
        let is_left_out = |setting: &&Setting| {
            let optional = ["eval_data", "init_from", "averaged_from", "teachers"]
                .iter()
                .any(|start| setting.name.starts_with(start));
            let as_before = ["freeze", "zero", "reduce_precision"];
            setting.of_model || optional || as_before.contains(&setting.name)
        };
        let declared = SETTINGS.iter().filter(|setting| !is_left_out(setting)).map(|setting| setting.name);
        assert!(default.as_object().unwrap().keys().map(String::as_str).eq(declared));
    }
}
