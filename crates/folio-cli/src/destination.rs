//! Where a run is saved, how much disk it needs, and what to do with it afterwards.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use folio::machine::available_disk;
use folio::run_dir::{RUNS, RunDir};
use folio::text::shell_quoted;

use crate::plan::{Task, Work};
use crate::progress::gibibytes;
use crate::screen;

/// A new directory, which is removed on drop if it is still empty.
pub(crate) struct Reserved(PathBuf);

impl Drop for Reserved {
    fn drop(&mut self) {
        // This fails, as it should, if the directory is not empty.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Creates a new directory for a run without `--run_dir`. Creating it reserves its name.
pub(crate) fn reserve(task: &mut Task) -> anyhow::Result<Option<Reserved>> {
    let Some(name) = &task.new_name else { return Ok(None) };
    let (path, reserved) = reserve_name(name)?;
    task.run_dir = Some(RunDir::new(path));
    Ok(Some(reserved))
}

/// Creates a new directory under a name, or under the name and a number if it is taken.
pub(crate) fn reserve_name(name: &str) -> anyhow::Result<(PathBuf, Reserved)> {
    let parent = Path::new(RUNS);
    let cannot =
        || format!("cannot create a directory in {RUNS}/: give --run_dir, or --no_save to save nothing");
    fs::create_dir_all(parent).with_context(cannot)?;
    let names = std::iter::once(name.to_owned()).chain((2_u64..).map(|number| format!("{name}-{number}")));
    for path in names.map(|name| parent.join(name)) {
        match fs::create_dir(&path) {
            Ok(()) => return Ok((path.clone(), Reserved(path))),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(cannot),
        }
    }
    unreachable!("there is always another number")
}

/// A path, quoted for a shell.
pub(crate) fn quoted(path: &Path) -> String {
    shell_quoted(&path.display().to_string())
}

/// Prints where the run is saved and how much disk its checkpoints need; warns if less is free.
///
/// `trained` epochs of a resumed run are on the disk already.
pub(crate) fn print_destination(task: &Task, parameters: u64, trained: u64) {
    let Some(run_dir) = &task.run_dir else {
        return screen::err("--no_save: the model is discarded when training ends");
    };
    let bytes =
        task.work.runs().iter().map(|run| run.disk_bytes(parameters, run.num_epochs.saturating_sub(trained)));
    let bytes: u64 = bytes.fold(0, u64::saturating_add);
    let (path, needed) = (run_dir.path().display(), gibibytes(bytes));
    screen::err(format_args!("saving to {path}; checkpoints need up to {needed} of disk"));
    if let Some(free) = available_disk(run_dir.path()).filter(|free| *free < bytes) {
        let free = gibibytes(free);
        let way_out = "free some space, keep less with --keep best, or use a --run_dir on another disk";
        screen::err(format_args!("warning: only {free} of that disk is free; {way_out}"));
    }
}

/// Prints where the run is and what to run next.
pub(crate) fn print_next_steps(run_dir: &RunDir, task: &Task) {
    let path = quoted(run_dir.path());
    screen::err(format_args!("the run is in {}", run_dir.path().display()));
    let is_embedded = task.work.runs()[0].data.is_embedded();
    let prompt = if is_embedded { Some("ROMEO:") } else { task.prompt.as_deref() };
    let prompt = prompt.map_or(String::new(), |prompt| format!(" --prompt {}", shell_quoted(prompt)));
    let own_steps = match task.work {
        // `folio eval` could not read a text from stdin again.
        Work::Run(ref run) if run.data.has_stdin() => Vec::new(),
        Work::Run(_) => vec![format!("folio eval {path}")],
        Work::Sweep(_) => vec![format!("folio runs {path}")],
    };
    let mut next = vec![format!("folio generate {path}{prompt}")];
    next.extend(own_steps);
    next.extend([format!("folio plot {path}"), format!("folio serve {path} --open")]);
    screen::err(format_args!("next: {}", next.join("\n      ")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_quoted_for_a_shell() {
        for (text, expected) in [
            ("runs/quick", "runs/quick"),
            ("my run", "'my run'"),
            ("it's", "\"it's\""),
            ("ROMEO:", "ROMEO:"),
            ("床前明月光", "'床前明月光'"),
        ] {
            assert_eq!(shell_quoted(text), expected);
            assert_eq!(shlex::split(expected).expect("a shell's words"), [text]);
        }
    }
}
