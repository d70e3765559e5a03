//! `flotilla serve`.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use crate::daemon::{self, Settings};

/// Each pull under way has a thread that follows its bytes in order and waits most of the time, and disk work must
/// never queue behind those: four images of 500 layers at once. A waiting thread costs some 10 KiB.
const BLOCKING_THREADS: usize = 2048;

pub(super) fn run(settings: Settings) -> anyhow::Result<()> {
    log(&settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let ended = runtime.block_on(daemon::run(settings));
    // What blocks (a disk that hangs) must not keep the process from ending; nothing committed depends on it.
    runtime.shutdown_background();
    Ok(ended?)
}

/// Logs go to standard error, where systemd and a terminal both take them.
fn log(settings: &Settings) -> anyhow::Result<()> {
    let level = settings.text("log.level").unwrap_or_default();
    let filter = EnvFilter::try_new(&level).with_context(|| format!("log.level `{level}` is no filter"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if settings.text("log.format").as_deref() == Some("json") {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
    Ok(())
}
