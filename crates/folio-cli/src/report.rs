//! `folio report`: a run or a sweep as one HTML page.

use std::path::PathBuf;

use clap::Args;
use folio::files::write_atomic;
use folio::report::page;
use folio::run_dir::RunDir;

use crate::screen;

#[derive(Args)]
#[command(rename_all = "snake_case")]
#[command(after_help = "\
The page holds all it needs: it can be mailed, and looked at without a network.

Examples:
  folio report runs/quick
  folio report runs/search --out search.html")]
pub(crate) struct ReportArgs {
    /// A run, or a sweep
    #[arg(value_name = "RUN_DIR")]
    run_dir: PathBuf,
    /// The file to write [default: report.html in the run directory]
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
