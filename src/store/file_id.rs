//! Which file a name stands for.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::Path,
};

/// One content of one inode. The time of the last write is part of it because inode numbers are used again, and a
/// link added or dropped does not change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    len: u64,
    written: (i64, i64),
}

impl FileId {
    pub(super) fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            len: file.len(),
            written: (file.mtime(), file.mtime_nsec()),
        }
    }

    /// The file that `path` leads to.
    pub(super) fn at(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().as_ref().map(Self::of)
    }

    /// One line, for the file `borrowed`. It is only ever compared: a torn one is that of no file.
    pub(super) fn to_line(self) -> String {
        let Self { device, inode, len, written: (seconds, nanos) } = self;
        format!("{device} {inode} {len} {seconds} {nanos}\n")
    }
}
