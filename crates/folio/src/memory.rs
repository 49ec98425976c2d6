//! Checks whether training or generation fits in memory before it starts.

use crate::distributed::{LARGEST_SUM, RankCount, SUMS_AT_ONCE};
use crate::error::{Error, Result};
use crate::machine::available_memory;
use crate::model::{CpuBackend, ModelConfig, Precision, WeightFormat};
use crate::optim::OptimizerKind;
use crate::settings::Settings;

/// Checks that training with these settings fits in the free memory.
///
/// `vocab_size` is the size of the tokenizer's vocabulary. `blocks` is the number of training blocks, which limits the size
/// of a batch. The ranks of a machine share its memory.
///
/// # Errors
/// [`Error::Setting`] with the setting to change and the largest value that fits.
pub fn check_training(settings: &Settings, vocab_size: usize, blocks: usize, ranks: RankCount) -> Result<()> {
    // If the free memory is unknown, try.
    let Some(free) = available_memory() else { return Ok(()) };
    check_training_in(free / ranks.per_machine as u64, settings, vocab_size, blocks, ranks)
}

fn check_training_in(
    free: u64,
    settings: &Settings,
    vocab_size: usize,
    blocks: usize,
    ranks: RankCount,
) -> Result<()> {
    let bytes = |settings: &Settings| training_bytes(settings, vocab_size, blocks, ranks);
    let needed = bytes(settings);
    if needed <= free {
        return Ok(());
    }
    let batch_size = settings.batch_size.min(blocks);
    for (field, value, per_unit, with) in ways_out(settings, batch_size) {
        let largest = largest_where(value, |value| bytes(&with(value)) <= free);
        if largest == 0 {
            continue;
        }
        let (value, largest) = (value * per_unit, largest * per_unit);
        // A batch larger than the text is reported as given.
        let value = if field == "batch_size" { settings.batch_size } else { value };
        let in_parts = |steps| Settings { gradient_accumulation_steps: steps, ..settings.clone() };
        let mut steps = settings.gradient_accumulation_steps + 1..=batch_size;
        let way_out = match steps.find(|&steps| field == "batch_size" && bytes(&in_parts(steps)) <= free) {
            Some(steps) => format!("use `gradient_accumulation_steps {steps}`, or less; "),
            None => String::new(),
        };
        let (needed, free) = (gibibytes(needed), gibibytes(free));
        let reason = format!(
            "training with {value} needs {needed} of memory, but {free} are free: {way_out}the largest value that fits \
             is {largest}"
        );
        return Err(Error::setting(field, reason));
    }
    let (needed, free) = (gibibytes(needed), gibibytes(free));
    let reason = format!("training the model needs {needed} of memory, but {free} are free: make it smaller");
    Err(Error::setting("n_emb", reason))
}

/// Approximate memory in bytes that a rank takes for training, without a table of teachers' probabilities.
pub(crate) fn training_bytes(settings: &Settings, vocab_size: usize, blocks: usize, ranks: RankCount) -> u64 {
    let Settings { precision, freeze, zero, gradient_accumulation_steps: micro_batches, .. } = *settings;
    let batch = settings.batch_size.min(blocks);
    let config = settings.model_config(vocab_size);
    let parameters = config.parameters();
    // Generating samples needs another copy of the weights.
    let sampling = parameters.saturating_mul(WeightFormat::of(precision).bytes_per_weight());
    let average = if settings.ema_decay > 0.0 { parameters.saturating_mul(4) } else { 0 };
    let muon = match settings.optimizer {
        OptimizerKind::AdamW => 0,
        OptimizerKind::Muon => CpuBackend::muon_bytes(&config, precision),
    };
    // The teachers' probabilities for this rank's sequences, in 16 bits.
    let soft_targets = match settings.teachers {
        Some(_) => (batch.div_ceil(ranks.all) * config.block_size) as u64 * 2 * config.vocab_size as u64,
        None => 0,
    };
    let (mut gathered, mut exchanged) = (0, 0);
    if ranks.all > 1 {
        // With `zero` 1 one rank gathers the moments to save them.
        gathered = if zero > 0 { parameters.saturating_mul(8) } else { 0 };
        // A rank receives its part of a sum from every rank in f32; in bfloat16, it has what it sends and receives as well.
        let element = if settings.reduce_precision == Precision::F32 { 4 } else { 8 };
        let arrays = SUMS_AT_ONCE as u64 * LARGEST_SUM as u64;
        exchanged = arrays.min(parameters).saturating_mul(element);
    }
    CpuBackend::training_bytes(&config, precision, batch, micro_batches, freeze, ranks, zero)
        .saturating_add(sampling)
        .saturating_add(average)
        .saturating_add(muon)
        .saturating_add(gathered / ranks.per_machine as u64)
        .saturating_add(exchanged)
        .saturating_add(soft_targets)
}

/// A setting, its value, what one unit of the value counts, and the settings with another value.
type WayOut<'a> = (&'static str, usize, usize, Box<dyn Fn(usize) -> Settings + 'a>);

/// The settings that can be lowered to need less memory.
fn ways_out(settings: &Settings, batch_size: usize) -> [WayOut<'_>; 4] {
    let Settings { n_blocks, block_size, n_emb, n_heads, .. } = *settings;
    let batch = |batch_size| Settings { batch_size, ..settings.clone() };
    let blocks = |n_blocks| Settings { n_blocks, ..settings.clone() };
    let block = |block_size| Settings { block_size, ..settings.clone() };
    let heads = move |head| Settings { n_emb: head * n_heads, ..settings.clone() };
    [
        ("batch_size", batch_size, 1, Box::new(batch)),
        ("n_blocks", n_blocks, 1, Box::new(blocks)),
        ("block_size", block_size, 1, Box::new(block)),
        ("n_emb", n_emb / n_heads, n_heads, Box::new(heads)),
    ]
}

/// Checks that a model fits in the free memory while it is loaded for generation.
///
/// # Errors
/// [`Error::Setting`] with the memory it needs and a way to need less.
pub fn check_generation(config: &ModelConfig, format: WeightFormat) -> Result<()> {
    available_memory().map_or(Ok(()), |free| check_generation_in(free, config, format))
}

fn check_generation_in(free: u64, config: &ModelConfig, format: WeightFormat) -> Result<()> {
    // While loading, the file and the f32 weights (4 bytes each) are in memory together with the packed weights.
    let bytes = |format: WeightFormat| config.parameters().saturating_mul(8 + format.bytes_per_weight());
    if bytes(format) <= free {
        return Ok(());
    }
    let way_out =
        if bytes(WeightFormat::Int8) <= free { "use `precision int8`" } else { "use a smaller model" };
    let (needed, free) = (gibibytes(bytes(format)), gibibytes(free));
    let reason =
        format!("the model needs {needed} of memory in {}, but {free} are free: {way_out}", format.name());
    Err(Error::setting("precision", reason))
}

/// How many sequences to generate in parallel, from 1 to 256: their KV caches of `cache_bytes` each may take a quarter of
/// the free memory.
pub fn parallel_sequences(cache_bytes: usize) -> usize {
    /// Larger batches are not faster.
    const MAX: u64 = 256;
    let free = available_memory().unwrap_or(u64::MAX);
    (free / 4 / cache_bytes.max(1) as u64).clamp(1, MAX) as usize
}

/// The largest value up to `most` that fits, or 0, by binary search: `fits` must be monotonic.
fn largest_where(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut fitting, mut too_large) = (0, most.saturating_add(1));
    while too_large - fitting > 1 {
        let middle = fitting + (too_large - fitting) / 2;
        if fits(middle) { fitting = middle } else { too_large = middle }
    }
    fitting
}

pub(crate) fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the error for these settings names `field` and the largest value that fits: that value fits, and the next
    /// larger one does not.
    #[track_caller]
    fn check(free: u64, settings: &Settings, field: &str, with: impl Fn(usize) -> Settings, step: usize) {
        let refused = check_training_in(free, settings, 65, 1 << 30, RankCount::ONE)
            .expect_err("too large")
            .to_string();
        assert!(refused.starts_with(&format!("{field}: ")), "{refused}");
        let largest = refused.rsplit(' ').next().and_then(|word| word.parse().ok());
        let largest: usize = largest.unwrap_or_else(|| panic!("a number: {refused}"));
        check_training_in(free, &with(largest), 65, 1 << 30, RankCount::ONE).expect("it fits");
        assert!(
            check_training_in(free, &with(largest + step), 65, 1 << 30, RankCount::ONE).is_err(),
            "{refused}"
        );
    }

    #[test]
    fn the_suggested_value_is_the_largest_that_fits() {
        let default = Settings::default();
        let free = 4 << 30;
        let wide = |batch_size| Settings { batch_size, ..default.clone() };
        check(free, &wide(2048), "batch_size", wide, 1);
        let deep = |n_blocks| Settings { n_blocks, ..default.clone() };
        check(free, &deep(100_000), "n_blocks", deep, 1);
        let long = |block_size| Settings { block_size, batch_size: 1, ..default.clone() };
        check(free, &long(1 << 20), "block_size", long, 1);
        let broad = |n_emb| Settings { n_emb, n_blocks: 1, block_size: 1, batch_size: 1, ..default.clone() };
        check(free, &broad(60_000), "n_emb", broad, 6);
        check_training_in(free, &default, 65, 1 << 30, RankCount::ONE).expect("it fits");
        // More micro-batches make a batch fit that does not fit as a whole.
        let refused = check_training_in(free, &wide(2048), 65, 1 << 30, RankCount::ONE)
            .expect_err("too large")
            .to_string();
        let (_, steps) = refused.split_once("`gradient_accumulation_steps ").expect("a way out");
        let steps: usize = steps.split_once('`').and_then(|(steps, _)| steps.parse().ok()).expect("a number");
        let in_parts = |steps| Settings { gradient_accumulation_steps: steps, ..wide(2048) };
        check_training_in(free, &in_parts(steps), 65, 1 << 30, RankCount::ONE).expect("it fits");
        assert!(
            check_training_in(free, &in_parts(steps - 1), 65, 1 << 30, RankCount::ONE).is_err(),
            "{refused}"
        );
        // Two ranks of a machine take half a batch each, and with `zero` 1 half of the moments.
        let two = RankCount { all: 2, per_machine: 1 };
        let fits =
            |free, batch_size, ranks| check_training_in(free, &wide(batch_size), 65, 1 << 30, ranks).is_ok();
        let most = largest_where(4096, |batch_size| fits(free, batch_size, RankCount::ONE));
        // The sums of gradients are on their way in buffers, here as large as all gradients.
        let buffers = 4 * wide(1).model_config(65).parameters();
        assert!(buffers < 4 * (SUMS_AT_ONCE * LARGEST_SUM) as u64, "{buffers}");
        assert!(fits(free + buffers, 2 * most, two) && !fits(free + buffers, 2 * most + 1, two), "{most}");
        let heavy = |zero| Settings {
            n_emb: 3072,
            n_blocks: 4,
            block_size: 8,
            batch_size: 2,
            zero,
            ..default.clone()
        };
        let needed = |ranks, zero| {
            (1_u64..)
                .map(|gib| gib << 28)
                .find(|&free| check_training_in(free, &heavy(zero), 65, 1 << 30, ranks).is_ok())
        };
        let four = RankCount { all: 4, per_machine: 4 };
        assert!(needed(four, 1) < needed(four, 0), "{:?}, {:?}", needed(four, 1), needed(four, 0));
        // A batch is never larger than the text.
        check_training_in(free, &wide(2048), 65, 50, RankCount::ONE).expect("it fits");
    }

    #[test]
    fn a_model_too_large_for_generation_is_refused() {
        let gpt2 = ModelConfig::GPT2;
        assert_eq!(gpt2.parameters(), 124_439_808, "as published");
        let refused =
            |free, format| check_generation_in(free, &gpt2, format).map_err(|error| error.to_string());
        assert_eq!(refused(2 << 30, WeightFormat::F32), Ok(()));
        let message = refused(1_200 << 20, WeightFormat::F32).expect_err("too large");
        assert!(
            message.contains("1.4 GiB of memory in f32, but 1.2 GiB are free: use `precision int8`"),
            "{message}"
        );
        let message = refused(1 << 20, WeightFormat::Int8).expect_err("too large");
        assert!(message.contains("use a smaller model"), "{message}");
    }
}
