//! The normalization form NFC (Unicode Standard Annex 15), as Hugging Face's library computes it.
//!
//! That library has the tables of Unicode 9 and leaves later characters unchanged. So does this module, so that both give
//! the same ids.

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// Normalizes a text to NFC.
pub(super) fn nfc(text: &str) -> Cow<'_, str> {
    if is_nfc_quick(text.chars()) == IsNormalized::Yes && !text.chars().any(is_later) {
        return Cow::Borrowed(text);
    }
    let mut normal = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        // Characters unknown to the tables never compose.
        let end = rest.find(is_later).unwrap_or(rest.len());
        normal.extend(rest[..end].nfc());
        let after = &rest[end..];
        let later = after.chars().next().map_or(0, char::len_utf8);
        normal.push_str(&after[..later]);
        rest = &after[later..];
    }
    if normal == text { Cow::Borrowed(text) } else { Cow::Owned(normal) }
}

/// Whether normalization affects a character only since Unicode 10 or later.
fn is_later(c: char) -> bool {
    let index = LATER.partition_point(|&(_, last)| last < c);
    c >= LATER[0].0 && LATER.get(index).is_some_and(|&(first, _)| first <= c)
}

/// The characters whose combining class or decomposition differs between Unicode 9 and 18, and those that begin a
/// composition that only Unicode 18 has.
const LATER: [(char, char); 71] = [
    ('\u{5c8}', '\u{5c9}'),
    ('\u{7fd}', '\u{7fd}'),
    ('\u{897}', '\u{89f}'),
    ('\u{8ca}', '\u{8d3}'),
    ('\u{9fe}', '\u{9fe}'),
    ('\u{c3c}', '\u{c3c}'),
    ('\u{d3b}', '\u{d3c}'),
    ('\u{eba}', '\u{eba}'),
    ('\u{1715}', '\u{1715}'),
    ('\u{1abf}', '\u{1af0}'),
    ('\u{1df6}', '\u{1dfa}'),
    ('\u{a82c}', '\u{a82c}'),
    ('\u{105c9}', '\u{105c9}'),
    ('\u{105d2}', '\u{105d2}'),
    ('\u{105da}', '\u{105da}'),
    ('\u{105e4}', '\u{105e4}'),
    ('\u{10d24}', '\u{10d27}'),
    ('\u{10d69}', '\u{10d6d}'),
    ('\u{10eab}', '\u{10eac}'),
    ('\u{10ecb}', '\u{10ecf}'),
    ('\u{10ef0}', '\u{10efb}'),
    ('\u{10efd}', '\u{10eff}'),
    ('\u{10f46}', '\u{10f50}'),
    ('\u{10f82}', '\u{10f85}'),
    ('\u{11070}', '\u{11070}'),
    ('\u{1133b}', '\u{1133b}'),
    ('\u{11382}', '\u{11385}'),
    ('\u{1138b}', '\u{1138b}'),
    ('\u{1138e}', '\u{1138e}'),
    ('\u{11390}', '\u{11391}'),
    ('\u{113b8}', '\u{113b8}'),
    ('\u{113bb}', '\u{113bb}'),
    ('\u{113c2}', '\u{113c2}'),
    ('\u{113c5}', '\u{113c5}'),
    ('\u{113c7}', '\u{113c9}'),
    ('\u{113ce}', '\u{113d0}'),
    ('\u{1145e}', '\u{1145e}'),
    ('\u{11839}', '\u{1183a}'),
    ('\u{11930}', '\u{11930}'),
    ('\u{11935}', '\u{11935}'),
    ('\u{11938}', '\u{11938}'),
    ('\u{1193d}', '\u{1193e}'),
    ('\u{11943}', '\u{11943}'),
    ('\u{119e0}', '\u{119e0}'),
    ('\u{11a34}', '\u{11a34}'),
    ('\u{11a47}', '\u{11a47}'),
    ('\u{11a99}', '\u{11a99}'),
    ('\u{11d42}', '\u{11d42}'),
    ('\u{11d44}', '\u{11d45}'),
    ('\u{11d97}', '\u{11d97}'),
    ('\u{11f41}', '\u{11f42}'),
    ('\u{1611e}', '\u{16129}'),
    ('\u{1612f}', '\u{1612f}'),
    ('\u{16d63}', '\u{16d63}'),
    ('\u{16d67}', '\u{16d6a}'),
    ('\u{16ff0}', '\u{16ff1}'),
    ('\u{1d127}', '\u{1d128}'),
    ('\u{1d250}', '\u{1d252}'),
    ('\u{1d25b}', '\u{1d25c}'),
    ('\u{1d25f}', '\u{1d25f}'),
    ('\u{1d280}', '\u{1d281}'),
    ('\u{1e08f}', '\u{1e08f}'),
    ('\u{1e130}', '\u{1e136}'),
    ('\u{1e2ae}', '\u{1e2ae}'),
    ('\u{1e2ec}', '\u{1e2ef}'),
    ('\u{1e4ec}', '\u{1e4ef}'),
    ('\u{1e5ee}', '\u{1e5ef}'),
    ('\u{1e6e3}', '\u{1e6e3}'),
    ('\u{1e6e6}', '\u{1e6e6}'),
    ('\u{1e6ee}', '\u{1e6ef}'),
    ('\u{1e6f5}', '\u{1e6f5}'),
];
