//! `folio chat`: a text that a person and a model write together.

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

use crate::generate::{DrawingArgs, Look, WhichModel, legend, load_predictor};
use crate::options::whole;
use crate::screen;
use crate::terminal;
use crate::train::join_threads;

const HELP: &str = "\
Your line is added to the text as it stands (\\n in it is a line break), and the model continues from there; it also does
so after an empty line. Ctrl-C stops it, Ctrl-D ends the chat.
  /undo                   take back your last line and what the model wrote after it
  /retry                  let the model continue from your last line once more, with the next seed
  /reset                  begin a new text
  /text                   show the text so far
  /save FILE              write the text so far to a file
  /seed N                 seed of what is written next
  /temperature X          also /top_k N, /top_p X, /min_p X, /repetition_penalty X; /top_k off and the like
  /max_new_tokens N       tokens to write after each line
  /help                   this list";

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
Example:
  folio chat runs/quick --temperature 0.8 --stop 'ROMEO:'")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    which: WhichModel,
    /// Tokens to write after each line
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = whole::<usize>)]
    max_new_tokens: usize,
    #[command(flatten)]
    drawing: DrawingArgs,
    /// Colour each token by its probability
    #[arg(long)]
    show_probabilities: bool,
}

pub(crate) fn run(args: &ChatArgs) -> anyhow::Result<()> {
    args.drawing.sampling().validate()?;
    join_threads(args.drawing.threads)?;
    let chosen = args.which.find()?;
    let run = &chosen.run;
    let tokenizer = Arc::new(run.tokenizer()?);
    let name = *chosen.names.last().context("a checkpoint")?;
    let predictor = load_predictor(run, name, &tokenizer, args.drawing.precision)?;
    let mut chat = Chat {
        generator: Generator::new(Arc::new(predictor), Arc::clone(&tokenizer)),
        tokenizer,
        drawing: args.drawing.clone(),
        max_new_tokens: args.max_new_tokens,
        first_seed: args.drawing.seed(),
        next_seed: args.drawing.seed(),
        is_seed_set: false,
        look: if args.show_probabilities { Look::of_probabilities() } else { Look::Plain },
        text: String::new(),
        before: Vec::new(),
        saved_to: None,
        interrupt: Interrupt::install()?,
    };
    chosen.announce();
    screen::err("/help lists the commands");
    if chat.look == Look::Coloured {
        screen::err(legend());
    }
    let mut editor: Editor<(), MemHistory> = Editor::with_history(Config::default(), MemHistory::new())?;
    loop {
        match editor.readline("> ") {
            Ok(line) => {
                editor.add_history_entry(line.as_str())?;
                // A line that cannot be done is no reason to end.
                if let Err(error) = chat.take(&line) {
                    if error.is::<io::Error>() {
                        return Err(error);
                    }
                    screen::err(format_args!("{error:#}"));
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                screen::err("skipped a line that is not UTF-8");
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A text that is written together.
struct Chat {
    generator: Generator,
    tokenizer: Arc<Tokenizer>,
    drawing: DrawingArgs,
    max_new_tokens: usize,
    /// The seed of a new text.
    first_seed: u64,
    /// The seed of what is written next; each time it grows by one.
    next_seed: u64,
    /// Whether it was given with /seed and not used yet. Then /undo leaves it.
    is_seed_set: bool,
    look: Look,
    text: String,
    /// What was there before each line, the last line last.
    before: Vec<Turn>,
    /// The file that the text was saved to, which may be replaced.
    saved_to: Option<PathBuf>,
    interrupt: Interrupt,
}

/// A line of the person's, and what it was added to.
struct Turn {
    text: String,
    next_seed: u64,
    is_seed_set: bool,
    line: String,
}

impl Chat {
    /// Does what a line asks for.
    fn take(&mut self, line: &str) -> anyhow::Result<()> {
        match line.strip_prefix('/') {
            Some(command) => self.obey(command),
            None => self.go_on(&line.replace("\\n", "\n")),
        }
    }

    fn obey(&mut self, command: &str) -> anyhow::Result<()> {
        let (name, value) = command.trim().split_once(' ').unwrap_or((command.trim(), ""));
        let value = value.trim();
        let mut drawing = self.drawing.clone();
        match name {
            "help" => screen::err(HELP),
            "text" => screen::out(terminal::shown(&self.text))?,
            "reset" => {
                (self.text, self.next_seed, self.before) = (String::new(), self.first_seed, Vec::new());
            }
            "undo" => {
                let turn = self.take_back()?;
                if !self.is_seed_set {
                    (self.next_seed, self.is_seed_set) = (turn.next_seed, turn.is_seed_set);
                }
            }
            "retry" => {
                let turn = self.take_back()?;
                return self.go_on(&turn.line);
            }
            "seed" => {
                self.first_seed = number(name, value)?;
                (self.next_seed, self.is_seed_set) = (self.first_seed, true);
            }
            "save" => self.save(value)?,
            "max_new_tokens" => self.max_new_tokens = number(name, value)?,
            "temperature" => drawing.temperature = number(name, value)?,
            "repetition_penalty" => drawing.repetition_penalty = number(name, value)?,
            "top_k" => drawing.top_k = unless_off(name, value)?,
            "top_p" => drawing.top_p = unless_off(name, value)?,
            "min_p" => drawing.min_p = unless_off(name, value)?,
            _ => anyhow::bail!("/{name} is not known here: /help tells what is; a text may begin with \\n"),
        }
        drawing.sampling().validate()?;
        self.drawing = drawing;
        Ok(())
    }

    /// Takes back the last line and what was written after it.
    fn take_back(&mut self) -> anyhow::Result<Turn> {
        let mut turn = self.before.pop().context("there is no line to take back")?;
        self.text = std::mem::take(&mut turn.text);
        Ok(turn)
    }

    /// Writes the text to a file that is not there yet, or to the one that it was written to before.
    fn save(&mut self, name: &str) -> anyhow::Result<()> {
        anyhow::ensure!(!name.is_empty(), "/save: give the name of a file");
        let path = PathBuf::from(name);
        let is_own = self.saved_to.as_ref() == Some(&path);
        anyhow::ensure!(
            is_own || path.symlink_metadata().is_err(),
            "/save {name}: the file exists; choose another name"
        );
        write_atomic(&path, self.text.as_bytes())?;
        screen::err(format_args!("wrote {}", path.display()));
        self.saved_to = Some(path);
        Ok(())
    }

    /// Adds a line to the text and lets the model continue.
    fn go_on(&mut self, line: &str) -> anyhow::Result<()> {
        let text = self.text.clone() + line;
        let mut prompt = self.tokenizer.encode(&text)?;
        if self.drawing.past_context == PastContext::Stop {
            // The text as a whole may outgrow the context; what is written now may not.
            let room = self.generator.config().block_size;
            prompt.drain(..prompt.len().saturating_sub(room));
        }
        let seed = self.next_seed;
        let mut request = self.drawing.request(prompt, self.max_new_tokens, seed);
        request.logprobs = (self.look != Look::Plain).then_some(0);
        let id = self.generator.begin(request)?;
        let before = std::mem::replace(&mut self.text, text);
        let is_seed_set = std::mem::replace(&mut self.is_seed_set, false);
        self.before.push(Turn { text: before, next_seed: seed, is_seed_set, line: line.to_owned() });
        self.next_seed = seed.wrapping_add(1);
        let mut stdout = screen::stdout();
        let writing = self.interrupt.begin();
        while self.generator.active() > 0 {
            let (text, look) = (&mut self.text, self.look);
            let mut shown = Ok(());
            self.generator.step(|_, drawn| {
                *text += drawn.text;
                shown = stdout.write_all(look.show(&drawn).as_bytes()).and_then(|()| stdout.flush());
            });
            shown.inspect_err(|_| self.generator.cancel(id))?;
            if writing.is_interrupted() {
                self.generator.cancel(id);
                writeln!(stdout)?;
            }
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> anyhow::Result<T> {
    value.parse().map_err(|_| anyhow::anyhow!("/{name} {value}: give a number"))
}

fn unless_off<T: std::str::FromStr>(name: &str, value: &str) -> anyhow::Result<Option<T>> {
    if value == "off" { Ok(None) } else { number(name, value).map(Some) }
}

/// Ctrl-C while the model writes; while it does not, a program that gets it ends as any other.
struct Interrupt {
    waits: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
}

/// The time in which Ctrl-C is heard.
struct Writing<'a>(&'a Interrupt);

impl Interrupt {
    fn install() -> anyhow::Result<Self> {
        let (waits, asked) = (Arc::new(AtomicBool::new(true)), Arc::default());
        flag::register_conditional_default(SIGINT, Arc::clone(&waits))
            .and_then(|_| flag::register(SIGINT, Arc::clone(&asked)))
            .context("listening to signals")?;
        Ok(Self { waits, asked })
    }

    fn begin(&self) -> Writing<'_> {
        self.asked.store(false, Ordering::Relaxed);
        self.waits.store(false, Ordering::Relaxed);
        Writing(self)
    }
}

impl Writing<'_> {
    fn is_interrupted(&self) -> bool {
        self.0.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.waits.store(true, Ordering::Relaxed);
    }
}
