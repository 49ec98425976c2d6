//! What changes from step to step: dropout and weight decay.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use folio::distributed::{Communicator, SingleProcess};
use folio::model::{
    Backend, Batch, CpuBackend, Frozen, ModelConfig, Moments, Parameters, Precision, StepBatch, Update,
};
use folio::rng::{Rng, Stream};
use folio::schedule::{ScheduleKind, Unit};
use folio::settings::Settings;
use folio::train::{Requests, Start, Trainer};

use crate::ranks;
use crate::support::BACKENDS;

/// The rates that a step gets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Told {
    dropout: f32,
    weight_decay: f64,
    learning_rate: f64,
}

/// A backend that records its rates, and computes nothing.
struct Recorder {
    model: CpuBackend,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Backend for Recorder {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn forward_backward(&mut self, step: StepBatch<'_>) -> f64 {
        let dropout = step.dropout.expect("the trainer sets it");
        self.told.lock().expect("alive").push(Told { dropout, ..Told::default() });
        1.0
    }

    fn losses(&mut self, batch: Batch<'_>) -> &[f32] {
        self.model.losses(batch)
    }

    fn reduce_gradients(&mut self, _: &dyn Communicator) {}

    fn gradient_norm(&mut self) -> f64 {
        1.0
    }

    fn update(&mut self, update: &Update) {
        let muon = update.muon.expect("the optimizer is Muon");
        assert_eq!(muon.weight_decay, update.adamw.weight_decay);
        assert_eq!(muon.learning_rate, 2.0 * update.adamw.learning_rate);
        let mut told = self.told.lock().expect("alive");
        let last = told.last_mut().expect("a pass comes first");
        (last.weight_decay, last.learning_rate) = (muon.weight_decay, update.adamw.learning_rate);
    }

    fn update_average(&mut self, _: f64) {}

    fn average(&self) -> Option<Cow<'_, Parameters>> {
        None
    }

    fn load_average(&mut self, _: Parameters) {}

    fn swap_average(&mut self) {}

    fn parameters(&self) -> Cow<'_, Parameters> {
        self.model.parameters()
    }

    fn load_parameters(&mut self, _: Parameters) {}

    fn gradients(&self) -> Cow<'_, Parameters> {
        unreachable!("nothing is computed")
    }

    fn moments(&self) -> Cow<'_, Moments> {
        self.model.moments()
    }

    fn freeze(&mut self, _: Frozen) {}

    fn load_moments(&mut self, _: Moments) {}
}

/// What the steps of a run of three epochs of four steps are told.
fn told(settings: Settings) -> Vec<Told> {
    let told = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&told);
    let new = move |config, precision, parameters| -> Box<dyn Backend> {
        let model = CpuBackend::from_parameters(config, precision, parameters);
        Box::new(Recorder { model, told: Arc::clone(&notes) })
    };
    let (stream, tokenizer) = ranks::data();
    let mut trainer = Trainer::on(&new, Box::new(SingleProcess), settings, stream, tokenizer, &Start::Fresh)
        .expect("valid settings");
    trainer.run(None, &Requests::default(), &mut |_| {}).expect("a run without mishap");
    drop(trainer);
    let told = told.lock().expect("alive").clone();
    assert_eq!(told.len(), 12);
    told
}

fn settings() -> Settings {
    Settings {
        optimizer: "muon".parse().expect("an optimizer"),
        dropout: 0.25,
        dropout_final: Some(0.0),
        weight_decay: 0.0,
        weight_decay_final: Some(1.0),
        learning_rate: 1.0,
        muon_learning_rate: Some(2.0),
        lr_schedule: ScheduleKind::Wsd,
        cosine_final_lr: 0.0,
        wsd_decay: 0.5,
        ..ranks::settings()
    }
}

/// Checks the rates of the first steps, and that all later steps have those of the last.
#[track_caller]
fn check(settings: Settings, want: &[(f32, f64, f64)]) {
    let step = |index: usize| {
        let (dropout, weight_decay, learning_rate) = want[index.min(want.len() - 1)];
        Told { dropout, weight_decay, learning_rate }
    };
    let want: Vec<Told> = (0..12).map(step).collect();
    assert_eq!(told(settings), want);
}

#[test]
fn rates_change_linearly_from_step_to_step_and_stay_from_t_max_on() {
    let by_step = Settings { lr_schedule_unit: Unit::Step, cosine_t_max: 8, ..settings() };
    check(
        by_step,
        &[
            (0.25, 0.0, 1.0),
            (0.21875, 0.125, 1.0),
            (0.1875, 0.25, 1.0),
            (0.15625, 0.375, 1.0),
            (0.125, 0.5, 1.0),
            (0.09375, 0.625, 0.75),
            (0.0625, 0.75, 0.5),
            (0.03125, 0.875, 0.25),
            (0.0, 1.0, 0.0),
        ],
    );
    // Dropout and weight decay change within an epoch, the learning rate does not.
    let by_epoch = Settings { lr_schedule_unit: Unit::Epoch, cosine_t_max: 2, ..settings() };
    check(
        by_epoch,
        &[
            (0.25, 0.0, 1.0),
            (0.21875, 0.125, 1.0),
            (0.1875, 0.25, 1.0),
            (0.15625, 0.375, 1.0),
            (0.125, 0.5, 1.0),
            (0.09375, 0.625, 1.0),
            (0.0625, 0.75, 1.0),
            (0.03125, 0.875, 1.0),
            (0.0, 1.0, 0.0),
        ],
    );
    let rising = Settings {
        dropout: 0.0,
        dropout_final: Some(0.5),
        weight_decay_final: None,
        lr_schedule: ScheduleKind::Const,
        ..settings()
    };
    check(
        Settings { lr_schedule_unit: Unit::Step, cosine_t_max: 4, ..rising },
        &[(0.0, 0.0, 1.0), (0.125, 0.0, 1.0), (0.25, 0.0, 1.0), (0.375, 0.0, 1.0), (0.5, 0.0, 1.0)],
    );
    let constant = Settings { dropout_final: None, weight_decay_final: None, wsd_decay: 1.0, ..settings() };
    check(
        Settings { cosine_t_max: 1, ..constant },
        &[(0.25, 0.0, 1.0); 4].into_iter().chain([(0.25, 0.0, 0.0)]).collect::<Vec<_>>(),
    );
}

#[test]
fn a_step_with_another_dropout_rate_is_that_of_a_model_with_this_rate() {
    let config = |dropout| ModelConfig {
        vocab_size: 11,
        n_blocks: 2,
        n_emb: 8,
        n_heads: 2,
        block_size: 6,
        dropout,
        ..ModelConfig::GPT2
    };
    let tokens: Vec<u32> = (0..18).map(|token| token * 7 % 11).collect();
    let batch = Batch { inputs: &tokens, targets: &tokens, time: 6 };
    for (name, new) in BACKENDS {
        let mut results = Vec::new();
        for (of_model, of_step) in
            [(0.1, Some(0.4)), (0.4, None), (0.1, None), (0.1, Some(0.0)), (0.0, None), (0.0, Some(0.4))]
        {
            let parameters = Parameters::random(&config(of_model), &mut Rng::new(1, Stream::Init));
            let mut model = new(config(of_model), Precision::F32, parameters);
            let step = StepBatch { dropout: of_step, ..StepBatch::whole(batch, 5) };
            let loss = model.forward_backward(step);
            results.push((loss, model.gradients().values().to_vec()));
            assert_eq!(model.config().dropout, of_model, "{name}");
        }
        assert!(results[0] == results[1], "{name}: 0.4");
        assert!(results[0] != results[2], "{name}: 0.4 and 0.1");
        assert!(results[3] == results[4], "{name}: 0");
        assert!(results[5] == results[1], "{name}: from 0 to 0.4");
    }
}
