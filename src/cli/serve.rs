//! `flotilla serve`.

use std::{io::IsTerminal as _, str::FromStr as _};

use anyhow::Context as _;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

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

/// What is logged, as `log.level` says.
pub(super) fn filter(settings: &Settings) -> anyhow::Result<EnvFilter> {
    let level = settings.text("log.level").unwrap_or_default();
    // A filter that names one target only would silence all the others: it is a level misspelt.
    let is_word = level.chars().all(char::is_alphanumeric);
    anyhow::ensure!(
        !is_word || LevelFilter::from_str(&level).is_ok(),
        "log.level `{level}` is none of error, warn, info, debug, trace and off, nor a filter"
    );
    EnvFilter::try_new(&level).with_context(|| format!("log.level `{level}` is no filter"))
}

/// Logs go to standard error, where systemd and a terminal both take them.
fn log(settings: &Settings) -> anyhow::Result<()> {
    let filter = filter(settings)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if settings.text("log.format").as_deref() == Some("json") {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_misspelt_level_is_an_error_and_no_filter() {
        let filter_of = |level: &str| {
            let text = format!("[log]\nlevel = \"{level}\"\n");
            filter(&Settings::parse(Path::new("config.toml"), &text).unwrap())
        };
        for level in ["info", "off", "TRACE", "info,flotilla::pull=debug", "flotilla::pull"] {
            assert!(filter_of(level).is_ok(), "{level}");
        }
        let refused = filter_of("loud").unwrap_err().to_string();
        assert!(refused.contains("`loud` is none of error, warn"), "{refused}");
        filter_of("info,=").unwrap_err();
    }
}
