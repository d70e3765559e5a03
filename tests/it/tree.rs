//! Compares directory trees by what a container can see of every inode.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what is wrong")]

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fmt, fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use flotilla::oci::{Algorithm, Digest};

/// All that is to be seen of one name, apart from its own inode number and the times of access and change.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) path: PathBuf,
    pub(crate) kind: char,
    /// With set-user-ID and its like, without the type.
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub(crate) modified: (i64, i64),
    pub(crate) links: u64,
    pub(crate) device: u64,
    /// The first path that leads to the same inode.
    pub(crate) same_as: PathBuf,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// A file's digest or a link's target.
    pub(crate) content: String,
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, same_as) = (self.path.as_os_str(), self.same_as.as_os_str());
        write!(
            f,
            "{} {}{:04o} {:?} {:?}",
            path.as_bytes().escape_ascii(),
            self.kind,
            self.mode,
            self.owner,
            self.modified
        )?;
        write!(
            f,
            " links {} device {:x} same as {}",
            self.links,
            self.device,
            same_as.as_bytes().escape_ascii()
        )?;
        for (name, value) in &self.xattrs {
            write!(f, " {name}={}", value.escape_ascii())?;
        }
        write!(f, " {}", self.content)
    }
}

/// Walks `root` without following links. The facts are sorted by path; the root's own has the empty path.
pub(crate) fn facts(root: &Path) -> Vec<Facts> {
    let mut found = Vec::new();
    let mut ahead = vec![PathBuf::new()];
    while let Some(path) = ahead.pop() {
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full).unwrap();
        if metadata.is_dir() {
            let names = fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name());
            ahead.extend(names.map(|name| path.join(name)));
        }
        found.push((path, metadata));
    }
    found.sort_by(|(left, _), (right, _)| left.cmp(right));
    let mut first_of_inode = BTreeMap::new();
    let mut facts = Vec::new();
    for (path, metadata) in found {
        let same_as = first_of_inode.entry(metadata.ino()).or_insert_with(|| path.clone()).clone();
        facts.push(facts_of(root, path, &metadata, same_as));
    }
    facts
}

fn facts_of(root: &Path, path: PathBuf, metadata: &fs::Metadata, same_as: PathBuf) -> Facts {
    let full = root.join(&path);
    let file_type = metadata.file_type();
    let (kind, content) = match file_type {
        file if file.is_dir() => ('d', String::new()),
        file if file.is_file() => ('-', Digest::of(Algorithm::Sha256, &fs::read(&full).unwrap()).to_string()),
        file if file.is_symlink() => {
            ('l', fs::read_link(&full).unwrap().as_os_str().as_bytes().escape_ascii().to_string())
        }
        file if file.is_char_device() => ('c', String::new()),
        file if file.is_block_device() => ('b', String::new()),
        file if file.is_fifo() => ('p', String::new()),
        _ => ('s', String::new()),
    };
    Facts {
        kind,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        // A directory's count is the file system's way to count what is in it.
        links: if kind == 'd' { 0 } else { metadata.nlink() },
        device: metadata.rdev(),
        same_as,
        xattrs: xattrs(&full),
        content,
        path,
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut found = BTreeMap::new();
    for name in names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65_536];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        found.insert(String::from_utf8_lossy(name).into_owned(), value[..len].to_vec());
    }
    found
}

/// One line for every path on which the trees differ. The times of `unstamped` and of the root do not count.
pub(crate) fn differences(left: &[Facts], right: &[Facts], unstamped: &BTreeSet<PathBuf>) -> Vec<String> {
    let by_path = |facts: &[Facts]| -> BTreeMap<PathBuf, Facts> {
        let comparable = facts.iter().cloned().map(|mut facts| {
            if facts.path.as_os_str().is_empty() || unstamped.contains(&facts.path) {
                facts.modified = (0, 0);
            }
            (facts.path.clone(), facts)
        });
        comparable.collect()
    };
    let (left, right) = (by_path(left), by_path(right));
    let paths: BTreeSet<&PathBuf> = left.keys().chain(right.keys()).collect();
    let text = |facts: Option<&Facts>| facts.map_or("nothing".to_owned(), Facts::to_string);
    let differs = paths.into_iter().filter(|path| left.get(*path) != right.get(*path));
    differs.map(|path| format!("{}\n   but {}", text(left.get(path)), text(right.get(path)))).collect()
}
