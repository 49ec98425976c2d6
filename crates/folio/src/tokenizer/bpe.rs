//! Byte-level byte-pair encoding: tokens are strings of bytes, made by merging pairs in a learned order.
//!
//! Sennrich, Haddow and Birch 2016, "Neural Machine Translation of Rare Words with Subword Units", on bytes as in
//! Radford et al. 2019, section 2.2. A text is split into words ([`super::words`]). A word starts as a sequence of bytes.
//! The adjacent pair whose merge was learned first is merged, leftmost first, until no learned pair is left. Any string of
//! bytes can be encoded, since each byte is a token.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use super::added::Added;
use super::recipe::Recipe;
use super::words::words;

pub(super) mod train;

/// Tokens of a single byte.
pub(super) const BYTES: usize = 256;

/// Longer words are merged with a heap in O(n log n), shorter ones by scanning all pairs for every merge.
const SHORT_WORD: usize = 48;

/// The capacity of an encoder's cache in words, and the length of the longest cached word.
const CACHED_WORDS: usize = 1 << 17;
const LONGEST_CACHED: usize = 64;

/// A vocabulary with its merges.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Bpe {
    /// The concatenated bytes of all tokens, in the order of their ids. The bytes of a special token are its text.
    bytes: Vec<u8>,
    /// The end of each token in `bytes`.
    ends: Vec<usize>,
    /// The left and right part of each merge, in the order of training.
    merges: Vec<(u32, u32)>,
    /// The rank and the result of each merge.
    merged: FxHashMap<u64, Merged>,
    /// The token of each byte.
    byte_ids: [u32; BYTES],
    /// The ids of the special tokens, in ascending order.
    specials: Vec<u32>,
    /// The preprocessing of text.
    recipe: Recipe,
}

/// The merge of a pair.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Merged {
    rank: u32,
    id: u32,
}

impl Merged {
    /// A pair without a merge.
    const NEVER: Self = Self { rank: u32::MAX, id: u32::MAX };
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Bpe {
    /// A vocabulary with GPT-2's preprocessing: tokens in the order of their ids, merges in the order of their ranks, and
    /// the ids of the special tokens. The error says what is wrong, such as "has no token for the byte 0x00".
    pub(super) fn new(
        tokens: &[Vec<u8>],
        merges: Vec<(u32, u32)>,
        specials: Vec<u32>,
    ) -> Result<Self, String> {
        let special = |id: u32| {
            let content = String::from_utf8_lossy(&tokens[id as usize]).into_owned();
            Added::special(id, content)
        };
        let recipe = Recipe::gpt2(specials.into_iter().map(special).collect())?;
        Self::with_recipe(tokens, merges, recipe)
    }

    /// As [`Bpe::new`], with the preprocessing and the added tokens of `recipe`.
    pub(super) fn with_recipe(
        tokens: &[Vec<u8>],
        merges: Vec<(u32, u32)>,
        recipe: Recipe,
    ) -> Result<Self, String> {
        let added = recipe.added.tokens();
        let specials: Vec<u32> = added.iter().filter(|token| token.special).map(|token| token.id).collect();
        let mut by_bytes: FxHashMap<&[u8], u32> = FxHashMap::default();
        for (id, token) in (0..).zip(tokens) {
            if token.is_empty() {
                return Err(format!("has an empty token, id {id}"));
            }
            if added.binary_search_by_key(&id, |token| token.id).is_err()
                && let Some(other) = by_bytes.insert(token, id)
            {
                return Err(format!("has the ids {other} and {id} for the same bytes"));
            }
        }
        // A merge may produce a token that is also an added token.
        for token in added.iter().filter(|token| token.in_vocab) {
            by_bytes.entry(&tokens[token.id as usize]).or_insert(token.id);
        }
        let mut byte_ids = [0; BYTES];
        for (byte, id) in (0..=u8::MAX).zip(&mut byte_ids) {
            *id = *by_bytes
                .get([byte].as_slice())
                .ok_or_else(|| format!("has no token for the byte {byte:#04x}"))?;
        }
        let mut merged = FxHashMap::with_capacity_and_hasher(merges.len(), Default::default());
        for (rank, &(left, right)) in (0..).zip(&merges) {
            let whole = [tokens[left as usize].as_slice(), &tokens[right as usize]].concat();
            let shown = || String::from_utf8_lossy(&whole).into_owned();
            let id = *by_bytes
                .get(whole.as_slice())
                .ok_or_else(|| format!("has no token for merge {rank}, whose result is {:?}", shown()))?;
            if merged.insert(key(left, right), Merged { rank, id }).is_some() {
                return Err(format!("has merge {rank}, whose result is {:?}, twice", shown()));
            }
        }
        let bytes = tokens.concat();
        let ends = tokens.iter().scan(0, |end, token| {
            *end += token.len();
            Some(*end)
        });
        Ok(Self { bytes, ends: ends.collect(), merges, merged, byte_ids, specials, recipe })
    }

    /// The number of tokens, including special ones.
    pub(super) fn vocab_size(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token.
    ///
    /// # Panics
    /// If the id is outside the vocabulary.
    pub(super) fn token(&self, id: u32) -> &[u8] {
        let index = id as usize;
        let Some(&end) = self.ends.get(index) else {
            panic!("token id {id} is outside the vocabulary of {}", self.vocab_size())
        };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start..end]
    }

    /// The merges in the order of their ranks.
    pub(super) fn merges(&self) -> &[(u32, u32)] {
        &self.merges
    }

    /// The ids of the special tokens, in ascending order.
    pub(super) fn specials(&self) -> &[u32] {
        &self.specials
    }

    /// The preprocessing of text.
    pub(super) fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Whether a token is special.
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.specials.binary_search(&id).is_ok()
    }

    /// Encodes a text without recognizing special tokens.
    #[cfg(test)]
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        Encoder::new(self).encode(text, &mut ids);
        ids
    }

    /// Decodes ids to bytes.
    ///
    /// # Panics
    /// If an id is outside the vocabulary.
    pub(super) fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        ids.iter().for_each(|&id| bytes.extend_from_slice(self.token(id)));
        bytes
    }

    #[inline]
    fn merged(&self, left: u32, right: u32) -> Merged {
        self.merged.get(&key(left, right)).copied().unwrap_or(Merged::NEVER)
    }
}

impl std::fmt::Debug for Bpe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bpe of {} tokens", self.vocab_size())
    }
}

/// Encodes text, with a cache of words.
pub(super) struct Encoder<'b, 't> {
    bpe: &'b Bpe,
    /// For each word, the range of its ids in `cached_ids`.
    cache: FxHashMap<&'t str, (u32, u32)>,
    cached_ids: Vec<u32>,
    /// The current word: its tokens so far, each with the merge with its right neighbor.
    parts: Vec<(u32, Merged)>,
}

impl<'b, 't> Encoder<'b, 't> {
    pub(super) fn new(bpe: &'b Bpe) -> Self {
        Self { bpe, cache: FxHashMap::default(), cached_ids: Vec::new(), parts: Vec::new() }
    }

    /// Appends the ids of a text, with GPT-2's split.
    pub(super) fn encode(&mut self, text: &'t str, ids: &mut Vec<u32>) {
        words(text).for_each(|word| self.encode_word(word, ids));
    }

    /// Appends the ids of a word.
    #[inline]
    pub(super) fn encode_word(&mut self, word: &'t str, ids: &mut Vec<u32>) {
        if let [byte] = word.as_bytes() {
            ids.push(self.bpe.byte_ids[usize::from(*byte)]);
        } else if let Some(&(start, end)) = self.cache.get(word) {
            match &self.cached_ids[start as usize..end as usize] {
                &[id] => ids.push(id),
                several => ids.extend_from_slice(several),
            }
        } else {
            let first = ids.len();
            let whole_words = self.bpe.recipe.whole_words.as_ref();
            match whole_words.and_then(|words| words.get(word.as_bytes())) {
                Some(&id) => ids.push(id),
                None => self.merge(word.as_bytes(), ids),
            }
            self.insert_cached(word, &ids[first..]);
        }
    }

    fn insert_cached(&mut self, word: &'t str, ids: &[u32]) {
        if word.len() > LONGEST_CACHED {
            return;
        }
        if self.cache.len() == CACHED_WORDS {
            self.cache.clear();
            self.cached_ids.clear();
        }
        let start = self.cached_ids.len() as u32;
        self.cached_ids.extend_from_slice(ids);
        self.cache.insert(word, (start, self.cached_ids.len() as u32));
    }

    /// Appends the ids of a string of bytes, by its merges.
    pub(super) fn merge(&mut self, word: &[u8], ids: &mut Vec<u32>) {
        if word.len() > SHORT_WORD {
            return merge_long(self.bpe, word, ids);
        }
        let bpe = self.bpe;
        let parts = &mut self.parts;
        parts.clear();
        parts.extend(word.iter().map(|&byte| (bpe.byte_ids[usize::from(byte)], Merged::NEVER)));
        for left in 1..parts.len() {
            parts[left - 1].1 = bpe.merged(parts[left - 1].0, parts[left].0);
        }
        loop {
            let mut lowest = (Merged::NEVER, 0);
            for (at, &(_, merged)) in parts.iter().enumerate() {
                if merged.rank < lowest.0.rank {
                    lowest = (merged, at);
                }
            }
            let (Merged { id, rank }, at) = lowest;
            if rank == Merged::NEVER.rank {
                break;
            }
            parts.remove(at + 1);
            let next = parts.get(at + 1).map_or(Merged::NEVER, |next| bpe.merged(id, next.0));
            parts[at] = (id, next);
            if at > 0 {
                parts[at - 1].1 = bpe.merged(parts[at - 1].0, id);
            }
        }
        ids.extend(parts.iter().map(|part| part.0));
    }
}

/// [`Encoder::merge`] for long words: parts in a linked list, candidates in a heap by rank and position.
fn merge_long(bpe: &Bpe, word: &[u8], ids: &mut Vec<u32>) {
    /// A part that was merged into its left neighbor.
    const GONE: u32 = u32::MAX;
    assert!(word.len() < GONE as usize, "a word of {} bytes", word.len());
    let mut parts: Vec<u32> = word.iter().map(|&byte| bpe.byte_ids[usize::from(byte)]).collect();
    let len = parts.len();
    // The linked list: the start of the next and of the previous part.
    let mut next: Vec<u32> = (1..=len as u32).collect();
    let mut previous: Vec<u32> = (0..len as u32).map(|at| at.wrapping_sub(1)).collect();
    let candidate = |rank: u32, at: usize| Reverse(u64::from(rank) << 32 | at as u64);
    let candidates = (1..len).filter_map(|right| {
        let merged = bpe.merged(parts[right - 1], parts[right]);
        (merged != Merged::NEVER).then(|| candidate(merged.rank, right - 1))
    });
    let mut heap: BinaryHeap<Reverse<u64>> = candidates.collect();
    while let Some(Reverse(entry)) = heap.pop() {
        let (rank, at) = ((entry >> 32) as u32, entry as u32 as usize);
        if parts[at] == GONE || next[at] as usize == len {
            continue;
        }
        let right = next[at] as usize;
        let merged = bpe.merged(parts[at], parts[right]);
        if merged.rank != rank {
            continue; // Outdated: one of the two parts was merged with another.
        }
        parts[at] = merged.id;
        parts[right] = GONE;
        let after = next[right] as usize;
        next[at] = after as u32;
        if after < len {
            previous[after] = at as u32;
            let merged = bpe.merged(parts[at], parts[after]);
            if merged != Merged::NEVER {
                heap.push(candidate(merged.rank, at));
            }
        }
        if at > 0 {
            let before = previous[at] as usize;
            let merged = bpe.merged(parts[before], parts[at]);
            if merged != Merged::NEVER {
                heap.push(candidate(merged.rank, before));
            }
        }
    }
    ids.extend(parts.into_iter().filter(|&part| part != GONE));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::Tokenizer;
    use crate::tokenizer::gpt2::gpt2;

    /// [`Encoder::merge`] by its definition: scans all pairs for every merge.
    fn merge_naive(bpe: &Bpe, word: &[u8]) -> Vec<u32> {
        let mut parts: Vec<u32> = word.iter().map(|&byte| bpe.byte_ids[usize::from(byte)]).collect();
        let first = |parts: &[u32]| {
            let ranks = parts.windows(2).map(|pair| bpe.merged(pair[0], pair[1]));
            ranks
                .enumerate()
                .filter(|(_, merged)| *merged != Merged::NEVER)
                .min_by_key(|(_, merged)| merged.rank)
        };
        while let Some((at, merged)) = first(&parts) {
            parts.splice(at..at + 2, [merged.id]);
        }
        parts
    }

    fn merged(bpe: &Bpe, word: &[u8]) -> Vec<u32> {
        let mut ids = Vec::new();
        Encoder::new(bpe).merge(word, &mut ids);
        ids
    }

    fn merged_as_long(bpe: &Bpe, word: &[u8]) -> Vec<u32> {
        let mut ids = Vec::new();
        merge_long(bpe, word, &mut ids);
        ids
    }

    proptest! {
        #[test]
        fn words_of_any_length_merge_by_the_definition(word in "[ab e-his-u\\u{e9}]{0,120}") {
            let bpe = gpt2();
            let want = merge_naive(&bpe, word.as_bytes());
            prop_assert_eq!(&merged(&bpe, word.as_bytes()), &want);
            prop_assert_eq!(&merged_as_long(&bpe, word.as_bytes()), &want);
        }

        #[test]
        fn any_text_round_trips(text in ".{0,200}", spaces in "\\PC*[ \n\t]*\\PC*") {
            for text in [text, spaces] {
                prop_assert_eq!(gpt2().decode(&gpt2().encode(&text)), text.as_bytes());
            }
        }

        #[test]
        fn any_bytes_round_trip(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let tokenizer = Tokenizer::gpt2();
            let ids = tokenizer.encode_bytes(&bytes).unwrap();
            prop_assert_eq!(tokenizer.decode_bytes(&ids), &bytes[..]);
            if let Ok(text) = std::str::from_utf8(&bytes) {
                prop_assert_eq!(ids, tokenizer.encode(text).unwrap());
            }
        }

        #[test]
        fn ids_match_tiktoken(text in "(\\PC|[ \n\r\t'sdltvre0-9]|\\s|\\pL|\\pN){0,60}") {
            let want = tiktoken_rs::r50k_base_singleton().encode_ordinary(&text);
            prop_assert_eq!(gpt2().encode(&text), want);
        }
    }

    #[test]
    fn every_character_is_encoded_like_tiktoken() {
        let text: String = ('\0'..=char::MAX).map(|c| format!("a{c}1{c} {c}\n")).collect();
        let want = tiktoken_rs::r50k_base_singleton().encode_ordinary(&text);
        let got = gpt2().encode(&text);
        let differs = got.iter().zip(&want).position(|(got, want)| got != want);
        assert!(got == want, "from id {differs:?} of {} on", want.len());
    }

    #[test]
    fn a_million_repetitions_are_encoded() {
        for letter in ["a", " ", "ab"] {
            let text = letter.repeat(1_000_000 / letter.len());
            let ids = gpt2().encode(&text);
            assert_eq!(gpt2().decode(&ids), text.as_bytes());
            let (short, len) = (&text.as_bytes()[..4000], text.len());
            assert_eq!(merged_as_long(&gpt2(), short), merge_naive(&gpt2(), short), "{letter:?} of {len}");
        }
    }

    #[test]
    fn a_full_cache_is_cleared() {
        let words: String = (0..2 * CACHED_WORDS as u32 + 7).map(|i| format!(" w{i:x}")).collect();
        let want = tiktoken_rs::r50k_base_singleton().encode_ordinary(&words);
        assert_eq!(gpt2().encode(&words), want);
        assert_eq!(gpt2().encode(&words.repeat(2)), [want.clone(), want].concat());
    }

    #[track_caller]
    fn check_refused(edit: impl Fn(&mut Vec<Vec<u8>>, &mut Vec<(u32, u32)>), reason: &str) {
        let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
        tokens.push(b"ab".to_vec());
        let mut merges = vec![(97, 98)];
        assert!(Bpe::new(&tokens, merges.clone(), Vec::new()).is_ok());
        edit(&mut tokens, &mut merges);
        assert_eq!(Bpe::new(&tokens, merges, Vec::new()).unwrap_err(), reason);
    }

    #[test]
    fn inconsistent_vocabularies_are_refused() {
        check_refused(|tokens, _| tokens[0] = b"xy".to_vec(), "has no token for the byte 0x00");
        check_refused(|tokens, _| tokens[7].clear(), "has an empty token, id 7");
        check_refused(|tokens, _| tokens[256] = b"a".to_vec(), "has the ids 97 and 256 for the same bytes");
        check_refused(|_, merges| merges.push((98, 97)), "has no token for merge 1, whose result is \"ba\"");
        check_refused(|_, merges| merges.push((97, 98)), "has merge 1, whose result is \"ab\", twice");
    }
}
