//! One daemon for each store.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use super::tree;

/// What came of trying to lock.
pub(super) enum Locked {
    Ours(Lock),
    /// Another daemon's, with its process id where it could be read.
    Theirs(Option<u32>),
}

/// Holds until it is dropped, or the process ends by whatever death.
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that was forked and has not yet become another program has the file, too.
        if let Err(error) = flock(&self.0, FlockOperation::Unlock) {
            tracing::debug!(%error, "cannot unlock the store");
        }
    }
}

/// Locks the store in `dir` and notes our process id for whoever comes second.
pub(super) fn lock(dir: &Path) -> io::Result<Locked> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(dir.join(tree::LOCK))?;
    if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        return if error == rustix::io::Errno::WOULDBLOCK {
            Ok(Locked::Theirs(holder(&file)))
        } else {
            Err(error.into())
        };
    }
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "{}", std::process::id())?;
    Ok(Locked::Ours(Lock(file)))
}

fn holder(file: &File) -> Option<u32> {
    let mut text = String::new();
    // No process id is longer; the file may be anybody's.
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
