//! From paths to directory handles, within the staging directory.
//!
//! A handle comes only from `openat2` below another handle of the tree, by names that are no symbolic links: the kernel
//! refuses everything else (`RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`). Links of the layer are read and followed here, as
//! if the tree were the root directory, as containerd does (continuity, `fs.RootPath`). So there is no path that leads
//! out, and none that the kernel would follow by itself.

use std::{collections::BTreeSet, os::fd::OwnedFd, rc::Rc};

use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::super::error::{Refusal, quoted};
use super::path::{clean, components_of, join, split};
use super::trouble::{Trouble, trouble};

/// Directories kept open. A tar is written depth first, so a path's own ancestors would do; more cost little. A tenth of
/// the usual limit of 1024 open files, since several layers are unpacked at once.
const HANDLES_MAX: usize = 64;
/// Nested directories. Who deletes a tree holds one handle a level, and has 1024. Real layers stay below 50.
const DEPTH_MAX: usize = 256;
/// Bytes of a path in the tree: the kernel's own PATH_MAX, which binds containerd too.
const PATH_LEN_MAX: usize = 4096;
/// Symbolic links on one path, as in containerd (continuity, `walkLink`).
const LINKS_MAX: usize = 255;
/// Bytes of the names that must be remembered to the end: 25 times what a layer of 120,000 entries in 10,000
/// directories needs at 1 KiB each, and a bound on memory for a layer of nothing but directories.
const REMEMBERED_LEN_MAX: usize = 256 << 20;

/// An open directory of the tree.
pub(super) struct Directory {
    pub(super) handle: OwnedFd,
    /// Relative to the tree, without links. Empty for the root.
    pub(super) path: Vec<u8>,
}

/// What to do where a directory on the way is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Make it, 0755: the layer implies it.
    Make,
    Refuse,
}

pub(super) struct Directories {
    root: Rc<Directory>,
    /// By path as written (but cleaned), the latest last.
    open: Vec<(Vec<u8>, Rc<Directory>)>,
    /// Paths without links.
    pub(super) implied: BTreeSet<Vec<u8>>,
    remembered_len: usize,
}

impl Directories {
    pub(super) fn new(root: OwnedFd) -> Self {
        let root = Rc::new(Directory { handle: root, path: Vec::new() });
        Self { root, open: Vec::new(), implied: BTreeSet::new(), remembered_len: 0 }
    }

    /// Opens the directory at `path`, following the layer's links.
    pub(super) fn open(&mut self, path: &[u8], missing: Missing) -> Result<Rc<Directory>, Trouble> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some(at) = self.open.iter().rposition(|(known, _)| known == path) {
            let found = self.open.remove(at);
            let directory = found.1.clone();
            self.open.push(found);
            return Ok(directory);
        }
        let directory = match self.open_without_links(path) {
            Ok(directory) => Rc::new(directory),
            // A link, a missing directory or a refusal on the way: step by step it will show.
            Err(_) => self.walk(path, missing)?,
        };
        if self.open.len() == HANDLES_MAX {
            self.open.remove(0);
        }
        self.open.push((path.to_vec(), directory.clone()));
        Ok(directory)
    }

    /// Follows the links at the end of `path` too. Returns the directory and the name in it, which may be missing.
    pub(super) fn follow(&mut self, path: &[u8]) -> Result<(Rc<Directory>, Vec<u8>), Trouble> {
        let mut path = path.to_vec();
        for _ in 0..LINKS_MAX {
            let (parent, name) = split(&path);
            let directory = self.open(parent, Missing::Refuse)?;
            match read_link(&directory, name) {
                Some(target) => path = target_path(&directory, &target),
                None => return Ok((directory, name.to_vec())),
            }
        }
        Err(Refusal::TooManyLinks(quoted(&path), LINKS_MAX).into())
    }

    /// A directory or a link is gone: handles may lead to what is no longer in the tree.
    pub(super) fn forget_handles(&mut self) {
        self.open.clear();
    }

    /// Whatever was implied at or below `path` is gone.
    pub(super) fn forget_implied(&mut self, path: &[u8]) {
        let below = self.implied_below(path);
        for gone in below {
            self.implied.remove(&gone);
        }
        self.implied.remove(path);
    }

    /// Implied directories below `path`, parents first.
    pub(super) fn implied_below(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let prefix = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
        self.implied.range(prefix.clone()..).take_while(|below| below.starts_with(&prefix)).cloned().collect()
    }

    /// Accounts for a name that is kept to the end.
    pub(super) fn remember(&mut self, name: &[u8]) -> Result<(), Refusal> {
        // A name is kept with about as much again of administration, 64 bytes.
        self.remembered_len += name.len() + 64;
        if self.remembered_len > REMEMBERED_LEN_MAX {
            return Err(Refusal::TooManyDirectories(REMEMBERED_LEN_MAX));
        }
        Ok(())
    }

    fn open_without_links(&self, path: &[u8]) -> Result<Directory, Errno> {
        let mut components = components_of(path);
        if components.clone().count() > DEPTH_MAX || components.any(|component| component == b"..") {
            return Err(Errno::INVAL);
        }
        Ok(Directory { handle: open_below(&self.root, path)?, path: path.to_vec() })
    }

    fn walk(&mut self, path: &[u8], missing: Missing) -> Result<Rc<Directory>, Trouble> {
        let mut here = self.root.clone();
        // The next component last.
        let mut ahead: Vec<Vec<u8>> = components_of(path).rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == b".." {
                let (parent, _) = split(&here.path);
                let opened = self.open_without_links_or_root(parent);
                here = opened.map_err(|errno| trouble("open", parent, errno))?;
                continue;
            }
            let next_path = self.checked_path(&here, &name)?;
            here = match open_below(&here, &name) {
                Ok(handle) => Rc::new(Directory { handle, path: next_path }),
                Err(Errno::NOENT) if missing == Missing::Make => self.imply(&here, &name, next_path)?,
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    let Some(target) = read_link(&here, &name) else {
                        return Err(Refusal::NotADirectory(quoted(path)).into());
                    };
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Refusal::TooManyLinks(quoted(path), LINKS_MAX).into());
                    }
                    let target = target_path(&here, &target);
                    ahead.extend(components_of(&target).rev().map(<[u8]>::to_vec));
                    self.root.clone()
                }
                Err(errno) => return Err(trouble("open", &next_path, errno)),
            };
        }
        Ok(here)
    }

    fn open_without_links_or_root(&self, path: &[u8]) -> Result<Rc<Directory>, Errno> {
        if path.is_empty() { Ok(self.root.clone()) } else { self.open_without_links(path).map(Rc::new) }
    }

    fn checked_path(&self, directory: &Directory, name: &[u8]) -> Result<Vec<u8>, Refusal> {
        let path = join(&directory.path, name);
        if path.len() >= PATH_LEN_MAX {
            return Err(Refusal::TooLong { what: "a path", limit: PATH_LEN_MAX });
        }
        if components_of(&path).count() > DEPTH_MAX {
            return Err(Refusal::TooDeep(quoted(&path), DEPTH_MAX));
        }
        Ok(path)
    }

    fn imply(&mut self, parent: &Directory, name: &[u8], path: Vec<u8>) -> Result<Rc<Directory>, Trouble> {
        self.remember(&path)?;
        let make = || -> Result<OwnedFd, Errno> {
            let mode = Mode::from_raw_mode(0o755);
            rustix::fs::mkdirat(&parent.handle, name, mode)?;
            // The process' umask does not apply to a layer.
            rustix::fs::chmodat(&parent.handle, name, mode, AtFlags::empty())?;
            open_below(parent, name)
        };
        let handle = make().map_err(|errno| trouble("make the directory", &path, errno))?;
        self.implied.insert(path.clone());
        Ok(Rc::new(Directory { handle, path }))
    }
}

fn open_below(directory: &Directory, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(&directory.handle, path, flags, Mode::empty(), resolve)
}

/// The target of a link; `None` for anything else and for nothing at all.
fn read_link(directory: &Directory, name: &[u8]) -> Option<Vec<u8>> {
    rustix::fs::readlinkat(&directory.handle, name, Vec::new()).ok().map(std::ffi::CString::into_bytes)
}

/// Where a link in `directory` leads, by its text, as containerd takes it.
fn target_path(directory: &Directory, target: &[u8]) -> Vec<u8> {
    if target.starts_with(b"/") { clean(target) } else { clean(&join(&directory.path, target)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_kept_to_the_end_are_bounded() {
        let tree = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(tree.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut directories = Directories::new(root);
        let name = vec![b'n'; PATH_LEN_MAX];
        let kept = (0..).take_while(|_| directories.remember(&name).is_ok()).count();
        assert!(kept * PATH_LEN_MAX <= REMEMBERED_LEN_MAX && kept > 60_000, "{kept}");
    }

    #[test]
    fn handles_are_bounded_and_stay_right() {
        let tree = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(tree.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut directories = Directories::new(root);
        for at in (0..1000).chain(0..1000) {
            let path = format!("{at}/below");
            let directory = directories.open(path.as_bytes(), Missing::Make).unwrap();
            assert_eq!(directory.path, path.as_bytes());
        }
        assert_eq!((directories.open.len(), directories.implied.len()), (HANDLES_MAX, 2000));
    }
}
