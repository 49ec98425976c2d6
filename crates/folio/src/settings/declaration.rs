//! Every setting of a run, declared once.
//!
//! From these rows come [`Settings`] and its defaults, the flags of `folio train` with their help, the keys of presets
//! and config files, what a search can vary, what a continued run inherits, the range checks, and which settings may
//! change when a run is resumed. To add a setting, add a row here and use the new field of [`Settings`].

use serde::{Deserialize, Serialize};

use super::Keep;
use super::kind::Kind;
use super::setting::{Range, Section, Setting, SettingType, declare_settings};
use crate::data::{BlockOffset, SplitKind};
use crate::model::{Activation, Frozen, ModelConfig, Precision, PrecisionChoice};
use crate::optim::OptimizerKind;
use crate::schedule::{ScheduleKind, Unit};
use crate::text::{EMBEDDED_NAME, TextFiles};
use crate::tokenizer::TokenizerKind;

/// The label of settings that do not affect how good a run is.
const NO_LABEL: &str = "";
/// Counts of which there must be one.
const COUNT: Range = Range::at_least(1.0);
/// A size of the model.
const SIZE: Range = Range::between(1.0, ModelConfig::LARGEST as f64);
/// Numbers of at least 0 that are computed with in single precision.
const NOT_NEGATIVE: Range = Range::between(0.0, F32_MAX);
/// Positive numbers that are computed with in single precision.
const POSITIVE: Range = Range::positive_to(F32_MAX);
/// The largest number in single precision, rounded down to the digits that messages show.
const F32_MAX: f64 = 3.4e38;
/// The smallest normal number in single precision, rounded up. Below it AdamW would compute 0 / 0.
const F32_MIN: f64 = 1.2e-38;

/// The epsilon of GPT-2's LayerNorms.
const GPT2_EPSILON: f64 = 1e-5;

// What an imported model has in common with GPT-2 is not written, as before there were imported models.

fn is_gpt2_activation(activation: &Activation) -> bool {
    *activation == Activation::GeluNew
}

fn is_gpt2_epsilon(epsilon: &f64) -> bool {
    *epsilon == GPT2_EPSILON
}

fn is_tied(tied: &bool) -> bool {
    *tied
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn is_f32(precision: &Precision) -> bool {
    *precision == Precision::F32
}

declare_settings! {
    /// UTF-8 text to train on, plain or gzipped: files, directories (their .txt and .gz files), patterns such as
    /// 'plays/*.txt', or - for stdin
    data: TextFiles = TextFiles::One(EMBEDDED_NAME.to_owned()) => {
        section: Some(Section::Text), may_change: true,
        default_text: Some("the embedded tiny Shakespeare"), short_help: Some("UTF-8 text"),
    }
    /// SHA-256 of the text, which identifies it when the run is resumed
    data_sha256: String = tiny_shakespeare::SHA256.to_owned() => { label: NO_LABEL, }
    /// Text to evaluate on, in the forms that --data takes; training then uses all of --data
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_data: Option<TextFiles> = None => { section: Some(Section::Text), may_change: true, }
    /// SHA-256 of the evaluation text
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_data_sha256: Option<String> = None => {}
    /// Encode special tokens in the text, such as <|endoftext|>, as single tokens; a corpus_bpe tokenizer then
    /// includes <|endoftext|>
    special_tokens: bool = false => { section: Some(Section::Text), }
    /// Tokenizer: chrs (one token per character), bpe (GPT-2's 50,257 tokens), corpus_bpe (a BPE trained on the
    /// training text) or the path of a tokenizer.json
    tokenizer_type: TokenizerKind = TokenizerKind::Chrs => {
        section: Some(Section::Text), value_name: Some("NAME|FILE"), label: "tokenizer",
        short_help: Some("chrs, bpe or corpus_bpe"),
    }
    /// Vocabulary size of a corpus_bpe tokenizer
    vocab_size: Option<usize> = None => { section: Some(Section::Text), default_text: Some("1024"), }
    /// How to split the text: blocks (80/10/10, shuffled) or contiguous (first 90 % of the characters, last 10 %)
    split: SplitKind = SplitKind::Blocks => {
        section: Some(Section::Text),
        default_text: Some("blocks; contiguous for corpus_bpe, which must not learn from evaluation text"),
    }
    /// Share of the evaluation text to hold out as a part named test: training does not choose the best model by it
    test_fraction: f64 = 0.0 => {
        section: Some(Section::Text), range: Range::FRACTION, default_text: Some("0; --split blocks also holds out 10 %"),
    }
    /// Seed of the weights, the split, the order of the blocks and dropout
    seed: u64 = 1337 => { section: Some(Section::Training), order: 1, }
    /// Width of the model
    n_emb: usize = 384 => {
        section: Some(Section::Model), range: SIZE, short_help: Some("Width of the model"),
    }
    /// Attention heads
    n_heads: usize = 6 => { section: Some(Section::Model), range: SIZE, }
    /// Transformer blocks
    n_blocks: usize = 6 => { section: Some(Section::Model), range: SIZE, }
    /// Width of the MLP of an imported model, if it is not 4 times the width of the model
    #[serde(skip_serializing_if = "Option::is_none")]
    n_inner: Option<usize> = None => { label: NO_LABEL, of_model: true, }
    /// Activation function of an imported model: gelu_new (tanh) or gelu (erf)
    #[serde(skip_serializing_if = "is_gpt2_activation")]
    activation: Activation = Activation::GeluNew => { label: NO_LABEL, of_model: true, }
    /// Epsilon of an imported model's LayerNorms
    #[serde(skip_serializing_if = "is_gpt2_epsilon")]
    layer_norm_epsilon: f64 = GPT2_EPSILON => { label: NO_LABEL, of_model: true, }
    /// Whether the head of an imported model shares the weights of the token embedding
    #[serde(skip_serializing_if = "is_tied")]
    tie_word_embeddings: bool = true => { label: NO_LABEL, of_model: true, }
    /// Rows of the token embedding of an imported model, if they are more than the tokenizer's tokens
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding_rows: Option<usize> = None => { label: NO_LABEL, of_model: true, }
    /// Begin with the weights of another program's model: a directory that transformers saved, a checkpoint of nanoGPT
    /// or minGPT, or a run of folio import. Its sizes, tokenizer and dropout are then the defaults
    #[serde(skip_serializing_if = "Option::is_none")]
    init_from: Option<String> = None => {
        section: Some(Section::Model), order: -1, value_name: Some("DIR|FILE"), may_change: true, inherited: false,
        label: NO_LABEL,
    }
    /// SHA-256 of that model's configuration and weights
    #[serde(skip_serializing_if = "Option::is_none")]
    init_from_sha256: Option<String> = None => { inherited: false, label: NO_LABEL, }
    /// Tokens per sequence: the context length
    block_size: usize = 256 => {
        section: Some(Section::Model), range: SIZE, search_level: Some(1),
        key: "block_sizes", aliases: &["block_size"], label: "block", short_help: Some("Tokens per sequence"),
    }
    /// Sequences per step
    batch_size: usize = 64 => {
        section: Some(Section::Training), range: COUNT, search_level: Some(2),
        key: "batch_sizes", aliases: &["batch_size"], label: "batch", short_help: Some("Sequences per step"),
    }
    /// Where each epoch cuts the training text into blocks: fixed (the same places) or random (a new shift per epoch)
    block_offset: BlockOffset = BlockOffset::Fixed => { section: Some(Section::Training), }
    /// Micro-batches per step, computed sequentially to save memory; the result is the same up to rounding
    gradient_accumulation_steps: usize = 1 => {
        section: Some(Section::Training), range: COUNT, may_change: true, label: NO_LABEL,
    }
    /// What the ranks of an MPI job divide: 0 (the batch) or 1 (AdamW's moments and updates too, which saves memory); the result is the
    /// same
    #[serde(skip_serializing_if = "is_zero")]
    zero: usize = 0 => {
        section: Some(Section::Training), range: Range::between(0.0, 1.0), may_change: true, label: NO_LABEL,
    }
    /// Number format in which the ranks of an MPI job send gradients: f32, or bf16, which halves what they send. With bf16 the result
    /// depends on the number of ranks
    #[serde(skip_serializing_if = "is_f32")]
    reduce_precision: Precision = Precision::F32 => {
        section: Some(Section::Training), may_change: true, label: NO_LABEL,
    }
    /// Dropout rate of embeddings, attention weights and both residual branches
    dropout: f64 = 0.2 => {
        section: Some(Section::Model), range: Range::FRACTION, search_level: Some(5),
        key: "dropouts", aliases: &["dropout"],
    }
    /// Dropout rate at T_max, approached linearly by step; by default it stays constant
    dropout_final: Option<f64> = None => {
        section: Some(Section::Schedule), range: Range::FRACTION, search_level: Some(14), label: "final dropout",
    }
    /// Share of the target's probability to spread over all tokens; reported losses exclude it
    label_smoothing: f64 = 0.0 => {
        section: Some(Section::Training), range: Range::FRACTION, search_level: Some(10),
    }
    /// Learn from trained models too: runs, sweeps or checkpoints with the tokenizer, the text and the split of this run. Their
    /// mean probabilities of the training text are computed once, at the start
    #[serde(skip_serializing_if = "Option::is_none")]
    teachers: Option<Vec<String>> = None => {
        section: Some(Section::Training), value_name: Some("RUN_DIR"), may_change: true, inherited: false, label: NO_LABEL,
    }
    /// SHA-256 of the teachers' weights
    #[serde(skip_serializing_if = "Option::is_none")]
    teachers_sha256: Option<Vec<String>> = None => { inherited: false, label: NO_LABEL, }
    /// Share of the teachers' probabilities in what the model learns; the rest is the text. Reported losses are those of the text
    distill_weight: f64 = 0.9 => {
        section: Some(Section::Training), range: Range::between(0.0, 1.0), search_level: Some(17), inherited: false,
        label: "distillation",
    }
    /// Parts of the model to leave as they are: embeddings, blocks:N (the lowest N blocks), both with a comma, or none
    #[serde(skip_serializing_if = "Frozen::is_nothing")]
    freeze: Frozen = Frozen::NOTHING => { section: Some(Section::Training), value_name: Some("WHAT"), }
    /// Number format: f32, bf16, or auto (the faster of the two on this machine)
    precision: Precision = Precision::F32 => {
        section: Some(Section::Training), order: -1,
        // "auto" is resolved before training.
        kind: Kind::Name(|name| name.parse::<PrecisionChoice>().map(drop)), default_text: Some("auto"),
    }
    /// Epochs to train; from a checkpoint, further epochs
    num_epochs: u64 = 10 => {
        section: Some(Section::Training), order: -1, range: COUNT, aliases: &["epochs"],
        may_change: true, inherited: false, label: NO_LABEL, short_help: Some("Epochs to train"),
    }
    /// Stop after N optimizer steps in total, even within an epoch
    max_steps: Option<u64> = None => {
        section: Some(Section::Training), order: -1, range: COUNT,
        may_change: true, inherited: false, label: NO_LABEL,
    }
    /// What updates the blocks' matrices: adamw or muon; AdamW updates embeddings, head, biases and LayerNorms
    optimizer: OptimizerKind = OptimizerKind::AdamW => { section: Some(Section::Training), }
    /// Also evaluate every N optimizer steps, and save the model if it is the best so far
    eval_every: Option<u64> = None => {
        section: Some(Section::Training), order: -1, range: COUNT, default_text: Some("once per epoch"),
        may_change: true, inherited: false, label: NO_LABEL,
    }
    /// Stop after N evaluations in a row without a new lowest eval loss
    patience: Option<u64> = None => {
        section: Some(Section::Training), order: -1, range: COUNT, default_text: Some("all epochs are trained"),
        may_change: true, inherited: false, label: NO_LABEL,
    }
    /// AdamW's peak learning rate
    learning_rate: f64 = 1e-3 => {
        section: Some(Section::Training), range: POSITIVE, search_level: Some(3),
        key: "learning_rates", aliases: &["lr"], label: "lr", short_help: Some("AdamW's peak learning rate"),
    }
    /// AdamW's decoupled weight decay
    weight_decay: f64 = 1e-2 => {
        section: Some(Section::Training), range: NOT_NEGATIVE, search_level: Some(4), key: "weight_decays",
    }
    /// Weight decay at T_max, approached linearly by step; by default it stays constant
    weight_decay_final: Option<f64> = None => {
        section: Some(Section::Schedule), range: NOT_NEGATIVE, search_level: Some(13), label: "final weight decay",
    }
    /// Apply weight decay to biases and LayerNorm too, as the original project does, not only to matrices
    decay_all_parameters: bool = false => { section: Some(Section::Training), }
    /// AdamW's decay rate of the running mean of gradients
    beta1: f64 = 0.9 => { section: Some(Section::Training), range: Range::FRACTION, }
    /// AdamW's decay rate of the running mean of squared gradients
    beta2: f64 = 0.99 => { section: Some(Section::Training), range: Range::FRACTION, }
    /// AdamW's epsilon, added to the denominator
    eps: f64 = 1e-8 => { section: Some(Section::Training), range: Range::between(F32_MIN, F32_MAX), }
    /// Muon's peak learning rate; the schedule multiplies it as it does AdamW's
    muon_learning_rate: Option<f64> = None => {
        section: Some(Section::Training), range: POSITIVE, search_level: Some(15), label: "muon lr",
        default_text: Some("AdamW's"),
    }
    /// Muon's decay rate of the running mean of gradients
    muon_momentum: f64 = 0.95 => {
        section: Some(Section::Training), range: Range::FRACTION, search_level: Some(16), label: "momentum",
    }
    /// Decay rate per step of a moving average of the weights, which is then evaluated, saved and used; 0 turns it off
    ema_decay: f64 = 0.0 => {
        section: Some(Section::Training), range: Range::FRACTION, search_level: Some(11), label: "ema",
    }
    /// Clip gradients to this norm; 0 turns clipping off
    grad_clip: f64 = 1.0 => { section: Some(Section::Training), range: Range::at_least(0.0), }
    /// Shape of the learning rate over time: const, cosine, cosine_warm_restarts or wsd (constant, then linear to the final
    /// rate)
    lr_schedule: ScheduleKind = ScheduleKind::Const => { section: Some(Section::Schedule), label: "schedule", }
    /// Unit of the schedule: epoch (one rate per epoch) or step
    lr_schedule_unit: Unit = Unit::Epoch => { section: Some(Section::Schedule), }
    /// Steps of linear warm-up
    warmup_steps: u64 = 0 => { section: Some(Section::Schedule), }
    /// Minimum learning rate of the cosine schedules, final rate of wsd
    cosine_final_lr: f64 = 1e-6 => {
        section: Some(Section::Schedule), range: NOT_NEGATIVE, search_level: Some(6), label: "final lr",
    }
    /// Half a period of the cosine, or the length of wsd and of the lines to final dropout and weight decay, in the
    /// schedule's unit
    cosine_t_max as "cosine_T_max": u64 = 10 => {
        section: Some(Section::Schedule), range: COUNT, search_level: Some(7), label: "T_max",
    }
    /// Factor by which the period grows at each restart
    cosine_t_mult as "cosine_T_mult": u64 = 1 => {
        section: Some(Section::Schedule), range: COUNT, search_level: Some(8), label: "T_mult",
    }
    /// Factor applied to the learning rate at each restart
    cosine_lr_restart_decay: f64 = 1.0 => {
        section: Some(Section::Schedule), range: Range::at_least(0.0), search_level: Some(9),
        label: "restart decay",
    }
    /// Share of T_max in which wsd decays, at its end
    wsd_decay: f64 = 0.2 => {
        section: Some(Section::Schedule), range: Range::positive_to(1.0), search_level: Some(12), label: "decay share",
    }
    /// Accepted for compatibility with the original project; losses are always saved
    save_losses: bool = false => {
        section: Some(Section::Files), saves: true, may_change: true, inherited: false, label: NO_LABEL,
    }
    /// Keep the checkpoint of every epoch, not only the newest and the best
    save_checkpoint: bool = false => {
        section: Some(Section::Files), saves: true, may_change: true, inherited: false, label: NO_LABEL,
    }
    /// Also save a resumable checkpoint every N steps
    save_every: Option<u64> = None => {
        section: Some(Section::Files), range: COUNT,
        saves: true, may_change: true, inherited: false, label: NO_LABEL,
    }
    /// What to keep of earlier epochs' checkpoints: all, weights (without optimizer state) or best (only the newest
    /// and the best)
    keep: Keep = Keep::Weights => {
        section: Some(Section::Files), value_name: Some("WHAT"),
        default_text: Some("best; with --save_checkpoint weights"),
        saves: true, may_change: true, inherited: false, label: NO_LABEL,
    }
    /// Consecutive steps with a non-finite loss or gradient to skip before training stops
    max_skipped_steps: u64 = 10 => {
        section: Some(Section::Training), range: COUNT, may_change: true, label: NO_LABEL,
    }
    /// Length in tokens of the sample that is recorded after every epoch and printed at the end
    sample_tokens: Option<usize> = None => {
        section: Some(Section::Files), order: 1, default_text: Some("100, not printed"),
        may_change: true, inherited: false, label: NO_LABEL,
    }
    /// Write event files for TensorBoard; view them with tensorboard --logdir DIR
    tensorboard: bool = false => {
        section: Some(Section::Files), saves: true, may_change: true, inherited: false, label: NO_LABEL,
    }
    /// The checkpoints whose weights were averaged, if the run was not trained
    #[serde(skip_serializing_if = "Option::is_none")]
    averaged_from: Option<String> = None => { may_change: true, inherited: false, label: NO_LABEL, }
    /// The run whose checkpoint this one continues from, if any
    from_checkpoint_run_dir: Option<String> = None => { may_change: true, label: NO_LABEL, }
    /// The epoch of that checkpoint
    from_checkpoint_step: Option<u64> = None => { may_change: true, label: NO_LABEL, }
    /// Whether the schedule counts from that checkpoint
    restart_schedule: bool = false => { may_change: true, label: NO_LABEL, }
    /// Whether only the weights of that checkpoint were loaded: AdamW starts fresh, and the schedule counts from there
    weights_only: bool = false => { may_change: true, }
    /// Whether the text differs from the one that the checkpoint was trained on
    new_text: bool = false => { may_change: true, }
    /// Whether the vocabulary was extended by characters of the new text
    extend_vocab: bool = false => { may_change: true, }
}
