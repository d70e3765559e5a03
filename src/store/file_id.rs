//! Which file a name stands for.

use std::{fs::Metadata, os::unix::fs::MetadataExt};

/// One content of one inode. The time of the last write is part of it because inode numbers are used again, and a
/// link added or dropped does not change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    written: (i64, i64),
}

impl FileId {
    pub(super) fn of(file: &Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino(), written: (file.mtime(), file.mtime_nsec()) }
    }
}
