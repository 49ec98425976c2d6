//! GPT-2's byte-level BPE: the byte alphabet of its files and, with the cargo feature `gpt2-vocabulary`, its vocabulary.
//!
//! Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.

use super::bpe::BYTES;

#[cfg(feature = "gpt2-vocabulary")]
mod vocabulary;

#[cfg(feature = "gpt2-vocabulary")]
pub(super) use vocabulary::gpt2;

/// The special token that separates documents, and its id.
pub(super) const END_OF_TEXT: (&str, u32) = ("<|endoftext|>", 50_256);

/// The character that represents each byte in GPT-2's files. Bytes that are visible characters in Latin-1 represent
/// themselves; the other 68 map to the code points from U+0100 on, in order.
pub(super) fn byte_alphabet() -> [char; BYTES] {
    let mut stand_ins = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte if is_visible(byte) => char::from(byte),
        _ => stand_ins.next().expect("68 code points"),
    })
}

/// Whether a byte is a visible character in Latin-1.
fn is_visible(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The bytes in the order of their ids, which is the order of their characters.
pub(super) fn byte_order() -> impl Iterator<Item = u8> {
    let visible = (0..=u8::MAX).filter(|&byte| is_visible(byte));
    visible.chain((0..=u8::MAX).filter(|&byte| !is_visible(byte)))
}

/// The spelling of a token in files: one visible character per byte.
pub(super) fn spell(alphabet: &[char; BYTES], bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| alphabet[usize::from(byte)]).collect()
}
