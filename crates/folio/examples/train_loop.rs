//! A training loop of your own, without `Trainer`: data, model, optimizer, schedule and evaluation.
//!
//! ```text
//! cargo run --release --example train_loop
//! ```

use std::sync::Arc;
use std::time::Instant;

use folio::data::{BatchBuffer, BlockOffset, Dataset, Part, SplitKind, TokenStream};
use folio::distributed::SingleProcess;
use folio::error::Result;
use folio::evaluate::{EvaluationBatches, mean_batch_loss};
use folio::model::{Backend, CpuBackend, ModelConfig, Precision};
use folio::optim::{AdamW, AdamWConfig};
use folio::rng::{Rng, Stream};
use folio::schedule::warmup_factor;
use folio::text::Corpus;
use folio::tokenizer::Tokenizer;

const BATCH_SIZE: usize = 16;
const STEPS: u64 = 200;
const WARMUP_STEPS: u64 = 20;
const LEARNING_RATE: f64 = 3e-3;

fn main() -> Result<()> {
    // The embedded tiny Shakespeare; `Corpus::from_file` reads your own text.
    let text = Corpus::embedded().text;
    let tokenizer = Tokenizer::chars(&text);
    let stream = Arc::new(TokenStream::encode(&text, &tokenizer, SplitKind::Contiguous)?);

    let seed = 1337;
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        n_blocks: 2,
        n_emb: 64,
        n_heads: 4,
        block_size: 32,
        dropout: 0.1,
        ..ModelConfig::GPT2
    };
    let mut model = CpuBackend::new(config, Precision::F32, &mut Rng::new(seed, Stream::Init));
    let mut optimizer = AdamW::new(AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() });
    println!("{} parameters", model.parameters().values().len());

    let dataset = Dataset::new(stream, config.block_size, seed)?;
    // The blocks of an epoch, as offsets into the stream. 200 steps need only part of them.
    let blocks = dataset.epoch_blocks(BlockOffset::Fixed, &mut Rng::new(seed, Stream::Order));

    // Each use of randomness has its own stream, so that results are reproducible.
    let mut dropout = Rng::new(seed, Stream::Dropout);
    let mut buffer = BatchBuffer::default();
    let start = Instant::now();
    for (step, starts) in (1..=STEPS).zip(blocks.chunks(BATCH_SIZE)) {
        let batch = buffer.fill(&dataset, starts, config.block_size);
        let loss = model.loss_and_gradients(batch, dropout.next_u64());
        let learning_rate = LEARNING_RATE * warmup_factor(step - 1, WARMUP_STEPS);
        // Clips the gradients, updates the parameters, and returns the norm before clipping.
        let norm = optimizer.step(&mut model, learning_rate);

        if step % 50 == 0 {
            let blocks = &dataset.blocks(Part::Eval)[..320];
            let batches =
                EvaluationBatches { dataset: &dataset, blocks, batch_size: BATCH_SIZE, micro_batches: 1 };
            let eval_loss = mean_batch_loss(&mut model, &SingleProcess, batches, &mut buffer, || true);
            let eval_loss = eval_loss.expect("evaluation was not canceled");
            println!("step {step}: train {loss:.3}, eval {eval_loss:.3}, gradient norm {norm:.2}");
        }
    }
    println!("{:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
