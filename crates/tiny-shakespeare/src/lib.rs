//! The text known as tiny Shakespeare: 40,000 lines from Shakespeare's plays, in the public domain.
//!
//! Andrej Karpathy compiled it for char-rnn. It has been a common benchmark for small language models since. The build
//! script takes it from a package, verifies its hash and embeds it; no file is read at run time.
//!
//! ```
//! assert!(tiny_shakespeare::TEXT.starts_with("First Citizen:\nBefore we proceed any further, hear me speak.\n"));
//! ```

#![forbid(unsafe_code)]

/// The text: 1,115,394 bytes of ASCII with 65 distinct characters and `\n` line endings.
pub const TEXT: &str = include_str!(concat!(env!("OUT_DIR"), "/tiny_shakespeare.txt"));

/// The SHA-256 of [`TEXT`] in lower-case hexadecimal, verified at build time.
pub const SHA256: &str = env!("TINY_SHAKESPEARE_SHA256");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sha2::{Digest, Sha256};

    use super::{SHA256, TEXT};

    #[test]
    fn text_has_the_known_size() {
        assert_eq!(TEXT.len(), 1_115_394);
        assert_eq!(TEXT.lines().count(), 40_000);
        assert_eq!(TEXT.chars().collect::<BTreeSet<char>>().len(), 65);
        assert!(TEXT.is_ascii());
    }

    #[test]
    fn text_is_the_canonical_one() {
        let sha256: String = Sha256::digest(TEXT).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sha256, SHA256);
        assert_eq!(SHA256, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed");
    }

    #[test]
    fn restored_lines_end_in_two_spaces() {
        let lines: Vec<&str> = TEXT.lines().skip(2477).take(2).collect();
        assert_eq!(lines, ["And  ", "Twice being  "]);
    }
}
