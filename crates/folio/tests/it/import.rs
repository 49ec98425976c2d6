//! Models of other programs, compared to the golden files of `reference/import_golden.py` (transformers, PyTorch).

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use folio::checkpoint::{Checkpoint, CheckpointName};
use folio::data::TokenStream;
use folio::generate::{Generator, Request, Sampling};
use folio::import::{self, Hints, Imported, Origin};
use folio::model::{
    Activation, Backend, Batch, CpuBackend, InferenceModel, ModelConfig, Precision, WeightFormat,
};
use folio::optim::{AdamW, AdamWConfig};
use folio::run_dir::{RunDir, RunState};
use folio::settings::Settings;
use folio::tokenizer::{Tokenizer, TokenizerKind};
use folio::train::{Outcome, Requests, Start, Trainer};
use safetensors::SafeTensors;

const CONTEXT: usize = 12;
const EPS: f32 = f32::EPSILON;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/golden/import").join(name)
}

/// A tensor of `expected.safetensors`.
fn expected(name: &str) -> Vec<f32> {
    let bytes = fs::read(golden("expected.safetensors")).expect("the golden file is committed");
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (numbers, _) = tensors.tensor(name).expect("a tensor").data().as_chunks::<4>();
    numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The integer hash of `golden.py`.
fn hash32(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
    x ^ (x >> 16)
}

/// The ids of `import_golden.py`.
fn tokens_of(count: usize, vocab_size: usize, seed: u32) -> Vec<u32> {
    (0..count as u32).map(|index| hash32(index + seed * 1000) % vocab_size as u32).collect()
}

/// Hints for the models that need some.
fn hints(name: &str) -> Hints {
    let tokenizer = match name {
        "hf_bin" => Some(golden("hf/tokenizer.json")),
        "nanogpt_no_bias" | "mingpt" => Some(golden("nanogpt/meta.pkl")),
        _ => None,
    };
    Hints { n_heads: None, tokenizer: tokenizer.map(TokenizerKind::File) }
}

#[track_caller]
fn read(name: &str) -> Imported {
    import::read(&golden(name), &hints(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

const MODELS: [&str; 6] = ["hf", "hf_varied", "hf_bin", "nanogpt", "nanogpt_no_bias", "mingpt"];

/// The logits of the last two positions of a whole context.
fn last_logits(model: &mut CpuBackend, vocab_size: usize) -> Vec<f32> {
    let tokens = tokens_of(CONTEXT, vocab_size, 1);
    [CONTEXT - 1, CONTEXT].iter().flat_map(|&end| model.next_logits(&tokens[..end]).to_vec()).collect()
}

/// Asserts that logits differ by at most 1e-5 of the largest one. (A logit is a sum of 8 products behind 2 blocks; their sums
/// of at most 32 terms round by a few eps each: 80 eps in all, which is 1e-5.)
#[track_caller]
fn check_logits(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
    let errors = got.iter().zip(want).map(|(got, want)| (got - want).abs());
    let (worst, error) = errors.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).expect("logits");
    let tolerance = 80.0 * EPS * largest;
    let (got, want) = (got[worst], want[worst]);
    assert!(error <= tolerance, "{what}[{worst}]: got {got}, want {want}, off by {error:e} > {tolerance:e}");
}

#[test]
fn logits_are_those_of_the_program_that_saved_the_model() {
    for name in MODELS {
        let Imported { config, parameters, .. } = read(name);
        let want = expected(name);
        assert!(want.iter().any(|logit| logit.abs() > 0.5), "{name}: the logits say something");
        let mut model = CpuBackend::from_parameters(config, Precision::F32, parameters);
        check_logits(name, &last_logits(&mut model, config.vocab_size), &want);
    }
}

#[test]
fn what_is_read_is_what_was_saved() {
    let origins = [Origin::Transformers, Origin::NanoGpt, Origin::MinGpt];
    let [hf, varied, bin, nano, no_bias, mini] = MODELS.map(read);
    assert_eq!([hf.origin, nano.origin, mini.origin], origins);
    for (model, tokens, rows) in
        [(&hf, 265, 270), (&varied, 265, 270), (&bin, 265, 270), (&nano, 8, 13), (&mini, 8, 13)]
    {
        assert_eq!((model.tokenizer.vocab_size(), model.config.vocab_size), (tokens, rows));
        let config = model.config;
        assert_eq!((config.n_blocks, config.n_emb, config.n_heads, config.block_size), (2, 8, 2, CONTEXT));
    }
    assert_eq!((hf.config.activation, varied.config.activation), (Activation::GeluNew, Activation::Gelu));
    assert_eq!((nano.config.activation, mini.config.activation), (Activation::Gelu, Activation::GeluNew));
    assert_eq!((hf.config.inner(), varied.config.inner()), (32, 20));
    assert_eq!(varied.config.layer_norm_epsilon, 1e-3);
    let tied = [&hf, &varied, &bin, &nano, &no_bias, &mini].map(|model| model.config.tie_word_embeddings);
    assert_eq!(tied, [true, false, true, true, true, false]);
    assert_eq!(nano.tokenizer_kind, TokenizerKind::Chrs);
    assert!(matches!(&hf.tokenizer_kind, TokenizerKind::File(path) if path.ends_with("hf/tokenizer.json")));
    // vocab.json and merges.txt are the same tokenizer as tokenizer.json.
    assert_eq!(hf.tokenizer.digest(), varied.tokenizer.digest());
    assert_eq!(hf.tokenizer.end_token(), Some(264));
    let biases = |model: &Imported| {
        let specs = model.parameters.specs().iter().filter(|spec| spec.name.ends_with(".bias"));
        specs.flat_map(|spec| model.parameters.tensor(spec).to_vec()).filter(|bias| *bias != 0.0).count()
    };
    assert_eq!((biases(&no_bias), biases(&nano)), (0, 2 * (8 + 24 + 8 + 8 + 32 + 8) + 8));
    // Another file of the same weights is the same model.
    assert_eq!(nano.sha256, import::read(&golden("nanogpt/ckpt.pt"), &hints("nanogpt")).unwrap().sha256);
    assert_ne!(nano.sha256, no_bias.sha256);
}

/// The losses of 50 steps with the batches of `import_golden.py`.
fn losses_of(name: &str) -> Vec<f32> {
    let Imported { config, parameters, .. } = read(name);
    let config = ModelConfig { dropout: 0.0, ..config };
    let mut model = CpuBackend::from_parameters(config, Precision::F32, parameters);
    let mut optimizer = AdamW::new(AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() });
    let step = |step: u32| {
        let tokens = tokens_of(4 * (CONTEXT + 1), config.vocab_size, 10 + step % 5);
        let sequences = tokens.chunks_exact(CONTEXT + 1);
        let inputs: Vec<u32> = sequences.clone().flat_map(|sequence| sequence[..CONTEXT].to_vec()).collect();
        let targets: Vec<u32> = sequences.flat_map(|sequence| sequence[1..].to_vec()).collect();
        let loss = model.loss_and_gradients(Batch { inputs: &inputs, targets: &targets, time: CONTEXT }, 0);
        optimizer.step(&mut model, 1e-3);
        loss
    };
    (0..50).map(step).collect()
}

#[test]
fn fine_tuning_takes_pytorch_s_steps() {
    for name in ["hf", "hf_varied"] {
        let (got, want) = (losses_of(name), expected(&format!("{name}.losses")));
        // Every fifth step has the same batch.
        assert!(want[45] < want[0] - 0.1, "{name}: it learns");
        for (step, (got, want)) in got.iter().zip(&want).enumerate() {
            // Rounding of 1e-7 per step in the weights, and Adam divides small gradients by their own size.
            assert!((got - want).abs() <= 2e-4, "{name}, step {step}: got {got}, want {want}");
        }
    }
}

#[test]
fn an_imported_run_has_a_model_and_nothing_else() {
    for name in MODELS {
        let place = tempfile::tempdir().unwrap();
        let run = RunDir::new(place.path().join("run"));
        let imported = read(name);
        assert_eq!(import::write_run(&imported, &run, false).unwrap(), CheckpointName::Epoch(0));
        assert!(run.history().unwrap().is_none());
        assert_eq!(run.status().unwrap().state, RunState::Imported);
        let settings = run.settings().unwrap();
        settings.validate().unwrap();
        assert!(!settings.has_text());
        assert_eq!(settings.init_from_sha256.as_ref(), Some(&imported.sha256));
        let (tokenizer, found) = (run.tokenizer().unwrap(), folio::run_dir::find(Some(run.path())).unwrap());
        let checkpoint = Checkpoint::open(&found.checkpoint.path).unwrap();
        checkpoint.check_tokenizer(&tokenizer).unwrap();
        checkpoint.verify().unwrap();
        assert!(!checkpoint.is_resumable());
        assert_eq!(checkpoint.state().identity.model, imported.config);
        assert_eq!(checkpoint.parameters().unwrap().values(), imported.parameters.values());
        // The checkpoint is itself a model as transformers saves it.
        let again = import::read(&found.checkpoint.path, &Hints::default()).unwrap();
        assert_eq!((again.sha256, again.origin), (imported.sha256.clone(), Origin::Transformers));
        // Nothing is left of the temporary directory, and a second import asks first.
        let names =
            fs::read_dir(run.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(names.filter(|name| name.starts_with('.')).all(|name| name == ".lock"));
        let message = import::write_run(&imported, &run, false).unwrap_err().to_string();
        assert!(message.contains("already holds a run"), "{message}");
        import::write_run(&imported, &run, true).unwrap();
        assert_eq!(run.checkpoints().unwrap(), [CheckpointName::Epoch(0)]);
    }
}

#[test]
fn rows_of_the_embedding_without_a_token_are_never_sampled() {
    let Imported { config, mut parameters, tokenizer, .. } = read("nanogpt");
    let tokens = tokenizer.vocab_size();
    // The rows of no token get the largest logits by far.
    let wte = parameters.specs()[0].range.clone();
    let (rows, width) = (config.vocab_size, config.n_emb);
    let last = parameters.values()[wte.clone()][(tokens - 1) * width..][..width].to_vec();
    for row in tokens..rows {
        for (value, last) in parameters.values_mut()[wte.clone()][row * width..].iter_mut().zip(&last) {
            *value = 100.0 * last;
        }
    }
    let model = Arc::new(InferenceModel::new(config, WeightFormat::F32, &parameters));
    let mut generator = Generator::new(model, Arc::new(tokenizer));
    for temperature in [0.0, 1.0, 5.0] {
        let sampling = Sampling { temperature, ..Sampling::default() };
        let mut ids = Vec::new();
        let request = Request { max_new_tokens: 40, sampling, ..Request::default() };
        generator.generate(request, |token| ids.push(token.token)).unwrap();
        assert!(ids.len() == 40 && ids.iter().all(|id| (*id as usize) < tokens), "{ids:?}");
    }
    let message = generator.begin(Request { prompt: vec![tokens as u32], ..Request::default() }).unwrap_err();
    assert!(message.to_string().contains("outside the vocabulary of 8"), "{message}");
}

const TEXT: &str =
    "to be, or not to be, or not to be, to be or not, not to be or to be, to be, or not to be.";

/// The settings, text and tokenizer of a run that begins with a model.
fn tuning(name: &str, block_size: usize) -> (Settings, Arc<TokenStream>, Arc<Tokenizer>) {
    let imported = read(name);
    let base = Settings { block_size, batch_size: 2, num_epochs: 2, dropout: 0.1, ..Settings::default() };
    let settings = imported.settings(base).unwrap();
    let stream = TokenStream::encode(&TEXT.replace('.', ""), &imported.tokenizer, settings.split).unwrap();
    (settings, Arc::new(stream), Arc::new(imported.tokenizer))
}

#[test]
fn a_run_begins_with_the_weights_of_a_model_and_resumes_exactly() {
    for (name, block_size) in [("nanogpt", CONTEXT), ("nanogpt", 7), ("hf_varied", 9)] {
        let (settings, stream, tokenizer) = tuning(name, block_size);
        let (stream, tokenizer) = (|| Arc::clone(&stream), || Arc::clone(&tokenizer));
        let imported = read(name);
        let trainer = Trainer::new(settings.clone(), stream(), tokenizer(), &Start::Fresh).unwrap();
        // Positions beyond block_size are left out; everything else is as it was.
        let parameters = trainer.backend().parameters();
        for (spec, old) in parameters.specs().iter().zip(imported.parameters.specs()) {
            let values = &imported.parameters.tensor(old)[..spec.range.len()];
            assert_eq!(parameters.tensor(spec), values, "{name} {}", spec.name);
            assert!(spec.shape == old.shape || spec.name == "wpe.weight");
        }
        let train = |run: &RunDir, start: &Start, stop: bool| {
            let mut trainer = Trainer::new(settings.clone(), stream(), tokenizer(), start).unwrap();
            let requests = Requests::default();
            requests.stop.store(stop, std::sync::atomic::Ordering::Relaxed);
            let outcome = trainer.run(Some(run), &requests, &mut |_| {}).unwrap();
            assert_eq!(outcome, if stop { Outcome::Stopped } else { Outcome::Finished });
            trainer.backend().parameters().values().to_vec()
        };
        let place = tempfile::tempdir().unwrap();
        let [whole, stopped] = ["whole", "stopped"].map(|name| RunDir::new(place.path().join(name)));
        let want = train(&whole, &Start::Fresh, false);
        // Stopped before the first checkpoint: only the description was written.
        stopped.create().unwrap();
        stopped.write_description(&settings, trainer.backend().config(), &tokenizer()).unwrap();
        let resume = Start::Resume { run: stopped.clone(), skip_damaged: false };
        train(&stopped, &resume, true);
        assert!(matches!(stopped.checkpoints().unwrap()[..], [CheckpointName::Step(1)]), "{name}");
        assert_eq!(train(&stopped, &resume, false), want, "{name}");
    }
}

#[test]
fn a_run_does_not_begin_with_another_model() {
    let (settings, stream, tokenizer) = tuning("nanogpt", CONTEXT);
    let refused = |settings: Settings| {
        let trainer = Trainer::new(settings, Arc::clone(&stream), Arc::clone(&tokenizer), &Start::Fresh);
        trainer.map(drop).unwrap_err().to_string()
    };
    let path = settings.init_from.clone().unwrap();
    let other = path.replace("nanogpt", "nanogpt_no_bias");
    let message = refused(Settings { init_from: Some(other), ..settings.clone() });
    assert!(
        message.ends_with("is no longer the model that the run begins with: restore it, or start a new run"),
        "{message}"
    );
    let message = refused(Settings { n_blocks: 3, ..settings.clone() });
    assert!(message.contains("is a model of other sizes than the run's"), "{message}");
    let message = refused(Settings { init_from: Some("nowhere".to_owned()), ..settings.clone() });
    assert!(message.starts_with("nowhere does not exist"), "{message}");
    let grown = read("nanogpt").settings(Settings { block_size: 13, ..Settings::default() });
    let message = grown.unwrap_err().to_string();
    assert!(message.starts_with("`block_size 13` is longer than the imported model's context"), "{message}");
}

#[test]
fn a_run_that_was_imported_can_be_begun_with() {
    let place = tempfile::tempdir().unwrap();
    let run = RunDir::new(place.path().join("run"));
    let imported = read("nanogpt");
    import::write_run(&imported, &run, false).unwrap();
    for path in [run.path().to_path_buf(), run.path().join("latest"), run.path().join("checkpoint_0")] {
        assert_eq!(import::read(&path, &Hints::default()).unwrap().sha256, imported.sha256);
    }
    // A trained one has a text, which must not be evaluated on after it was trained on.
    let (settings, stream, tokenizer) = tuning("nanogpt", CONTEXT);
    let trained = RunDir::new(place.path().join("trained"));
    let mut trainer = Trainer::new(settings, stream, tokenizer, &Start::Fresh).unwrap();
    trainer.run(Some(&trained), &Requests::default(), &mut |_| {}).unwrap();
    for path in [trained.path().to_path_buf(), trained.path().join("latest")] {
        let message = import::read(&path, &Hints::default()).unwrap_err().to_string();
        assert!(message.contains("is a run of folio: continue it with --from_checkpoint"), "{message}");
    }
}

mod fuzz;
mod mistakes;
mod places;

/// Copies a directory without directories in it.
fn copy(name: &str) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(name)).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, place.path().join(from.file_name().unwrap())).unwrap();
    }
    place
}

/// The tensors of a safetensors file: for each name its type, shape and bytes.
type Parts = HashMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;

/// Changes the tensors of a `model.safetensors`.
fn edit(directory: &Path, change: impl FnOnce(&mut Parts)) {
    let path = directory.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let mut parts: Parts = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, tensor)| (name, (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec())))
        .collect();
    change(&mut parts);
    let views: Vec<_> = parts
        .iter()
        .map(|(name, (dtype, shape, bytes))| {
            (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, &path).unwrap();
}
