//! Feeds every file parser with valid files in which bytes were changed, cut, repeated or inserted. A parser must accept the
//! file or return a one-line error. It must not panic, hang, or allocate more memory than a file of that size can need.
//!
//! `PROPTEST_CASES=1000000 cargo test --release -p folio --test it fuzz` runs more cases.

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use folio::checkpoint::{Checkpoint, CheckpointName};
use folio::data::TokenStream;
use folio::export::gguf::{self, Gguf, Value};
use folio::export::{TrainedModel, WeightType};
use folio::files::digest;
use folio::model::{ModelConfig, Parameters};
use folio::names::Named;
use folio::records;
use folio::run_dir::RunDir;
use folio::settings::Settings;
use folio::sweep::Sweep;
use folio::tokenizer::Tokenizer;
use folio::train::{Requests, Start, Trainer};
use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

const TEXT: &str = "to be or not to be that is the question: to be or not to be that is the question";

fn settings() -> Settings {
    let model =
        Settings { n_emb: 2, n_heads: 1, n_blocks: 1, block_size: 4, batch_size: 4, ..Settings::default() };
    Settings { num_epochs: 2, max_steps: Some(7), save_losses: true, save_checkpoint: true, ..model }
}

fn trainer(start: &Start) -> Result<Trainer, folio::error::Error> {
    let tokenizer = Tokenizer::chars(TEXT);
    let stream = TokenStream::encode(TEXT, &tokenizer, settings().split).expect("its own characters");
    Trainer::new(settings(), Arc::new(stream), Arc::new(tokenizer), start)
}

/// A run with all files, whose last epoch was cut short; created once.
fn valid_run() -> &'static (TempDir, RunDir) {
    static RUN: OnceLock<(TempDir, RunDir)> = OnceLock::new();
    RUN.get_or_init(|| {
        let place = tempfile::tempdir().expect("a temporary directory");
        let run = RunDir::new(place.path());
        let mut trainer = trainer(&Start::Fresh).expect("valid");
        records::run_recorded(&mut trainer, Some(&run), &Requests::default(), &mut |_| {})
            .expect("it trains");
        Sweep::new(
            folio::sweep::Plan::Halving { factor: 2 },
            vec![settings(), Settings { seed: 2, ..settings() }],
        )
        .write(place.path())
        .expect("room");
        (place, run)
    })
}

/// A change to a file. Positions are fractions of its length.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    Set(f64, u8),
    Flip(f64, u8),
    Cut(f64, usize),
    Insert(f64, Vec<u8>),
    Repeat(f64, usize),
}

pub(crate) fn edit() -> impl Strategy<Value = Edit> {
    let pieces = [
        "0",
        "9",
        "-",
        "1e400",
        "null",
        "[]",
        "{}",
        "\"",
        "\\u0000",
        ",",
        "99999999999999999999",
        "\u{ffff}",
        "=",
    ];
    let piece = prop_oneof![
        prop::sample::select(pieces.map(|piece| piece.as_bytes().to_vec()).to_vec()),
        vec(any::<u8>(), 1..9)
    ];
    let place = 0.0..1.0f64;
    prop_oneof![
        (place.clone(), any::<u8>()).prop_map(|(place, byte)| Edit::Set(place, byte)),
        (place.clone(), 0..8u8).prop_map(|(place, bit)| Edit::Flip(place, bit)),
        (place.clone(), 1..40usize).prop_map(|(place, count)| Edit::Cut(place, count)),
        (place.clone(), piece).prop_map(|(place, bytes)| Edit::Insert(place, bytes)),
        (place, 1..200usize).prop_map(|(place, count)| Edit::Repeat(place, count)),
    ]
}

pub(crate) fn edited(bytes: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for edit in edits {
        let at =
            |share: &f64, length: usize| ((share * length as f64) as usize).min(length.saturating_sub(1));
        let length = bytes.len();
        match edit {
            Edit::Set(place, byte) if length > 0 => bytes[at(place, length)] = *byte,
            Edit::Flip(place, bit) if length > 0 => bytes[at(place, length)] ^= 1 << bit,
            Edit::Cut(place, count) => {
                let start = at(place, length);
                bytes.drain(start..(start + count).min(length));
            }
            Edit::Insert(place, piece) => {
                let start = at(place, length);
                bytes.splice(start..start, piece.iter().copied());
            }
            Edit::Repeat(place, count) => {
                let start = at(place, length);
                let piece = bytes[start..(start + count).min(length)].to_vec();
                bytes.splice(start..start, piece);
            }
            Edit::Set(..) | Edit::Flip(..) => {}
        }
    }
    bytes
}

/// Checks that an error is one line and names the file.
pub(crate) fn check_error(error: &folio::error::Error, name: &str) {
    let reported = error.to_string();
    assert!(!reported.contains('\n') && !reported.is_empty(), "{name}: {reported}");
}

/// A copy of the run in which the file `name` has the content `bytes`.
fn run_with(name: &str, bytes: &[u8]) -> (TempDir, RunDir) {
    let (_, sound) = valid_run();
    let place = tempfile::tempdir().expect("a temporary directory");
    copy(sound.path(), place.path());
    fs::write(place.path().join(name), bytes).expect("room");
    let run = RunDir::new(place.path());
    (place, run)
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a directory") {
        let (from, to) = {
            let name = entry.expect("readable").file_name();
            (from.join(&name), to.join(&name))
        };
        if from.is_symlink() {
            continue;
        }
        if from.is_dir() {
            fs::create_dir(&to).expect("room");
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).expect("room");
        }
    }
}

/// Updates the hashes in the manifest of a checkpoint, so that its files are parsed.
fn update_manifest(checkpoint: &Path) {
    let path = checkpoint.join("manifest.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("there")).expect("a manifest");
    for (name, entry) in manifest["files"].as_object_mut().expect("files") {
        let bytes = fs::read(checkpoint.join(name)).expect("there");
        entry["bytes"] = bytes.len().into();
        entry["sha256"] = digest(&bytes).into();
    }
    fs::write(path, manifest.to_string()).expect("room");
}

/// The default number of cases takes some tenths of a second; the environment variable can raise it.
pub(crate) fn cases(count: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|count| count.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(count), failure_persistence: None, ..ProptestConfig::default() }
}

const CHECKPOINT: &str = "checkpoint_2";

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn a_checkpoint(
        file in prop::sample::select(vec!["model.safetensors", "optimizer.safetensors", "state.json"]),
        edits in vec(edit(), 1..4),
    ) {
        let (_, sound) = valid_run();
        let bytes = fs::read(sound.path().join(CHECKPOINT).join(file)).expect("there");
        let (_place, run) = run_with(&format!("{CHECKPOINT}/{file}"), &edited(&bytes, &edits));
        update_manifest(&run.checkpoint(CheckpointName::Epoch(2)));
        let read = Checkpoint::open(&run.checkpoint(CheckpointName::Epoch(2))).and_then(|checkpoint| {
            let parameters = checkpoint.parameters()?;
            checkpoint.moments(parameters.specs()).map(|_| ())
        });
        if let Err(error) = read {
            check_error(&error, file);
        }
        // Training can continue from everything that is accepted.
        match trainer(&Start::Resume { run, skip_damaged: false }) {
            Ok(mut trainer) => {
                let one_step = Requests::default();
                one_step.stop.store(true, std::sync::atomic::Ordering::Relaxed);
                if let Err(error) = trainer.run(None, &one_step, &mut |_| {}) {
                    check_error(&error, file);
                }
            }
            Err(error) => check_error(&error, file),
        }
    }

    #[test]
    fn a_manifest(edits in vec(edit(), 1..4)) {
        let (_, sound) = valid_run();
        let bytes = fs::read(sound.path().join(CHECKPOINT).join("manifest.json")).expect("there");
        let (_place, run) = run_with(&format!("{CHECKPOINT}/manifest.json"), &edited(&bytes, &edits));
        if let Err(error) = run.newest(false) {
            check_error(&error, "manifest.json");
        }
    }
}

proptest! {
    #![proptest_config(cases(1_500))]

    #[test]
    fn descriptions_of_a_run(
        file in prop::sample::select(vec![
            "hyperparameters.json", "model_hyperparameters.json", "tokenizer.json", "losses.json", "lrs.json",
            "status.json", "sweep.json", "metrics.jsonl",
        ]),
        edits in vec(edit(), 1..4),
    ) {
        let (_, sound) = valid_run();
        let place = tempfile::tempdir().expect("a temporary directory");
        let run = RunDir::new(place.path());
        fs::write(place.path().join("hyperparameters.json"), "{}").expect("room");
        let bytes = fs::read(sound.path().join(file)).expect("there");
        fs::write(place.path().join(file), edited(&bytes, &edits)).expect("room");
        if file == "lrs.json" {
            fs::copy(sound.path().join("losses.json"), place.path().join("losses.json")).expect("room");
        }
        let read = match file {
            "hyperparameters.json" => run.settings().and_then(|settings| settings.validate()),
            "model_hyperparameters.json" => run.model_config().map(|_| ()),
            "tokenizer.json" => run.tokenizer().map(|tokenizer| {
                let _ = tokenizer.encode(TEXT).map(|ids| tokenizer.decode(&ids));
            }),
            "losses.json" | "lrs.json" => run.history().map(|history| _ = history.and_then(|history| history.best_epoch())),
            "status.json" => {
                // Nothing depends on it.
                let _ = run.status();
                Ok(())
            }
            "sweep.json" => Sweep::read(place.path()).map(|sweep| _ = sweep.map(|sweep| (sweep.rungs(), sweep.values(0)))),
            _ => records::read(&run).map(|_| ()),
        };
        if let Err(error) = read {
            check_error(&error, file);
        }
    }

    #[test]
    fn a_tokenizer_of_pairs(edits in vec(edit(), 1..4)) {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        let bytes = BYTES.get_or_init(|| {
            let file = tempfile::NamedTempFile::new().expect("room");
            Tokenizer::train_bpe(TEXT, 270, &["<|end|>"]).expect("enough pairs").write(file.path()).expect("room");
            fs::read(file.path()).expect("there")
        });
        let file = tempfile::NamedTempFile::new().expect("room");
        fs::write(file.path(), edited(bytes, &edits)).expect("room");
        match Tokenizer::read(file.path()) {
            Ok(tokenizer) => _ = tokenizer.encode_special(TEXT).map(|ids| tokenizer.decode(&ids)),
            Err(error) => check_error(&error, "tokenizer.json"),
        }
    }
}

/// A GGUF file of each type, with a tokenizer of pairs.
fn gguf_files() -> &'static [Vec<u8>] {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let tokenizer = Tokenizer::train_bpe(TEXT, 270, &["<|end|>"]).expect("enough pairs");
        let sizes = ModelConfig {
            vocab_size: 270,
            n_blocks: 1,
            n_emb: 32,
            n_heads: 1,
            block_size: 4,
            ..ModelConfig::GPT2
        };
        let parameters = Parameters::zeros(&sizes);
        let model =
            TrainedModel { name: "fuzz", config: sizes, parameters: &parameters, tokenizer: &tokenizer };
        let file = |weight_type: &WeightType| {
            let file = tempfile::NamedTempFile::new().expect("room");
            gguf::write(&model, *weight_type, file.path()).expect("room");
            fs::read(file.path()).expect("there")
        };
        WeightType::ALL.iter().map(file).collect()
    })
}

proptest! {
    #![proptest_config(cases(1_500))]

    #[test]
    fn a_gguf_file(which in 0..WeightType::ALL.len(), edits in vec(edit(), 1..4), in_head in any::<bool>()) {
        let valid = &gguf_files()[which];
        // Most of a file are weights, of which any are valid: half of the edits are among the first numbers and names.
        let (head, rest) = valid.split_at(if in_head { 1_000 } else { valid.len() });
        match Gguf::parse([edited(head, &edits), rest.to_vec()].concat()) {
            Ok(file) => file.tensors().iter().for_each(|tensor| {
                let numbers = file.numbers(tensor);
                assert_eq!(numbers.len() as u64, tensor.shape.iter().product::<u64>());
            }),
            Err(what) => assert!(!what.contains('\n') && !what.is_empty(), "{what}"),
        }
    }

    #[test]
    fn a_name_in_a_gguf_file(name in "\\PC{0,20}|[\0-\u{10ffff}]{0,5}") {
        let tokenizer = Tokenizer::chars(&format!("{name}ab"));
        let sizes = ModelConfig {
            vocab_size: tokenizer.vocab_size(), n_blocks: 1, n_emb: 2, n_heads: 1, block_size: 1, ..ModelConfig::GPT2
        };
        let parameters = Parameters::zeros(&sizes);
        let model = TrainedModel { name: &name, config: sizes, parameters: &parameters, tokenizer: &tokenizer };
        let file = tempfile::NamedTempFile::new().expect("room");
        gguf::write(&model, WeightType::F16, file.path()).expect("room");
        let read = Gguf::read(file.path()).expect("its own");
        assert_eq!(read.value("general.name"), Some(&Value::Text(name)));
        let Some(Value::Texts(tokens)) = read.value("tokenizer.ggml.tokens") else { panic!("no tokens") };
        assert_eq!(tokens.len(), tokenizer.vocab_size() + 1);
    }
}
