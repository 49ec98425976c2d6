//! `folio chat`: write a text in turns with a trained model.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::Args;
use folio::files::write_atomic;
use folio::generate::{Generator, PastContext};
use folio::tokenizer::Tokenizer;
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use crate::generate::{SamplingArgs, TokenStyle, legend};
use crate::model_args::{CheckpointArgs, load_inference_model};
use crate::options::whole;
use crate::screen;
use crate::terminal;
use crate::threads::join_threads;

const HELP: &str = "\
Each line you enter is appended to the text (\\n becomes a line break), and the model
continues the text. An empty line continues without new input. Ctrl-C stops
generation; Ctrl-D ends the chat.
  /undo                   remove your last line and what the model wrote after it
  /retry                  regenerate the continuation of your last line with the next seed
  /reset                  start a new text
  /text                   print the text so far
  /save FILE              write the text so far to a new file
  /seed N                 set the seed of the next continuation
  /temperature X          set a sampling option; also /top_k N, /top_p X, /min_p X and
                          /repetition_penalty X
  /top_k off              turn off a sampling option; also /top_p off, /min_p off
  /max_new_tokens N       maximum number of tokens to generate per line
  /help                   print this list";

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Example:
  folio chat runs/quick --temperature 0.8 --stop 'ROMEO:'")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    checkpoints: CheckpointArgs,
    /// Maximum number of tokens to generate per line
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = whole::<usize>)]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Color each token by its probability; without color, print one token and its probability per line
    #[arg(long)]
    show_probabilities: bool,
}

pub(crate) fn run(args: &ChatArgs) -> anyhow::Result<()> {
    args.sampling.sampling().validate()?;
    join_threads(args.sampling.threads)?;
    let chosen = args.checkpoints.find()?;
    let run = &chosen.run;
    let tokenizer = Arc::new(run.tokenizer()?);
    let name = *chosen.names.last().expect("at least one checkpoint");
    let model = load_inference_model(run, name, &tokenizer, args.sampling.precision)?;
    let mut chat = Chat {
        generator: Generator::new(Arc::new(model), Arc::clone(&tokenizer)),
        tokenizer,
        sampling: args.sampling.clone(),
        max_new_tokens: args.max_new_tokens,
        first_seed: args.sampling.seed(),
        next_seed: args.sampling.seed(),
        is_seed_set: false,
        style: if args.show_probabilities { TokenStyle::with_probabilities() } else { TokenStyle::Plain },
        text: String::new(),
        turns: Vec::new(),
        saved_to: None,
        interrupt: Interrupt::install()?,
    };
    chosen.announce();
    screen::err("type /help for the list of commands");
    if chat.style == TokenStyle::Colored {
        screen::err(legend());
    }
    let mut editor: Editor<(), MemHistory> = Editor::with_history(Config::default(), MemHistory::new())?;
    loop {
        match editor.readline("> ") {
            Ok(line) => {
                editor.add_history_entry(line.as_str())?;
                // A wrong command does not end the chat; an I/O error does.
                if let Err(error) = chat.handle_line(&line) {
                    if error.is::<io::Error>() {
                        return Err(error);
                    }
                    screen::err(format_args!("{error:#}"));
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                screen::err("ignored a line that is not valid UTF-8");
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The state of a chat.
struct Chat {
    generator: Generator,
    tokenizer: Arc<Tokenizer>,
    sampling: SamplingArgs,
    max_new_tokens: usize,
    /// Seed of the first continuation after /reset.
    first_seed: u64,
    /// Seed of the next continuation; increases by 1 each time.
    next_seed: u64,
    /// Whether `next_seed` comes from a /seed that has not been used yet; /undo then keeps it.
    is_seed_set: bool,
    style: TokenStyle,
    text: String,
    /// The turns so far, for /undo.
    turns: Vec<Turn>,
    /// The file of the last /save, which the next one may overwrite.
    saved_to: Option<PathBuf>,
    interrupt: Interrupt,
}

/// A line from the user, and the state before it.
struct Turn {
    /// The text that the line was appended to.
    text: String,
    next_seed: u64,
    is_seed_set: bool,
    line: String,
}

impl Chat {
    /// Runs a command, or appends the line to the text and continues it.
    fn handle_line(&mut self, line: &str) -> anyhow::Result<()> {
        match line.strip_prefix('/') {
            Some(command) => self.run_command(command),
            None => self.continue_text(&line.replace("\\n", "\n")),
        }
    }

    fn run_command(&mut self, command: &str) -> anyhow::Result<()> {
        let (name, value) = command.trim().split_once(' ').unwrap_or((command.trim(), ""));
        let value = value.trim();
        let mut sampling = self.sampling.clone();
        match name {
            "help" => screen::err(HELP),
            "text" => screen::out(terminal::shown(&self.text))?,
            "reset" => {
                (self.text, self.next_seed, self.turns) = (String::new(), self.first_seed, Vec::new());
            }
            "undo" => {
                let turn = self.undo()?;
                if !self.is_seed_set {
                    (self.next_seed, self.is_seed_set) = (turn.next_seed, turn.is_seed_set);
                }
            }
            "retry" => {
                let turn = self.undo()?;
                return self.continue_text(&turn.line);
            }
            "seed" => {
                self.first_seed = number(name, value)?;
                (self.next_seed, self.is_seed_set) = (self.first_seed, true);
            }
            "save" => self.save(value)?,
            "max_new_tokens" => self.max_new_tokens = number(name, value)?,
            "temperature" => sampling.temperature = number(name, value)?,
            "repetition_penalty" => sampling.repetition_penalty = number(name, value)?,
            "top_k" => sampling.top_k = unless_off(name, value)?,
            "top_p" => sampling.top_p = unless_off(name, value)?,
            "min_p" => sampling.min_p = unless_off(name, value)?,
            _ => anyhow::bail!(
                "unknown command /{name}; /help lists the commands (to enter text that starts with /, put \\n before it)"
            ),
        }
        sampling.sampling().validate()?;
        self.sampling = sampling;
        Ok(())
    }

    /// Removes the last line and its continuation from the text.
    fn undo(&mut self) -> anyhow::Result<Turn> {
        let mut turn = self.turns.pop().context("there is no line to undo")?;
        self.text = std::mem::take(&mut turn.text);
        Ok(turn)
    }

    /// Writes the text to a new file, or to the file of the previous /save.
    fn save(&mut self, name: &str) -> anyhow::Result<()> {
        anyhow::ensure!(!name.is_empty(), "/save: missing file name");
        let path = PathBuf::from(name);
        let is_own = self.saved_to.as_ref() == Some(&path);
        anyhow::ensure!(
            is_own || path.symlink_metadata().is_err(),
            "/save {name}: the file already exists; choose another name"
        );
        write_atomic(&path, self.text.as_bytes())?;
        screen::err(format_args!("wrote {}", path.display()));
        self.saved_to = Some(path);
        Ok(())
    }

    /// Appends a line to the text and generates a continuation.
    fn continue_text(&mut self, line: &str) -> anyhow::Result<()> {
        let text = self.text.clone() + line;
        let mut prompt = self.tokenizer.encode(&text)?;
        if self.sampling.past_context == PastContext::Stop {
            // The whole text may exceed the context; the new tokens must fit.
            let block_size = self.generator.config().block_size;
            prompt.drain(..prompt.len().saturating_sub(block_size));
        }
        let seed = self.next_seed;
        let mut request = self.sampling.request(prompt, self.max_new_tokens, seed);
        request.logprobs = (self.style != TokenStyle::Plain).then_some(0);
        let id = self.generator.begin(request)?;
        let before = std::mem::replace(&mut self.text, text);
        let is_seed_set = std::mem::replace(&mut self.is_seed_set, false);
        self.turns.push(Turn { text: before, next_seed: seed, is_seed_set, line: line.to_owned() });
        self.next_seed = seed.wrapping_add(1);
        let mut stdout = screen::stdout();
        let generating = self.interrupt.begin();
        while self.generator.active() > 0 {
            let (text, style) = (&mut self.text, self.style);
            let mut shown = Ok(());
            self.generator.step(|_, sampled| {
                *text += sampled.text;
                shown = stdout.write_all(style.show(&sampled).as_bytes()).and_then(|()| stdout.flush());
            });
            shown.inspect_err(|_| self.generator.cancel(id))?;
            if generating.is_interrupted() {
                self.generator.cancel(id);
                writeln!(stdout)?;
            }
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> anyhow::Result<T> {
    value.parse().map_err(|_| anyhow::anyhow!("/{name} {value}: expected a number"))
}

fn unless_off<T: std::str::FromStr>(name: &str, value: &str) -> anyhow::Result<Option<T>> {
    if value == "off" { Ok(None) } else { number(name, value).map(Some) }
}

/// Handles Ctrl-C during generation. At any other time the signal ends the program.
struct Interrupt {
    is_idle: Arc<AtomicBool>,
    received: Arc<AtomicBool>,
}

/// While this guard lives, Ctrl-C stops generation instead of the program.
struct InterruptGuard<'a>(&'a Interrupt);

impl Interrupt {
    fn install() -> anyhow::Result<Self> {
        let (is_idle, received) = (Arc::new(AtomicBool::new(true)), Arc::default());
        flag::register_conditional_default(SIGINT, Arc::clone(&is_idle))
            .and_then(|_| flag::register(SIGINT, Arc::clone(&received)))
            .context("installing the signal handler")?;
        Ok(Self { is_idle, received })
    }

    fn begin(&self) -> InterruptGuard<'_> {
        self.received.store(false, Ordering::Relaxed);
        self.is_idle.store(false, Ordering::Relaxed);
        InterruptGuard(self)
    }
}

impl InterruptGuard<'_> {
    fn is_interrupted(&self) -> bool {
        self.0.received.load(Ordering::Relaxed)
    }
}

impl Drop for InterruptGuard<'_> {
    fn drop(&mut self) {
        self.0.is_idle.store(true, Ordering::Relaxed);
    }
}
