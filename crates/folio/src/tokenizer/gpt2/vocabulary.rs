//! GPT-2's vocabulary: 50,257 tokens and the merges that make them.
//!
//! The package tiktoken-rs has the vocabulary as a rank per token. Ids are ranks: first 256 single bytes, then the tokens
//! in the order in which training made them, then the special token.

use std::sync::{Arc, LazyLock};

use rustc_hash::FxHashMap;

use super::super::bpe::{BYTES, Bpe};
use super::END_OF_TEXT;
use crate::embedded;

/// GPT-2's byte-level BPE.
pub(in super::super) fn gpt2() -> Arc<Bpe> {
    static GPT2: LazyLock<Arc<Bpe>> = LazyLock::new(|| {
        let mut tokens = embedded::gpt2_tokens();
        let merges = merges(&tokens);
        tokens.push(END_OF_TEXT.0.as_bytes().to_vec());
        Arc::new(Bpe::new(&tokens, merges, vec![END_OF_TEXT.1]).expect("GPT-2's merges make its tokens"))
    });
    Arc::clone(&GPT2)
}

/// The pair that makes each token of more than one byte, in the order of their ids.
///
/// The ranks do not say where a token is split, but encoding its bytes with the earlier merges ends at that pair, as it
/// did in training.
fn merges(tokens: &[Vec<u8>]) -> Vec<(u32, u32)> {
    let ranks: FxHashMap<&[u8], u32> = tokens.iter().map(Vec::as_slice).zip(0..).collect();
    let pair = |token: &Vec<u8>| {
        let split = split_point(token, &ranks);
        (ranks[&token[..split]], ranks[&token[split..]])
    };
    tokens[BYTES..].iter().map(pair).collect()
}

/// The offset in `token` between the two tokens whose merge makes it.
fn split_point(token: &[u8], ranks: &FxHashMap<&[u8], u32>) -> usize {
    let rank = ranks[token];
    // Part i is token[bounds[i]..bounds[i + 1]].
    let mut bounds: Vec<usize> = (0..=token.len()).collect();
    while bounds.len() > 3 {
        let pair_rank = |pair_idx: usize| ranks.get(&token[bounds[pair_idx]..bounds[pair_idx + 2]]).copied();
        let (lowest, pair_idx) = (0..bounds.len() - 2)
            .filter_map(|pair_idx| Some((pair_rank(pair_idx)?, pair_idx)))
            .min()
            .unwrap_or_else(|| panic!("no merge applies to {bounds:?} of token {rank}"));
        assert!(lowest < rank, "token {rank} depends on the later token {lowest}");
        bounds.remove(pair_idx + 1);
    }
    bounds[1]
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use sha2::{Digest, Sha256};

    use super::super::{byte_alphabet, byte_order, spell};
    use super::*;

    /// The usual training part of tiny Shakespeare, in characters: 90 %, rounded down.
    const TRAIN_CHAR_COUNT: usize = 1_003_854;

    /// The textbook encoder: merges all occurrences of the pair that comes first in the list of merges, from left to right,
    /// until no pair is in the list.
    fn encode_by_merges(word: &str, merge_order: &HashMap<(String, String), usize>) -> Vec<String> {
        let alphabet = byte_alphabet();
        let mut parts: Vec<String> =
            word.bytes().map(|byte| alphabet[usize::from(byte)].to_string()).collect();
        loop {
            let order_of = |pair: &[String]| merge_order.get(&(pair[0].clone(), pair[1].clone())).copied();
            let Some(first) = parts.windows(2).filter_map(order_of).min() else {
                return parts;
            };
            let mut part_idx = 0;
            while part_idx + 1 < parts.len() {
                if order_of(&parts[part_idx..part_idx + 2]) == Some(first) {
                    let right = parts.remove(part_idx + 1);
                    parts[part_idx].push_str(&right);
                }
                part_idx += 1;
            }
        }
    }

    #[track_caller]
    fn check_ids(text: &str, count: usize, sha256: &str) {
        let ids = gpt2().encode(text);
        assert_eq!(ids.len(), count);
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| u16::try_from(id).unwrap().to_le_bytes()).collect();
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, sha256);
    }

    #[test]
    fn both_parts_of_tiny_shakespeare_have_the_published_ids() {
        let (train, eval) = tiny_shakespeare::TEXT.split_at(TRAIN_CHAR_COUNT);
        check_ids(train, 301_966, "502a2bdc8210d1ac5d5674867cb74467dd31db575d25cf6dbb08c8bdbea8680f");
        check_ids(eval, 36_059, "68a53422394c26a655ebe641f5c6f49888e8f4e45fe5d6f02abda63ba3ebd65b");
    }

    #[test]
    fn tiny_shakespeare_uses_11706_tokens_and_round_trips() {
        let ids = gpt2().encode(tiny_shakespeare::TEXT);
        assert_eq!(ids.len(), 338_025);
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 11_706);
        assert_eq!(gpt2().decode(&ids), tiny_shakespeare::TEXT.as_bytes());
    }

    #[test]
    fn alphabet_matches_the_published_files() {
        let alphabet = byte_alphabet();
        assert_eq!(alphabet.iter().collect::<BTreeSet<_>>().len(), 256);
        let samples =
            [b'A', b' ', b'\n', b'\t', 0, 0x7f, 0xa0, 0xad, 0xff].map(|byte| alphabet[usize::from(byte)]);
        assert_eq!(samples, ['A', 'Ġ', 'Ċ', 'ĉ', 'Ā', 'ġ', 'ł', 'Ń', 'ÿ']);
    }

    /// Tokens and merges in the spelling of the published files.
    fn spelled() -> (Vec<String>, Vec<(String, String)>) {
        let (bpe, alphabet) = (gpt2(), byte_alphabet());
        let token = |id| spell(&alphabet, bpe.token(id));
        let merges = bpe.merges().iter().map(|&(left, right)| (token(left), token(right)));
        ((0..END_OF_TEXT.1).map(token).collect(), merges.collect())
    }

    #[test]
    fn merges_match_the_published_files() {
        let (tokens, merges) = spelled();
        assert_eq!((gpt2().vocab_size(), merges.len()), (50_257, 50_000));
        let pair = |rank: usize| (merges[rank].0.as_str(), merges[rank].1.as_str());
        assert_eq!([pair(0), pair(1), pair(2), pair(3)], [("Ġ", "t"), ("Ġ", "a"), ("h", "e"), ("i", "n")]);
        assert_eq!([&tokens[0], &tokens[220], &tokens[262]], ["!", "Ġ", "Ġthe"]);
        for ((left, right), token) in merges.iter().zip(&tokens[BYTES..]) {
            assert_eq!(&format!("{left}{right}"), token);
        }
        assert_eq!(gpt2().token(50_256), b"<|endoftext|>");
        let order: Vec<String> = byte_order().map(|byte| spell(&byte_alphabet(), &[byte])).collect();
        assert_eq!(order, tokens[..BYTES]);
    }

    #[test]
    fn textbook_encoder_gives_the_same_ids() {
        let (tokens, merges) = spelled();
        let merge_order = merges.into_iter().zip(0..).collect();
        // GPT-2's split leaves a word with one space before it whole.
        let is_word = |word: &&str| word.chars().all(char::is_alphabetic);
        let shakespeare = tiny_shakespeare::TEXT.split_whitespace().filter(is_word).step_by(150);
        let foreign =
            ["Москва", "naïveté", "日本語", "ελληνικά", "Donaudampfschifffahrtsgesellschaft", "हिन्दी"];
        let words: BTreeSet<&str> = shakespeare.chain(foreign).collect();
        assert!(words.len() > 400, "{} words", words.len());
        for word in words {
            let word = format!(" {word}");
            let ids = gpt2().encode(&word);
            let got: Vec<&str> = ids.iter().map(|&id| tokens[id as usize].as_str()).collect();
            assert_eq!(got, encode_by_merges(&word, &merge_order), "of {word:?}");
        }
    }

    #[test]
    #[should_panic(expected = "token id 50257 is outside the vocabulary of 50257")]
    fn decoding_an_unknown_id_panics() {
        gpt2().decode(&[50_256, 50_257]);
    }
}
