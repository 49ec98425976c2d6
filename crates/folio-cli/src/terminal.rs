//! The terminal that stdout is, if it is one.

use std::borrow::Cow;
use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::sync::LazyLock;

use folio::plot::TerminalSize;
use terminal_size::{Height, Width, terminal_size_of};

/// Its columns and rows; none if stdout is a file or a pipe.
pub(crate) fn size() -> Option<TerminalSize> {
    let (Width(columns), Height(rows)) = terminal_size_of(io::stdout())?;
    (columns > 0 && rows > 0).then_some(TerminalSize { columns, rows })
}

/// A model's text for stdout: a terminal shows its control characters rather than obey them; a file or a pipe gets the
/// text as it is.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    static IS_TERMINAL: LazyLock<bool> = LazyLock::new(|| io::stdout().is_terminal());
    if *IS_TERMINAL { without_controls(text) } else { Cow::Borrowed(text) }
}

/// A text with Unicode's pictures of control characters, as `␛`, in place of them; those without a picture as `\x9b`.
fn without_controls(text: &str) -> Cow<'_, str> {
    let is_obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\x7f' => shown.push('␡'),
            c if !is_obeyed(c) => shown.push(c),
            '\0'..='\x1f' => shown.extend(char::from_u32(0x2400 + u32::from(c))),
            c => write!(shown, "\\x{:02x}", u32::from(c)).expect("a String takes all"),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        let check = |text: &str, want: &str| assert_eq!(without_controls(text), want);
        check("two\nlines\tand é, 長", "two\nlines\tand é, 長");
        check("\x1b[31mred", "␛[31mred");
        check("bell\x07 back\x08 return\r\n", "bell␇ back␈ return␍\n");
        check("\0\x7f", "␀␡");
        check("\u{9b}31m\u{85}", "\\x9b31m\\x85");
    }
}
