//! Changes to a directory tree, and trees to compare.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

/// One thing done to a tree, all paths relative to its root.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    File(String, String, u32),
    Dir(String, u32),
    Remove(&'static str),
    Own(&'static str, u32),
    Rename(&'static str, &'static str),
    Link(&'static str, &'static str),
}

pub(crate) fn file(path: impl Into<String>, content: impl Into<String>, mode: u32) -> Change {
    Change::File(path.into(), content.into(), mode)
}

pub(crate) fn dir(path: impl Into<String>, mode: u32) -> Change {
    Change::Dir(path.into(), mode)
}

pub(crate) fn apply(root: &Path, changes: &[Change]) {
    for change in changes {
        match change {
            Change::File(path, content, mode) => {
                fs::write(root.join(path), content).unwrap();
                fs::set_permissions(root.join(path), Permissions::from_mode(*mode)).unwrap();
            }
            Change::Dir(path, mode) => {
                fs::create_dir_all(root.join(path)).unwrap();
                fs::set_permissions(root.join(path), Permissions::from_mode(*mode)).unwrap();
            }
            Change::Remove(path) if root.join(path).is_dir() => fs::remove_dir_all(root.join(path)).unwrap(),
            Change::Remove(path) => fs::remove_file(root.join(path)).unwrap(),
            Change::Own(path, id) => {
                std::os::unix::fs::lchown(root.join(path), Some(*id), Some(*id)).unwrap();
            }
            Change::Rename(from, to) => fs::rename(root.join(from), root.join(to)).unwrap(),
            Change::Link(from, to) => fs::hard_link(root.join(from), root.join(to)).unwrap(),
        }
    }
}

/// What is under a root, by path: mode with type, owner, group, content.
pub(crate) fn look(root: &Path) -> BTreeMap<String, (u32, u32, u32, String)> {
    let mut seen = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            seen.insert(name, (metadata.mode(), metadata.uid(), metadata.gid(), content));
            if metadata.is_dir() {
                left.push(path);
            }
        }
    }
    seen
}
