//! Whether what is asked of the machine fits in its memory, before it is begun.

use crate::error::{Error, Result};
use crate::machine::available_memory;
use crate::model::{CpuBackend, ModelConfig, WeightFormat};
use crate::settings::Settings;

/// Checks that training with these settings fits in the memory that is free.
///
/// `vocab_size` is the tokenizer's, `blocks` the number of training blocks: no batch is larger.
///
/// # Errors
/// [`Error::Setting`] that names the setting to change and the largest value that fits.
pub fn check_training(settings: &Settings, vocab_size: usize, blocks: usize) -> Result<()> {
    // Where the system does not say, the run has to try.
    available_memory().map_or(Ok(()), |free| check_training_in(free, settings, vocab_size, blocks))
}

fn check_training_in(free: u64, settings: &Settings, vocab_size: usize, blocks: usize) -> Result<()> {
    let bytes = |settings: &Settings| {
        let batch = settings.batch_size.min(blocks);
        let config = settings.model_config(vocab_size);
        // Samples are generated with weights laid out once more.
        let sampling =
            config.parameters().saturating_mul(WeightFormat::of(settings.precision).bytes_per_weight());
        let micro_batches = settings.gradient_accumulation_steps;
        CpuBackend::training_bytes(&config, settings.precision, batch, micro_batches).saturating_add(sampling)
    };
    let needed = bytes(settings);
    if needed <= free {
        return Ok(());
    }
    /// A flag, its value, and the settings with another.
    type Way<'a> = (&'static str, usize, Box<dyn Fn(usize) -> Settings + 'a>);
    let ways: [Way; 4] = [
        (
            "batch_size",
            settings.batch_size.min(blocks),
            Box::new(|batch_size| Settings { batch_size, ..settings.clone() }),
        ),
        ("n_blocks", settings.n_blocks, Box::new(|n_blocks| Settings { n_blocks, ..settings.clone() })),
        (
            "block_size",
            settings.block_size,
            Box::new(|block_size| Settings { block_size, ..settings.clone() }),
        ),
        (
            "n_emb",
            settings.n_emb / settings.n_heads,
            Box::new(|head| Settings { n_emb: head * settings.n_heads, ..settings.clone() }),
        ),
    ];
    for (flag, value, with) in ways {
        let largest = largest_where(value, |value| bytes(&with(value)) <= free);
        if largest > 0 {
            let per_unit = if flag == "n_emb" { settings.n_heads } else { 1 };
            let (value, largest) = (value * per_unit, largest * per_unit);
            let (needed, free) = (gibibytes(needed), gibibytes(free));
            let reason = format!(
                "{value} takes {needed} of memory to train, and {free} are free: the largest that fits is {largest}"
            );
            return Err(Error::setting(flag, reason));
        }
    }
    let (needed, free) = (gibibytes(needed), gibibytes(free));
    let reason = format!("the model takes {needed} of memory to train, and {free} are free: make it smaller");
    Err(Error::setting("n_emb", reason))
}

/// Checks that a model fits in the memory that is free, with its file read and its weights laid out to generate with.
///
/// # Errors
/// [`Error::Setting`] that says what it takes and how it takes less.
pub fn check_generation(config: &ModelConfig, format: WeightFormat) -> Result<()> {
    available_memory().map_or(Ok(()), |free| check_generation_in(free, config, format))
}

fn check_generation_in(free: u64, config: &ModelConfig, format: WeightFormat) -> Result<()> {
    // The file and the weights read from it, four bytes each, while they are laid out.
    let bytes = |format: WeightFormat| config.parameters().saturating_mul(8 + format.bytes_per_weight());
    if bytes(format) <= free {
        return Ok(());
    }
    let way_out =
        if bytes(WeightFormat::Int8) <= free { "take `precision int8`" } else { "take a smaller model" };
    let (needed, free) = (gibibytes(bytes(format)), gibibytes(free));
    let reason =
        format!("the model takes {needed} of memory in {}, and {free} are free: {way_out}", format.name());
    Err(Error::setting("precision", reason))
}

/// How many texts to generate at a time, with `cache_bytes` of keys and values each: what a quarter of the free memory holds,
/// from 1 to 256.
pub fn texts_at_a_time(cache_bytes: usize) -> usize {
    /// More make no step faster.
    const MOST: u64 = 256;
    let free = available_memory().unwrap_or(u64::MAX);
    (free / 4 / cache_bytes.max(1) as u64).clamp(1, MOST) as usize
}

/// The largest value up to `most` for which `fits` holds, 0 if none; whatever is smaller than one that fits does too.
fn largest_where(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut fitting, mut too_large) = (0, most.saturating_add(1));
    while too_large - fitting > 1 {
        let middle = fitting + (too_large - fitting) / 2;
        if fits(middle) { fitting = middle } else { too_large = middle }
    }
    fitting
}

fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that settings are refused for their `flag`, whose value is then replaced by the one that is said to fit, and
    /// that the next larger one does not.
    #[track_caller]
    fn check(free: u64, settings: &Settings, flag: &str, with: impl Fn(usize) -> Settings, step: usize) {
        let refused = check_training_in(free, settings, 65, 1 << 30).expect_err("too large").to_string();
        assert!(refused.starts_with(&format!("{flag}: ")), "{refused}");
        let largest = refused.rsplit(' ').next().and_then(|word| word.parse().ok());
        let largest: usize = largest.unwrap_or_else(|| panic!("a number: {refused}"));
        check_training_in(free, &with(largest), 65, 1 << 30).expect("it fits");
        assert!(check_training_in(free, &with(largest + step), 65, 1 << 30).is_err(), "{refused}");
    }

    #[test]
    fn the_largest_value_that_fits_does_and_the_next_does_not() {
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
        check_training_in(free, &default, 65, 1 << 30).expect("it fits");
        // A batch is never larger than the text.
        check_training_in(free, &wide(2048), 65, 50).expect("it fits");
    }

    #[test]
    fn a_model_too_large_to_generate_with_is_refused() {
        let gpt2 = ModelConfig {
            vocab_size: 50_257,
            n_blocks: 12,
            n_emb: 768,
            n_heads: 12,
            block_size: 1024,
            dropout: 0.0,
        };
        assert_eq!(gpt2.parameters(), 124_439_808, "as published");
        let refused =
            |free, format| check_generation_in(free, &gpt2, format).map_err(|error| error.to_string());
        assert_eq!(refused(2 << 30, WeightFormat::F32), Ok(()));
        let told = refused(1_200 << 20, WeightFormat::F32).expect_err("too large");
        assert!(
            told.contains("1.4 GiB of memory in f32, and 1.2 GiB are free: take `precision int8`"),
            "{told}"
        );
        let told = refused(1 << 20, WeightFormat::Int8).expect_err("too large");
        assert!(told.contains("take a smaller model"), "{told}");
    }
}
