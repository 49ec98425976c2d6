//! The tokenizer of an imported model.

use std::path::{Path, PathBuf};

use super::pickle::{Node, Pickle};
use super::{Source, wrong};
use crate::error::{Error, Result};
use crate::tokenizer::{TOKENIZER_FILE, Tokenizer, TokenizerKind};

/// nanoGPT's description of a character vocabulary, made when a text is prepared.
const META_FILE: &str = "meta.pkl";
/// Larger ones are refused: a vocabulary of all characters of Unicode takes 10 MB.
const MAX_META_BYTES: u64 = 32 << 20;
/// Rows of the embedding with GPT-2's vocabulary: its tokens, and as nanoGPT pads them to a multiple of 64.
const GPT2_ROWS: [usize; 2] = [50_257, 50_304];

/// Finds the tokenizer of a model whose embedding has `rows` rows, and how to record it.
///
/// # Errors
/// If there is none, it cannot be read, has more tokens than rows, or is not the one that is given.
pub(super) fn find(
    source: &Source,
    given: Option<&TokenizerKind>,
    rows: usize,
) -> Result<(Tokenizer, TokenizerKind)> {
    let (tokenizer, path) = match given {
        Some(given) => {
            let tokenizer = read_given(given)?;
            if let Ok(Some((own, path))) = beside(source)
                && own.digest() != tokenizer.digest()
            {
                let reason = format!(
                    "{given} is not the tokenizer of the model, which is in {}: leave the flag out",
                    path.display()
                );
                return Err(Error::setting("tokenizer_type", reason));
            }
            let path = if let TokenizerKind::File(path) = given { Some(path.clone()) } else { None };
            (tokenizer, path)
        }
        None => match beside(source)? {
            Some((tokenizer, path)) => (tokenizer, Some(path)),
            None if GPT2_ROWS.contains(&rows) => (Tokenizer::try_gpt2()?, None),
            None => {
                let reason = format!(
                    "has an embedding of {rows} tokens, but no tokenizer is beside it: give a tokenizer.json, or nanoGPT's \
                     {META_FILE}, with `tokenizer_type`"
                );
                return Err(wrong(&source.path, reason));
            }
        },
    };
    if tokenizer.vocab_size() > rows {
        let tokens = tokenizer.vocab_size();
        let from =
            path.map_or("GPT-2's tokenizer".to_owned(), |path| format!("the tokenizer {}", path.display()));
        let reason = format!(
            "has an embedding of {rows} tokens, fewer than the {tokens} of {from}: give its own tokenizer"
        );
        return Err(wrong(&source.path, reason));
    }
    let kind = kind(&tokenizer, path);
    Ok((tokenizer, kind))
}

/// How a run records the tokenizer.
fn kind(tokenizer: &Tokenizer, path: Option<PathBuf>) -> TokenizerKind {
    let is_gpt2 = || Tokenizer::try_gpt2().is_ok_and(|gpt2| gpt2 == *tokenizer);
    match path {
        _ if tokenizer.is_characters() => TokenizerKind::Chrs,
        Some(path) if tokenizer.vocab_size() != GPT2_ROWS[0] || !is_gpt2() => {
            TokenizerKind::File(std::path::absolute(&path).unwrap_or(path))
        }
        _ => TokenizerKind::Bpe,
    }
}

fn read_given(given: &TokenizerKind) -> Result<Tokenizer> {
    match given {
        TokenizerKind::Bpe => Tokenizer::try_gpt2(),
        TokenizerKind::File(path) if path.extension().is_some_and(|extension| extension == "pkl") => {
            read_meta(path)
        }
        TokenizerKind::File(path) if path.is_dir() => match in_directory(path)? {
            Some((tokenizer, _)) => Ok(tokenizer),
            None => Err(wrong(path, "holds no tokenizer: give a tokenizer.json")),
        },
        TokenizerKind::File(path) => Tokenizer::read(path),
        TokenizerKind::Chrs | TokenizerKind::CorpusBpe => {
            let reason = format!(
                "`tokenizer_type {given}` is made of the text, so its ids are not those that the model has learned: give the \
                 tokenizer.json of the model"
            );
            Err(Error::setting("tokenizer_type", reason))
        }
    }
}

/// The tokenizer in the directory of a model, or in nanoGPT's `data/NAME` for a checkpoint in one of its directories.
fn beside(source: &Source) -> Result<Option<(Tokenizer, PathBuf)>> {
    let directory = source.path.parent().unwrap_or(Path::new(""));
    if let Some(found) = in_directory(directory)? {
        return Ok(Some(found));
    }
    let Some(dataset) = &source.dataset else { return Ok(None) };
    let meta = directory.join("..").join("data").join(dataset).join(META_FILE);
    if meta.is_file() { Ok(Some((read_meta(&meta)?, meta))) } else { Ok(None) }
}

fn in_directory(directory: &Path) -> Result<Option<(Tokenizer, PathBuf)>> {
    let [json, vocab, merges, meta] =
        [TOKENIZER_FILE, "vocab.json", "merges.txt", META_FILE].map(|name| directory.join(name));
    if json.is_file() {
        return Ok(Some((Tokenizer::read(&json)?, json)));
    }
    if merges.is_file() {
        return Ok(Some((Tokenizer::read_merges(&vocab, &merges)?, vocab)));
    }
    if meta.is_file() {
        return Ok(Some((read_meta(&meta)?, meta)));
    }
    Ok(None)
}

/// The data set that a checkpoint of nanoGPT names, if it is the name of a directory.
pub(super) fn dataset(pickle: &Pickle) -> Option<String> {
    let config = pickle.get(pickle.root(), "config")?;
    let Node::Text(name) = pickle.get(config, "dataset")? else { return None };
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
    (!name.is_empty() && name.chars().all(is_plain)).then(|| name.clone())
}

/// Reads nanoGPT's `meta.pkl`: a dictionary whose `itos` maps ids to characters.
fn read_meta(path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::metadata(path).map_err(Error::file("read", path))?.len();
    if bytes > MAX_META_BYTES {
        return Err(wrong(
            path,
            format!("is larger than {} MiB, too large for characters", MAX_META_BYTES >> 20),
        ));
    }
    let content = std::fs::read(path).map_err(Error::file("read", path))?;
    let pickle = Pickle::read(&content).map_err(|reason| wrong(path, reason))?;
    let characters = pickle.get(pickle.root(), "itos").and_then(|itos| pickle.entries(itos));
    let no_vocabulary = || {
        wrong(path, "holds no character vocabulary: nanoGPT's has a dictionary 'itos' of ids to characters")
    };
    let mut tokens = Vec::new();
    for (id, token) in characters.ok_or_else(no_vocabulary)? {
        let (Node::Int(id), Node::Text(token)) = (pickle.node(*id), pickle.node(*token)) else {
            return Err(no_vocabulary());
        };
        let mut chars = token.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) => tokens.push((*id, c)),
            _ => {
                return Err(wrong(
                    path,
                    format!("has the token {token:?}, but each token must be one character"),
                ));
            }
        }
    }
    tokens.sort_unstable();
    if tokens.is_empty() || !tokens.iter().map(|(id, _)| *id).eq(0..tokens.len() as i64) {
        return Err(wrong(
            path,
            format!("has ids of {} characters other than 0, 1, 2 and so on", tokens.len()),
        ));
    }
    Tokenizer::of_characters(tokens.into_iter().map(|(_, c)| c).collect())
        .map_err(|c| wrong(path, format!("has the character {c:?} twice")))
}
