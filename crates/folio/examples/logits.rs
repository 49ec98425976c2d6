//! Prints a checkpoint's logits for a fixed sequence as JSON, for `reference/golden.py --check-checkpoint`:
//!
//! ```text
//! cargo run --release -p folio --example logits -- RUN_DIR N > /tmp/logits.json
//! python reference/golden.py --check-checkpoint RUN_DIR/checkpoint_N --logits /tmp/logits.json
//! ```

use folio::checkpoint::CheckpointName;
use folio::model::{CpuBackend, Precision};
use folio::run_dir::RunDir;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(run_dir), Some(number)) = (args.next(), args.next()) else {
        return Err("usage: logits RUN_DIR N".into());
    };
    let run = RunDir::new(run_dir);
    let checkpoint = run.open_checkpoint(CheckpointName::Epoch(number.parse()?))?;
    let config = checkpoint.state().identity.model;
    let mut model = CpuBackend::from_parameters(config, Precision::F32, checkpoint.parameters()?);
    // An arbitrary sequence that covers much of the vocabulary.
    let tokens: Vec<u32> =
        (0..config.block_size.min(48)).map(|t| ((t * t * 7 + t) % config.vocab_size) as u32).collect();
    let logits: Vec<&[f32]> = model.logits(&tokens).chunks_exact(config.vocab_size).collect();
    println!("{}", serde_json::json!({ "tokens": [tokens], "logits": [logits] }));
    Ok(())
}
