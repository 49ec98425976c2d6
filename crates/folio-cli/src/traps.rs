//! Warnings about settings that are valid but rarely intended.

use std::sync::Arc;

use folio::data::Dataset;
use folio::settings::Trap;

use crate::options::flag;
use crate::plan::Task;
use crate::presets;
use crate::ranks;
use crate::screen;
use crate::train::args::TrainArgs;
use crate::usage::with_flags;

/// Prints one line for each trap in the settings of the runs.
pub(crate) fn warn(args: &TrainArgs, task: &Task) -> anyhow::Result<()> {
    for line in lines(args, task)? {
        screen::err(&line);
    }
    let is_sweep = task.work.runs().len() > 1;
    if let Some(reason) = args.parallel_is_ignored(ranks::count().all, is_sweep) {
        screen::err(format_args!("warning: --parallel has no effect: {reason}"));
    }
    Ok(())
}

/// The warnings. Runs with the same trap share a line, which shows the values of the first.
fn lines(args: &TrainArgs, task: &Task) -> anyhow::Result<Vec<String>> {
    // A preset does not count: a flag may have made its settings ineffective.
    let mut options = args.options.clone();
    if let Some(path) = &args.config {
        options = options.or(&presets::config_file(path)?);
    }
    let given: Vec<&str> = options.0.names().collect();
    let runs = task.work.runs();
    let mut found: Vec<(Trap, usize)> = Vec::new();
    let (mut dataset, mut made_for) = (None, None);
    for settings in runs {
        let wanted = Some((settings.block_size, settings.seed));
        if made_for != wanted {
            dataset = Some(Dataset::new(Arc::clone(&task.stream), settings.block_size, settings.seed)?);
            made_for = wanted;
        }
        let steps_per_epoch =
            dataset.as_ref().expect("it was just made").steps_per_epoch(settings.batch_size);
        for trap in settings.traps(steps_per_epoch).into_iter().chain(settings.ignored(&given)) {
            match found.iter_mut().find(|(known, _)| known.field == trap.field) {
                Some((_, count)) => *count += 1,
                None => found.push((trap, 1)),
            }
        }
    }
    let line = |(Trap { field, reason }, count): (Trap, usize)| {
        let warning = format!("warning: {}: {}", flag(field), with_flags(&reason));
        match runs.len() {
            1 => warning,
            all => format!("{warning} (in {count} of {all} runs)"),
        }
    };
    Ok(found.into_iter().map(line).collect())
}
