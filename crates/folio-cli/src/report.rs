//! `folio report`: an HTML page about a run or a sweep.

use std::path::PathBuf;

use clap::Args;
use folio::files::write_atomic;
use folio::report::page;
use folio::run_dir::RunDir;

use crate::screen;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
The page is a single self-contained HTML file: it needs no network and can be emailed.

Examples:
  folio report runs/quick
  folio report runs/search --out search.html")]
pub(crate) struct ReportArgs {
    /// Run or sweep
    #[arg(value_name = "RUN_DIR")]
    run_dir: PathBuf,
    /// File to write [default: RUN_DIR/report.html]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let page = page(&RunDir::new(&args.run_dir))?;
    let path = args.out.clone().unwrap_or_else(|| args.run_dir.join("report.html"));
    write_atomic(&path, page.as_bytes())?;
    screen::out(path.display())?;
    Ok(())
}
