//! `folio serve`: an OpenAI-compatible API and a web UI over HTTP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use folio::model::WeightFormat;
use folio::run_dir::RUNS;
use folio_serve::{ChatTemplate, Limits, Options, Server};

use crate::options::whole;
use crate::screen;
use crate::signals::Signals;
#[cfg(unix)]
use crate::signals::is_hangup_ignored;
use crate::threads::set_threads;
use crate::usage::Usage;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_long_help = "\
Model names are run names: quick is the checkpoint of runs/quick with the lowest eval loss, quick:checkpoint_5 its \
checkpoint of epoch 5, and search/run_1 a run of a sweep. Runs and checkpoints created later are served too.

On Ctrl-C, SIGTERM or SIGHUP the server accepts no more requests, waits a few seconds for those in progress, and exits. A \
second signal ends it at once.

Examples:
  folio serve --open
  folio serve runs/quick --port 9000
  folio serve runs/quick/latest
  FOLIO_API_KEY=secret folio serve runs --host 0.0.0.0
  curl http://127.0.0.1:8080/v1/completions \\
      -H 'Content-Type: application/json' \\
      -d '{\"model\": \"quick\", \"prompt\": \"ROMEO:\", \"max_tokens\": 200}'")]
pub(crate) struct ServeArgs {
    /// Runs, sweeps, directories of them, or checkpoints such as RUN/latest [default: runs/, which may be empty]
    #[arg(value_name = "RUN_DIR")]
    run_dirs: Vec<PathBuf>,
    /// Address or host name to listen on; any other than the default can be reached from the network: set --api_key
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 picks a free port
    #[arg(long, value_name = "N", default_value_t = 8080, value_parser = whole::<u16>)]
    port: u16,
    /// Open the web UI in the browser
    #[arg(long)]
    open: bool,
    /// Require this key from clients, as Authorization: Bearer KEY
    #[arg(long, value_name = "KEY", env = "FOLIO_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Allow requests from web pages of this origin, such as http://localhost:3000; repeatable
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Template that turns chat messages into a prompt, applied to each message, such as '{role}: {content}\n' [default:
    /// only the content of the last message]
    #[arg(long, value_name = "TEXT", value_parser = str::parse::<ChatTemplate>)]
    chat_template: Option<ChatTemplate>,
    /// Weight format: f32, bf16, int8, or auto (the precision each model was trained in)
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = served_format)]
    precision: ServedFormat,
    /// Maximum number of texts generated at the same time
    #[arg(long, value_name = "N", default_value_t = Limits::default().streams, value_parser = whole::<usize>)]
    max_streams: usize,
    /// Maximum number of queued requests; further requests are rejected with status 429
    #[arg(long, value_name = "N", default_value_t = Limits::default().queue, value_parser = whole::<usize>)]
    max_queue: usize,
    /// Largest max_tokens that a request may set
    #[arg(long, value_name = "N", default_value_t = Limits::default().tokens, value_parser = whole::<usize>)]
    max_tokens: usize,
    /// Time limit per request in seconds, including time in the queue
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().request_time.as_secs(), value_parser = whole::<u64>)]
    time_limit: u64,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    threads: Option<usize>,
}

/// A weight format; `None` for the precision each model was trained in.
#[derive(Clone, Copy)]
struct ServedFormat(Option<WeightFormat>);

fn served_format(name: &str) -> Result<ServedFormat, folio::error::Error> {
    match name {
        "auto" => Ok(ServedFormat(None)),
        name => name.parse().map(Some).map(ServedFormat),
    }
}

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<u8> {
    let options = options(args)?;
    set_threads(args.threads)?;
    let signals = Signals::install(false)?;
    // These threads only handle HTTP; generation has its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .context("starting threads")?;
    runtime.block_on(async {
        let stop = stop_signal().context("installing signal handlers")?;
        let server = Server::bind(options).await.map_err(to_anyhow)?;
        announce(&server);
        if args.open {
            let address = server.address();
            // Detached: the server does not wait for the browser.
            std::thread::spawn(move || open_browser(address));
        }
        server.run(stop).await;
        anyhow::Ok(())
    })?;
    Ok(signals.exit_code())
}

/// Prints what is served and where.
fn announce(server: &Server) {
    let runs = server.runs();
    match &runs[..] {
        [] => screen::err(format_args!(
            "{RUNS}/ has no runs yet; runs are served as soon as they have a checkpoint"
        )),
        [(name, Some(found))] => screen::err(format_args!("model {name}: {}", found.describe())),
        [(name, None)] => {
            screen::err(format_args!("model {name}: no checkpoint yet; it is served as soon as it has one"))
        }
        _ => screen::err("each model is the checkpoint of its run with the lowest eval loss"),
    }
    let count = match runs.len() {
        1 => "1 run".to_owned(),
        count => format!("{count} runs"),
    };
    // The server keeps running if stdout is closed.
    screen::report(format_args!("Serving {count} at http://{}/", server.address()));
}

/// If the launcher has not failed after this time, the browser is open.
const LAUNCH_TIME: Duration = Duration::from_secs(3);

/// Opens the web UI in the browser. A failure is only a warning, since the address has been printed.
fn open_browser(address: SocketAddr) {
    let host = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        // "All addresses" is not an address that browsers can open.
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let url = format!("http://{}/", SocketAddr::new(host, address.port()));
    if let Err(error) = open::that_detached_with_timeout(&url, LAUNCH_TIME) {
        let reason = error.to_string();
        let reason = reason.lines().next().unwrap_or_default();
        screen::err(format_args!("warning: cannot open a browser ({reason}); open {url}"));
    }
}

/// Converts an error so that its exit code matches the other commands'.
fn to_anyhow(error: folio_serve::Error) -> anyhow::Error {
    match error {
        folio_serve::Error::Library(error) => error.into(),
        error @ (folio_serve::Error::SameName { .. } | folio_serve::Error::Origin { .. }) => {
            Usage(error.to_string()).into()
        }
        error => anyhow::Error::msg(error.to_string()),
    }
}

/// Checks the arguments.
fn options(args: &ServeArgs) -> anyhow::Result<Options> {
    for (flag, value) in [
        ("--max_streams", args.max_streams as u64),
        ("--max_queue", args.max_queue as u64),
        ("--max_tokens", args.max_tokens as u64),
        ("--time_limit", args.time_limit),
    ] {
        if value == 0 {
            return Err(Usage(format!("{flag} 0: must be at least 1")).into());
        }
    }
    if args.api_key.as_deref().is_some_and(str::is_empty) {
        return Err(Usage("--api_key: the key is empty; give a key, or remove the flag".into()).into());
    }
    let default = Limits::default();
    let limits = Limits {
        request_tokens: default.request_tokens.max(args.max_tokens.saturating_mul(4)),
        streams: args.max_streams,
        queue: args.max_queue,
        tokens: args.max_tokens,
        request_time: Duration::from_secs(args.time_limit),
        ..default
    };
    let default_run_dir = [PathBuf::from(RUNS)];
    let may_be_empty = args.run_dirs.is_empty();
    let runs = if may_be_empty { &default_run_dir[..] } else { &args.run_dirs };
    Ok(Options {
        runs: runs.to_vec(),
        may_be_empty,
        host: args.host.clone(),
        port: args.port,
        api_key: args.api_key.clone(),
        cors_origins: args.cors_origin.clone(),
        chat_template: args.chat_template.clone(),
        precision: args.precision.0,
        limits,
        on_warning: Box::new(|line| screen::err(format_args!("warning: {line}"))),
    })
}

/// Resolves at the first Ctrl-C, SIGTERM or SIGHUP. SIGHUP stays ignored under `nohup`.
#[cfg(unix)]
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = (!is_hangup_ignored()).then(|| signal(SignalKind::hangup())).transpose()?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            Some(()) = async { hangup.as_mut()?.recv().await } => {}
        }
    })
}

/// Resolves at the first Ctrl-C.
#[cfg(not(unix))]
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        // If this fails, a second Ctrl-C still ends the program.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
