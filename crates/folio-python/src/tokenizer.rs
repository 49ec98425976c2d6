//! Tokenizers.

use std::path::PathBuf;
use std::sync::Arc;

use folio::tokenizer::Tokenizer as FolioTokenizer;
use pyo3::prelude::*;

use crate::errors::raise;

/// Converts text to token ids, and back.
///
/// Tokenizer.characters(text), Tokenizer.train(text, vocab_size), Tokenizer.gpt2() and Tokenizer.load(path) make one.
#[pyclass(frozen, eq, from_py_object, module = "folio")]
#[derive(Clone, PartialEq)]
pub(crate) struct Tokenizer(pub(crate) Arc<FolioTokenizer>);

#[pymethods]
impl Tokenizer {
    /// One token per distinct character of a text.
    #[staticmethod]
    fn characters(py: Python<'_>, text: &str) -> Self {
        py.detach(|| Self::of(FolioTokenizer::chars(text)))
    }

    /// GPT-2's byte-level BPE of 50,257 tokens.
    #[staticmethod]
    fn gpt2(py: Python<'_>) -> Self {
        py.detach(|| Self::of(FolioTokenizer::gpt2()))
    }

    /// Trains a byte-level BPE of `vocab_size` tokens on a text.
    #[staticmethod]
    #[pyo3(signature = (text, vocab_size, special_tokens = Vec::new()))]
    fn train(py: Python<'_>, text: &str, vocab_size: usize, special_tokens: Vec<String>) -> PyResult<Self> {
        let specials: Vec<&str> = special_tokens.iter().map(String::as_str).collect();
        py.detach(|| FolioTokenizer::train_bpe(text, vocab_size, &specials)).map(Self::of).map_err(raise)
    }

    /// Reads a tokenizer.json, or the one in the directory of a run or a checkpoint.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let load = || if path.is_dir() { FolioTokenizer::load(&path) } else { FolioTokenizer::read(&path) };
        py.detach(load).map(Self::of).map_err(raise)
    }

    /// Writes a file whose name ends in .json, or tokenizer.json and tokenizer_config.json to a directory. transformers and
    /// tokenizers load them.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        if path.extension().is_some_and(|extension| extension == "json") {
            return py.detach(|| self.0.write(&path)).map_err(raise);
        }
        std::fs::create_dir_all(&path)
            .map_err(|error| raise(format!("cannot create {}: {error}", path.display())))?;
        py.detach(|| self.0.save(&path)).map_err(raise)
    }

    /// The ids of a text. With `special_tokens`, special tokens in the text become their ids.
    #[pyo3(signature = (text, *, special_tokens = false))]
    fn encode(&self, py: Python<'_>, text: &str, special_tokens: bool) -> PyResult<Vec<u32>> {
        let encode = || if special_tokens { self.0.encode_special(text) } else { self.0.encode(text) };
        py.detach(encode).map_err(raise)
    }

    /// The text of ids. Characters that are cut off become U+FFFD.
    fn decode(&self, py: Python<'_>, ids: Vec<u32>) -> PyResult<String> {
        check_ids(&ids, self.0.vocab_size())?;
        Ok(py.detach(|| self.0.decode(&ids)))
    }

    /// The number of tokens.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    /// The id of the token that ends a text, if there is one.
    #[getter]
    fn end_token(&self) -> Option<u32> {
        self.0.end_token()
    }

    fn __len__(&self) -> usize {
        self.0.vocab_size()
    }

    fn __repr__(&self) -> String {
        let kind = if self.0.merges() == 0 { "characters" } else { "BPE" };
        format!("<folio.Tokenizer: {kind}, {} tokens>", self.0.vocab_size())
    }
}

impl Tokenizer {
    fn of(tokenizer: FolioTokenizer) -> Self {
        Self(Arc::new(tokenizer))
    }
}

/// Checks that ids are in a vocabulary.
pub(crate) fn check_ids(ids: &[u32], vocab_size: usize) -> PyResult<()> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(id) => Err(raise(format!("token {id} is outside the vocabulary of {vocab_size}"))),
        None => Ok(()),
    }
}
