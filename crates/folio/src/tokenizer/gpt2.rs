//! GPT-2's byte-level BPE: its 50,257 tokens, the merges that make them, and the alphabet its files are written in.
//!
//! Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2. The package tiktoken-rs
//! has the vocabulary, as a rank for each token, and encodes. Ids are ranks: 256 single bytes first, then the
//! tokens in the order in which training made them, then the one special token.

use std::collections::HashMap;
use std::ops::Range;

use tiktoken_rs::r50k_base_singleton;

/// Tokens, with the special one.
pub(super) const VOCAB_SIZE: usize = 50_257;

/// The special token that separates documents, and its id.
pub(super) const END_OF_TEXT: (&str, u32) = ("<|endoftext|>", 50_256);

/// Tokens of a single byte; every other ordinary token is the merge of two earlier ones.
const BYTE_TOKEN_COUNT: usize = 256;

/// Runs of white space longer than this are encoded apart: tiktoken-rs 0.12 panics on a run of a million.
const MAX_SPACE_RUN_BYTES: usize = 1 << 16;

/// The ids of a text, in which [`END_OF_TEXT`] is ordinary text.
pub(super) fn encode(text: &str) -> Vec<u32> {
    let bpe = r50k_base_singleton();
    let mut ids = Vec::new();
    let mut done = 0;
    for piece in long_space_pieces(text) {
        ids.extend(bpe.encode_ordinary(&text[done..piece.start]));
        ids.extend(bpe.encode_ordinary(&text[piece.clone()]));
        done = piece.end;
    }
    ids.extend(bpe.encode_ordinary(&text[done..]));
    ids
}

/// Where the long runs of white space are that something follows, each without its last character: the pieces
/// that GPT-2's split makes of them. So encoding each apart changes nothing.
fn long_space_pieces(text: &str) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let (mut run_start, mut last_char) = (0, 0);
    for (offset, c) in text.char_indices() {
        if !c.is_whitespace() {
            if last_char > run_start + MAX_SPACE_RUN_BYTES {
                pieces.push(run_start..last_char);
            }
            run_start = offset + c.len_utf8();
        }
        last_char = offset;
    }
    pieces
}

/// The bytes that these ids stand for.
pub(super) fn decode_bytes(ids: &[u32]) -> Vec<u8> {
    r50k_base_singleton()
        .decode_bytes(ids)
        .unwrap_or_else(|error| panic!("token id {} is outside the vocabulary of {VOCAB_SIZE}", error.token))
}

/// The vocabulary and the merges as Hugging Face's files spell them: each byte as one visible character.
pub(super) struct Spelling {
    /// All tokens in the order of their ids.
    pub(super) tokens: Vec<String>,
    /// The pair that makes each token of more than one byte, in the order of their ids.
    pub(super) merges: Vec<(String, String)>,
}

/// Spells GPT-2's vocabulary and merges.
pub(super) fn spelling() -> Spelling {
    let tokens: Vec<Vec<u8>> = (0..END_OF_TEXT.1).map(|id| decode_bytes(&[id])).collect();
    let ranks = tokens.iter().zip(0..).map(|(token, rank)| (token.as_slice(), rank)).collect();
    let alphabet = byte_alphabet();
    let spell = |bytes: &[u8]| bytes.iter().map(|&byte| alphabet[usize::from(byte)]).collect::<String>();

    let merge = |token: &Vec<u8>| {
        let split = split_point(token, &ranks);
        (spell(&token[..split]), spell(&token[split..]))
    };
    let merges = tokens[BYTE_TOKEN_COUNT..].iter().map(merge).collect();
    let mut spelled: Vec<String> = tokens.iter().map(|token| spell(token)).collect();
    spelled.push(END_OF_TEXT.0.to_owned());
    Spelling { tokens: spelled, merges }
}

/// Where the two tokens meet whose merge makes `token`: encoding its bytes with the earlier merges alone
/// arrives at that pair, as training did.
fn split_point(token: &[u8], ranks: &HashMap<&[u8], u32>) -> usize {
    let rank = ranks[token];
    // Part i is token[bounds[i]..bounds[i + 1]].
    let mut bounds: Vec<usize> = (0..=token.len()).collect();
    while bounds.len() > 3 {
        let pair_rank = |pair_idx: usize| ranks.get(&token[bounds[pair_idx]..bounds[pair_idx + 2]]).copied();
        let (lowest, pair_idx) = (0..bounds.len() - 2)
            .filter_map(|pair_idx| Some((pair_rank(pair_idx)?, pair_idx)))
            .min()
            .unwrap_or_else(|| panic!("no merge applies to {bounds:?} of token {rank}"));
        assert!(lowest < rank, "token {rank} needs token {lowest}, which is made later");
        bounds.remove(pair_idx + 1);
    }
    bounds[1]
}

/// The character that stands for each byte in GPT-2's files. Bytes that Latin-1 shows as a visible character are
/// that character; the other 68 take the code points from U+0100 on, in order.
pub(super) fn byte_alphabet() -> [char; 256] {
    let is_visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut stand_ins = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte if is_visible(byte) => char::from(byte),
        _ => stand_ins.next().expect("68 stand-ins exist"),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sha2::{Digest, Sha256};

    use super::*;

    /// Characters of tiny Shakespeare that train in the usual split: nine in ten, rounded down.
    const TRAIN_CHAR_COUNT: usize = 1_003_854;

    /// Merges the pair that comes first in the list of merges, all of its occurrences from the left, until no
    /// pair is in the list: the textbook encoder, which knows no ranks of tokens.
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
        let ids = encode(text);
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
        let ids = encode(tiny_shakespeare::TEXT);
        assert_eq!(ids.len(), 338_025);
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 11_706);
        assert_eq!(decode_bytes(&ids), tiny_shakespeare::TEXT.as_bytes());
    }

    #[test]
    fn long_runs_of_white_space_encode_as_the_library_does() {
        for (space, count) in [(" ", 70_000), ("\n", 70_000), ("\u{3000}", 30_000)] {
            let run = space.repeat(count);
            let text = format!("{run}x{run} y{run}");
            assert_eq!(long_space_pieces(&text).len(), 2);
            assert_eq!(encode(&text), r50k_base_singleton().encode_ordinary(&text));
        }
        let text = format!("{}x", " ".repeat(1 << 20));
        assert_eq!(decode_bytes(&encode(&text)), text.as_bytes());
    }

    #[test]
    fn alphabet_is_the_one_of_the_published_files() {
        let alphabet = byte_alphabet();
        assert_eq!(alphabet.iter().collect::<BTreeSet<_>>().len(), 256);
        let samples =
            [b'A', b' ', b'\n', b'\t', 0, 0x7f, 0xa0, 0xad, 0xff].map(|byte| alphabet[usize::from(byte)]);
        assert_eq!(samples, ['A', 'Ġ', 'Ċ', 'ĉ', 'Ā', 'ġ', 'ł', 'Ń', 'ÿ']);
    }

    #[test]
    fn merges_are_the_published_ones() {
        let Spelling { tokens, merges } = spelling();
        assert_eq!((tokens.len(), merges.len()), (VOCAB_SIZE, 50_000));
        let pair = |rank: usize| (merges[rank].0.as_str(), merges[rank].1.as_str());
        assert_eq!([pair(0), pair(1), pair(2), pair(3)], [("Ġ", "t"), ("Ġ", "a"), ("h", "e"), ("i", "n")]);
        assert_eq!(
            [&tokens[0], &tokens[220], &tokens[262], &tokens[50_256]],
            ["!", "Ġ", "Ġthe", "<|endoftext|>"]
        );
        for ((left, right), token) in merges.iter().zip(&tokens[BYTE_TOKEN_COUNT..]) {
            assert_eq!(&format!("{left}{right}"), token);
        }
    }

    #[test]
    fn merges_alone_encode_as_ranks_do() {
        let Spelling { tokens, merges } = spelling();
        let merge_order = merges.into_iter().zip(0..).collect();
        // Whole words with one space before them are pieces that GPT-2's split leaves whole.
        let is_word = |word: &&str| word.chars().all(char::is_alphabetic);
        let shakespeare = tiny_shakespeare::TEXT.split_whitespace().filter(is_word).step_by(150);
        let foreign =
            ["Москва", "naïveté", "日本語", "ελληνικά", "Donaudampfschifffahrtsgesellschaft", "हिन्दी"];
        let words: BTreeSet<&str> = shakespeare.chain(foreign).collect();
        assert!(words.len() > 400, "{} words", words.len());
        for word in words {
            let word = format!(" {word}");
            let expected: Vec<&str> = encode(&word).iter().map(|&id| tokens[id as usize].as_str()).collect();
            assert_eq!(encode_by_merges(&word, &merge_order), expected, "of {word:?}");
        }
    }

    #[test]
    #[should_panic(expected = "token id 50257 is outside the vocabulary of 50257")]
    fn decoding_an_unknown_id_panics() {
        decode_bytes(&[50_256, 50_257]);
    }
}
