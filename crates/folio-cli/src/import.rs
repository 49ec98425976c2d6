//! `folio import`: a run of another program's model.

use std::path::{Path, PathBuf};

use clap::Args;
use folio::import::{Hints, Imported, read, write_run};
use folio::run_dir::RunDir;
use folio::tokenizer::TokenizerKind;

use crate::destination::{quoted, reserve_name};
use crate::options::whole;
use crate::plan::plain_name;
use crate::screen;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Examples:
  folio import gpt2 --run_dir runs/gpt2
  folio import out-shakespeare-char/ckpt.pt
  folio import model.pt --n_heads 6 --tokenizer meta.pkl
  folio generate runs/gpt2 --prompt 'My fellow citizens'
  folio train --init_from runs/gpt2 --data plays.txt --lr 3e-5")]
pub(crate) struct ImportArgs {
    /// A directory that transformers saved (config.json and model.safetensors, pytorch_model.bin, or shards), or a
    /// checkpoint of nanoGPT or minGPT (ckpt.pt, model.pt)
    #[arg(value_name = "DIR|FILE")]
    model: PathBuf,
    /// Directory for the run [default: a new one in runs/]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// The model's tokenizer, if it is not beside the model: a tokenizer.json, nanoGPT's meta.pkl, or bpe (GPT-2's)
    #[arg(long, visible_alias = "tokenizer", value_name = "FILE|bpe", value_parser = tokenizer)]
    tokenizer_type: Option<TokenizerKind>,
    /// Attention heads of a model of minGPT, which does not record them in model.pt
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    n_heads: Option<usize>,
    /// Replace the run in the run directory; only files written by folio are deleted
    #[arg(long)]
    overwrite: bool,
}

/// Parses a tokenizer: a file, whatever its name, or a kind.
fn tokenizer(given: &str) -> Result<TokenizerKind, String> {
    if Path::new(given).exists() || given.ends_with(".pkl") {
        return Ok(TokenizerKind::File(given.into()));
    }
    given.parse().map_err(|error: folio::error::Error| error.to_string())
}

pub(crate) fn run(args: &ImportArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.run_dir {
        // Before a large model is read.
        RunDir::new(path).check_free(args.overwrite)?;
    }
    let hints = Hints { n_heads: args.n_heads, tokenizer: args.tokenizer_type.clone() };
    let model = read(&args.model, &hints)?;
    let (run_dir, _reserved) = match &args.run_dir {
        Some(path) => (RunDir::new(path), None),
        None => {
            let (path, reserved) = reserve_name(&name(&args.model))?;
            (RunDir::new(path), Some(reserved))
        }
    };
    write_run(&model, &run_dir, args.overwrite)?;
    describe(&model);
    let (shown, path) = (run_dir.path().display(), quoted(run_dir.path()));
    screen::err(format_args!(
        "the run is in {shown}; it has a model, but no text, no losses and no optimizer state"
    ));
    screen::err(format_args!(
        "next: folio generate {path}\n      folio train --init_from {path} --data my.txt\n      folio serve {path} --open"
    ));
    Ok(())
}

/// Prints what was read.
fn describe(model: &Imported) {
    let (origin, config) = (model.origin.name(), model.config);
    let (blocks, width, heads, context) = (config.n_blocks, config.n_emb, config.n_heads, config.block_size);
    let millions = config.parameters() as f64 / 1e6;
    screen::err(format_args!(
        "a model of {origin}: {millions:.2}M parameters, {blocks} blocks, width {width}, {heads} heads, context {context}"
    ));
    let (tokens, rows, kind) = (model.tokenizer.vocab_size(), config.vocab_size, &model.tokenizer_kind);
    let padding = match rows - tokens {
        0 => String::new(),
        padding => format!("; {padding} more rows of the embedding stand for no token and are never sampled"),
    };
    screen::err(format_args!("its tokenizer: {kind}, {tokens} tokens{padding}"));
}

/// A name for the run: the model's directory, or its file if the name says more than `ckpt`.
fn name(model: &Path) -> String {
    let absolute = std::path::absolute(model).unwrap_or_else(|_| model.to_path_buf());
    let is_plain = ["ckpt", "model", "pytorch_model"]
        .iter()
        .any(|name| absolute.file_stem().is_some_and(|stem| stem == *name));
    let named =
        if absolute.is_file() && is_plain { absolute.parent().unwrap_or(&absolute) } else { &absolute };
    plain_name(named)
}
