//! Disks that are full, cannot be written or cannot carry overlay.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use flotilla::snapshot::{OpenError, SnapshotError, Snapshots};
use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount},
};

/// A file system of its own, gone when it is dropped.
struct Disk {
    at: PathBuf,
}

impl Disk {
    fn in_memory(at: &Path, size_bytes: usize) -> Self {
        let options = std::ffi::CString::new(format!("size={size_bytes}")).unwrap();
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), &*options).unwrap();
        Self { at: at.to_owned() }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.at, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let at = tempfile::tempdir().unwrap();
    let disk = Disk::in_memory(at.path(), 2 << 20);
    let root = disk.at.join("root");
    let snapshots = Snapshots::open(&root).unwrap();
    snapshots.prepare("before", "", &HashMap::new()).unwrap();

    let ballast = disk.at.join("ballast");
    assert!(fs::write(&ballast, vec![0u8; 4 << 20]).is_err(), "the disk is smaller than that");
    // SQLite may still find room in pages that it has: what matters is that it ends in a clear refusal.
    let refused: SnapshotError = (0..)
        .find_map(|number| {
            let labels = HashMap::from([("long".to_owned(), "x".repeat(4000))]);
            snapshots.prepare(&format!("key-{number}"), "", &labels).err()
        })
        .unwrap();
    assert!(refused.disk_is_full(), "{refused}");

    fs::remove_file(&ballast).unwrap();
    snapshots.prepare("after", "", &HashMap::new()).unwrap();
    snapshots.stat("before").unwrap();
    drop(snapshots);
    Snapshots::open(&root).unwrap().stat("after").unwrap();
}

#[test]
fn a_disk_that_cannot_be_written_is_named() {
    let at = tempfile::tempdir().unwrap();
    let disk = Disk::in_memory(at.path(), 2 << 20);
    let root = disk.at.join("root");
    drop(Snapshots::open(&root).unwrap());
    read_only(&disk.at);
    let refused = Snapshots::open(&root).unwrap_err();
    assert!(refused.to_string().contains(&*root.to_string_lossy()), "{refused}");
}

/// A child of another test that was forked and has not begun its program holds our files for an instant, and the
/// kernel then says that the disk is busy.
fn read_only(disk: &Path) {
    let busy = |_: &u32| match mount_remount(disk, MountFlags::RDONLY, "") {
        Ok(()) => false,
        Err(Errno::BUSY) => true,
        Err(error) => panic!("making {} read-only: {error}", disk.display()),
    };
    let waited = (0..10_000).take_while(busy).map(|_| std::thread::park_timeout(Duration::from_millis(1)));
    assert!(waited.count() < 10_000, "{} stays busy", disk.display());
}

#[test]
fn a_path_that_overlay_would_split_is_refused() {
    let at = tempfile::tempdir().unwrap();
    for name in ["a:b", "a,b", "a\\b"] {
        let refused = Snapshots::open(&at.path().join(name)).unwrap_err();
        assert!(matches!(refused, OpenError::Unmountable { .. }), "{refused}");
    }
    assert!(fs::read_dir(at.path()).unwrap().next().is_none(), "nothing is made there");
}

#[test]
fn a_disk_without_types_of_directory_entries_is_refused() {
    let at = tempfile::tempdir().unwrap();
    let (image, point) = (at.path().join("image"), at.path().join("disk"));
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    fs::create_dir(&point).unwrap();
    let run = |program: &str, arguments: &[&Path]| {
        let output = Command::new(program).args(arguments).output().map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    };
    let made = run(
        "mkfs.ext4",
        &["-q", "-O", "^filetype,^has_journal"]
            .map(Path::new)
            .into_iter()
            .chain([&*image])
            .collect::<Vec<_>>(),
    )
    .and_then(|()| run("mount", &[Path::new("-o"), Path::new("loop"), &image, &point]));
    if let Err(error) = made {
        eprintln!("skipped: no file system without d_type can be made here: {error}");
        return;
    }
    let disk = Disk { at: point };
    let refused = Snapshots::open(&disk.at.join("root")).unwrap_err();
    assert!(matches!(refused, OpenError::NoDirectoryTypes { .. }), "{refused}");
}
