//! `--init_from`: a run that begins with the weights of another program's model.

use std::path::{Path, PathBuf};

use folio::data::Texts;
use folio::import::{self, Hints, Imported};
use folio::settings::{Given, Setting, Settings};
use folio::tokenizer::{Tokenizer, TokenizerKind};

use crate::options::{Options, flag};
use crate::presets;
use crate::train::args::TrainArgs;
use crate::usage::Usage;

/// The sizes that a model determines.
const SIZES: [&str; 3] = ["n_emb", "n_heads", "n_blocks"];

/// The options of a run with those of the model that it begins with, and that model; none without `--init_from`. Flags and
/// the config file must not contradict the model; a preset gives way to it.
pub(super) fn take_over(args: &TrainArgs, explicit: &Options) -> anyhow::Result<(Options, Option<Imported>)> {
    let Some(path) = explicit.0.get::<PathBuf>("init_from") else {
        if args.preset.as_deref() == Some(presets::FINE_TUNING) && !args.from_checkpoint {
            let reason = "--preset finetune-shakespeare continues a trained model: name one with --init_from, such as the \
                          directory of a GPT-2 that transformers saved";
            return Err(Usage(reason.to_owned()).into());
        }
        return Ok((explicit.clone(), None));
    };
    if args.from_checkpoint {
        let reason =
            "--init_from contradicts --from_checkpoint: each says where the weights come from; leave one out";
        return Err(Usage(reason.to_owned()).into());
    }
    let mut own = args.options.clone();
    if let Some(path) = &args.config {
        own = own.or(&presets::config_file(path)?);
    }
    let hints =
        Hints { n_heads: own.0.get("n_heads"), tokenizer: own.0.get::<TokenizerKind>("tokenizer_type") };
    let model = import::read(&path, &hints)?;
    let longest = model.config.block_size;
    let settings = model.settings(Settings { block_size: longest, ..Settings::default() })?;
    let of_model = Given::from_settings(&settings, |setting: &Setting| {
        setting.of_model
            || SIZES.contains(&setting.name)
            || ["tokenizer_type", "block_size"].contains(&setting.name)
    });
    check_sizes(&own, &of_model, &path)?;
    let mut given = explicit.clone();
    for name in SIZES.into_iter().chain(["tokenizer_type", "vocab_size"]) {
        given.0.remove(name);
    }
    if !own.0.has("block_size") && explicit.0.get::<usize>("block_size").is_none_or(|size| size > longest) {
        given.0.remove("block_size");
    }
    let mut options = given.or(&Options(of_model));
    if !options.0.has("dropout") {
        let dropout = Settings { dropout: model.dropout(), ..settings };
        options = options.or(&Options(Given::from_settings(&dropout, |setting| setting.name == "dropout")));
    }
    Ok((options, Some(model)))
}

/// Checks that the sizes that are given are those of the model.
fn check_sizes(own: &Options, model: &Given, path: &Path) -> anyhow::Result<()> {
    for name in SIZES {
        let (given, wanted) = (own.0.values(name), model.values(name));
        if !given.is_empty() && given != wanted {
            let (flag, path) = (flag(name), path.display());
            let reason = format!(
                "`{flag} {}` contradicts the model in {path}, which has {}; leave the flag out",
                given[0], wanted[0]
            );
            return Err(Usage(reason).into());
        }
    }
    if own.0.has("vocab_size") {
        let (flag, path) = (flag("vocab_size"), path.display());
        return Err(Usage(format!(
            "{flag}: the model in {path} has a tokenizer of its own; leave the flag out"
        ))
        .into());
    }
    Ok(())
}

/// Records in a run's settings which model it begins with.
pub(super) fn record(settings: &mut Settings, model: &Imported) {
    settings.init_from = Some(absolute(&model.path));
    settings.init_from_sha256 = Some(model.sha256.clone());
}

/// The model's tokenizer, which has to have every character of the texts.
pub(super) fn tokenizer(own: Tokenizer, texts: &Texts) -> anyhow::Result<Tokenizer> {
    let way_out = "remove them from the text, or begin with a model whose vocabulary has them";
    let mut corpora = [Some(&texts.data), texts.eval.as_ref()].into_iter().flatten();
    corpora.try_for_each(|corpus| own.check_covers(&corpus.name, &corpus.text, way_out))?;
    Ok(own)
}

/// The tokenizer of a run that was stopped before it had written it.
pub(super) fn tokenizer_again(settings: &Settings, texts: &Texts) -> anyhow::Result<Tokenizer> {
    let Some(path) = &settings.init_from else { return Ok(settings.tokenizer(texts)?) };
    let hints = Hints { n_heads: Some(settings.n_heads), tokenizer: None };
    let model = match import::read(Path::new(path), &hints) {
        // Its tokenizer was given.
        Err(_) => {
            let tokenizer = Some(settings.tokenizer_type.clone());
            import::read(Path::new(path), &Hints { tokenizer, ..hints })?
        }
        Ok(model) => model,
    };
    tokenizer(model.tokenizer, texts)
}

/// A path that means the same in every directory.
pub(super) fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()).display().to_string()
}
