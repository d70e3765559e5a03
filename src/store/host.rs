//! What the store asks of the machine: the time, and the room on a file system.

use std::{io, path::Path, time::SystemTime};

/// Bytes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) total: u64,
    /// Free to a process without privileges: what kubelet measures, too.
    pub(super) free: u64,
}

/// The port; tests put a twin in memory here.
pub(super) trait Host: Send + Sync {
    fn now(&self) -> SystemTime;

    /// The room on the file system that holds `dir`.
    fn space(&self, dir: &Path) -> io::Result<Space>;
}

/// The machine that we run on.
pub(super) struct Machine;

impl Host for Machine {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(dir)?;
        Ok(Space {
            total: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }
}
