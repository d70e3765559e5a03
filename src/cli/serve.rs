//! `flotilla serve`.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use crate::daemon::{self, Settings};

pub(super) fn run(settings: Settings) -> anyhow::Result<()> {
    log(&settings)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
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
