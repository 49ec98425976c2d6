//! The parts of the parameters that ranks exchange at one time, and what each rank owns of them.

use std::ops::Range;

use folio_kernels::adamw::SQUARES;

use crate::distributed::{LARGEST_SUM, part};
use crate::model::{Frozen, Parameters};

/// What ranks own starts at a multiple of this in the trained parameters, so that the sums of [`SQUARES`] elements each, from
/// which the gradient norm is computed, are the same for any number of ranks.
pub(super) const UNIT: usize = SQUARES;

/// Parameters whose gradients are complete at about the same time of the backward pass: a block's, or a piece of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) range: Range<usize>,
    /// Whether they are trained. If not, they have an owner as well, who stores their moments.
    pub(super) trained: bool,
}

impl Bucket {
    /// What a rank owns of it.
    pub(super) fn part(&self, rank: usize, world_size: usize) -> Range<usize> {
        let Range { start, end } = part(self.range.len(), UNIT, rank, world_size);
        self.range.start + start..self.range.start + end
    }

    /// The number of sums of [`UNIT`] elements.
    pub(super) fn units(&self) -> usize {
        self.range.len().div_ceil(UNIT)
    }
}

/// All parameters in buckets, in order.
pub(super) fn buckets(parameters: &Parameters, frozen: Frozen) -> Vec<Bucket> {
    let specs = parameters.specs();
    let is_first = |index: &usize| *index == 0 || specs[*index].block() != specs[*index - 1].block();
    let starts: Vec<usize> =
        (0..specs.len()).filter(is_first).map(|index| specs[index].range.start).collect();
    let mut buckets = Vec::new();
    let mut add = |region: Range<usize>, trained: bool| {
        let mut start = region.start;
        let inside = starts.iter().filter(|cut| region.contains(cut));
        let rounded = inside.map(|cut| region.start + (cut - region.start).next_multiple_of(UNIT));
        for end in rounded.map(|cut| cut.min(region.end)).chain([region.end]) {
            while start < end {
                let range = start..end.min(start + LARGEST_SUM);
                start = range.end;
                buckets.push(Bucket { range, trained });
            }
        }
    };
    let mut end = 0;
    for trained in frozen.trained(parameters) {
        add(end..trained.start, false);
        end = trained.end;
        add(trained, true);
    }
    add(end..parameters.values().len(), false);
    buckets
}

/// What a rank owns of all parameters, in order.
pub(super) fn owned(buckets: &[Bucket], rank: usize, world_size: usize) -> Vec<Range<usize>> {
    let mut owned: Vec<Range<usize>> = Vec::new();
    for part in buckets.iter().map(|bucket| bucket.part(rank, world_size)).filter(|part| !part.is_empty()) {
        match owned.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => owned.push(part),
        }
    }
    owned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;

    #[test]
    fn every_parameter_has_one_owner_and_units_do_not_depend_on_ranks() {
        for tie_word_embeddings in [true, false] {
            let config = ModelConfig {
                vocab_size: 70_000,
                n_blocks: 3,
                n_emb: 68,
                n_heads: 2,
                block_size: 7,
                tie_word_embeddings,
                ..ModelConfig::GPT2
            };
            let parameters = Parameters::zeros(&config);
            let all = parameters.values().len();
            for (embeddings, blocks) in [(false, 0), (true, 0), (false, 2), (true, 3)] {
                let frozen = Frozen { embeddings, blocks };
                let list = buckets(&parameters, frozen);
                let mut end = 0;
                for bucket in &list {
                    assert_eq!(bucket.range.start, end, "{frozen}");
                    assert!((1..=LARGEST_SUM).contains(&bucket.range.len()), "{frozen}: {bucket:?}");
                    end = bucket.range.end;
                }
                assert_eq!(end, all, "{frozen}");
                for region in frozen.trained(&parameters) {
                    let inside = list.iter().filter(|bucket| region.contains(&bucket.range.start));
                    for bucket in inside {
                        assert!(bucket.trained && bucket.range.end <= region.end, "{frozen}: {bucket:?}");
                        for rank in 0..3 {
                            let part = bucket.part(rank, 3);
                            assert!(part.is_empty() || (part.start - region.start).is_multiple_of(UNIT));
                        }
                    }
                }
                for world_size in 1..5 {
                    let mut owners = vec![0; all];
                    for rank in 0..world_size {
                        let parts = owned(&list, rank, world_size);
                        parts.into_iter().for_each(|part| owners[part].iter_mut().for_each(|n| *n += 1));
                    }
                    assert!(owners.iter().all(|&owners| owners == 1), "{frozen}, {world_size} ranks");
                }
                assert_eq!(owned(&list, 0, 1), std::slice::from_ref(&(0..all)));
            }
        }
    }
}
