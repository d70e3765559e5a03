//! Makes what an entry asks for, in place of whatever has its name.

use std::{fs::File, os::fd::AsRawFd, os::unix::fs::FileExt};

use rustix::{
    fs::{AtFlags, Dev, FileType, Mode, OFlags, XattrFlags},
    io::Errno,
};

use super::super::archive::{Content, Device, Entry, Extent, Kind};
use super::super::error::{Refusal, quoted};
use super::directories::Missing;
use super::path::{components_of, split};
use super::trouble::{Trouble, path_of, trouble};
use super::whiteout::Whiteout;
use super::{Files, Place, attributes};

impl Files {
    /// Returns the type of the inode that now has the name; `None` for an entry that makes nothing.
    pub(super) fn make(
        &mut self,
        place: &Place<'_>,
        entry: &Entry,
        content: &mut Content<'_, '_>,
    ) -> Result<Option<FileType>, Trouble> {
        match &entry.kind {
            Kind::File(extent) => {
                self.make_file(place, extent, content)?;
                Ok(Some(FileType::RegularFile))
            }
            Kind::Directory => {
                self.make_directory(place)?;
                Ok(Some(FileType::Directory))
            }
            Kind::Symlink { target } => {
                let link = || rustix::fs::symlinkat(target.as_slice(), &place.directory.handle, place.name);
                self.replace(place, "make the link", link)?;
                Ok(Some(FileType::Symlink))
            }
            Kind::HardLink { target } => {
                self.make_hard_link(place, target)?;
                place.file_type()
            }
            Kind::CharDevice(device) => self.make_node(place, FileType::CharacterDevice, *device),
            Kind::BlockDevice(device) => self.make_node(place, FileType::BlockDevice, *device),
            Kind::Fifo => self.make_node(place, FileType::Fifo, Device { major: 0, minor: 0 }),
            Kind::Global => {
                self.make_room(place)?;
                Ok(None)
            }
        }
    }

    /// Applies a whiteout: overlay's own marks, or where nothing lies below, deletion.
    pub(super) fn white_out(
        &mut self,
        place: &Place<'_>,
        whiteout: &Whiteout<'_>,
        entry: &Entry,
    ) -> Result<(), Trouble> {
        match *whiteout {
            Whiteout::Aufs => Ok(()),
            Whiteout::Opaque if self.bottom => self.keep_only_stated(place),
            Whiteout::Opaque => {
                let directory = format!("/proc/self/fd/{}", place.directory.handle.as_raw_fd());
                let flags = XattrFlags::empty();
                rustix::fs::setxattr(directory, "trusted.overlay.opaque", b"y", flags)
                    .map_err(|errno| Trouble::disk("make opaque", &place.directory.path, errno.into()))
            }
            Whiteout::Name(name) => {
                let gone = Place { directory: place.directory.clone(), name };
                if self.bottom {
                    return self.make_room(&gone);
                }
                // containerd too fails on a name that this layer has already brought.
                rustix::fs::mknodat(
                    &gone.directory.handle,
                    name,
                    FileType::CharacterDevice,
                    Mode::empty(),
                    0,
                )
                .map_err(|errno| gone.trouble("white out", errno))?;
                attributes::change_owner(&gone, entry)
            }
        }
    }

    /// An opaque mark in the bottom layer. containerd deletes what has had no entry yet, with all that is in it.
    fn keep_only_stated(&mut self, place: &Place<'_>) -> Result<(), Trouble> {
        for path in self.directories.implied_below(&place.directory.path) {
            let (parent, name) = split(&path);
            if self.directories.implied.contains(&path) {
                let directory = self.directories.open(parent, Missing::Refuse)?;
                self.make_room(&Place { directory, name })?;
            }
        }
        Ok(())
    }

    fn make_directory(&mut self, place: &Place<'_>) -> Result<(), Trouble> {
        let make = || rustix::fs::mkdirat(&place.directory.handle, place.name, Mode::RWXU);
        match make() {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) if place.file_type()? == Some(FileType::Directory) => Ok(()),
            Err(_) => self.replace(place, "make the directory", make),
        }
    }

    fn make_file(
        &mut self,
        place: &Place<'_>,
        extent: &Extent,
        content: &mut Content<'_, '_>,
    ) -> Result<(), Trouble> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&place.directory.handle, place.name, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(self.replace(place, "make", open)?);
        let disk = |error| Trouble::disk("write", &place.path(), error);
        let mut written_to = 0;
        for segment in &extent.segments {
            written_to = segment.start;
            let end = segment.start + segment.len;
            while written_to < end {
                let bytes = content.take(end - written_to).map_err(Trouble::Content)?;
                file.write_all_at(bytes, written_to).map_err(disk)?;
                written_to += bytes.len() as u64;
            }
        }
        if written_to < extent.len {
            let len = extent.len;
            rustix::fs::ftruncate(&file, len).map_err(|errno| place.trouble("extend", errno))?;
        }
        Ok(())
    }

    fn make_hard_link(&mut self, place: &Place<'_>, target: &[u8]) -> Result<(), Trouble> {
        let refusal = || Refusal::HardLink { name: quoted(&place.path()), target: quoted(target) };
        let (target_parent, target_name) = split(target);
        if matches!(target_name, b"" | b"." | b"..") {
            return Err(refusal().into());
        }
        // Only as written: `..` behind a link leads to where the link does, so the path must not be cleaned.
        let target_parent = components_of(target_parent).collect::<Vec<_>>().join(&b'/');
        for _ in 0..2 {
            let directory = match self.directories.open(&target_parent, Missing::Refuse) {
                Ok(directory) => directory,
                Err(Trouble::Refused(_)) => return Err(refusal().into()),
                Err(other) => return Err(other),
            };
            let (from, to) = (&directory.handle, &place.directory.handle);
            match rustix::fs::linkat(from, target_name, to, place.name, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                // What is in the way may be the target itself, or lead to it: then there is none.
                Err(Errno::EXIST) => self.make_room(place)?,
                Err(Errno::NOENT | Errno::PERM) => return Err(refusal().into()),
                Err(errno) => return Err(place.trouble("make the hard link", errno)),
            }
        }
        Err(refusal().into())
    }

    fn make_node(
        &mut self,
        place: &Place<'_>,
        file_type: FileType,
        device: Device,
    ) -> Result<Option<FileType>, Trouble> {
        let number: Dev = rustix::fs::makedev(device.major, device.minor);
        let (handle, mode) = (&place.directory.handle, Mode::RUSR);
        let node = || rustix::fs::mknodat(handle, place.name, file_type, mode, number);
        self.replace(place, "make the node", node)?;
        Ok(Some(file_type))
    }

    /// Makes something new, and if the name is taken, makes it again in its place.
    fn replace<T>(
        &mut self,
        place: &Place<'_>,
        doing: &'static str,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Trouble> {
        let made = match make() {
            Err(Errno::EXIST) => {
                self.make_room(place)?;
                make()
            }
            other => other,
        };
        made.map_err(|errno| place.trouble(doing, errno))
    }

    /// Removes whatever has the name.
    fn make_room(&mut self, place: &Place<'_>) -> Result<(), Trouble> {
        let Some(file_type) = place.file_type()? else { return Ok(()) };
        let path = place.path();
        if matches!(file_type, FileType::Directory | FileType::Symlink) {
            self.directories.forget_handles();
        }
        if file_type == FileType::Directory {
            self.directories.forget_implied(&path);
            std::fs::remove_dir_all(path_of(&place.through_proc()))
                .map_err(|error| Trouble::disk("remove", &path, error))
        } else {
            rustix::fs::unlinkat(&place.directory.handle, place.name, AtFlags::empty())
                .map_err(|errno| trouble("remove", &path, errno))
        }
    }
}
