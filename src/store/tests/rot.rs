//! A rotten piece never leaves: the blob does, and comes again.

use super::*;
use crate::store::{AdoptError, ReadError, RelinkError};

#[test]
fn a_rotten_blob_leaves_the_store_and_is_pulled_again() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, 2 * PIECE + 3);
    let blob = sample.put(&store);
    flip_a_bit(blob.path(), PIECE + 100);
    assert_eq!(blob.read(0).unwrap(), sample.piece(0));
    assert!(matches!(blob.read(1), Err(ReadError::Rotten { index: 1, .. })));
    assert!(store.get(&sample.digest).is_none() && !bench.blob_dir(&sample).exists());
    sample.put(&store);
    // The handle of the rotten file does not convict the new one.
    assert!(matches!(blob.read(1), Err(ReadError::Rotten { .. })));
    assert!(sample.is_whole_in(&store));
}

#[test]
fn a_file_that_was_cut_is_rotten() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, 2 * PIECE + 3);
    let blob = sample.put(&store);
    fs::OpenOptions::new().write(true).open(blob.path()).unwrap().set_len(PIECE).unwrap();
    assert!(matches!(blob.read(2), Err(ReadError::Rotten { .. })));
    assert!(store.get(&sample.digest).is_none());
}

#[test]
fn containerds_rotten_file_is_left_alone_and_not_linked_again() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, 2 * PIECE);
    let theirs = bench.containerd_has(&sample);
    let blob = store.adopt(&sample.digest, sample.len(), &theirs).unwrap();
    flip_a_bit(&theirs, 7);
    let rotten = fs::read(&theirs).unwrap();
    assert!(matches!(blob.read(0), Err(ReadError::Rotten { .. })));
    assert!(store.get(&sample.digest).is_none());
    assert_eq!((fs::read(&theirs).unwrap(), links(&theirs)), (rotten, 1));

    sample.put(&store);
    assert!(matches!(store.relink(&sample.digest, &theirs), Err(RelinkError::Distrusted { .. })));
    assert!(sample.is_whole_in(&store));
    store.remove(&sample.digest);
    let adopted = store.adopt(&sample.digest, sample.len(), &theirs);
    assert!(matches!(adopted, Err(AdoptError::Foreign { .. })));

    // The operator mends containerd's copy: a new file under the old name.
    fs::remove_file(&theirs).unwrap();
    sample.put(&store);
    let theirs = bench.containerd_has(&sample);
    store.relink(&sample.digest, &theirs).unwrap();
    assert_eq!(links(&theirs), 2);
}

#[test]
fn a_piece_that_rots_while_its_blob_arrives_is_forgotten() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, 3 * PIECE);
    let arriving = store.arrive(&sample.digest, sample.len()).unwrap();
    for index in [0, 1, 2] {
        sample.write(&arriving, index).unwrap();
    }
    flip_a_bit(&bench.arriving_dir(&sample).join("data"), 3);
    assert!(matches!(arriving.read(0), Err(ReadError::Rotten { index: 0, .. })));
    assert_eq!((arriving.have().contains(0), arriving.statement(0)), (false, None));
    sample.write(&arriving, 0).unwrap();
    let blob = arriving.commit(&sample.chain()).unwrap();
    flip_a_bit(blob.path(), 3);
    assert!(matches!(arriving.read(0), Err(ReadError::Rotten { .. })));
    assert!(store.get(&sample.digest).is_none());
}

#[test]
fn of_a_run_the_piece_that_is_bad_is_named() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, 4 * PIECE + 9);
    let blob = sample.put(&store);
    let run = |start: u32, end: u32| {
        (start..end).flat_map(|index| sample.piece(index)).copied().collect::<Vec<u8>>()
    };
    assert_eq!(blob.read_run(1..5).unwrap(), run(1, 5));
    for none in [2..2, 3..6, 5..6, u32::MAX..u32::MAX] {
        assert!(matches!(blob.read_run(none), Err(ReadError::Absent { .. })));
    }
    flip_a_bit(blob.path(), 2 * PIECE + 3);
    assert_eq!(blob.read_run(0..2).unwrap(), run(0, 2));
    assert!(matches!(blob.read_run(0..5), Err(ReadError::Rotten { index: 2, .. })));
    assert!(store.get(&sample.digest).is_none());
    let blob = sample.put(&store);
    fs::OpenOptions::new().write(true).open(blob.path()).unwrap().set_len(3 * PIECE + 1).unwrap();
    assert!(matches!(blob.read_run(1..5), Err(ReadError::Rotten { index: 3, .. })));
}
