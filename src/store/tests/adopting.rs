//! One copy on disk.

use rustix::mount::mount_bind;

use super::*;
use crate::store::{AdoptError, Linked, RelinkError};

#[test]
fn containerds_file_takes_the_place_of_ours_and_its_bytes_go_with_both() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, 2 * PIECE + 3);
    let blob = sample.put(&store);
    let ours = fs::metadata(blob.path()).unwrap().ino();
    let theirs = bench.containerd_has(&sample);
    for _ in 0..2 {
        assert_eq!(store.relink(&sample.digest, &theirs).unwrap(), Linked::Linked);
        assert_eq!(links(&theirs), 2);
        assert_eq!(store.usage().charged, 0);
    }
    assert_ne!(fs::metadata(blob.path()).unwrap().ino(), ours);
    assert_eq!(blob.read(2).unwrap(), sample.piece(2));
    assert_eq!(fs::read_dir(bench.settings.dir.join("staging")).unwrap().count(), 0);
    assert!(store.remove(&sample.digest) && !store.remove(&sample.digest));
    assert_eq!(links(&theirs), 1);
    assert_eq!(blob.read(1).unwrap(), sample.piece(1));
}

#[test]
fn the_bytes_of_our_own_file_are_freed_when_it_is_replaced() {
    let bench = Bench::new();
    let mounted = Mounted::tmpfs(&bench.root.path().join("small"), 16 * PIECE);
    let settings = Settings { dir: mounted.0.join("store"), ..bench.settings.clone() };
    let store = Store::open(settings).unwrap();
    let free = || Machine.space(&mounted.0).unwrap().free;
    let sample = Sample::new(1, 4 * PIECE);
    let at_first = free();
    let blob = sample.put(&store);
    let theirs = mounted.0.join("theirs");
    fs::write(&theirs, &sample.bytes).unwrap();
    assert!(at_first - free() >= 8 * PIECE);
    store.relink(&sample.digest, &theirs).unwrap();
    assert_eq!(blob.read(0).unwrap(), sample.piece(0));
    assert!(at_first - free() < 5 * PIECE, "the handle keeps the replaced file");
    drop(blob);
    fs::remove_file(&theirs).unwrap();
    assert!(at_first - free() >= 4 * PIECE, "our link keeps the bytes");
    store.remove(&sample.digest);
    assert!(at_first - free() < PIECE);
}

#[test]
fn another_file_is_not_linked_for_a_blob() {
    let bench = Bench::new();
    let store = bench.open();
    let (sample, other) = (Sample::new(1, PIECE), Sample::new(2, PIECE + 1));
    let theirs = bench.containerd_has(&other);
    assert!(matches!(store.relink(&sample.digest, &theirs), Err(RelinkError::Absent { .. })));
    sample.put(&store);
    assert!(matches!(store.relink(&sample.digest, &theirs), Err(RelinkError::Foreign { .. })));
    let gone = bench.root.path().join("gone");
    assert!(matches!(store.relink(&sample.digest, &gone), Err(RelinkError::Io { .. })));
    assert!(sample.is_whole_in(&store));
    assert_eq!(links(&theirs), 1);
}

#[test]
fn containerds_file_is_adopted_by_link_and_proven() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, 3 * PIECE + 1);
    let theirs = bench.containerd_has(&sample);
    assert_eq!(store.links_with(&theirs).unwrap(), Linked::Linked);
    let blob = store.adopt(&sample.digest, sample.len(), &theirs).unwrap();
    assert_eq!((links(&theirs), blob.chain()), (2, &sample.chain()));
    assert_eq!((store.usage().blobs, store.usage().charged), (1, 0));
    drop((blob, store));
    let store = bench.open();
    assert!(sample.is_whole_in(&store));
    assert_eq!(store.usage().charged, 0);
}

#[test]
fn a_blob_that_we_have_is_linked_when_it_is_adopted() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, PIECE);
    sample.put(&store);
    let theirs = bench.containerd_has(&sample);
    store.adopt(&sample.digest, sample.len(), &theirs).unwrap();
    assert_eq!(links(&theirs), 2);
}

#[test]
fn wrong_bytes_are_not_adopted_and_nothing_of_them_is_kept() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, 2 * PIECE);
    let theirs = bench.containerd_has(&sample);
    flip_a_bit(&theirs, PIECE + 1);
    let directory = bench.root.path().join("containerd");
    for (len, path) in [(sample.len(), &theirs), (sample.len() + 1, &theirs), (4096, &directory)] {
        let refused = store.adopt(&sample.digest, len, path);
        assert!(matches!(refused, Err(AdoptError::Foreign { .. })), "{len} {path:?}");
    }
    let gone = store.adopt(&sample.digest, 5, &bench.root.path().join("gone"));
    assert!(matches!(gone, Err(AdoptError::Read { .. })));
    assert_eq!((links(&theirs), store.usage().blobs), (1, 0));
    assert_eq!(fs::read_dir(bench.settings.dir.join("staging")).unwrap().count(), 0);
}

#[test]
fn from_another_file_system_blobs_are_not_copied() {
    let bench = Bench::new();
    let store = bench.open();
    let mounted = Mounted::tmpfs(&bench.root.path().join("elsewhere"), 16 * PIECE);
    let (first, second) = (Sample::new(1, 2 * PIECE + 1), Sample::new(2, PIECE));
    let theirs = mounted.0.join("first");
    fs::write(&theirs, &first.bytes).unwrap();
    assert_eq!(store.links_with(&mounted.0).unwrap(), Linked::Copied);
    store.adopt(&first.digest, first.len(), &theirs).unwrap();
    assert_eq!((links(&theirs), store.usage().charged), (1, 0));
    assert!(first.is_whole_in(&store));
    second.put(&store);
    let theirs = mounted.0.join("second");
    fs::write(&theirs, &second.bytes).unwrap();
    assert_eq!(store.relink(&second.digest, &theirs).unwrap(), Linked::Copied);
    drop(mounted);
    store.sweep(bench.lab.time());
    assert!(store.get(&first.digest).is_none() && second.is_whole_in(&store));
}

#[test]
fn from_another_mount_of_the_same_file_system_blobs_are_not_copied() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, 2 * PIECE);
    let theirs = bench.containerd_has(&sample);
    let bound = bench.root.path().join("bound");
    fs::create_dir(&bound).unwrap();
    mount_bind(theirs.parent().unwrap(), &bound).expect("mounts (the tests run as root)");
    let mounted = Mounted(bound);
    assert_eq!(store.links_with(&mounted.0).unwrap(), Linked::Copied);
    let bound = mounted.0.join(theirs.file_name().unwrap());
    store.adopt(&sample.digest, sample.len(), &bound).unwrap();
    assert_eq!((links(&theirs), store.usage().charged), (1, 0));
    assert!(sample.is_whole_in(&store));
    // Through the right mount it is one file again.
    assert_eq!(store.relink(&sample.digest, &theirs).unwrap(), Linked::Linked);
    assert_eq!((links(&theirs), store.usage().charged), (2, 0));
}
