//! Label smoothing changes what is learned, not what is reported.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use folio::data::TokenStream;
use folio::settings::Settings;
use folio::tokenizer::Tokenizer;
use folio::train::{Event, Requests, Start, Trainer};

/// The loss of the first step, and its gradients.
fn first_step(label_smoothing: f64) -> (f32, Vec<f32>) {
    let settings = Settings {
        label_smoothing,
        n_emb: 16,
        n_heads: 2,
        n_blocks: 1,
        block_size: 8,
        batch_size: 4,
        ..Settings::default()
    };
    let text = "to be, or not to be, that is the question. ".repeat(8);
    let tokenizer = Arc::new(Tokenizer::chars(&text));
    let stream = TokenStream::encode(&text, &tokenizer, settings.split).expect("its own characters");
    let mut trainer =
        Trainer::new(settings, Arc::new(stream), tokenizer, &Start::Fresh).expect("valid settings");
    let requests = Requests::default();
    requests.stop.store(true, Ordering::Relaxed);
    let mut losses = Vec::new();
    let mut on_event = |event: &Event| {
        if let Event::Step(report) = event {
            losses.push(report.loss);
        }
    };
    trainer.run(None, &requests, &mut on_event).expect("it trains");
    assert_eq!(losses.len(), 1, "it stops after one step");
    (losses[0], trainer.backend().gradients().values().to_vec())
}

#[test]
fn label_smoothing_changes_gradients_but_not_reported_losses() {
    let (loss, gradients) = first_step(0.0);
    let (smoothed_loss, smoothed) = first_step(0.2);
    assert_eq!(loss, smoothed_loss);
    assert!(gradients != smoothed);
    // The model starts near even probabilities, so the gradient is near (1 - s) times what it is without smoothing.
    let norm = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let ratio = norm(&smoothed) / norm(&gradients);
    assert!((0.75..0.85).contains(&ratio), "{ratio}");
}
