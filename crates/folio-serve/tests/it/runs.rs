//! Runs to serve, trained once for all tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use folio::data::TokenStream;
use folio::records::run_recorded;
use folio::run_dir::RunDir;
use folio::settings::{Keep, Settings};
use folio::text::Corpus;
use folio::tokenizer::Tokenizer;
use folio::train::{Event, Requests, Start, Trainer};
use tempfile::TempDir;

/// A directory with the run `plain`, whose tokens are characters, the run `bytes`, whose tokens are bytes, and the sweep
/// `search` with one run.
pub(crate) static RUNS: LazyLock<TempDir> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("room");
    train(&directory.path().join("plain"), Arc::new(Tokenizer::chars(&plays())), &plays());
    let girls = "été 👧👨‍👩‍👧 日本 ".repeat(60);
    let bytes = Tokenizer::train_bpe(&girls, 256, &[]).expect("all bytes");
    train(&directory.path().join("bytes"), Arc::new(bytes), &girls);
    let sweep = directory.path().join("search");
    fs::create_dir(&sweep).expect("room");
    train(&sweep.join("run_1"), Arc::new(Tokenizer::chars(&plays())), &plays());
    directory
});

/// The first 1,000 characters of tiny Shakespeare.
pub(crate) fn plays() -> String {
    Corpus::embedded().text[..1000].to_owned()
}

pub(crate) fn settings() -> Settings {
    Settings {
        n_emb: 16,
        n_heads: 2,
        n_blocks: 2,
        block_size: 16,
        batch_size: 4,
        num_epochs: 3,
        learning_rate: 1e-2,
        save_losses: true,
        save_checkpoint: true,
        keep: Keep::Weights,
        ..Settings::default()
    }
}

/// Trains three epochs, with a checkpoint for each.
pub(crate) fn train(path: &Path, tokenizer: Arc<Tokenizer>, text: &str) {
    train_telling(path, tokenizer, text, &mut |_| {});
}

pub(crate) fn train_telling(
    path: &Path,
    tokenizer: Arc<Tokenizer>,
    text: &str,
    on_event: &mut dyn FnMut(&Event),
) {
    let settings = settings();
    let stream = TokenStream::encode(text, &tokenizer, settings.split).expect("its own text");
    let mut trainer =
        Trainer::new(settings, Arc::new(stream), tokenizer, &Start::Fresh).expect("valid settings");
    let run = RunDir::new(path);
    run_recorded(&mut trainer, Some(&run), &Requests::default(), on_event).expect("a run without mishap");
}

/// A copy of a run.
pub(crate) fn copy(name: &str, to: &Path) {
    fn copy_all(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("room");
        for entry in fs::read_dir(from).expect("a directory") {
            let from = entry.expect("an entry").path();
            let to: PathBuf = to.join(from.file_name().expect("a name"));
            if from.is_symlink() {
                continue;
            } else if from.is_dir() {
                copy_all(&from, &to);
            } else {
                fs::copy(&from, &to).expect("room");
            }
        }
    }
    copy_all(&RUNS.path().join(name), to);
}
