//! What the store finds at its start.

use std::os::unix::fs::PermissionsExt;

use rustix::mount::mount_remount;

use super::*;
use crate::store::OpenError;

#[test]
fn a_second_daemon_is_refused_by_name() {
    let bench = Bench::new();
    let first = bench.open();
    let refused = Store::open(bench.settings.clone()).err().unwrap();
    assert!(matches!(refused, OpenError::InUse { pid: Some(pid), .. } if pid == std::process::id()));
    let text = refused.to_string();
    assert!(text.contains(&*bench.settings.dir.to_string_lossy()) && text.contains("process"), "{text}");
    drop(first);
    assert!(Store::open(bench.settings.clone()).is_ok());
}

#[test]
fn its_directories_are_for_root_only() {
    let bench = Bench::new();
    let _store = bench.open();
    for dir in ["", "blobs", "arriving", "staging"] {
        let mode = fs::metadata(bench.settings.dir.join(dir)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{dir}");
    }
}

#[test]
fn leftovers_are_swept_and_what_is_not_ours_is_left_alone() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, PIECE);
    sample.put(&store);
    drop(store);
    let dir = &bench.settings.dir;
    fs::create_dir_all(dir.join("staging/7/deep")).unwrap();
    let foreign = ["blobs/sha256/zz", "blobs/sha256/zz/notes", "arriving/sha256-short", "blobs/md5"];
    for path in foreign {
        fs::create_dir_all(dir.join(path)).unwrap();
    }
    fs::write(dir.join("blobs/README"), "mine").unwrap();
    let half_made = Sample::new(2, PIECE);
    fs::create_dir_all(bench.arriving_dir(&half_made)).unwrap();
    let store = bench.open();
    assert!(sample.is_whole_in(&store));
    assert_eq!(store.usage().blobs, 1);
    assert!(!dir.join("staging/7").exists() && !bench.arriving_dir(&half_made).exists());
    assert!(foreign.iter().all(|path| dir.join(path).exists()) && dir.join("blobs/README").exists());
}

#[test]
fn a_read_only_disk_is_one_clear_error() {
    let bench = Bench::new();
    let mounted = Mounted::tmpfs(&bench.root.path().join("small"), PIECE);
    mount_remount(&mounted.0, MountFlags::RDONLY, "").unwrap();
    let settings = Settings { dir: mounted.0.join("store"), ..bench.settings.clone() };
    let refused = Store::open(settings).err().unwrap();
    assert!(refused.to_string().contains("cannot write to the store's directory"), "{refused}");
    let OpenError::Unusable { source, .. } = refused else { panic!("{refused}") };
    assert_eq!(source.kind(), io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn without_settings_the_limits_are_parts_of_the_file_system() {
    let bench = Bench::new();
    let settings = Settings { quota: None, keep_free: None, ..bench.settings.clone() };
    let shared = Shared::open(&settings, Box::new(Arc::clone(&bench.lab))).unwrap();
    assert_eq!((shared.limits.quota, shared.limits.keep_free), (PLENTY / 10, PLENTY / 5));
    drop(shared);
    let store = bench.open_for_real();
    assert!(store.sweep(SystemTime::now()).removed.is_empty());
}
