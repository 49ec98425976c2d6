//! `--threads`: sizes the global thread pool.

use std::thread::available_parallelism;

use anyhow::Context;

use crate::screen;
use crate::usage::Usage;

/// Starts the thread pool that every kernel uses: `threads` threads, or one per core.
pub(crate) fn set_threads(threads: Option<usize>) -> anyhow::Result<()> {
    thread_pool(threads)?.build_global().context("starting threads")
}

/// Like [`set_threads`], with the calling thread as a member of the pool. Generation then avoids a hand-over between
/// threads per token.
pub(crate) fn join_threads(threads: Option<usize>) -> anyhow::Result<()> {
    thread_pool(threads)?.use_current_thread().build_global().context("starting threads")
}

pub(crate) fn thread_pool(threads: Option<usize>) -> anyhow::Result<rayon::ThreadPoolBuilder> {
    if threads == Some(0) {
        return Err(Usage(
            "`--threads 0` is out of range; use at least 1, or leave it out to use all cores".into(),
        )
        .into());
    }
    let processors = available_parallelism().map_or(usize::MAX, usize::from);
    if let Some(threads) = threads.filter(|threads| *threads > processors) {
        screen::err(format_args!(
            "warning: --threads {threads} is more than the {processors} available processors; using {processors}"
        ));
    }
    // rayon reads 0 as one thread per core.
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0).min(processors)))
}
