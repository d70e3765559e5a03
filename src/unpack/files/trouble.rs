//! Failures below the level that knows the entry's offset.

use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt, path::PathBuf};

use rustix::io::Errno;

use super::super::error::{Refusal, UnpackError, quoted};

/// The layer's fault or the disk's.
#[derive(Debug)]
pub(super) enum Trouble {
    Refused(Refusal),
    Disk {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Reading the content failed: it knows its own place.
    Content(UnpackError),
}

impl Trouble {
    pub(super) fn at(self, offset: u64) -> UnpackError {
        match self {
            Self::Refused(reason) => UnpackError::Refused { offset, reason },
            Self::Disk { doing, path, source } => UnpackError::Disk { doing, path, source },
            Self::Content(error) => error,
        }
    }

    pub(super) fn disk(doing: &'static str, path: &[u8], source: io::Error) -> Self {
        Self::Disk { doing, path: path_of(path), source }
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Who is at fault when the kernel says `errno`: what the layer asks for, or our disk.
pub(super) fn trouble(doing: &'static str, path: &[u8], errno: Errno) -> Trouble {
    match errno {
        Errno::NAMETOOLONG
        | Errno::INVAL
        | Errno::PERM
        | Errno::LOOP
        | Errno::NOENT
        | Errno::EXIST
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::MLINK
        | Errno::FBIG
        | Errno::RANGE
        | Errno::TOOBIG
        | Errno::OVERFLOW
        | Errno::OPNOTSUPP
        | Errno::XDEV => Refusal::Kernel { doing, name: quoted(path), errno: errno.to_string() }.into(),
        _ => Trouble::disk(doing, path, errno.into()),
    }
}

pub(super) fn path_of(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}
