//! The tree as files in a directory, as containerd's overlay applier makes it (pkg/archive/tar.go, `applyNaive` and
//! `createTarFile`): entries in any order, the last one counts, directories merge, everything else is replaced.

mod attributes;
mod directories;
mod make;
mod path;
mod trouble;
mod whiteout;

use std::{path::Path, path::PathBuf, rc::Rc};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
};

use super::archive::{Content, Entry, Kind, Time};
use super::error::UnpackError;
use super::{Built, TreeSink};
use directories::{Directories, Directory, Missing};
use path::{clean, join, split};
use trouble::{Trouble, path_of, trouble};
use whiteout::whiteout;

/// Builds the tree in a directory.
pub(super) struct Files {
    directories: Directories,
    bottom: bool,
    /// Times of directories in the order of their entries, set at the end because every new name changes them.
    stamps: Vec<Stamp>,
    stated_late: Vec<Vec<u8>>,
}

struct Stamp {
    offset: u64,
    path: Vec<u8>,
    accessed: Time,
    modified: Time,
}

/// A name in an open directory.
struct Place<'n> {
    directory: Rc<Directory>,
    name: &'n [u8],
}

impl Place<'_> {
    fn path(&self) -> Vec<u8> {
        join(&self.directory.path, self.name)
    }

    fn trouble(&self, doing: &'static str, errno: Errno) -> Trouble {
        trouble(doing, &self.path(), errno)
    }

    /// `None` if there is nothing.
    fn file_type(&self) -> Result<Option<FileType>, Trouble> {
        match rustix::fs::statat(&self.directory.handle, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.trouble("look at", errno)),
        }
    }
}

impl Files {
    /// Builds in `staging`, which is there and empty. `bottom`: there is no layer below.
    pub(super) fn new(staging: &Path, bottom: bool) -> Result<Self, UnpackError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(staging, flags, Mode::empty());
        let disk = |errno: Errno| UnpackError::Disk {
            doing: "open",
            path: staging.to_path_buf(),
            source: errno.into(),
        };
        let directories = Directories::new(root.map_err(disk)?);
        Ok(Self { directories, bottom, stamps: Vec::new(), stated_late: Vec::new() })
    }

    fn add(&mut self, entry: &Entry, content: &mut Content<'_, '_>) -> Result<(), Trouble> {
        let path = clean(&entry.name);
        let (parent, name) = split(&path);
        // The root is the snapshot's own directory: containerd takes nothing from the layer for it.
        if name.is_empty() {
            return Ok(());
        }
        let place = Place { directory: self.directories.open(parent, Missing::Make)?, name };
        if let Some(whiteout) = whiteout(name)? {
            return self.white_out(&place, &whiteout, entry);
        }
        if let Some(file_type) = self.make(&place, entry, content)? {
            attributes::apply(&place, entry, file_type)?;
        }
        if entry.kind == Kind::Directory {
            self.state_directory(&place, entry, &path)?;
        }
        Ok(())
    }

    /// The layer has an entry for this directory, so it no longer only implies it.
    fn state_directory(&mut self, place: &Place<'_>, entry: &Entry, written: &[u8]) -> Result<(), Trouble> {
        let path = place.path();
        if self.directories.implied.remove(&path) {
            self.directories.remember(&path)?;
            self.stated_late.push(path);
        }
        self.directories.remember(written)?;
        let (offset, path) = (entry.offset, written.to_vec());
        self.stamps.push(Stamp { offset, path, accessed: entry.accessed, modified: entry.modified });
        Ok(())
    }

    /// By the path as it was written, through links that came later: so containerd does, and where something else has
    /// taken the directory's place, that gets the times.
    fn stamp_directory(&mut self, stamp: &Stamp) -> Result<(), Trouble> {
        let (directory, name) = self.directories.follow(&stamp.path)?;
        let place = Place { directory, name: &name };
        attributes::stamp(&place, stamp.accessed, stamp.modified)
    }
}

impl TreeSink for Files {
    type Tree = Built;

    fn entry(&mut self, entry: &Entry, content: &mut Content<'_, '_>) -> Result<(), UnpackError> {
        self.add(entry, content).map_err(|trouble| trouble.at(entry.offset))
    }

    fn finish(mut self) -> Result<Built, UnpackError> {
        for stamp in std::mem::take(&mut self.stamps) {
            self.stamp_directory(&stamp).map_err(|trouble| trouble.at(stamp.offset))?;
        }
        let paths =
            |paths: Vec<Vec<u8>>| -> Vec<PathBuf> { paths.iter().map(|path| path_of(path)).collect() };
        let mut stated_late = self.stated_late;
        stated_late.sort_unstable();
        stated_late.dedup();
        let implied = paths(self.directories.implied.into_iter().collect());
        Ok(Built { implied, stated_late: paths(stated_late), ..Built::default() })
    }
}
