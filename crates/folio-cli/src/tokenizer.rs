//! `folio tokenizer`: train one, encode and decode as filters, look into one.

use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use folio::error::Error;
use folio::text::{Corpus, TextSize, utf8};
use folio::tokenizer::{Tokenizer, TokenizerKind};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;

use crate::options::whole;
use crate::progress::with_time_left;
use crate::screen;
use crate::train::set_threads;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct TokenizerArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Learn a byte-level BPE from a text and write it as tokenizer.json
    Train(TrainArgs),
    /// Text on stdin to tokens on stdout
    Encode(EncodeArgs),
    /// Tokens on stdin to text on stdout
    Decode(DecodeArgs),
    /// Tell what a tokenizer is made of, and show a text in its tokens
    Inspect(InspectArgs),
}

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
All of the text is learned from: a run on the same text is evaluated on what its tokenizer has seen.
`folio train --tokenizer_type corpus_bpe` learns from the training part alone.

Examples:
  folio tokenizer train --vocab_size 1024 --out shakespeare.json
  folio corpus > my.txt
  folio tokenizer train --data my.txt --vocab_size 8192 \\
      --special '<|endoftext|>' --out my.json
  folio train --data my.txt --tokenizer_type my.json")]
struct TrainArgs {
    /// UTF-8 text to learn from, all of it; - is stdin [default: the embedded tiny Shakespeare]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Tokens, of which 256 are single bytes
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    vocab_size: usize,
    /// Tokens that no ordinary text becomes, at the vocabulary's end
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    special: Vec<String>,
    /// The file to write, in Hugging Face's format
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    overwrite: bool,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    threads: Option<usize>,
}

/// How tokens are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Numbers, a line of them for each line of the text
    Ids,
    /// The text of each token on a line of its own, line ends and bytes that are no text escaped
    Text,
    /// One JSON object a token: its id and its text, or its bytes where they are no text
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
    which: Which,
    /// How tokens are written
    #[arg(long, value_enum, default_value = "ids")]
    format: Format,
    /// Take special tokens in the text as such, rather than as ordinary text
    #[arg(long)]
    allow_special: bool,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    threads: Option<usize>,
}

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Example:
  folio corpus | folio tokenizer encode --tokenizer_type bpe > ids.txt
  folio tokenizer decode --tokenizer_type bpe < ids.txt")]
struct DecodeArgs {
    #[command(flatten)]
    which: Which,
    /// How tokens are written: ids or jsonl
    #[arg(long, value_enum, default_value = "ids")]
    format: Format,
}

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Examples:
  folio tokenizer inspect --tokenizer_type bpe --text 'To be, or not to be'
  folio tokenizer inspect --tokenizer_type runs/quick --top 30")]
struct InspectArgs {
    #[command(flatten)]
    which: Which,
    /// Text to show in its tokens
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// UTF-8 text to count tokens in [default: the embedded tiny Shakespeare]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// How many of the longest and of the most frequent tokens to list
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole::<usize>)]
    top: usize,
}

/// Which tokenizer is meant.
#[derive(Args)]
#[command(rename_all = "snake_case")]
struct Which {
    /// bpe (GPT-2's), a tokenizer.json, or the directory of a run
    #[arg(long, value_name = "NAME|FILE|RUN_DIR")]
    tokenizer_type: PathBuf,
}

impl Which {
    fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        if self.tokenizer_type.is_dir() {
            return Ok(Tokenizer::load(&self.tokenizer_type)?);
        }
        match TokenizerKind::from_str(&self.tokenizer_type.to_string_lossy()) {
            Ok(TokenizerKind::Bpe) => Ok(Tokenizer::gpt2()),
            Ok(kind @ (TokenizerKind::Chrs | TokenizerKind::CorpusBpe)) => {
                let reason =
                    "is made of a text: give the tokenizer.json or the directory of a run that has one";
                Err(Usage(format!("--tokenizer_type: {kind} {reason}")).into())
            }
            Ok(TokenizerKind::File(_)) => Ok(Tokenizer::read(&self.tokenizer_type)?),
            // A file may have any name.
            Err(_) if self.tokenizer_type.exists() => Ok(Tokenizer::read(&self.tokenizer_type)?),
            Err(error) => Err(error.into()),
        }
    }
}

pub(crate) fn run(args: &TokenizerArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Train(args) => train(args),
        What::Encode(args) => encode(args),
        What::Decode(args) => decode(args),
        What::Inspect(args) => inspect(args),
    }
}

fn train(args: &TrainArgs) -> anyhow::Result<()> {
    if args.out.exists() && !args.overwrite {
        let path = args.out.display();
        return Err(
            Usage(format!("--out {path} exists: give another name, or --overwrite to replace it")).into()
        );
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
    screen::err(format_args!("{} tokens, {merges} merges: {path}", tokenizer.vocab_size()));
    screen::err(format_args!(
        "{} is {tokens} of them, {:.3} characters each",
        corpus.name,
        per_token(size.characters, tokens)
    ));
    Ok(())
}

fn encode(args: &EncodeArgs) -> anyhow::Result<()> {
    set_threads(args.threads)?;
    let tokenizer = args.which.tokenizer()?;
    let text = utf8(Path::new("stdin"), read_all(io::stdin())?)?;
    let mut out = BufWriter::with_capacity(1 << 16, screen::stdout());
    let mut writer = TokenWriter { tokenizer: &tokenizer, format: args.format, in_line: false };
    if args.allow_special {
        writer.write(&mut out, &tokenizer.encode_special(&text)?)?;
    } else {
        let bar = bar_for(text.len());
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

/// A bar for what takes longer than a moment.
pub(crate) fn bar_for(bytes: usize) -> ProgressBar {
    const MOMENT: usize = 32 << 20;
    if bytes < MOMENT {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes as u64);
    let template = "encoding {wide_bar:.cyan/dim} {bytes} of {total_bytes}, {left}";
    let style = ProgressStyle::with_template(template).expect("a valid template").progress_chars("━╸─");
    bar.set_style(with_time_left(style));
    bar
}

/// Writes tokens in a format.
struct TokenWriter<'a> {
    tokenizer: &'a Tokenizer,
    format: Format,
    /// Whether the last line has something in it.
    in_line: bool,
}

impl TokenWriter<'_> {
    fn write(&mut self, out: &mut impl Write, ids: &[u32]) -> io::Result<()> {
        for &id in ids {
            let bytes = self.tokenizer.decode_bytes(&[id]);
            match self.format {
                Format::Ids => {
                    let separator = if self.in_line { " " } else { "" };
                    let ends_line = bytes.ends_with(b"\n");
                    write!(out, "{separator}{id}{}", if ends_line { "\n" } else { "" })?;
                    self.in_line = !ends_line;
                }
                Format::Text => writeln!(out, "{}", escaped(&bytes))?,
                Format::Jsonl => {
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

/// Text in one line: control characters, the backslash and bytes that are no text as escapes.
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
    if args.format == Format::Text {
        let reason = "text does not say which tokens it was: decode ids or jsonl";
        return Err(Usage(format!("--format: {reason}")).into());
    }
    let tokenizer = args.which.tokenizer()?;
    let vocab_size = tokenizer.vocab_size();
    let mut out = BufWriter::with_capacity(1 << 16, screen::stdout());
    for (index, line) in io::stdin().lines().enumerate() {
        let line = line.with_context(|| format!("line {} of stdin", index + 1))?;
        let refused =
            |reason: String| Error::Tokenizer { reason: format!("line {} of stdin: {reason}", index + 1) };
        let ids: Vec<u32> = match args.format {
            Format::Jsonl if line.trim().is_empty() => Vec::new(),
            Format::Jsonl => {
                let token: Token = serde_json::from_str(&line).map_err(|error| {
                    refused(format!("not an object with an id, such as {{\"id\":262}}: {error}"))
                })?;
                vec![token.id]
            }
            _ => (line.split_whitespace())
                .map(|word| word.parse().map_err(|_| refused(format!("{word:?} is not a token id"))))
                .collect::<Result<_, _>>()?,
        };
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            let reason = format!("{id} is outside the vocabulary, whose ids are 0 to {}", vocab_size - 1);
            return Err(refused(reason).into());
        }
        out.write_all(&tokenizer.decode_bytes(&ids))?;
    }
    out.flush()?;
    Ok(())
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let tokenizer = args.which.tokenizer()?;
    let mut out = screen::stdout();
    if let Some(text) = &args.text {
        let ids = tokenizer.encode_special(text)?;
        let color =
            io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        writeln!(out, "{}", shown(&tokenizer, &ids, color))?;
        let size = TextSize::of(text.as_bytes());
        let tokens = ids.len() as u64;
        writeln!(
            out,
            "{tokens} tokens, {} characters, {:.3} a token",
            size.characters,
            per_token(size.characters, tokens)
        )?;
        return Ok(());
    }
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
    writeln!(out, "{:<21} {tokens} tokens, {used} different ones", corpus.name)?;
    writeln!(out, "characters a token    {:.4}", per_token(size.characters, tokens))?;
    writeln!(out, "bytes a token         {:.4}", per_token(size.bytes, tokens))?;

    let mut longest: Vec<u32> = all().filter(|&id| !tokenizer.is_special(id)).collect();
    longest.sort_by_key(|&id| std::cmp::Reverse(tokenizer.decode_bytes(&[id]).len()));
    writeln!(out, "\nlongest tokens")?;
    for &id in longest.iter().take(args.top) {
        writeln!(out, "{id:>8} {:?}", tokenizer.decode(&[id]))?;
    }
    let mut frequent: Vec<u32> = all().filter(|&id| counts[id as usize] > 0).collect();
    frequent.sort_by_key(|&id| std::cmp::Reverse(counts[id as usize]));
    writeln!(out, "\nmost frequent tokens of {}", corpus.name)?;
    for &id in frequent.iter().take(args.top) {
        let count = counts[id as usize];
        let share = 100.0 * count as f64 / tokens as f64;
        writeln!(out, "{id:>8} {count:>9} {share:5.2} %  {:?}", tokenizer.decode(&[id]))?;
    }
    Ok(())
}

/// A text with its tokens told apart: by the colour behind them, or by bars between them. A character that several
/// tokens make up goes with the first of them.
fn shown(tokenizer: &Tokenizer, ids: &[u32], color: bool) -> String {
    /// Backgrounds of the 256-colour palette on which black can be read.
    const COLORS: [u8; 5] = [153, 158, 223, 217, 183];
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for &id in ids {
        let bytes = tokenizer.decode_bytes(&[id]);
        let begun = bytes.iter().take_while(|&&byte| byte & 0xC0 == 0x80).count();
        match parts.last_mut() {
            Some(before) if begun > 0 && std::str::from_utf8(before).is_err() => {
                before.extend(&bytes[..begun]);
                if begun < bytes.len() {
                    parts.push(bytes[begun..].to_vec());
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
        // The colour ends before the line does, or it would fill the terminal's width.
        let (on, off) = (format!("\x1b[30;48;5;{}m", COLORS[index % COLORS.len()]), "\x1b[0m");
        format!("{on}{}{off}", text.replace('\n', &format!("⏎{off}\n{on}")))
    };
    texts.enumerate().map(paint).collect()
}

/// Tokens of a text, and its size.
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
