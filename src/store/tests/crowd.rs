//! Many threads do everything at once to the same few blobs: nobody gets wrong bytes, and nobody waits for ever.

use super::*;
use crate::store::{ArriveError, CommitError, ReadError};

/// What one thread does in its turn `turn` to `sample`, which containerd has at `theirs`.
fn act(store: &Store, sample: &Sample, theirs: &Path, turn: usize) {
    match turn % 6 {
        0 | 1 => match store.arrive(&sample.digest, sample.len()) {
            Ok(arriving) => finish(&arriving, sample),
            // Four of these blobs are a little more than the quota.
            Err(ArriveError::Proven { .. } | ArriveError::NoSpace { .. }) => {}
            Err(error) => panic!("{error}"),
        },
        2 => drop(store.adopt(&sample.digest, sample.len(), theirs).unwrap()),
        3 => drop(store.relink(&sample.digest, theirs)),
        4 => drop(store.remove(&sample.digest)),
        _ => drop(store.sweep(SystemTime::now())),
    }
    let Some(blob) = store.get(&sample.digest) else { return };
    for index in 0..sample.layout.count() {
        assert_eq!(blob.read(index).unwrap(), sample.piece(index));
    }
}

fn finish(arriving: &Arriving, sample: &Sample) {
    for index in 0..sample.layout.count() {
        // Another handle may abandon the arrival, or have committed a blob that is gone again.
        if sample.write(arriving, index).is_err() {
            return;
        }
        let read = arriving.read(index);
        assert!(matches!(&read, Ok(bytes) if bytes == sample.piece(index)) || is_absent(&read), "{read:?}");
    }
    if sample.digest.as_bytes()[0].is_multiple_of(2) {
        arriving.abandon();
    } else if let Err(error) = arriving.commit(&sample.chain()) {
        assert!(matches!(error, CommitError::Left { .. }), "{error}");
    }
}

fn is_absent<T>(read: &Result<T, ReadError>) -> bool {
    matches!(read, Err(ReadError::Absent { .. }))
}

#[test]
fn everything_at_once() {
    let bench = Bench::new().quota(4 * PIECE);
    let store = bench.open();
    let samples = [1, 2, 3, 4].map(|seed| Sample::new(seed, PIECE + 10));
    let theirs = samples.each_ref().map(|sample| bench.containerd_has(sample));
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (store, samples, theirs) = (&store, &samples, &theirs);
            scope.spawn(move || {
                for turn in 0..60 {
                    let which = (turn * 7 + thread) % samples.len();
                    act(store, &samples[which], &theirs[which], turn * 5 + thread);
                }
            });
        }
    });
    for (sample, path) in samples.iter().zip(&theirs) {
        store.adopt(&sample.digest, sample.len(), path).unwrap();
        assert!(sample.is_whole_in(&store));
        assert_eq!(fs::read(path).unwrap(), sample.bytes);
    }
    assert_eq!(store.usage().blobs, 4);
    assert_eq!(fs::read_dir(bench.settings.dir.join("staging")).unwrap().count(), 0);
    assert_eq!(store.0.index.lock().arriving.values().filter(|partial| partial.in_use()).count(), 0);
}
