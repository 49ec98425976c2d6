//! Checkpoints that are not as they were written: always an error that names them, never a panic, never other weights.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use folio::checkpoint::{Checkpoint, CheckpointName};
use folio::data::TokenStream;
use folio::error::Error;
use folio::run_dir::RunDir;
use folio::settings::Settings;
use folio::tokenizer::Tokenizer;
use folio::train::{Requests, Start, Trainer};

/// The smallest model there is, so that every byte of its checkpoint can be tried.
fn settings() -> Settings {
    Settings {
        n_emb: 2,
        n_heads: 1,
        n_blocks: 1,
        block_size: 2,
        batch_size: 4,
        dropout: 0.0,
        num_epochs: 2,
        save_losses: true,
        save_checkpoint: true,
        keep: folio::settings::Keep::All,
        ..Settings::default()
    }
}

fn trainer(start: &Start) -> Result<Trainer, Error> {
    let text = "abab baba abba baab ".repeat(3);
    let tokenizer = Tokenizer::chars(&text);
    let stream = TokenStream::encode(&text, &tokenizer, settings().split).expect("its own characters");
    Trainer::new(settings(), Arc::new(stream), Arc::new(tokenizer), start)
}

/// A run of two epochs with all their checkpoints.
fn run(directory: &Path) -> RunDir {
    let run = RunDir::new(directory.join("run"));
    trainer(&Start::Fresh)
        .expect("valid")
        .run(Some(&run), &Requests::default(), &mut |_| {})
        .expect("it trains");
    run
}

/// All that a checkpoint says, as far as it can be read.
fn read(directory: &Path) -> Result<(Vec<u32>, Vec<u32>, String), Error> {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
    let checkpoint = Checkpoint::open(directory)?;
    let parameters = checkpoint.parameters()?;
    let moments = checkpoint.moments(parameters.specs())?;
    let moments = [bits(&moments.exp_avg), bits(&moments.exp_avg_sq)].concat();
    Ok((bits(parameters.values()), moments, format!("{:?}", checkpoint.state())))
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    assert_eq!(files.len(), 8, "{files:?}");
    files
}

/// Whether a file is there for transformers: folio reads nothing from it, but checks it before a run is resumed.
fn is_for_others(file: &Path) -> bool {
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
        .iter()
        .any(|name| file.ends_with(name))
}

/// Checks that a checkpoint with a changed file is refused by name, or says what it said before.
#[track_caller]
fn check_change(directory: &Path, whole: &(Vec<u32>, Vec<u32>, String), file: &Path, what: &str) {
    match read(directory) {
        Ok(found) => assert!(found == *whole, "{what} of {} is believed", file.display()),
        Err(error @ Error::Checkpoint { .. }) => {
            let reported = error.to_string();
            assert!(
                reported.contains("checkpoint_2") && !reported.contains('\n'),
                "{what} of {}: {reported}",
                file.display()
            );
        }
        Err(other) => panic!("{what} of {}: {other:?}", file.display()),
    }
}

#[test]
fn no_byte_can_be_flipped_unnoticed() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let checkpoint = run(place.path()).checkpoint(CheckpointName::Epoch(2));
    let whole = read(&checkpoint).expect("whole");
    let mut refused = 0;
    for file in files(&checkpoint) {
        let bytes = fs::read(&file).expect("readable");
        for index in 0..bytes.len() {
            // Every bit in turn over neighbouring bytes, and all of them.
            for mask in [1 << (index % 8), 0xFF] {
                let mut changed = bytes.clone();
                changed[index] ^= mask;
                fs::write(&file, &changed).expect("room");
                check_change(&checkpoint, &whole, &file, &format!("byte {index} with {mask:08b} flipped"));
                refused += usize::from(read(&checkpoint).is_err());
            }
        }
        fs::write(&file, &bytes).expect("room");
    }
    // But for the files that nothing here reads, and spaces of the manifest.
    let read_bytes: u64 = files(&checkpoint)
        .iter()
        .filter(|file| !is_for_others(file) && !file.ends_with("manifest.json"))
        .map(|file| fs::metadata(file).expect("there").len())
        .sum();
    assert!(refused as u64 >= 2 * read_bytes, "{refused} changes of {read_bytes} bytes were refused");
}

#[test]
fn no_file_can_be_cut_grown_or_removed_unnoticed() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let checkpoint = run(place.path()).checkpoint(CheckpointName::Epoch(2));
    let whole = read(&checkpoint).expect("whole");
    for file in files(&checkpoint) {
        let bytes = fs::read(&file).expect("readable");
        let lengths = (0..bytes.len().min(70)).chain((70..bytes.len()).step_by(97)).chain([bytes.len() - 1]);
        for length in lengths {
            fs::write(&file, &bytes[..length]).expect("room");
            check_change(&checkpoint, &whole, &file, &format!("a cut after {length} bytes"));
        }
        for more in [&b"\0"[..], b" ", b"{}", &bytes] {
            fs::write(&file, [&bytes, more].concat()).expect("room");
            check_change(&checkpoint, &whole, &file, &format!("{} bytes more", more.len()));
        }
        fs::remove_file(&file).expect("there");
        check_change(&checkpoint, &whole, &file, "the absence");
        if !is_for_others(&file) {
            assert!(read(&checkpoint).is_err(), "{} is missed", file.display());
        }
        fs::create_dir(&file).expect("room");
        check_change(&checkpoint, &whole, &file, "a directory in the place");
        fs::remove_dir(&file).expect("there");
        fs::write(&file, &bytes).expect("room");
    }
    assert!(read(&checkpoint).expect("whole again") == whole);
}

#[test]
fn a_damaged_newest_checkpoint_is_named_and_the_one_before_offered() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let run = run(place.path());
    for name in [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let file = run.checkpoint(CheckpointName::Epoch(2)).join(name);
        let bytes = fs::read(&file).expect("readable");
        fs::write(&file, &bytes[..bytes.len() / 2]).expect("room");
        let resume = |skip_damaged| trainer(&Start::Resume { run: run.clone(), skip_damaged });
        let reported = resume(false).err().expect("damaged").to_string();
        for part in [name, "checkpoint_2", "is damaged", "--skip_damaged resumes from", "checkpoint_1"] {
            assert!(reported.contains(part), "lacks '{part}': {reported}");
        }
        assert_eq!(resume(true).expect("the one before is sound").state().epoch, 1);
        fs::write(&file, bytes).expect("room");
    }
    assert_eq!(trainer(&Start::Resume { run, skip_damaged: false }).expect("sound").state().epoch, 2);
}

#[test]
fn a_checkpoint_of_the_version_before_loads_and_resumes() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let run = run(place.path());
    let checkpoint = run.checkpoint(CheckpointName::Epoch(2));
    let whole = read(&checkpoint).expect("whole");
    // It had config.json alone of the files for transformers, and the run no tokenizer_config.json.
    let manifest_file = checkpoint.join("manifest.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(&manifest_file).expect("there")).expect("JSON");
    for name in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::remove_file(checkpoint.join(name)).expect("there");
        manifest["files"].as_object_mut().expect("an object").remove(name).expect("listed");
    }
    fs::write(&manifest_file, manifest.to_string()).expect("room");
    fs::remove_file(run.path().join("tokenizer_config.json")).expect("there");
    assert!(read(&checkpoint).expect("it loads") == whole);
    let resumed = trainer(&Start::Resume { run: run.clone(), skip_damaged: false }).expect("it resumes");
    assert_eq!(resumed.state().epoch, 2);
    run.tokenizer().expect("it loads");
}

#[test]
fn an_old_checkpoint_that_is_damaged_does_not_keep_a_run_from_saving() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let run = run(place.path());
    let manifest = run.checkpoint(CheckpointName::Epoch(1)).join("manifest.json");
    fs::write(manifest, "{").expect("room");
    let history = run.history().expect("readable").expect("saved");
    run.apply_retention(CheckpointName::Epoch(2), folio::settings::Keep::Weights, &history)
        .expect("the others are well");
    assert_eq!(run.epochs().expect("readable"), [1, 2]);
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let run = run(place.path());
    let refused = |settings: Settings, text: &str| {
        let tokenizer = Tokenizer::chars(text);
        let stream = TokenStream::encode(text, &tokenizer, settings.split).expect("its own characters");
        let start = Start::Checkpoint { run: run.clone(), number: 2, restart_schedule: false };
        let error = Trainer::new(settings, Arc::new(stream), Arc::new(tokenizer), &start).err();
        error.expect("another run").to_string()
    };
    let text = "abab baba abba baab ".repeat(3);
    let other = |change: fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        settings
    };
    assert!(refused(other(|run| run.seed = 1), &text).contains("another seed"));
    assert!(refused(other(|run| run.data_sha256 = "0".repeat(64)), &text).contains("another text"));
    assert!(
        refused(other(|run| run.split = folio::data::SplitKind::Contiguous), &text).contains("another split")
    );
    assert!(refused(other(|run| run.n_heads = 2), &text).contains("has `n_heads` 1, but this run has 2"));
    assert!(refused(settings(), &text.replace('a', "c")).contains("another tokenizer"));
}
