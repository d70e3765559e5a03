//! Gives directories that a layer only implies what the layers below say about them, as containerd does while it unpacks
//! (pkg/archive/tar.go, `mkparent`); later here, because the layers below may arrive later.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::{Built, error::SettleError};

/// Bytes of one extended attribute, and of the list of their names: the kernel's own limits (XATTR_SIZE_MAX,
/// XATTR_LIST_MAX).
const XATTR_LEN_MAX: usize = 64 * 1024;

/// A rename anywhere on the machine while the kernel resolves a `..` makes it say "again" (openat2(2)). Each try takes
/// microseconds, so that as many in a row mean something else.
const OPEN_TRIES: usize = 128;

/// Fills in implied directories from `below`, the `fs` directories of the layers below, nearest first. To be called once,
/// just before the tree becomes a snapshot.
///
/// # Errors
/// A directory cannot be read below, or changed in `staging`.
pub fn settle(staging: &Path, built: &Built, below: &[PathBuf]) -> Result<(), SettleError> {
    if below.is_empty() || built.implied.is_empty() && built.stated_late.is_empty() {
        return Ok(());
    }
    let tree = open_root(staging)?;
    let below = below.iter().map(|path| Ok((open_root(path)?, path))).collect::<Result<Vec<_>, _>>()?;
    for path in &built.implied {
        let directory = open_in(&tree, path).map_err(at("open", staging.join(path)))?;
        match nearest(&below, path)? {
            Some((lower, lower_path)) => {
                copy_attributes(&lower, &directory).map_err(at("copy the attributes of", lower_path))?;
            }
            None => {
                let group = inherited_group(&below, built, path)?;
                let changed = rustix::fs::fchown(&directory, None, group);
                changed.map_err(at("set the group of", staging.join(path)))?;
            }
        }
    }
    for path in &built.stated_late {
        // The tree's directory may since have been replaced by something that is none.
        let Ok(directory) = open_in(&tree, path) else { continue };
        if let Some((lower, lower_path)) = nearest(&below, path)? {
            copy_xattrs(&lower, &directory).map_err(at("copy the attributes of", lower_path))?;
        }
    }
    Ok(())
}

fn at(doing: &'static str, path: PathBuf) -> impl FnOnce(Errno) -> SettleError {
    move |errno| SettleError { doing, path, source: io::Error::from(errno) }
}

fn open_root(path: &Path) -> Result<OwnedFd, SettleError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(at("open", path.to_path_buf()))
}

/// A directory of the tree itself. Its path has no links.
fn open_in(tree: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    open(tree, path, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

fn open(root: &OwnedFd, path: &Path, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open =
        || rustix::fs::openat2(root, path, flags, Mode::empty(), resolve | ResolveFlags::NO_MAGICLINKS);
    let mut opened = open();
    for _ in 1..OPEN_TRIES {
        if !matches!(opened, Err(Errno::AGAIN)) {
            break;
        }
        opened = open();
    }
    opened
}

/// The directory at `path` in the nearest layer that has anything there. A whiteout or a file, at the path or on the way
/// to it, hides the layers below; an opaque directory does not, in containerd neither.
fn nearest(below: &[(OwnedFd, &PathBuf)], path: &Path) -> Result<Option<(OwnedFd, PathBuf)>, SettleError> {
    for (root, root_path) in below {
        match open(root, path, ResolveFlags::IN_ROOT) {
            Ok(directory) => return Ok(Some((directory, root_path.join(path)))),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(at("open", root_path.join(path))(errno)),
        }
    }
    Ok(None)
}

/// Where containerd makes a directory below another implied one, that has its set-group-ID bit from the layers below
/// already, so that the kernel hands its group on.
fn inherited_group(
    below: &[(OwnedFd, &PathBuf)],
    built: &Built,
    path: &Path,
) -> Result<Option<Gid>, SettleError> {
    let parent = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let implied =
        [&built.implied, &built.stated_late].iter().any(|paths| paths.binary_search(&parent).is_ok());
    let Some((lower, lower_path)) = (if implied { nearest(below, &parent)? } else { None }) else {
        return Ok(None);
    };
    let stat = rustix::fs::fstat(&lower).map_err(at("look at", lower_path))?;
    let hands_on = Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID);
    Ok(hands_on.then(|| Gid::from_raw(stat.st_gid)))
}

fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(from)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(uid), Some(gid))?;
    copy_xattrs(from, to)?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    rustix::fs::futimens(to, &times(&stat))
}

#[expect(clippy::cast_possible_wrap, reason = "nanoseconds of a second")]
fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as i64 },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as i64 },
    }
}

/// All but `trusted.*`, which are overlay's marks, and what the directory has already.
fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let mut names = vec![0; XATTR_LEN_MAX];
    let len = match rustix::fs::flistxattr(from, &mut names[..]) {
        Err(Errno::OPNOTSUPP | Errno::NODATA) => return Ok(()),
        other => other?,
    };
    let mut value = vec![0; XATTR_LEN_MAX];
    for name in names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.") {
            continue;
        }
        let len = match rustix::fs::fgetxattr(from, name, &mut value[..]) {
            Err(Errno::OPNOTSUPP | Errno::NODATA) => continue,
            other => other?,
        };
        match rustix::fs::fsetxattr(to, name, &value[..len], XattrFlags::CREATE) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NODATA | Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
