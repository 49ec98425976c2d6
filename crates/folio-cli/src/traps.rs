//! Warnings about settings that are valid and still not what most people want.

use std::sync::Arc;

use folio::data::Dataset;
use folio::settings::Trap;

use crate::plan::Task;
use crate::presets;
use crate::screen;
use crate::train::TrainArgs;

/// Prints one line for each trap that the runs of a task step into.
pub(crate) fn warn(args: &TrainArgs, task: &Task) -> anyhow::Result<()> {
    for line in lines(args, task)? {
        screen::err(&line);
    }
    Ok(())
}

/// The warnings; runs that share a trap share its line, which tells of the first of them.
fn lines(args: &TrainArgs, task: &Task) -> anyhow::Result<Vec<String>> {
    // A preset may set what a flag takes the effect from.
    let mut given = args.options.flags()?;
    if let Some(path) = &args.config {
        given.extend(presets::config_file(path)?.flags()?);
    }
    let runs = task.work.runs();
    let mut found: Vec<(Trap, usize)> = Vec::new();
    let (mut dataset, mut made_for) = (None, None);
    for settings in runs {
        let wanted = Some((settings.block_size, settings.seed));
        if made_for != wanted {
            dataset = Some(Dataset::new(Arc::clone(&task.stream), settings.block_size, settings.seed)?);
            made_for = wanted;
        }
        let steps_per_epoch = dataset.as_ref().expect("just made").steps_per_epoch(settings.batch_size);
        for trap in settings.traps(steps_per_epoch).into_iter().chain(settings.ignored(&given)) {
            match found.iter_mut().find(|(known, _)| known.setting == trap.setting) {
                Some((_, count)) => *count += 1,
                None => found.push((trap, 1)),
            }
        }
    }
    let line = |(Trap { setting, reason }, count): (Trap, usize)| match runs.len() {
        1 => format!("warning: {setting}: {reason}"),
        all => format!("warning: {setting}: {reason} (in {count} of {all} runs)"),
    };
    Ok(found.into_iter().map(line).collect())
}
