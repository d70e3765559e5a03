//! The store stays within quota, `keep_free` and `expire_after`, and promises no room that is not there.

use super::*;
use crate::store::{ArriveError, CommitError, Swept, Why};

const HOUR: Duration = Duration::from_hours(1);

fn gone(swept: &Swept) -> Vec<(&Digest, Why, u64)> {
    swept.removed.iter().map(|removed| (&removed.digest, removed.why, removed.freed)).collect()
}

/// Three blobs of 1 MiB, put one after the other.
fn three(store: &Store) -> [Sample; 3] {
    let samples = [1, 2, 3].map(|seed| Sample::new(seed, PIECE));
    samples.iter().for_each(|sample| drop(sample.put(store)));
    samples
}

#[test]
fn over_quota_the_least_recently_used_goes_and_what_containerd_links_does_not_count() {
    let mut bench = Bench::new();
    let store = bench.open();
    let samples = three(&store);
    let theirs = bench.containerd_has(&samples[1]);
    store.relink(&samples[1].digest, &theirs).unwrap();
    drop(store);
    bench = bench.quota(PIECE);
    let store = bench.open();
    bench.lab.later(HOUR);
    assert!(samples[0].is_whole_in(&store));
    assert_eq!(
        store.usage(),
        super::super::Usage { blobs: 3, bytes: 3 * PIECE, charged: 2 * PIECE, quota: PIECE }
    );
    let swept = store.sweep(bench.lab.time());
    assert_eq!(gone(&swept), [(&samples[2].digest, Why::Quota, PIECE)]);
    assert!(store.sweep(bench.lab.time()).removed.is_empty());
    // Containerd drops its link: the blob counts, and the one used longest ago goes.
    fs::remove_file(theirs).unwrap();
    assert!(samples[0].is_whole_in(&store));
    let swept = store.sweep(bench.lab.time());
    assert_eq!(gone(&swept), [(&samples[1].digest, Why::Quota, PIECE)]);
}

#[test]
fn below_keep_free_what_containerd_dropped_goes_in_one_sweep() {
    let bench = Bench::new().keep_free(10 * PIECE);
    let store = bench.open();
    let samples = three(&store);
    let theirs = samples.each_ref().map(|sample| bench.containerd_has(sample));
    for (sample, path) in samples.iter().zip(&theirs) {
        store.relink(&sample.digest, path).unwrap();
    }
    bench.lab.set_free(5 * PIECE);
    assert!(store.sweep(bench.lab.time()).removed.is_empty(), "a link that frees nothing stays");
    fs::remove_file(&theirs[0]).unwrap();
    fs::remove_file(&theirs[2]).unwrap();
    bench.lab.set_free(10 * PIECE);
    assert!(store.sweep(bench.lab.time()).removed.is_empty(), "there is room");
    bench.lab.set_free(5 * PIECE);
    let swept = store.sweep(bench.lab.time());
    let expected = [(&samples[0].digest, Why::KeepFree, PIECE), (&samples[2].digest, Why::KeepFree, PIECE)];
    assert_eq!(gone(&swept), expected);
    assert!(samples[1].is_whole_in(&store));
}

#[test]
fn removing_an_image_on_a_full_disk_frees_its_bytes() {
    let bench = Bench::new();
    let mounted = Mounted::tmpfs(&bench.root.path().join("small"), 16 * PIECE);
    let settings =
        Settings { dir: mounted.0.join("store"), keep_free: Some(8 * PIECE), ..bench.settings.clone() };
    let store = Store::open(settings).unwrap();
    let sample = Sample::new(1, 6 * PIECE);
    let theirs = mounted.0.join("theirs");
    fs::write(&theirs, &sample.bytes).unwrap();
    drop(store.adopt(&sample.digest, sample.len(), &theirs).unwrap());
    fs::write(mounted.0.join("others"), vec![1; 6 * usize::try_from(PIECE).unwrap()]).unwrap();
    let before = Machine.space(&mounted.0).unwrap().free;
    fs::remove_file(&theirs).unwrap();
    let swept = store.sweep(SystemTime::now());
    assert_eq!(gone(&swept), [(&sample.digest, Why::KeepFree, 6 * PIECE)]);
    assert!(Machine.space(&mounted.0).unwrap().free >= before + 6 * PIECE);
}

#[test]
fn what_somebody_reads_stays_until_he_is_done() {
    let bench = Bench::new().quota(0);
    let mut settings = bench.settings.clone();
    settings.quota = Some(PLENTY);
    let sample = Sample::new(1, PIECE);
    drop(sample.put(&Store::open(settings).unwrap()));
    let store = bench.open();
    let blob = store.get(&sample.digest).unwrap();
    assert!(store.sweep(bench.lab.time()).removed.is_empty());
    drop(blob);
    assert_eq!(store.sweep(bench.lab.time()).removed.len(), 1);
    assert_eq!(store.usage().bytes, 0);
}

#[test]
fn what_nobody_used_expires_also_across_restarts() {
    let bench = Bench::new();
    let store = bench.open();
    let samples = three(&store);
    bench.lab.later(100 * HOUR);
    assert!(samples[1].is_whole_in(&store));
    drop(store);
    let store = bench.open();
    assert!(store.sweep(bench.lab.later(60 * HOUR)).removed.is_empty());
    let swept = store.sweep(bench.lab.later(20 * HOUR));
    let mut expired = gone(&swept);
    expired.sort_by_key(|(digest, ..)| *digest);
    let mut expected =
        vec![(&samples[0].digest, Why::Expired, PIECE), (&samples[2].digest, Why::Expired, PIECE)];
    expected.sort_by_key(|(digest, ..)| *digest);
    assert_eq!(expired, expected);
    assert!(samples[1].is_whole_in(&store));
}

#[test]
fn an_arrival_that_nobody_waits_for_expires_and_an_open_one_does_not() {
    let bench = Bench::new();
    let store = bench.open();
    let sample = Sample::new(1, 3 * PIECE);
    let arriving = store.arrive(&sample.digest, sample.len()).unwrap();
    sample.write(&arriving, 0).unwrap();
    let later = bench.lab.later(200 * HOUR);
    assert!(store.sweep(later).removed.is_empty());
    assert_eq!(store.usage().charged, 3 * PIECE);
    drop(arriving);
    assert_eq!(store.usage().charged, PIECE);
    let swept = store.sweep(later);
    assert!(matches!(&swept.removed[..], [removed] if removed.partial && removed.freed == PIECE));
    assert!(!bench.arriving_dir(&sample).exists());
}

#[test]
fn an_arrival_makes_room_in_the_quota_or_is_refused_in_vain_of_nothing() {
    let bench = Bench::new().quota(3 * PIECE);
    let store = bench.open();
    let samples = three(&store);
    let large = Sample::new(9, 4 * PIECE);
    let refused = store.arrive(&large.digest, large.len()).err().unwrap();
    assert!(
        matches!(refused, ArriveError::NoSpace { needed, available } if (needed, available) == (4 * PIECE, 3 * PIECE))
    );
    assert_eq!(store.usage().blobs, 3);
    let next = Sample::new(4, 2 * PIECE);
    let arriving = store.arrive(&next.digest, next.len()).unwrap();
    let left: Vec<_> = store.list().into_iter().map(|(digest, _)| digest).collect();
    assert_eq!(left, [samples[2].digest.clone()]);
    // What is arriving cannot be let go for another.
    let other = Sample::new(5, 2 * PIECE);
    assert!(matches!(store.arrive(&other.digest, other.len()), Err(ArriveError::NoSpace { .. })));
    drop(arriving);
    assert!(store.arrive(&other.digest, other.len()).is_ok());
}

#[test]
fn an_arrival_reserves_what_it_and_containerds_copy_will_take() {
    let bench = Bench::new();
    let store = bench.open();
    let (first, second) = (Sample::new(1, 4 * PIECE), Sample::new(2, 4 * PIECE));
    bench.lab.set_free((64 << 20) + 15 * PIECE);
    let arriving = store.arrive(&first.digest, first.len()).unwrap();
    let refused = store.arrive(&second.digest, second.len()).err().unwrap();
    assert!(
        matches!(refused, ArriveError::NoSpace { needed, available } if (needed, available) == (8 * PIECE, 7 * PIECE))
    );
    first.write(&arriving, 0).unwrap();
    let second = store.arrive(&second.digest, second.len()).unwrap();
    assert_eq!(store.usage().charged, 8 * PIECE);
    drop((arriving, second));
    let resumed = store.arrive(&first.digest, first.len()).unwrap();
    assert!(resumed.have().contains(0));
}

#[test]
fn a_length_beyond_reason_is_refused() {
    let bench = Bench::new();
    let digest = Sample::new(1, 1).digest;
    for len in [(1 << 40) + 1, u64::MAX] {
        assert!(matches!(bench.open().arrive(&digest, len), Err(ArriveError::TooLong { .. })));
    }
}

#[test]
fn a_full_disk_ends_an_arrival_cleanly_and_its_bytes_come_back() {
    let bench = Bench::new();
    let mounted = Mounted::tmpfs(&bench.root.path().join("small"), 12 * PIECE);
    let settings = Settings { dir: mounted.0.join("store"), ..bench.settings.clone() };
    let store = Store::open(settings).unwrap();
    let sample = Sample::new(1, 5 * PIECE);
    let arriving = store.arrive(&sample.digest, sample.len()).unwrap();
    sample.write(&arriving, 0).unwrap();
    // Somebody else takes what was reserved.
    let filled = fs::write(mounted.0.join("others"), vec![1; 12 << 18]).unwrap_err();
    assert_eq!(filled.kind(), io::ErrorKind::StorageFull);
    assert_eq!(sample.write(&arriving, 1).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(arriving.read(0).unwrap(), sample.piece(0));
    fs::remove_file(mounted.0.join("others")).unwrap();
    (1..5).for_each(|index| sample.write(&arriving, index).unwrap());
    fs::write(mounted.0.join("others"), vec![1; 12 << 18]).unwrap_err();
    let refused = arriving.commit(&sample.chain()).err().unwrap();
    let CommitError::Io { source, .. } = refused else { panic!("{refused}") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert!(store.get(&sample.digest).is_none());
    fs::remove_file(mounted.0.join("others")).unwrap();
    arriving.commit(&sample.chain()).unwrap();
    assert!(sample.is_whole_in(&store));
}
