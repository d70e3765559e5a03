//! `flotilla config`.

use std::io::Write;

use anyhow::Context as _;

use crate::daemon::{self, Settings};

pub(super) fn run(settings: &Settings, out: &mut impl Write) -> anyhow::Result<()> {
    super::serve::filter(settings)?;
    out.write_all(settings.print().as_bytes())?;
    daemon::check(settings).context("`flotilla serve` would not start with this")
}
