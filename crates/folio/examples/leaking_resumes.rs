//! What happens to the evaluation loss if each resume shuffles the blocks anew before they are split. folio never does this.
//!
//! The original project reports 3.56 nats per token with GPT-2's BPE, reached in several runs, each continuing from the weights of the one
//! before. As far as its source is known, each start shuffles the blocks without a fixed seed and then splits them, so most of the new
//! evaluation blocks have been trained on. This program trains the model in one run, then continues from its weights with two further runs
//! on the same split, and again with two on a new split each. As in the original, a run starts with a fresh AdamW and half the rate.
//!
//! ```text
//! cargo run --release -p folio --example leaking_resumes -- losses.svg > losses.csv
//! ```

use std::sync::Arc;

use folio::data::{BatchBuffer, BlockOffset, Dataset, Part, SplitKind, TokenStream};
use folio::distributed::SingleProcess;
use folio::error::Result;
use folio::evaluate::{EvaluationBatches, mean_batch_loss};
use folio::files::write_atomic;
use folio::model::{Backend, CpuBackend, ModelConfig, PrecisionChoice, resolve_precision};
use folio::optim::{AdamW, AdamWConfig};
use folio::plot::{Curve, to_svg};
use folio::rng::{Rng, Stream};
use folio::text::Corpus;
use folio::tokenizer::Tokenizer;

/// The original's model and batches.
const MODEL: ModelConfig = ModelConfig {
    vocab_size: 50_257,
    n_blocks: 6,
    n_emb: 384,
    n_heads: 6,
    block_size: 128,
    dropout: 0.2,
    ..ModelConfig::GPT2
};
const BATCH_SIZE: usize = 32;
/// Runs of 6 epochs at a rate of 5e-4, in place of the original's 100 epochs at 1e-4. Its weight decay of 3 is divided by five, so that
/// a step shrinks the weights as much.
const EPOCHS: u64 = 6;
const LEARNING_RATE: f64 = 5e-4;
const WEIGHT_DECAY: f64 = 0.6;
/// Runs, each from the weights of the one before.
const RUNS: u64 = 3;

fn main() -> Result<()> {
    let text = Corpus::embedded().text;
    let stream = Arc::new(TokenStream::encode(&text, &Tokenizer::gpt2(), SplitKind::Blocks)?);
    let precision = resolve_precision(PrecisionChoice::Auto, &MODEL);

    println!("split,run,epoch,train_loss,eval_loss");
    let mut model = CpuBackend::new(MODEL, precision, &mut Rng::new(0, Stream::Init));
    let mut first = Curve { label: "first run".to_owned(), ..Curve::default() };
    train("first", 0, &Dataset::new(Arc::clone(&stream), MODEL.block_size, 0)?, &mut model, &mut first);
    let weights = model.parameters().into_owned();
    let mut curves = vec![first];
    for split in ["same", "new"] {
        let mut curve = Curve { label: format!("{split} split at each resume"), ..Curve::default() };
        let mut parameters = weights.clone();
        for run in 1..RUNS {
            let seed = if split == "new" { run } else { 0 };
            let dataset = Dataset::new(Arc::clone(&stream), MODEL.block_size, seed)?;
            // From the weights alone.
            let mut model = CpuBackend::from_parameters(MODEL, precision, parameters);
            train(split, run, &dataset, &mut model, &mut curve);
            parameters = model.parameters().into_owned();
        }
        curves.push(curve);
    }
    if let Some(path) = std::env::args_os().nth(1) {
        let svg = to_svg(&curves, "Resuming on the same split, and on a new one")?;
        write_atomic(path.as_ref(), svg.as_bytes())?;
    }
    Ok(())
}

/// Trains for some epochs with a fresh AdamW, and prints the losses of each, the evaluation loss without dropout.
fn train(split: &str, run: u64, dataset: &Dataset, model: &mut CpuBackend, curve: &mut Curve) {
    let mut optimizer = AdamW::new(AdamWConfig { weight_decay: WEIGHT_DECAY, ..AdamWConfig::default() });
    let learning_rate = LEARNING_RATE / f64::from(1 << run);
    let mut order = Rng::new(run, Stream::Order);
    let mut dropout = Rng::new(run, Stream::Dropout);
    let mut buffer = BatchBuffer::default();
    for epoch in 1..=EPOCHS {
        let blocks = dataset.epoch_blocks(BlockOffset::Fixed, &mut order);
        let mut sum = 0.0;
        for starts in blocks.chunks(BATCH_SIZE) {
            let batch = buffer.fill(dataset, starts, MODEL.block_size);
            sum += f64::from(model.loss_and_gradients(batch, dropout.next_u64()));
            optimizer.step(model, learning_rate);
        }
        let train_loss = sum / blocks.len().div_ceil(BATCH_SIZE) as f64;
        let blocks = dataset.blocks(Part::Eval);
        let batches = EvaluationBatches { dataset, blocks, batch_size: BATCH_SIZE, micro_batches: 1 };
        let eval_loss = mean_batch_loss(model, &SingleProcess, batches, &mut buffer, || true);
        let eval_loss = eval_loss.expect("evaluation was not canceled");
        let epoch = run * EPOCHS + epoch;
        println!("{split},{run},{epoch},{train_loss:.4},{eval_loss:.4}");
        let step = epoch as f64 * dataset.blocks(Part::Train).len().div_ceil(BATCH_SIZE) as f64;
        curve.train_losses.push((step, train_loss));
        curve.eval_losses.push((step, eval_loss));
    }
}
