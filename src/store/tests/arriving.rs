//! Pieces come in any order, survive a restart, and become a blob all at once.

use super::*;
use crate::store::{ArriveError, CommitError, ReadError};

#[test]
fn pieces_come_in_any_order_and_become_a_blob() {
    let bench = Bench::new();
    let store = bench.open();
    for len in [0, 1, PIECE, 2 * PIECE + 77] {
        let sample = Sample::new(1, len);
        let arriving = store.arrive(&sample.digest, len).unwrap();
        assert!(arriving.have().is_empty() && store.get(&sample.digest).is_none());
        for index in (0..sample.layout.count()).rev() {
            sample.write(&arriving, index).unwrap();
            assert_eq!(arriving.read(index).unwrap(), sample.piece(index));
        }
        assert!(arriving.have().is_full());
        let blob = arriving.commit(&sample.chain()).unwrap();
        assert_eq!((blob.len(), blob.chain()), (len, &sample.chain()));
        assert_eq!(blob.statement(0), blake3::hash(sample.piece(0)));
        assert_eq!(fs::read(blob.path()).unwrap(), sample.bytes);
        assert!(sample.is_whole_in(&store) && !bench.arriving_dir(&sample).exists());
    }
    drop(store);
    assert_eq!(bench.open().list().len(), 4);
}

#[test]
fn a_sha512_blob_survives_a_restart() {
    let bench = Bench::new();
    let mut sample = Sample::new(2, 2 * PIECE + 5);
    sample.digest = Digest::of(Algorithm::Sha512, &sample.bytes);
    sample.put(&bench.open());
    assert!(sample.is_whole_in(&bench.open()));
}

#[test]
fn who_asks_for_an_arriving_blob_joins_it() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, 3 * PIECE);
    let first = store.arrive(&sample.digest, sample.len()).unwrap();
    let second = store.arrive(&sample.digest, sample.len()).unwrap();
    sample.write(&first, 1).unwrap();
    assert!(second.have().contains(1));
    let other = store.arrive(&sample.digest, 5).err().unwrap();
    assert!(matches!(other, ArriveError::OtherLength { arriving, .. } if arriving == sample.len()));
    for index in [0, 2] {
        sample.write(&second, index).unwrap();
    }
    first.commit(&sample.chain()).unwrap();
    second.commit(&sample.chain()).unwrap();
    assert!(matches!(store.arrive(&sample.digest, sample.len()), Err(ArriveError::Proven { .. })));
}

#[test]
fn many_threads_write_the_same_pieces_and_the_first_counts() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(3, 8 * PIECE + 1);
    let arriving = store.arrive(&sample.digest, sample.len()).unwrap();
    std::thread::scope(|scope| {
        for shift in 0..4 {
            let (arriving, sample) = (&arriving, &sample);
            scope.spawn(move || {
                for index in (0..9).map(|index| (index + shift * 2) % 9) {
                    sample.write(arriving, index).unwrap();
                    assert_eq!(arriving.read(index).unwrap(), sample.piece(index));
                }
            });
        }
    });
    arriving.commit(&sample.chain()).unwrap();
    assert!(sample.is_whole_in(&store));
}

#[test]
fn what_is_no_piece_is_refused() {
    let bench = Bench::new();
    let sample = Sample::new(1, 2 * PIECE + 5);
    let arriving = bench.open().arrive(&sample.digest, sample.len()).unwrap();
    let statement = blake3::hash(b"");
    for (index, len) in [(0, 5), (2, 6), (3, 0), (u32::MAX, 5)] {
        let error = arriving.write(index, &vec![0; len], statement).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "piece {index} of {len} bytes");
        assert!(matches!(arriving.read(index), Err(ReadError::Absent { .. })));
    }
}

#[test]
fn a_commit_wants_every_piece_and_its_own_chain() {
    let bench = Bench::new();
    let store = bench.open();
    let (sample, other) = (Sample::new(1, 3 * PIECE), Sample::new(2, 3 * PIECE));
    let arriving = store.arrive(&sample.digest, sample.len()).unwrap();
    sample.write(&arriving, 1).unwrap();
    sample.write(&arriving, 2).unwrap();
    let incomplete = arriving.commit(&sample.chain());
    assert!(matches!(incomplete, Err(CommitError::Incomplete { missing: 1, .. })));
    sample.write(&arriving, 0).unwrap();
    assert!(matches!(arriving.commit(&other.chain()), Err(CommitError::OtherChain { .. })));
    assert!(store.get(&sample.digest).is_none());
    arriving.commit(&sample.chain()).unwrap();
    assert!(sample.is_whole_in(&store));
}

#[test]
fn a_convicted_piece_is_forgotten_also_after_a_restart() {
    let bench = Bench::new();
    let sample = Sample::new(1, 3 * PIECE);
    let store = bench.open();
    let arriving = store.arrive(&sample.digest, sample.len()).unwrap();
    let forged = vec![7; sample.piece(0).len()];
    arriving.write(0, &forged, blake3::hash(&forged)).unwrap();
    sample.write(&arriving, 1).unwrap();
    sample.write(&arriving, 2).unwrap();
    arriving.forget(0);
    assert_eq!(arriving.have().missing().collect::<Vec<_>>(), [0]);
    drop((arriving, store));
    let arriving = bench.open().arrive(&sample.digest, sample.len()).unwrap();
    assert_eq!(arriving.have().missing().collect::<Vec<_>>(), [0]);
    sample.write(&arriving, 0).unwrap();
    assert!(arriving.commit(&sample.chain()).is_ok());
}

#[test]
fn what_was_abandoned_is_gone_and_begins_anew() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, 3 * PIECE);
    let arriving = store.arrive(&sample.digest, sample.len()).unwrap();
    sample.write(&arriving, 0).unwrap();
    arriving.abandon();
    assert!(!bench.arriving_dir(&sample).exists());
    assert_eq!((store.usage().bytes, store.usage().charged), (0, 0));
    assert_eq!(sample.write(&arriving, 1).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(matches!(arriving.commit(&sample.chain()), Err(CommitError::Abandoned { .. })));
    assert!(store.arrive(&sample.digest, sample.len()).unwrap().have().is_empty());
    sample.put(&store);
    arriving.abandon();
    assert!(sample.is_whole_in(&store));
}

#[test]
fn an_adopted_blob_ends_its_arrival() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, 3 * PIECE);
    let arriving = store.arrive(&sample.digest, sample.len()).unwrap();
    sample.write(&arriving, 0).unwrap();
    store.adopt(&sample.digest, sample.len(), &bench.containerd_has(&sample)).unwrap();
    arriving.commit(&sample.chain()).unwrap();
    assert!(sample.is_whole_in(&store) && !bench.arriving_dir(&sample).exists());
    assert_eq!(store.usage().charged, 0);
}
