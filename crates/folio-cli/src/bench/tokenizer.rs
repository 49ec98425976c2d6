//! `folio bench tokenizer`: times tokenizer training and encoding, without input and output.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use folio::text::Corpus;
use folio::tokenizer::Tokenizer;

use super::median;
use crate::options::whole;
use crate::screen;
use crate::threads::set_threads;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Example:
  folio bench tokenizer --vocab_size 10000 --threads 1")]
pub(super) struct BenchTokenizerArgs {
    /// UTF-8 text [default: the embedded tiny Shakespeare]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Vocabulary size to train
    #[arg(long, default_value_t = 1024, value_parser = whole::<usize>)]
    vocab_size: usize,
    /// Repetitions; the median is reported
    #[arg(long, default_value_t = 5, value_parser = whole::<usize>)]
    repeat: usize,
    /// Number of threads [default: all cores]
    #[arg(long, value_parser = whole::<usize>)]
    threads: Option<usize>,
}

pub(super) fn run(args: &BenchTokenizerArgs) -> anyhow::Result<()> {
    if args.repeat == 0 {
        return Err(Usage("--repeat must be at least 1".to_owned()).into());
    }
    set_threads(args.threads)?;
    let corpus = match &args.data {
        Some(path) => Corpus::from_file(path)?,
        None => Corpus::embedded(),
    };
    let text = &*corpus.text;
    let gpt2 = Tokenizer::gpt2();
    // A short text may not contain enough distinct pairs for this vocabulary; then only GPT-2's tokenizer is timed.
    let own = Tokenizer::train_bpe(text, args.vocab_size, &[]).ok();
    let train_s =
        own.as_ref().map(|_| time(args.repeat, || Tokenizer::train_bpe(text, args.vocab_size, &[])));
    let encode_s = own.as_ref().map(|own| time(args.repeat, || own.encode(text)));
    let gpt2_encode_s = time(args.repeat, || gpt2.encode(text));
    let result = serde_json::json!({
        "what": "tokenizer", "bytes": text.len(), "vocab_size": args.vocab_size,
        "threads": rayon::current_num_threads(), "train_s": train_s, "encode_s": encode_s,
        "gpt2_encode_s": gpt2_encode_s, "gpt2_mb_per_s": text.len() as f64 / 1e6 / gpt2_encode_s,
    });
    screen::out(result)?;
    Ok(())
}

/// The median time of `work`, in seconds.
fn time<T>(repeat: usize, mut work: impl FnMut() -> T) -> f64 {
    let seconds = (0..repeat)
        .map(|_| {
            let start = Instant::now();
            let result = std::hint::black_box(work());
            let seconds = start.elapsed().as_secs_f64();
            drop(result);
            seconds
        })
        .collect();
    median(seconds)
}
