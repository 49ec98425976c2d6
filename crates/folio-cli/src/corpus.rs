//! `folio corpus`: prints the embedded text.

use std::io::Write;

use folio::text::Corpus;

pub(crate) fn run() -> anyhow::Result<()> {
    let mut stdout = crate::screen::stdout();
    stdout.write_all(Corpus::embedded().text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}
