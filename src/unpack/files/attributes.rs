//! Owner, mode, times and extended attributes of an inode, in containerd's order: owner, extended attributes, mode (which
//! a change of owner would clear of set-user-ID), times.

use std::{fmt::Write as _, os::fd::AsRawFd};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::super::archive::{Entry, Time};
use super::super::error::{Refusal, quoted};
use super::Place;
use super::trouble::{Trouble, trouble};

/// Applies what `entry` says to the inode at `place`, which is of `file_type`.
pub(super) fn apply(place: &Place<'_>, entry: &Entry, file_type: FileType) -> Result<(), Trouble> {
    change_owner(place, entry)?;
    for (name, value) in &entry.xattrs {
        set_xattr(place, file_type, name, value)?;
    }
    if file_type != FileType::Symlink {
        let mode = Mode::from_raw_mode(entry.mode);
        rustix::fs::chmodat(&place.directory.handle, place.name, mode, AtFlags::empty())
            .map_err(|errno| place.trouble("set the mode of", errno))?;
    }
    stamp(place, entry.accessed, entry.modified)
}

pub(super) fn change_owner(place: &Place<'_>, entry: &Entry) -> Result<(), Trouble> {
    let keep = u32::MAX;
    let uid = (entry.uid != keep).then(|| Uid::from_raw(entry.uid));
    let gid = (entry.gid != keep).then(|| Gid::from_raw(entry.gid));
    rustix::fs::chownat(&place.directory.handle, place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| place.trouble("set the owner of", errno))
}

pub(super) fn stamp(place: &Place<'_>, accessed: Time, modified: Time) -> Result<(), Trouble> {
    let times = Timestamps { last_access: accessed.stamp(), last_modification: modified.stamp() };
    rustix::fs::utimensat(&place.directory.handle, place.name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| place.trouble("set the times of", errno))
}

/// containerd ignores `trusted.*`, `user.*` on what cannot have it, and what the file system does not support.
fn set_xattr(place: &Place<'_>, file_type: FileType, name: &[u8], value: &[u8]) -> Result<(), Trouble> {
    if name.starts_with(b"trusted.") {
        return Ok(());
    }
    let plain = matches!(file_type, FileType::RegularFile | FileType::Directory);
    match rustix::fs::lsetxattr(place.through_proc(), name, value, XattrFlags::empty()) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(Errno::PERM) if name.starts_with(b"user.") && !plain => Ok(()),
        Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::ROFS | Errno::NOMEM)) => {
            Err(trouble("set an attribute of", &place.path(), errno))
        }
        Err(errno) => {
            let mut named = quoted(&place.path());
            let _ = write!(named, " ({})", quoted(name));
            let errno = errno.to_string();
            Err(Refusal::Kernel { doing: "set an attribute of", name: named, errno }.into())
        }
    }
}

impl Place<'_> {
    /// There is no `setxattrat` before Linux 6.13. The prefix is a handle, the rest a name that is not followed.
    pub(super) fn through_proc(&self) -> Vec<u8> {
        let mut path = format!("/proc/self/fd/{}/", self.directory.handle.as_raw_fd()).into_bytes();
        path.extend_from_slice(self.name);
        path
    }
}
