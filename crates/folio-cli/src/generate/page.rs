//! Text on stdout as it is drawn.

use std::io::{self, Write};

use anstream::{AutoStream, ColorChoice};
use anstyle::{Ansi256Color, Style};
use folio::generate::SampledToken;

use crate::screen;
use crate::terminal;

/// How text is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// As it is.
    Plain,
    /// Each token coloured by its probability.
    Coloured,
    /// A line for each token: its probability and itself, where there are no colours.
    Listed,
}

impl Look {
    /// How this stdout shows probabilities.
    pub(crate) fn of_probabilities() -> Self {
        if AutoStream::choice(&io::stdout()) == ColorChoice::Never { Self::Listed } else { Self::Coloured }
    }

    /// A token as it is shown; the last ends a line.
    pub(crate) fn show(self, drawn: &SampledToken) -> String {
        let probability = drawn.logprob.map_or(f32::NAN, f32::exp);
        let text = terminal::shown(drawn.text);
        let mut shown = match self {
            Self::Plain => text.into_owned(),
            Self::Coloured => {
                let style = colour(probability);
                // A colour that goes on over the end of a line would fill it.
                let lines: Vec<String> =
                    text.split('\n').map(|line| format!("{style}{line}{style:#}")).collect();
                lines.join("\n")
            }
            Self::Listed => format!("{:5.1} %  {}\n", 100.0 * probability, serde_json::json!(text)),
        };
        if drawn.finish.is_some() && self != Self::Listed {
            shown.push('\n');
        }
        shown
    }

    /// A prompt as it is shown.
    pub(crate) fn show_prompt(self, prompt: &str) -> String {
        match self {
            Self::Plain | Self::Coloured => terminal::shown(prompt).into_owned(),
            Self::Listed if prompt.is_empty() => String::new(),
            Self::Listed => format!(" prompt  {}\n", serde_json::json!(prompt)),
        }
    }
}

/// From red over yellow to green, in steps of the 256 colours that terminals have had longest.
fn colour(probability: f32) -> Style {
    const STEPS: [(f32, u8); 6] =
        [(0.02, 196), (0.1, 208), (0.25, 220), (0.5, 190), (0.8, 118), (f32::INFINITY, 46)];
    let step = STEPS.iter().find(|(below, _)| probability < *below);
    Style::new().fg_color(step.map(|&(_, colour)| Ansi256Color(colour).into()))
}

/// What the colours mean.
pub(crate) fn legend() -> String {
    let part = |probability, name| format!("{}{name}{:#}", colour(probability), colour(probability));
    let parts = [
        part(0.0, "below 2 %"),
        part(0.05, "10 %"),
        part(0.2, "25 %"),
        part(0.4, "50 %"),
        part(0.6, "80 %"),
        part(1.0, "above"),
    ];
    format!("probability of each token: {}", parts.join("  "))
}

/// Texts that are written at the same time, shown one after the other: the first as it comes, the next as far as it has
/// come when the one before has ended.
pub(crate) struct Page {
    /// What waits of each text.
    waiting: Vec<String>,
    ended: Vec<bool>,
    /// The one that is shown.
    shown: usize,
}

impl Page {
    pub(crate) fn new(prompts: Vec<String>) -> Self {
        Self { ended: vec![false; prompts.len()], waiting: prompts, shown: 0 }
    }

    /// Takes some text, and whether it is the last.
    pub(crate) fn push(&mut self, text: usize, piece: &str, is_last: bool) {
        self.waiting[text] += piece;
        self.ended[text] |= is_last;
    }

    /// Shows what can be shown; `between` stands between two texts.
    pub(crate) fn show(&mut self, between: &str) -> io::Result<()> {
        let mut stdout = screen::stdout();
        while let Some(waiting) = self.waiting.get_mut(self.shown) {
            stdout.write_all(std::mem::take(waiting).as_bytes())?;
            if !self.ended[self.shown] {
                break;
            }
            self.shown += 1;
            if self.shown < self.waiting.len() {
                stdout.write_all(between.as_bytes())?;
            }
        }
        stdout.flush()
    }
}
