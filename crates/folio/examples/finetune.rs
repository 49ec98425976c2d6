//! Trains a model on one text, then fine-tunes its checkpoint on another.
//!
//! ```text
//! cargo run --release --example finetune
//! ```

use std::path::Path;
use std::sync::Arc;

use folio::data::TokenStream;
use folio::error::Result;
use folio::run_dir::RunDir;
use folio::settings::Settings;
use folio::text::Corpus;
use folio::tokenizer::Tokenizer;
use folio::train::{Event, Requests, Start, Trainer};

fn main() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("folio-finetune-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("the temporary directory is writable");
    let result = run(&directory);
    std::fs::remove_dir_all(&directory).expect("the directory was created above");
    result
}

fn run(directory: &Path) -> Result<()> {
    // Two texts for the example; `Corpus::from_file` reads your own.
    let shakespeare = Corpus::embedded().text;
    let base = Corpus::from_bytes(Path::new("base.txt"), shakespeare[..300_000].into())?;
    let special = Corpus::from_bytes(Path::new("special.txt"), shakespeare[900_000..960_000].into())?;

    // A byte-level BPE encodes any text, so both texts can use it.
    let tokenizer = Arc::new(Tokenizer::train_bpe(&base.text, 384, &["<|endoftext|>"])?);
    let settings = Settings {
        n_emb: 64,
        n_heads: 4,
        n_blocks: 2,
        block_size: 32,
        batch_size: 16,
        num_epochs: 1,
        learning_rate: 3e-3,
        // Identifies the text when the run is continued.
        data_sha256: base.sha256.clone(),
        ..Settings::default()
    };
    println!("base model:");
    let base_run = RunDir::new(directory.join("base"));
    train(settings.clone(), &base, &tokenizer, &Start::Fresh, &base_run)?;

    println!("fine-tuned on the other text:");
    let tuned = Settings {
        num_epochs: 3,
        learning_rate: 5e-4,
        data_sha256: special.sha256.clone(),
        // Allows the change of text; otherwise a changed text is an error.
        new_text: true,
        // Starts with a fresh optimizer.
        weights_only: true,
        ..settings
    };
    let start = Start::Checkpoint { run: base_run, number: 1, restart_schedule: true };
    let tuned_run = RunDir::new(directory.join("tuned"));
    train(tuned, &special, &tokenizer, &start, &tuned_run)?;
    println!("checkpoints after epochs {:?}", tuned_run.epochs()?);
    Ok(())
}

fn train(
    settings: Settings,
    corpus: &Corpus,
    tokenizer: &Arc<Tokenizer>,
    start: &Start,
    run_dir: &RunDir,
) -> Result<()> {
    let stream = Arc::new(TokenStream::encode(&corpus.text, tokenizer, settings.split)?);
    let mut trainer = Trainer::new(settings, stream, Arc::clone(tokenizer), start)?;
    // `run_recorded` in `folio::records` also writes metrics.jsonl.
    trainer.run(Some(run_dir), &Requests::default(), &mut |event| {
        if let Event::EpochEnded { epoch, report, .. } = event {
            println!("  epoch {epoch}: train {:.3}, eval {:.3}", report.train_loss, report.eval_loss);
        }
    })?;
    Ok(())
}
