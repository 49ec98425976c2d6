//! Trains a tokenizer, saves it in Hugging Face's format, and compares it with characters by bits per character.
//!
//! ```text
//! cargo run --release --example custom_tokenizer
//! ```

use std::sync::Arc;

use folio::data::{SplitKind, TokenStream, training_text};
use folio::error::Result;
use folio::settings::Settings;
use folio::text::Corpus;
use folio::tokenizer::Tokenizer;
use folio::train::{Requests, Start, Trainer};

fn main() -> Result<()> {
    let text = &Corpus::embedded().text[..150_000];

    // Merges are learned from the training part only, so that the evaluation text stays unseen.
    let train_text = training_text(text, SplitKind::Contiguous)?;
    let bpe = Tokenizer::train_bpe(train_text, 512, &["<|endoftext|>"])?;
    let ids = bpe.encode("Speak, speak.<|endoftext|>")?;
    println!("{} tokens, as ordinary text: {:?}", ids.len(), pieces(&bpe, &ids));
    let ids = bpe.encode_special("Speak, speak.<|endoftext|>")?;
    println!("{} tokens, with special tokens: {:?}", ids.len(), pieces(&bpe, &ids));

    // The file loads in Hugging Face's `tokenizers`, too. `Tokenizer::read` also reads files of other programs.
    let path = std::env::temp_dir().join(format!("folio-tokenizer-{}.json", std::process::id()));
    bpe.write(&path)?;
    assert_eq!(Tokenizer::read(&path)?, bpe);
    std::fs::remove_file(&path).expect("the file was written above");

    // Losses in nats per token do not compare across vocabularies; bits per character do.
    for (name, tokenizer) in [("characters", Tokenizer::chars(text)), ("BPE", bpe)] {
        let vocab_size = tokenizer.vocab_size();
        let (loss, bits) = train(text, tokenizer)?;
        println!("{name}, {vocab_size} tokens: {loss:.3} nats per token, {bits:.3} bits per character");
    }
    Ok(())
}

/// The text of every token.
fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|&id| tokenizer.decode(&[id])).collect()
}

/// Trains a small model. Returns its evaluation loss in nats per token and in bits per character.
fn train(text: &str, tokenizer: Tokenizer) -> Result<(f64, f64)> {
    let settings = Settings {
        n_emb: 64,
        n_heads: 4,
        n_blocks: 2,
        block_size: 32,
        batch_size: 16,
        num_epochs: 1,
        learning_rate: 3e-3,
        split: SplitKind::Contiguous,
        ..Settings::default()
    };
    let tokenizer = Arc::new(tokenizer);
    let stream = Arc::new(TokenStream::encode(text, &tokenizer, settings.split)?);
    let mut trainer = Trainer::new(settings, stream, tokenizer, &Start::Fresh)?;
    trainer.run(None, &Requests::default(), &mut |_event| {})?;
    let report = trainer.history().epochs.last().expect("an epoch was trained");
    Ok((report.eval_loss, report.eval_bits.per_character))
}
