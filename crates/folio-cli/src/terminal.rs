//! The terminal on stdout: its size, whether it shows colors, and text that is safe to print on it.

use std::borrow::Cow;
use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::sync::LazyLock;

use anstream::{AutoStream, ColorChoice};
use folio::plot::TerminalSize;
use terminal_size::{Height, Width, terminal_size_of};

/// Columns and rows of the terminal; `None` if stdout is a file or a pipe.
pub(crate) fn size() -> Option<TerminalSize> {
    let (Width(columns), Height(rows)) = terminal_size_of(io::stdout())?;
    (columns > 0 && rows > 0).then_some(TerminalSize { columns, rows })
}

/// Whether to print colors on stdout: it is a terminal that supports them, and `NO_COLOR` is unset or empty. `CLICOLOR` and
/// `CLICOLOR_FORCE` are respected too, as in `--help`.
pub(crate) fn use_color() -> bool {
    AutoStream::choice(&io::stdout()) != ColorChoice::Never
}

/// Generated text for stdout. On a terminal, control characters are replaced by visible ones, so that a model cannot send
/// escape sequences; a file or a pipe gets the text unchanged.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    static IS_TERMINAL: LazyLock<bool> = LazyLock::new(|| io::stdout().is_terminal());
    if *IS_TERMINAL { without_controls(text) } else { Cow::Borrowed(text) }
}

/// Replaces control characters by their Unicode pictures, such as `␛`, or by an escape such as `\x9b` if they have none.
fn without_controls(text: &str) -> Cow<'_, str> {
    let is_replaced = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(is_replaced) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\x7f' => shown.push('␡'),
            c if !is_replaced(c) => shown.push(c),
            '\0'..='\x1f' => shown.extend(char::from_u32(0x2400 + u32::from(c))),
            c => write!(shown, "\\x{:02x}", u32::from(c)).expect("writing to a String cannot fail"),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_replaced() {
        let check = |text: &str, want: &str| assert_eq!(without_controls(text), want);
        check("two\nlines\tand é, 長", "two\nlines\tand é, 長");
        check("\x1b[31mred", "␛[31mred");
        check("bell\x07 back\x08 return\r\n", "bell␇ back␈ return␍\n");
        check("\0\x7f", "␀␡");
        check("\u{9b}31m\u{85}", "\\x9b31m\\x85");
    }
}
