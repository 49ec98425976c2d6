//! Distillation: a run learns from trained models too, its teachers, by their mean probabilities of the training text.
//!
//! Sources: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", at temperature 1; Furlanello et al. 2018,
//! "Born-Again Neural Networks", where the teachers have the student's architecture.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, Identity};
use crate::data::Part;
use crate::data::{Dataset, SplitKind};
use crate::distributed::RankCount;
use crate::ensemble::{Ensemble, check_checkpoints};
use crate::error::{Error, Result};
use crate::machine::{available_disk, available_memory};
use crate::memory::{gibibytes, training_bytes};
use crate::model::{CpuBackend, Precision};
use crate::run_dir::find;
use crate::settings::Settings;

mod table;

pub use table::{TablePlace, TeacherTable};

/// The teachers of a run: checkpoints whose weights are those that its settings record.
#[derive(Clone, Debug)]
pub struct Teachers {
    checkpoints: Vec<Checkpoint>,
    /// The precision in which each was trained.
    precisions: Vec<Precision>,
    sha256: Vec<String>,
}

impl Settings {
    /// Records the teachers of a run: of each path, which may be a run, a sweep or a checkpoint, the path of the checkpoint and the
    /// SHA-256 of its weights.
    ///
    /// # Errors
    /// If there is no checkpoint.
    pub fn record_teachers(&mut self, paths: &[PathBuf]) -> Result<()> {
        let (mut teachers, mut sha256) = (Vec::new(), Vec::new());
        for path in paths {
            let found = find(Some(path))?.checkpoint.path;
            sha256.push(Checkpoint::open(&found)?.weights_sha256()?.to_owned());
            teachers.push(std::path::absolute(&found).unwrap_or(found).display().to_string());
        }
        (self.teachers, self.teachers_sha256) = (Some(teachers), Some(sha256));
        Ok(())
    }
}

impl Teachers {
    /// Opens the teachers of a run with this identity, if it has any.
    ///
    /// # Errors
    /// If one is missing, has other weights than the settings record, or differs in its tokenizer, its text or its split: text that
    /// it was trained on might then be evaluation text of this run.
    pub fn open(settings: &Settings, identity: &Identity) -> Result<Option<Self>> {
        let Some(paths) = &settings.teachers else { return Ok(None) };
        let recorded = settings.teachers_sha256.as_deref().unwrap_or_default();
        if paths.is_empty() || paths.len() != recorded.len() {
            let reason =
                format!("{} paths with {} SHA-256: record_teachers writes both", paths.len(), recorded.len());
            return Err(Error::setting("teachers", reason));
        }
        let (mut checkpoints, mut precisions) = (Vec::new(), Vec::new());
        for (path, recorded) in paths.iter().zip(recorded) {
            let found = find(Some(Path::new(path))).map_err(|error| lost(&error))?;
            let checkpoint = Checkpoint::open(&found.checkpoint.path).map_err(|error| lost(&error))?;
            if checkpoint.weights_sha256()? != recorded {
                let reason = "has other weights than the teacher that this run began with; give the path of the original with \
                              `teachers`";
                return Err(wrong(&checkpoint, reason.to_owned()));
            }
            check(&checkpoint, identity)?;
            precisions.push(found.run.settings()?.precision);
            checkpoints.push(checkpoint);
        }
        check_checkpoints(&checkpoints, true)?;
        Ok(Some(Self { checkpoints, precisions, sha256: recorded.to_vec() }))
    }

    /// Their number.
    pub fn count(&self) -> usize {
        self.checkpoints.len()
    }

    /// The SHA-256 of the weights of each.
    pub(crate) fn sha256(&self) -> &[String] {
        &self.sha256
    }

    /// Loads them, each in the precision it was trained in.
    ///
    /// # Errors
    /// If the weights cannot be read, or are damaged.
    pub fn load(&self) -> Result<Ensemble> {
        let load = |(checkpoint, &precision): (&Checkpoint, &Precision)| {
            let config = checkpoint.state().identity.model;
            Ok(CpuBackend::from_parameters(config, precision, checkpoint.parameters()?))
        };
        Ensemble::new(self.checkpoints.iter().zip(&self.precisions).map(load).collect::<Result<_>>()?)
    }

    /// Where the table of their probabilities fits: in memory beside the training, or else on the disk of the run's directory. Of
    /// several ranks each needs it in memory.
    ///
    /// # Errors
    /// [`Error::Setting`] if it fits nowhere.
    pub fn place<'a>(
        &self,
        settings: &Settings,
        dataset: &Dataset,
        ranks: RankCount,
        run_dir: Option<&'a Path>,
    ) -> Result<TablePlace<'a>> {
        let config = &self.checkpoints[0].state().identity.model;
        let blocks = dataset.blocks(Part::Train).len();
        let tokens: usize = dataset.training_ranges().iter().map(ExactSizeIterator::len).sum();
        let weights =
            self.checkpoints.iter().map(|checkpoint| checkpoint.state().identity.model.parameters());
        // f32 and packed for matmuls.
        let weights = weights.sum::<u64>().saturating_mul(8);
        let need = Need {
            tokens,
            vocab: config.vocab_size,
            others: training_bytes(settings, config.vocab_size, blocks, ranks)
                .saturating_add(weights)
                .saturating_add(TeacherTable::working_bytes(config)),
        };
        let memory = available_memory().map(|free| free / ranks.per_machine as u64);
        let run_dir = run_dir.filter(|_| ranks.all == 1);
        let disk = run_dir.map(|path| available_disk(path).unwrap_or(u64::MAX));
        Ok(match (need.is_in_memory(memory, disk)?, run_dir) {
            (false, Some(run_dir)) => TablePlace::Disk(run_dir),
            _ => TablePlace::Memory,
        })
    }
}

/// What a table needs.
struct Need {
    tokens: usize,
    vocab: usize,
    /// Bytes of memory that training and computing the table take besides.
    others: u64,
}

impl Need {
    /// Whether the table fits in memory; if not, it fits on the disk. `disk` is none if it may not be there.
    fn is_in_memory(&self, memory: Option<u64>, disk: Option<u64>) -> Result<bool> {
        let Self { tokens, vocab, others } = *self;
        let table = (tokens as u64).saturating_mul(2 * vocab as u64);
        // If the free memory is unknown, try.
        let Some(memory) = memory else { return Ok(true) };
        if table.saturating_add(others) <= memory {
            return Ok(true);
        }
        if disk.is_some_and(|free| table <= free) {
            return Ok(false);
        }
        let [needed, memory] = [table, memory.saturating_sub(others)].map(gibibytes);
        let disk = disk.map_or_else(
            || ", and it cannot be on disk".to_owned(),
            |free| format!(" and {} of disk", gibibytes(free)),
        );
        let reason = format!(
            "their probabilities of {tokens} tokens times a vocabulary of {vocab} take {needed}, but {memory} of memory{disk} are \
             free: use a shorter text, or teachers with a smaller vocabulary"
        );
        Err(Error::setting("teachers", reason))
    }
}

/// Checks that a teacher predicts the tokens of a run, and was not trained on its evaluation text.
fn check(teacher: &Checkpoint, identity: &Identity) -> Result<()> {
    let other = &teacher.state().identity;
    let is_shuffled = identity.split == SplitKind::Blocks && identity.eval_data_sha256.is_none();
    let (vocab, own_vocab) = (other.model.vocab_size, identity.model.vocab_size);
    let (block_size, own_block_size) = (other.model.block_size, identity.model.block_size);
    let reason = if other.tokenizer_sha256 != identity.tokenizer_sha256 {
        "was trained with another tokenizer than this run: a teacher needs the same one; name another teacher"
            .to_owned()
    } else if vocab != own_vocab {
        format!("has {vocab} rows of token embeddings, but this run has {own_vocab}; name another teacher")
    } else if is_shuffled && block_size != own_block_size {
        format!(
            "has `block_size {block_size}`, but this run has {own_block_size}, and `split blocks` depends on it: the teacher would \
             know evaluation text; use `split contiguous`, or {block_size}"
        )
    } else if let Some(what) = identity.text_difference(other) {
        format!(
            "was trained with another {what} than this run, so it may know evaluation text; name a teacher that was trained with \
             the same"
        )
    } else {
        return Ok(());
    };
    Err(wrong(teacher, reason))
}

fn wrong(teacher: &Checkpoint, reason: String) -> Error {
    Error::Checkpoint { path: teacher.directory().to_path_buf(), reason }
}

/// The error for a teacher that cannot be opened.
fn lost(error: &Error) -> Error {
    Error::setting(
        "teachers",
        format!("{error}; if the teacher has moved, give its new path with `teachers`"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_in_memory_or_else_on_disk_or_else_refused() {
        let need = Need { tokens: 300_000, vocab: 50_257, others: 1 << 30 };
        let table = 300_000 * 2 * 50_257;
        let place = |memory, disk| need.is_in_memory(memory, disk).map_err(|error| error.to_string());
        assert_eq!(place(None, None), Ok(true), "unknown memory");
        assert_eq!(place(Some(table + (1 << 30)), None), Ok(true));
        assert_eq!(place(Some(table + (1 << 30) - 1), Some(table)), Ok(false));
        let refused = place(Some(5 << 30), Some(table - 1)).expect_err("too large");
        let expected = "teachers: their probabilities of 300000 tokens times a vocabulary of 50257 take 28.1 GiB, but 4.0 GiB of \
                        memory and 28.1 GiB of disk are free: ";
        assert!(refused.starts_with(expected), "{refused}");
        let refused = place(Some(5 << 30), None).expect_err("no disk");
        assert!(refused.contains("4.0 GiB of memory, and it cannot be on disk are free"), "{refused}");
    }
}
