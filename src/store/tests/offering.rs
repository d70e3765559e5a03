//! What containerd has is offered where it is, and read by the first who asks.

use std::collections::HashMap;

use super::*;
use crate::store::{AdoptError, Offered, Reading, Why};

/// A content store of containerd's beside a store of ours.
struct Content<'a> {
    dir: PathBuf,
    store: &'a Store,
}

impl<'a> Content<'a> {
    fn of(bench: &Bench, store: &'a Store) -> Self {
        Self::at(bench.root.path().join("content"), store)
    }

    fn at(dir: PathBuf, store: &'a Store) -> Self {
        fs::create_dir_all(dir.join("sha256")).unwrap();
        Self { dir, store }
    }

    /// A new file, as containerd makes one.
    fn put(&self, sample: &Sample) -> PathBuf {
        let path = self.dir.join("sha256").join(sample.digest.hex());
        let ingest = self.dir.join("ingest");
        fs::write(&ingest, &sample.bytes).unwrap();
        fs::rename(ingest, &path).unwrap();
        path
    }

    fn offer(&self, samples: &[&Sample]) {
        let lens = samples.iter().map(|sample| (sample.digest.clone(), sample.len()));
        self.store.offer(&self.dir, lens.collect());
    }
}

fn read_all(mut reading: Reading) -> Result<Blob, AdoptError> {
    loop {
        if let Some(blob) = reading.step()? {
            return Ok(blob);
        }
    }
}

/// Whoever asks first has it read.
fn ask(store: &Store, sample: &Sample) -> Result<Blob, AdoptError> {
    read_all(store.read_offer(&sample.digest)?.expect("offered and not read yet"))
}

fn staged(bench: &Bench) -> usize {
    fs::read_dir(bench.settings.dir.join("staging")).unwrap().count()
}

#[test]
fn an_offered_blob_is_held_before_it_is_read_and_is_one_file_afterwards() {
    let bench = Bench::new();
    let store = bench.open();
    let content = Content::of(&bench, &store);
    let (small, large) = (Sample::new(1, 100), Sample::new(2, (18 << 20) + 5));
    let theirs = [content.put(&small), content.put(&large)];
    let mut changed = store.holdings_changed();
    content.offer(&[&small, &large]);
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    assert!(store.holds(&large.digest) && store.get(&large.digest).is_none());
    assert_eq!(store.offered(), Offered { blobs: 2, bytes: small.len() + large.len(), unread: 2 });
    assert_eq!(theirs.each_ref().map(|path| links(path)), [1, 1]);

    let mut reading = store.read_offer(&large.digest).unwrap().unwrap();
    assert!(reading.step().unwrap().is_none(), "the first slice is not all");
    let blob = read_all(reading).unwrap();
    assert_eq!(blob.chain(), &large.chain());
    assert!(changed.has_changed().unwrap() && large.is_whole_in(&store));
    assert!(store.read_offer(&large.digest).unwrap().is_none(), "nobody reads it again");
    assert_eq!((links(&theirs[1]), store.usage().charged, store.offered().unread), (2, 0, 1));
    let holdings: HashMap<Digest, u64> = store.holdings().into_iter().collect();
    assert_eq!(holdings, [&small, &large].map(|sample| (sample.digest.clone(), sample.len())).into());

    drop((blob, store));
    let store = bench.open();
    assert!(large.is_whole_in(&store), "a start reads nothing again");
    Content::of(&bench, &store).offer(&[&small, &large]);
    assert_eq!(store.unread(), [(small.digest.clone(), small.len())]);
}

#[test]
fn what_containerd_drops_unread_is_gone_and_what_was_read_stays_while_there_is_room() {
    let bench = Bench::new().keep_free(10 * PIECE);
    let store = bench.open();
    let content = Content::of(&bench, &store);
    let (unread, read) = (Sample::new(1, PIECE), Sample::new(2, PIECE));
    let theirs = [content.put(&unread), content.put(&read)];
    content.offer(&[&unread, &read]);
    drop(ask(&store, &read).unwrap());
    theirs.iter().for_each(|path| fs::remove_file(path).unwrap());
    store.withdraw(&unread.digest);
    content.offer(&[]);
    assert!(!store.holds(&unread.digest) && read.is_whole_in(&store));
    bench.lab.set_free(5 * PIECE);
    let swept = store.sweep(bench.lab.time());
    assert!(matches!(&swept.removed[..], [gone] if gone.why == Why::KeepFree && gone.freed == PIECE));
    assert!(store.holdings().is_empty());
}

#[test]
fn wrong_bytes_are_offered_no_more_until_the_file_is_another() {
    let bench = Bench::new();
    let store = bench.open();
    let content = Content::of(&bench, &store);
    let sample = Sample::new(1, 2 * PIECE);
    let theirs = content.put(&sample);
    flip_a_bit(&theirs, PIECE + 9);
    content.offer(&[&sample]);
    let refused = ask(&store, &sample).err().unwrap();
    assert!(matches!(refused, AdoptError::Foreign { .. }));
    let text = refused.to_string();
    assert!(text.contains(&sample.digest.to_string()) && text.contains("content rm"), "{text}");
    content.offer(&[&sample]);
    assert!(!store.holds(&sample.digest) && store.read_offer(&sample.digest).unwrap().is_none());
    assert_eq!((links(&theirs), staged(&bench)), (1, 0));

    content.put(&sample);
    content.offer(&[&sample]);
    drop(ask(&store, &sample).unwrap());
    assert!(sample.is_whole_in(&store));
}

#[test]
fn what_rots_after_it_was_read_is_not_offered_from_the_same_file() {
    let bench = Bench::new();
    let store = bench.open();
    let content = Content::of(&bench, &store);
    let sample = Sample::new(1, 2 * PIECE);
    let theirs = content.put(&sample);
    content.offer(&[&sample]);
    let blob = ask(&store, &sample).unwrap();
    flip_a_bit(&theirs, 3);
    assert!(blob.read(0).is_err());
    assert!(!store.holds(&sample.digest));
    content.offer(&[&sample]);
    assert!(!store.holds(&sample.digest));
}

#[test]
fn a_file_that_cannot_be_read_now_is_tried_again_with_the_next_offer() {
    let bench = Bench::new();
    let store = bench.open();
    let content = Content::of(&bench, &store);
    let sample = Sample::new(1, PIECE);
    content.offer(&[&sample]);
    assert!(store.read_offer(&sample.digest).err().unwrap().is_gone());
    assert!(!store.holds(&sample.digest));
    content.put(&sample);
    content.offer(&[&sample]);
    drop(ask(&store, &sample).unwrap());
}

#[test]
fn a_reading_that_is_given_up_leaves_nothing() {
    let bench = Bench::new();
    let store = bench.open();
    let content = Content::of(&bench, &store);
    let sample = Sample::new(1, 17 << 20);
    let theirs = content.put(&sample);
    content.offer(&[&sample]);
    let mut reading = store.read_offer(&sample.digest).unwrap().unwrap();
    assert!(reading.step().unwrap().is_none());
    drop(reading);
    assert_eq!((links(&theirs), staged(&bench), store.offered().unread), (1, 0, 1));
}

#[test]
fn a_second_copy_that_containerd_fetched_takes_the_place_of_ours() {
    let bench = Bench::new();
    let store = bench.open();
    let content = Content::of(&bench, &store);
    let sample = Sample::new(1, PIECE);
    drop(sample.put(&store));
    let theirs = content.put(&sample);
    assert_eq!(store.usage().charged, PIECE);
    content.offer(&[&sample]);
    assert_eq!((links(&theirs), store.usage().charged, store.offered().unread), (2, 0, 0));
}

#[test]
fn what_containerd_links_does_not_expire() {
    let bench = Bench::new();
    let store = bench.open();
    let content = Content::of(&bench, &store);
    let sample = Sample::new(1, PIECE);
    let theirs = content.put(&sample);
    content.offer(&[&sample]);
    drop(ask(&store, &sample).unwrap());
    assert!(store.sweep(bench.lab.later(Duration::from_hours(1000))).removed.is_empty());
    fs::remove_file(theirs).unwrap();
    assert_eq!(store.sweep(bench.lab.time()).removed.len(), 1);
}

#[test]
fn from_another_file_system_blobs_are_borrowed_and_go_with_containerds_file() {
    let bench = Bench::new();
    let store = bench.open();
    let mounted = Mounted::tmpfs(&bench.root.path().join("elsewhere"), 16 * PIECE);
    let content = Content::at(mounted.0.join("blobs"), &store);
    let samples = [1, 2, 3].map(|seed| Sample::new(seed, 2 * PIECE + 1));
    let theirs = samples.each_ref().map(|sample| content.put(sample));
    content.offer(&samples.each_ref());
    samples.iter().for_each(|sample| drop(ask(&store, sample).unwrap()));
    assert!(samples.iter().all(|sample| sample.is_whole_in(&store)));
    assert_eq!((links(&theirs[0]), store.usage().charged), (1, 0));
    let on_disk = fs::symlink_metadata(bench.blob_dir(&samples[0]).join("data")).unwrap();
    assert!(on_disk.is_symlink());
    drop(store);

    // While we are away one is dropped, and one fetched again.
    fs::remove_file(&theirs[0]).unwrap();
    fs::write(&theirs[1], [&samples[1].bytes[..], b"more"].concat()).unwrap();
    let store = bench.open();
    assert_eq!(store.list(), [(samples[2].digest.clone(), samples[2].len())]);
    assert!(samples[2].is_whole_in(&store) && !bench.blob_dir(&samples[1]).exists());

    fs::remove_file(&theirs[2]).unwrap();
    assert!(store.sweep(bench.lab.time()).removed.is_empty());
    assert!(store.list().is_empty() && !bench.blob_dir(&samples[2]).exists());
}

#[test]
fn a_borrowed_file_that_rots_is_containerds() {
    let bench = Bench::new();
    let store = bench.open();
    let mounted = Mounted::tmpfs(&bench.root.path().join("elsewhere"), 16 * PIECE);
    let content = Content::at(mounted.0.join("blobs"), &store);
    let sample = Sample::new(1, 2 * PIECE);
    let theirs = content.put(&sample);
    content.offer(&[&sample]);
    let blob = ask(&store, &sample).unwrap();
    flip_a_bit(&theirs, 3);
    assert!(blob.read(0).is_err());
    content.offer(&[&sample]);
    assert!(!store.holds(&sample.digest) && theirs.exists());
}
