//! `flotilla config`.

use std::io::Write;

use crate::daemon::Settings;

pub(super) fn run(settings: &Settings, out: &mut impl Write) -> anyhow::Result<()> {
    super::serve::filter(settings)?;
    out.write_all(settings.print().as_bytes())?;
    Ok(())
}
