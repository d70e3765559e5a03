//! Counts a tree as containerd counts it, so that its totals and ours can be compared.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::info::Usage;

/// The unit of `st_blocks`, whatever the file system's own block is (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// What the tree at `root` takes up, the root included, each inode once, symbolic links not followed.
///
/// An active snapshot may be written while we look: what has gone away in between is not counted.
pub(super) fn disk_usage(root: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut hard_linked = HashSet::new();
    let mut count = |metadata: &fs::Metadata| {
        // Only an inode with several names can be met twice: the others need no memory.
        let again = !metadata.is_dir()
            && metadata.nlink() > 1
            && !hard_linked.insert((metadata.dev(), metadata.ino()));
        if !again {
            usage.size_bytes += metadata.blocks() * STAT_BLOCK_BYTES;
            usage.inodes += 1;
        }
    };
    count(&fs::symlink_metadata(root)?);
    let mut directories: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let Some(entries) = still_there(fs::read_dir(&directory))? else { continue };
        for entry in entries {
            let entry = entry?;
            let Some(metadata) = still_there(entry.metadata())? else { continue };
            count(&metadata);
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(usage)
}

fn still_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_inode_counts_once() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("deep")).unwrap();
        fs::write(tree.path().join("deep/file"), vec![7u8; 100_000]).unwrap();
        fs::hard_link(tree.path().join("deep/file"), tree.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/", tree.path().join("link")).unwrap();

        let usage = disk_usage(tree.path()).unwrap();
        assert_eq!(usage.inodes, 4, "root, deep, one file with two names, the link itself");
        let names = ["", "deep", "deep/file", "link"];
        let blocks = |name| fs::symlink_metadata(tree.path().join(name)).unwrap().blocks();
        assert_eq!(usage.size_bytes, names.into_iter().map(blocks).sum::<u64>() * 512);
    }

    #[test]
    fn a_hole_takes_no_room() {
        let tree = tempfile::tempdir().unwrap();
        let empty = disk_usage(tree.path()).unwrap();
        fs::File::create(tree.path().join("sparse")).unwrap().set_len(1 << 30).unwrap();
        let usage = disk_usage(tree.path()).unwrap();
        assert!(usage.size_bytes - empty.size_bytes < 1 << 20);
        assert_eq!(usage.inodes, 2);
    }

    #[test]
    fn a_tree_that_is_not_there_is_an_error() {
        let tree = tempfile::tempdir().unwrap();
        assert!(disk_usage(&tree.path().join("absent")).is_err());
    }
}
