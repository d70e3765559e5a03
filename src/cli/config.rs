//! `flotilla config`.

use std::io::Write;

use anyhow::Context as _;

use crate::daemon::{self, Settings};

pub(super) fn run(settings: &Settings, out: &mut impl Write) -> anyhow::Result<()> {
    super::serve::filter(settings)?;
    out.write_all(settings.print().as_bytes())?;
    match daemon::check(settings).map_err(anyhow::Error::from) {
        Err(error) if is_for_root(&error) => {
            eprintln!(
                "flotilla: whether `flotilla serve` would start with this, only root can see: {error:#}"
            );
            Ok(())
        }
        checked => checked.context("`flotilla serve` would not start with this"),
    }
}

fn is_for_root(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    kinds.map(std::io::Error::kind).any(|kind| kind == std::io::ErrorKind::PermissionDenied)
}
