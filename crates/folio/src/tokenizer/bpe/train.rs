//! Learning the merges of a byte-pair encoding from a text.
//!
//! The pair of neighbouring tokens that occurs most often becomes a token, until the vocabulary is large enough. A word
//! that occurs often is looked at once and counts as often as it occurs; what a merge changes is counted anew, nothing
//! else; and a priority queue, whose entries may be out of date, gives the next pair.
//!
//! Of pairs that occur equally often the one comes first whose left part has the lower id, then the one whose right
//! part has. So the outcome depends on nothing but the text: neither on the number of threads nor on hashing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use super::super::gpt2::byte_order;
use super::super::words::{pieces, words};
use super::{BYTES, Bpe, key};

/// Bytes of text whose words a thread counts at once.
const PIECE: usize = 1 << 17;

/// How far a text's merges went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct TooSmall {
    /// The largest vocabulary that the text can give, special tokens included.
    pub(in super::super) reached: usize,
}

/// A vocabulary of `vocab_size` tokens for a text: 256 bytes in GPT-2's order, what the text's merges make, and the
/// special tokens behind them.
///
/// # Panics
/// If `vocab_size` is below 256 and the special tokens.
pub(in super::super) fn train(text: &str, vocab_size: usize, specials: &[&str]) -> Result<Bpe, TooSmall> {
    let ordinary = vocab_size.checked_sub(specials.len()).filter(|&count| count >= BYTES);
    let ordinary =
        ordinary.unwrap_or_else(|| panic!("a vocabulary of {vocab_size} has no room for 256 bytes"));
    let mut trainer = BpeTrainer::new(&count_words(text));
    while trainer.tokens.len() < ordinary {
        if !trainer.merge_next() {
            return Err(TooSmall { reached: trainer.tokens.len() + specials.len() });
        }
    }
    let BpeTrainer { mut tokens, merges, .. } = trainer;
    let special_ids = (tokens.len() as u32..).take(specials.len()).collect();
    tokens.extend(specials.iter().map(|special| special.as_bytes().to_vec()));
    Ok(Bpe::new(&tokens, merges, special_ids).expect("merges of tokens that are there"))
}

/// How often each word of a text occurs.
fn count_words(text: &str) -> FxHashMap<&str, u64> {
    let count = |mut counts: FxHashMap<_, _>, piece| {
        words(piece).for_each(|word| *counts.entry(word).or_default() += 1);
        counts
    };
    let pieces: Vec<&str> = pieces(text, PIECE).collect();
    let merge = |mut one: FxHashMap<_, _>, mut other: FxHashMap<_, _>| {
        if one.len() < other.len() {
            std::mem::swap(&mut one, &mut other);
        }
        other.into_iter().for_each(|(word, count)| *one.entry(word).or_default() += count);
        one
    };
    pieces.into_par_iter().fold(FxHashMap::default, count).reduce(FxHashMap::default, merge)
}

struct BpeTrainer {
    tokens: Vec<Vec<u8>>,
    ids: FxHashMap<Vec<u8>, u32>,
    merges: Vec<(u32, u32)>,
    words: Vec<Word>,
    pairs: FxHashMap<u64, Pair>,
    /// Counts, which may be out of date, and pairs: the most frequent first, then the lowest.
    queue: BinaryHeap<(u64, Reverse<u64>)>,
}

/// A distinct word.
struct Word {
    parts: Vec<u32>,
    count: u64,
}

/// A pair of neighbours.
#[derive(Default)]
struct Pair {
    count: u64,
    /// The words that it occurs in, or did once.
    words: Vec<u32>,
}

impl BpeTrainer {
    fn new(counts: &FxHashMap<&str, u64>) -> Self {
        let tokens: Vec<Vec<u8>> = byte_order().map(|byte| vec![byte]).collect();
        let mut byte_ids = [0; BYTES];
        for (id, token) in (0..).zip(&tokens) {
            byte_ids[usize::from(token[0])] = id;
        }
        let parts = |word: &str| word.bytes().map(|byte| byte_ids[usize::from(byte)]).collect();
        let words: Vec<Word> = (counts.iter())
            .filter(|(word, _)| word.len() > 1)
            .map(|(word, &count)| Word { parts: parts(word), count })
            .collect();
        let mut pairs: FxHashMap<u64, Pair> = FxHashMap::default();
        for (index, word) in (0..).zip(&words) {
            for pair in word.parts.windows(2) {
                pairs.entry(key(pair[0], pair[1])).or_default().add(word.count, index);
            }
        }
        let queue = pairs.iter().map(|(&key, pair)| (pair.count, Reverse(key))).collect();
        let ids = tokens.iter().cloned().zip(0..).collect();
        Self { tokens, ids, merges: Vec::new(), words, pairs, queue }
    }

    /// Merges the most frequent pair; false if there is none.
    fn merge_next(&mut self) -> bool {
        while let Some((count, Reverse(key))) = self.queue.pop() {
            let now = self.pairs.get(&key).map_or(0, |pair| pair.count);
            if now == count && now > 0 {
                self.merge(key);
                return true;
            }
            if now > 0 {
                self.queue.push((now, Reverse(key)));
            }
        }
        false
    }

    fn merge(&mut self, pair: u64) {
        let (left, right) = ((pair >> 32) as u32, pair as u32);
        let bytes = [self.tokens[left as usize].as_slice(), &self.tokens[right as usize]].concat();
        // Another pair may have made these bytes before: "a" and "bc" after "ab" and "c".
        let id = *self.ids.entry(bytes).or_insert_with_key(|bytes| {
            self.tokens.push(bytes.clone());
            self.tokens.len() as u32 - 1
        });
        self.merges.push((left, right));
        let places = self.pairs.remove(&pair).expect("a pair of the queue").words;
        let mut grown = Vec::new();
        for index in places {
            let Word { parts, count } = &mut self.words[index as usize];
            let count = *count;
            let (mut read, mut write) = (0, 0);
            while read < parts.len() {
                if parts[read] != left || parts.get(read + 1) != Some(&right) {
                    parts[write] = parts[read];
                    (read, write) = (read + 1, write + 1);
                    continue;
                }
                if write > 0 {
                    let before = parts[write - 1];
                    self.pairs.entry(key(before, left)).and_modify(|pair| pair.lose(count));
                    self.pairs.entry(key(before, id)).or_default().add(count, index);
                    grown.push(key(before, id));
                }
                if let Some(&after) = parts.get(read + 2) {
                    self.pairs.entry(key(right, after)).and_modify(|pair| pair.lose(count));
                    self.pairs.entry(key(id, after)).or_default().add(count, index);
                    grown.push(key(id, after));
                }
                parts[write] = id;
                (read, write) = (read + 2, write + 1);
            }
            parts.truncate(write);
        }
        grown.sort_unstable();
        grown.dedup();
        // Pairs that grew, lost all again to the pair beside them, and so do not occur are passed over by the queue.
        self.queue.extend(grown.into_iter().map(|key| (self.pairs[&key].count, Reverse(key))));
    }
}

impl Pair {
    fn add(&mut self, count: u64, word: u32) {
        self.count += count;
        if self.words.last() != Some(&word) {
            self.words.push(word);
        }
    }

    fn lose(&mut self, count: u64) {
        self.count -= count;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// The merges by the definition: all pairs are counted anew for each.
    fn merges_plainly(text: &str, count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut ids: Vec<Vec<u8>> = byte_order().map(|byte| vec![byte]).collect();
        let mut all: Vec<Vec<Vec<u8>>> =
            words(text).map(|word| word.bytes().map(|byte| vec![byte]).collect()).collect();
        let mut merges = Vec::new();
        while ids.len() < BYTES + count {
            let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
            for word in &all {
                for pair in word.windows(2) {
                    let [left, right] = [0, 1].map(|i| ids.iter().position(|id| *id == pair[i]).unwrap());
                    *counts.entry((left, right)).or_default() += 1;
                }
            }
            let Some((&(left, right), _)) =
                counts.iter().max_by_key(|(pair, count)| (**count, Reverse(**pair)))
            else {
                break;
            };
            let (left, right) = (ids[left].clone(), ids[right].clone());
            let whole = [left.clone(), right.clone()].concat();
            for word in &mut all {
                let mut at = 0;
                while at + 1 < word.len() {
                    if word[at] == left && word[at + 1] == right {
                        word.splice(at..at + 2, [whole.clone()]);
                    }
                    at += 1;
                }
            }
            if !ids.contains(&whole) {
                ids.push(whole);
            }
            merges.push((left, right));
        }
        merges
    }

    #[track_caller]
    fn check(text: &str, count: usize) {
        let want = merges_plainly(text, count);
        let vocab_size = match train(text, BYTES + count, &[]) {
            Ok(bpe) => bpe.vocab_size(),
            Err(TooSmall { reached }) => reached,
        };
        let bpe = train(text, vocab_size, &[]).unwrap();
        let token = |id| bpe.token(id).to_vec();
        let got: Vec<_> = bpe.merges().iter().map(|&(left, right)| (token(left), token(right))).collect();
        // What the definition merges without a new token, after the last one, nobody asks for.
        assert_eq!(got, want[..got.len()], "{text:?}");
        assert!(want.len() == got.len() || vocab_size < BYTES + count, "{text:?}");
    }

    #[test]
    fn merges_are_those_of_the_definition() {
        check("", 3);
        check("aaaa aaa aa a", 5);
        check("abababab bababa", 9);
        check("low lower lowest newer newest wide wider widest", 40);
        check("aaabaaab baaabaaa abcabcabc cabcab été étés", 60);
        check(&tiny_shakespeare::TEXT[..3000], 120);
    }

    proptest! {
        #[test]
        fn merges_of_any_text_are_those_of_the_definition(text in "[abc ]{0,60}") {
            check(&text, 40);
        }
    }

    #[test]
    fn equal_counts_go_by_ids() {
        // Each pair occurs once. A line end belongs to no word with letters.
        let bpe = train("zy\nbd\nab\nbc", BYTES + 4, &[]).unwrap();
        let made: Vec<&[u8]> = (BYTES as u32..).take(4).map(|id| bpe.token(id)).collect();
        assert_eq!(made, [b"ab", b"bc", b"bd", b"zy"]);
    }

    #[test]
    fn threads_do_not_change_the_merges() {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| train(tiny_shakespeare::TEXT, 600, &[]).unwrap())
        };
        assert_eq!(on(1), on(3));
    }
}
