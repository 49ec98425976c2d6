//! Generated text on stdout.

use std::io::{self, Write};

use anstyle::{Ansi256Color, Style};
use folio::generate::SampledToken;

use crate::screen;
use crate::terminal;

/// How tokens are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenStyle {
    /// As text.
    Plain,
    /// Colored by probability.
    Colored,
    /// One line per token with its probability: the form without colors.
    Listed,
}

impl TokenStyle {
    /// How stdout can show probabilities: in color if it has colors.
    pub(crate) fn with_probabilities() -> Self {
        if terminal::use_color() { Self::Colored } else { Self::Listed }
    }

    /// A token as printed. The last token of a text ends the line.
    pub(crate) fn show(self, sampled: &SampledToken) -> String {
        let probability = sampled.logprob.map_or(f32::NAN, f32::exp);
        let text = terminal::shown(sampled.text);
        let mut shown = match self {
            Self::Plain => text.into_owned(),
            Self::Colored => {
                let style = color(probability);
                // Colors are reset at each line end; otherwise some terminals fill the rest of the line.
                let lines: Vec<String> =
                    text.split('\n').map(|line| format!("{style}{line}{style:#}")).collect();
                lines.join("\n")
            }
            Self::Listed => format!("{:5.1} %  {}\n", 100.0 * probability, serde_json::json!(text)),
        };
        if sampled.finish.is_some() && self != Self::Listed {
            shown.push('\n');
        }
        shown
    }

    /// The prompt as printed before the first token.
    pub(crate) fn show_prompt(self, prompt: &str) -> String {
        match self {
            Self::Plain | Self::Colored => terminal::shown(prompt).into_owned(),
            Self::Listed if prompt.is_empty() => String::new(),
            Self::Listed => format!(" prompt  {}\n", serde_json::json!(prompt)),
        }
    }
}

/// From red through yellow to green, in the widely supported 256-color palette.
fn color(probability: f32) -> Style {
    const STEPS: [(f32, u8); 6] =
        [(0.02, 196), (0.1, 208), (0.25, 220), (0.5, 190), (0.8, 118), (f32::INFINITY, 46)];
    let step = STEPS.iter().find(|(below, _)| probability < *below);
    Style::new().fg_color(step.map(|&(_, color)| Ansi256Color(color).into()))
}

/// A line that explains the colors.
pub(crate) fn legend() -> String {
    let part = |probability, name| format!("{}{name}{:#}", color(probability), color(probability));
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

/// Prints samples that are generated at the same time one after another: the first token by token, each later one as soon
/// as the samples before it are complete.
pub(crate) struct SamplePrinter {
    /// Text of each sample that has not been printed yet.
    pending: Vec<String>,
    complete: Vec<bool>,
    /// Index of the sample being printed.
    current: usize,
}

impl SamplePrinter {
    /// Starts each sample with its prompt.
    pub(crate) fn new(prompts: Vec<String>) -> Self {
        Self { complete: vec![false; prompts.len()], pending: prompts, current: 0 }
    }

    /// Appends text to a sample.
    pub(crate) fn push(&mut self, sample: usize, piece: &str, is_last: bool) {
        self.pending[sample] += piece;
        self.complete[sample] |= is_last;
    }

    /// Prints what can be printed, with `separator` between samples.
    pub(crate) fn flush(&mut self, separator: &str) -> io::Result<()> {
        let mut stdout = screen::stdout();
        while let Some(pending) = self.pending.get_mut(self.current) {
            stdout.write_all(std::mem::take(pending).as_bytes())?;
            if !self.complete[self.current] {
                break;
            }
            self.current += 1;
            if self.current < self.pending.len() {
                stdout.write_all(separator.as_bytes())?;
            }
        }
        stdout.flush()
    }
}
