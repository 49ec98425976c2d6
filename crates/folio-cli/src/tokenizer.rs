//! `folio tokenizer`: trains and inspects tokenizers; encodes and decodes text.

use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use folio::error::Error;
use folio::text::{Corpus, TextSize, utf8};
use folio::tokenizer::{Tokenizer, TokenizerKind};
use serde::Deserialize;
use serde_json::json;

use crate::options::whole;
use crate::progress::encoding_bar;
use crate::screen;
use crate::terminal;
use crate::threads::set_threads;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct TokenizerArgs {
    #[command(subcommand)]
    command: TokenizerCommand,
}

impl TokenizerArgs {
    /// Whether the command writes files.
    pub(crate) fn writes(&self) -> bool {
        matches!(self.command, TokenizerCommand::Train(_))
    }
}

#[derive(Subcommand)]
enum TokenizerCommand {
    /// Train a byte-level BPE tokenizer on a text and write it as tokenizer.json
    Train(TrainBpeArgs),
    /// Encode text from stdin as tokens on stdout
    Encode(EncodeArgs),
    /// Decode tokens from stdin to text on stdout
    Decode(DecodeArgs),
    /// Print statistics of a tokenizer, or how it splits a text into tokens
    Inspect(InspectArgs),
}

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
The tokenizer is trained on the whole text, including the part on which a run on the same text is evaluated. \
`folio train --tokenizer_type corpus_bpe` trains a tokenizer on the training part only.

Examples:
  folio tokenizer train --vocab_size 1024 --out shakespeare.json
  folio corpus > my.txt
  folio tokenizer train --data my.txt --vocab_size 8192 \\
      --special '<|endoftext|>' --out my.json
  folio train --data my.txt --tokenizer_type my.json")]
struct TrainBpeArgs {
    /// UTF-8 text to train on; - reads stdin [default: the embedded tiny Shakespeare]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Size of the vocabulary, including the 256 single bytes and the special tokens
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    vocab_size: usize,
    /// Special tokens to add at the end of the vocabulary, such as '<|endoftext|>'
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    special: Vec<String>,
    /// File to write, in the format of Hugging Face tokenizers
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TokenFormat {
    /// Token ids, with a line break after each token that ends a line
    Ids,
    /// One token per line as text; line breaks and invalid UTF-8 are escaped
    Text,
    /// One JSON object per token with its id and its text, or its bytes if they are not valid UTF-8
    Jsonl,
}

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Examples:
  folio corpus > my.txt
  folio tokenizer encode --tokenizer_type bpe < my.txt > ids.txt
  folio tokenizer encode --tokenizer_type runs/quick --format text < my.txt")]
struct EncodeArgs {
    #[command(flatten)]
    source: TokenizerSource,
    /// Output format
    #[arg(long, value_enum, default_value = "ids")]
    format: TokenFormat,
    /// Encode special tokens in the text as special tokens rather than ordinary text
    #[arg(long)]
    allow_special: bool,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    threads: Option<usize>,
}

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Examples:
  folio corpus | folio tokenizer encode --tokenizer_type bpe > ids.txt
  folio tokenizer decode --tokenizer_type bpe < ids.txt")]
struct DecodeArgs {
    #[command(flatten)]
    source: TokenizerSource,
    /// Input format: ids (any whitespace between them) or jsonl
    #[arg(long, value_enum, default_value = "ids")]
    format: TokenFormat,
}

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Examples:
  folio tokenizer inspect --tokenizer_type bpe --text 'To be, or not to be'
  folio tokenizer inspect --tokenizer_type runs/quick --top 30")]
struct InspectArgs {
    #[command(flatten)]
    source: TokenizerSource,
    /// Show how this text is split into tokens
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// UTF-8 text for the token statistics [default: the embedded tiny Shakespeare]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Number of longest and of most frequent tokens to list
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole::<usize>)]
    top: usize,
}

/// The tokenizer to use.
#[derive(Args)]
#[command(rename_all = "snake_case")]
struct TokenizerSource {
    /// Tokenizer to use: bpe (GPT-2's), a tokenizer.json, or a run directory
    #[arg(long, value_name = "NAME|FILE|RUN_DIR")]
    tokenizer_type: PathBuf,
}

impl TokenizerSource {
    fn load(&self) -> anyhow::Result<Tokenizer> {
        if self.tokenizer_type.is_dir() {
            return Ok(Tokenizer::load(&self.tokenizer_type)?);
        }
        match TokenizerKind::from_str(&self.tokenizer_type.to_string_lossy()) {
            Ok(TokenizerKind::Bpe) => Ok(Tokenizer::gpt2()),
            Ok(kind @ (TokenizerKind::Chrs | TokenizerKind::CorpusBpe)) => {
                let reason = "depends on the training text; give a tokenizer.json or the directory of a run";
                Err(Usage(format!("--tokenizer_type: {kind} {reason}")).into())
            }
            Ok(TokenizerKind::File(_)) => Ok(Tokenizer::read(&self.tokenizer_type)?),
            // Any file name is allowed, not only *.json.
            Err(_) if self.tokenizer_type.exists() => Ok(Tokenizer::read(&self.tokenizer_type)?),
            Err(error) => Err(error.into()),
        }
    }
}

pub(crate) fn run(args: &TokenizerArgs) -> anyhow::Result<()> {
    match &args.command {
        TokenizerCommand::Train(args) => train(args),
        TokenizerCommand::Encode(args) => encode(args),
        TokenizerCommand::Decode(args) => decode(args),
        TokenizerCommand::Inspect(args) => inspect(args),
    }
}

fn train(args: &TrainBpeArgs) -> anyhow::Result<()> {
    if args.out.exists() && !args.overwrite {
        let path = args.out.display();
        return Err(Usage(format!(
            "--out {path} exists; give another name, or add --overwrite to replace it"
        ))
        .into());
    }
    set_threads(args.threads)?;
    let corpus = match &args.data {
        None => Corpus::embedded(),
        Some(path) if path == Path::new("-") => {
            Corpus::from_bytes(Path::new("stdin"), read_all(io::stdin())?)?
        }
        Some(path) => Corpus::from_file(path)?,
    };
    let specials: Vec<&str> = args.special.iter().map(String::as_str).collect();
    let tokenizer = Tokenizer::train_bpe(&corpus.text, args.vocab_size, &specials)?;
    tokenizer.write(&args.out)?;
    let (tokens, size) = count(&tokenizer, &corpus.text)?;
    let (merges, path) = (tokenizer.merges(), args.out.display());
    screen::err(format_args!("wrote {path}: {} tokens, {merges} merges", tokenizer.vocab_size()));
    screen::err(format_args!(
        "{} has {tokens} tokens, {:.3} characters per token",
        corpus.name,
        per_token(size.characters, tokens)
    ));
    Ok(())
}

fn encode(args: &EncodeArgs) -> anyhow::Result<()> {
    set_threads(args.threads)?;
    let tokenizer = args.source.load()?;
    let text = utf8(Path::new("stdin"), read_all(io::stdin())?)?;
    let mut out = BufWriter::with_capacity(1 << 16, screen::stdout());
    let mut writer = TokenWriter { tokenizer: &tokenizer, format: args.format, in_line: false };
    if args.allow_special {
        writer.write(&mut out, &tokenizer.encode_special(&text)?)?;
    } else {
        let bar = encoding_bar(text.len());
        let mut outcome = Ok(());
        tokenizer.encode_pieces(&text, |piece, ids| {
            if outcome.is_ok() {
                outcome = writer.write(&mut out, ids);
            }
            bar.inc(piece.len() as u64);
        })?;
        bar.finish_and_clear();
        outcome?;
    }
    writer.finish(&mut out)?;
    out.flush()?;
    Ok(())
}

/// Writes tokens in one of the formats.
struct TokenWriter<'a> {
    tokenizer: &'a Tokenizer,
    format: TokenFormat,
    /// Whether the current line is not empty.
    in_line: bool,
}

impl TokenWriter<'_> {
    fn write(&mut self, out: &mut impl Write, ids: &[u32]) -> io::Result<()> {
        for &id in ids {
            let bytes = self.tokenizer.decode_bytes(&[id]);
            match self.format {
                TokenFormat::Ids => {
                    let separator = if self.in_line { " " } else { "" };
                    let ends_line = bytes.ends_with(b"\n");
                    write!(out, "{separator}{id}{}", if ends_line { "\n" } else { "" })?;
                    self.in_line = !ends_line;
                }
                TokenFormat::Text => writeln!(out, "{}", escaped(&bytes))?,
                TokenFormat::Jsonl => {
                    let object = match std::str::from_utf8(&bytes) {
                        Ok(text) => json!({ "id": id, "text": text }),
                        Err(_) => json!({ "id": id, "bytes": bytes }),
                    };
                    writeln!(out, "{object}")?;
                }
            }
        }
        Ok(())
    }

    fn finish(&self, out: &mut impl Write) -> io::Result<()> {
        if self.in_line { writeln!(out) } else { Ok(()) }
    }
}

/// A token on one line: control characters, backslashes and invalid UTF-8 are escaped.
fn escaped(bytes: &[u8]) -> String {
    let mut line = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' { line.extend(c.escape_default()) } else { line.push(c) }
        }
        chunk.invalid().iter().for_each(|byte| line += &format!("\\x{byte:02x}"));
    }
    line
}

fn decode(args: &DecodeArgs) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Token {
        id: u32,
    }
    if args.format == TokenFormat::Text {
        return Err(Usage("--format text cannot be decoded; use ids or jsonl".to_owned()).into());
    }
    let tokenizer = args.source.load()?;
    let vocab_size = tokenizer.vocab_size();
    let mut out = BufWriter::with_capacity(1 << 16, screen::stdout());
    for (index, line) in io::stdin().lines().enumerate() {
        let line = line.with_context(|| format!("line {} of stdin", index + 1))?;
        let invalid =
            |reason: String| Error::Tokenizer { reason: format!("line {} of stdin: {reason}", index + 1) };
        let ids: Vec<u32> = match args.format {
            TokenFormat::Jsonl if line.trim().is_empty() => Vec::new(),
            TokenFormat::Jsonl => {
                let token: Token = serde_json::from_str(&line).map_err(|error| {
                    invalid(format!("expected an object with an id, such as {{\"id\":262}}: {error}"))
                })?;
                vec![token.id]
            }
            _ => (line.split_whitespace())
                .map(|word| word.parse().map_err(|_| invalid(format!("{word:?} is not a token id"))))
                .collect::<Result<_, _>>()?,
        };
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            let reason =
                format!("token id {id} is out of range; the vocabulary has ids 0 to {}", vocab_size - 1);
            return Err(invalid(reason).into());
        }
        out.write_all(&tokenizer.decode_bytes(&ids))?;
    }
    out.flush()?;
    Ok(())
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let tokenizer = args.source.load()?;
    match &args.text {
        Some(text) => show_tokens(&tokenizer, text),
        None => show_statistics(&tokenizer, args),
    }
}

/// Prints a text split into tokens.
fn show_tokens(tokenizer: &Tokenizer, text: &str) -> anyhow::Result<()> {
    let mut out = screen::stdout();
    let ids = tokenizer.encode_special(text)?;
    writeln!(out, "{}", shown(tokenizer, &ids, terminal::use_color()))?;
    let size = TextSize::of(text.as_bytes());
    let tokens = ids.len() as u64;
    writeln!(
        out,
        "{tokens} tokens, {} characters, {:.3} characters per token",
        size.characters,
        per_token(size.characters, tokens)
    )?;
    Ok(())
}

/// Prints the size of the vocabulary, and the longest and the most frequent tokens of a text.
fn show_statistics(tokenizer: &Tokenizer, args: &InspectArgs) -> anyhow::Result<()> {
    let mut out = screen::stdout();
    let corpus = match &args.data {
        Some(path) => Corpus::from_file(path)?,
        None => Corpus::embedded(),
    };
    let mut counts = vec![0u64; tokenizer.vocab_size()];
    tokenizer.encode_pieces(&corpus.text, |_, ids| ids.iter().for_each(|&id| counts[id as usize] += 1))?;
    let tokens: u64 = counts.iter().sum();
    let size = TextSize::of(corpus.text.as_bytes());
    let used = counts.iter().filter(|&&count| count > 0).count();
    let all = || 0..tokenizer.vocab_size() as u32;
    let specials: Vec<u32> = all().filter(|&id| tokenizer.is_special(id)).collect();
    let escaped_token = |id: u32| escaped(&tokenizer.decode_bytes(&[id]));

    writeln!(out, "vocabulary            {} tokens, {} merges", tokenizer.vocab_size(), tokenizer.merges())?;
    for id in specials {
        writeln!(out, "special               {id} {}", escaped_token(id))?;
    }
    writeln!(out, "{:<21} {tokens} tokens, {used} distinct", corpus.name)?;
    writeln!(out, "characters per token  {:.4}", per_token(size.characters, tokens))?;
    writeln!(out, "bytes per token       {:.4}", per_token(size.bytes, tokens))?;

    let mut longest: Vec<u32> = all().filter(|&id| !tokenizer.is_special(id)).collect();
    longest.sort_by_key(|&id| std::cmp::Reverse(tokenizer.decode_bytes(&[id]).len()));
    writeln!(out, "\nlongest tokens")?;
    for &id in longest.iter().take(args.top) {
        writeln!(out, "{id:>8} {:?}", tokenizer.decode(&[id]))?;
    }
    let mut frequent: Vec<u32> = all().filter(|&id| counts[id as usize] > 0).collect();
    frequent.sort_by_key(|&id| std::cmp::Reverse(counts[id as usize]));
    writeln!(out, "\nmost frequent tokens in {}", corpus.name)?;
    for &id in frequent.iter().take(args.top) {
        let count = counts[id as usize];
        let share = 100.0 * count as f64 / tokens as f64;
        writeln!(out, "{id:>8} {count:>9} {share:5.2} %  {:?}", tokenizer.decode(&[id]))?;
    }
    Ok(())
}

/// A text with its tokens marked by background colors, or separated by `|`. A character that spans several tokens belongs
/// to the first of them.
fn shown(tokenizer: &Tokenizer, ids: &[u32], color: bool) -> String {
    /// Backgrounds of the 256-color palette on which black text is readable.
    const COLORS: [u8; 5] = [153, 158, 223, 217, 183];
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for &id in ids {
        let bytes = tokenizer.decode_bytes(&[id]);
        let continuation = bytes.iter().take_while(|&&byte| byte & 0xC0 == 0x80).count();
        match parts.last_mut() {
            Some(before) if continuation > 0 && std::str::from_utf8(before).is_err() => {
                before.extend(&bytes[..continuation]);
                if continuation < bytes.len() {
                    parts.push(bytes[continuation..].to_vec());
                }
            }
            _ => parts.push(bytes),
        }
    }
    let texts = parts.iter().map(|part| String::from_utf8_lossy(part).into_owned());
    if !color {
        return texts.map(|text| text.replace('\n', "⏎\n")).collect::<Vec<_>>().join("|");
    }
    let paint = |(index, text): (usize, String)| {
        // Reset the color before each line break, or it would fill the rest of the line.
        let (on, off) = (format!("\x1b[30;48;5;{}m", COLORS[index % COLORS.len()]), "\x1b[0m");
        format!("{on}{}{off}", text.replace('\n', &format!("⏎{off}\n{on}")))
    };
    texts.enumerate().map(paint).collect()
}

/// The number of tokens of a text, and its size.
fn count(tokenizer: &Tokenizer, text: &str) -> anyhow::Result<(u64, TextSize)> {
    let mut tokens = 0;
    tokenizer.encode_pieces(text, |_, ids| tokens += ids.len() as u64)?;
    Ok((tokens, TextSize::of(text.as_bytes())))
}

fn per_token(amount: u64, tokens: u64) -> f64 {
    if tokens == 0 { 0.0 } else { amount as f64 / tokens as f64 }
}

fn read_all(mut input: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).context("reading stdin")?;
    Ok(bytes)
}
