//! Generates several sequences at once, streaming one of them.
//!
//! ```text
//! cargo run --release --example generate              # trains a small model first
//! cargo run --release --example generate -- runs/plays # uses the best checkpoint of a run
//! ```

use std::io::{Write, stdout};
use std::path::Path;
use std::sync::Arc;

use folio::data::TokenStream;
use folio::error::Result;
use folio::generate::{Generator, PastContext, Request, Sampling};
use folio::model::{InferenceModel, WeightFormat};
use folio::run_dir::find;
use folio::settings::Settings;
use folio::text::Corpus;
use folio::tokenizer::Tokenizer;
use folio::train::{Requests, Start, Trainer};

fn main() -> Result<()> {
    let (model, tokenizer) = match std::env::args().nth(1) {
        Some(path) => load(Path::new(&path))?,
        None => train_small()?,
    };
    let prompt = tokenizer.encode("ROMEO:\n")?;
    let mut generator = Generator::new(model, tokenizer);
    let mut texts = vec![String::new(); 3];
    for seed in 0..texts.len() as u64 {
        generator.begin(Request {
            prompt: prompt.clone(),
            max_new_tokens: 200,
            sampling: Sampling { temperature: 0.8, top_k: Some(20), ..Sampling::default() },
            past_context: PastContext::Rolling,
            seed,
            ..Request::default()
        })?;
    }

    // Each step samples one token per active sequence. All of them share a pass over the weights.
    while generator.active() > 0 {
        generator.step(|id, token| {
            texts[id.number() as usize] += token.text;
            if id.number() == 0 {
                print!("{}", token.text);
                // If stdout is closed, generation goes on for the other sequences.
                let _ = stdout().flush();
            }
        });
    }
    for text in &texts[1..] {
        println!("\n\n---\n{text}");
    }
    Ok(())
}

/// Loads the best checkpoint of a run; a path such as `runs/plays/checkpoint_3` names another one.
fn load(path: &Path) -> Result<(Arc<InferenceModel>, Arc<Tokenizer>)> {
    let found = find(Some(path))?;
    let checkpoint = found.run.open_checkpoint(found.checkpoint.name)?;
    let config = checkpoint.state().identity.model;
    // int8 weights need about a quarter of the memory, and generate faster.
    let model = InferenceModel::new(config, WeightFormat::Int8, &checkpoint.parameters()?);
    Ok((Arc::new(model), Arc::new(found.run.tokenizer()?)))
}

/// Trains for a few seconds, without saving anything.
fn train_small() -> Result<(Arc<InferenceModel>, Arc<Tokenizer>)> {
    let settings = Settings {
        n_emb: 64,
        n_heads: 4,
        n_blocks: 2,
        block_size: 32,
        batch_size: 16,
        num_epochs: 1,
        max_steps: Some(300),
        learning_rate: 3e-3,
        ..Settings::default()
    };
    let text = Corpus::embedded().text;
    let tokenizer = Arc::new(Tokenizer::chars(&text));
    let stream = Arc::new(TokenStream::encode(&text, &tokenizer, settings.split)?);
    let mut trainer = Trainer::new(settings, stream, Arc::clone(&tokenizer), &Start::Fresh)?;
    trainer.run(None, &Requests::default(), &mut |_event| {})?;
    let backend = trainer.backend();
    let model = InferenceModel::new(*backend.config(), WeightFormat::F32, &backend.parameters());
    Ok((Arc::new(model), tokenizer))
}
