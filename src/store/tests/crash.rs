//! A daemon that is killed loses nothing that was committed, and nothing that is left of it is believed unseen.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use super::*;

/// The pieces that are here after a restart.
fn resumed(bench: &Bench, sample: &Sample) -> Vec<u32> {
    let arriving = bench.open().arrive(&sample.digest, sample.len()).unwrap();
    arriving.have().iter().collect()
}

/// Pieces 0, 1 and 2 of four have arrived when the daemon dies: nothing is done when a store is dropped.
fn killed_mid_pull(bench: &Bench) -> Sample {
    let sample = Sample::new(1, 3 * PIECE + 9);
    let arriving = bench.open().arrive(&sample.digest, sample.len()).unwrap();
    for index in [2, 0, 1] {
        sample.write(&arriving, index).unwrap();
    }
    sample
}

#[test]
fn a_pull_resumes_with_what_it_had() {
    let bench = Bench::new();
    let sample = killed_mid_pull(&bench);
    assert_eq!(resumed(&bench, &sample), [0, 1, 2]);
    let store = bench.open();
    let arriving = store.arrive(&sample.digest, sample.len()).unwrap();
    sample.write(&arriving, 3).unwrap();
    arriving.commit(&sample.chain()).unwrap();
    assert!(sample.is_whole_in(&store));
}

#[test]
fn a_torn_or_invented_record_costs_nothing_else() {
    let bench = Bench::new();
    let sample = killed_mid_pull(&bench);
    let journal = bench.arriving_dir(&sample).join("pieces");
    append(&journal, &[0; 36]);
    append(&journal, &[0xff; 36]);
    append(&journal, &[&4u32.to_le_bytes()[..], &[9; 32]].concat());
    append(&journal, &[1; 20]);
    assert_eq!(resumed(&bench, &sample), [0, 1, 2]);
    // The journal was written anew: its tail does not shift what is written next.
    let arriving = bench.open().arrive(&sample.digest, sample.len()).unwrap();
    sample.write(&arriving, 3).unwrap();
    drop(arriving);
    assert_eq!(resumed(&bench, &sample), [0, 1, 2, 3]);
}

#[test]
fn a_piece_whose_bytes_did_not_reach_the_disk_is_forgotten() {
    let bench = Bench::new();
    let sample = killed_mid_pull(&bench);
    flip_a_bit(&bench.arriving_dir(&sample).join("data"), PIECE + 5);
    assert_eq!(resumed(&bench, &sample), [0, 2]);
}

#[test]
fn a_journal_that_is_none_is_begun_again() {
    let bench = Bench::new();
    let sample = killed_mid_pull(&bench);
    fs::write(bench.arriving_dir(&sample).join("pieces"), b"flpieces and then not").unwrap();
    assert!(resumed(&bench, &sample).is_empty());
    let other_len = bench.open().arrive(&sample.digest, 5).unwrap();
    assert!(other_len.have().is_empty());
    assert_eq!(fs::metadata(bench.arriving_dir(&sample).join("data")).unwrap().len(), 5);
}

#[test]
fn a_blob_without_its_files_is_no_blob() {
    let bench = Bench::new();
    let samples =
        [Sample::new(1, PIECE), Sample::new(2, PIECE), Sample::new(3, PIECE), Sample::new(4, PIECE)];
    let store = bench.open();
    samples.iter().for_each(|sample| drop(sample.put(&store)));
    drop(store);
    fs::remove_file(bench.blob_dir(&samples[0]).join("data")).unwrap();
    fs::remove_file(bench.blob_dir(&samples[1]).join("chain")).unwrap();
    flip_a_bit(&bench.blob_dir(&samples[2]).join("chain"), 20);
    append(&bench.blob_dir(&samples[3]).join("data"), b"longer");
    let store = bench.open();
    for sample in &samples {
        assert!(store.get(&sample.digest).is_none());
        assert!(!bench.blob_dir(sample).exists());
        sample.put(&store);
        assert!(sample.is_whole_in(&store));
    }
}

const CHILD_DIR: &str = "FLOTILLA_TEST_STORE_DIR";

/// Not a test by itself: what `a_daemon_that_is_killed…` kills.
#[test]
#[ignore = "run as a child process by another test"]
fn child_commits_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let settings =
        Settings { dir: dir.into(), quota: Some(PLENTY), keep_free: Some(0), ..Settings::default() };
    let store = Store::open(settings).unwrap();
    for seed in 0..=u8::MAX {
        let sample = Sample::new(seed, PIECE + u64::from(seed));
        sample.put(&store);
        writeln!(io::stdout(), "committed {}", sample.digest).unwrap();
        if seed % 3 == 2 {
            assert!(store.remove(&sample.digest));
        }
    }
}

#[test]
fn a_daemon_that_is_killed_leaves_blobs_whole_or_arriving() {
    let bench = Bench::new();
    for blobs_before_death in [1, 4, 9] {
        fs::remove_dir_all(&bench.settings.dir).ok();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::crash::child_commits_until_it_is_killed"])
            .args(["--ignored", "--nocapture"])
            .env(CHILD_DIR, &bench.settings.dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        // libtest may have begun the line.
        let said = lines.filter_map(|line| Some(line.split_once("committed ")?.1.to_owned()));
        let committed: Vec<Digest> =
            said.take(blobs_before_death).map(|text| text.parse().unwrap()).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        let store = bench.open();
        for (seed, digest) in (0u8..).zip(&committed) {
            let sample = Sample::new(seed, PIECE + u64::from(seed));
            assert_eq!(&sample.digest, digest);
            // Each third is removed again, and the last of those may have been alive.
            assert!(seed % 3 == 2 || sample.is_whole_in(&store), "blob {seed} of {blobs_before_death}");
        }
        for (digest, _) in store.list() {
            let blob = store.get(&digest).unwrap();
            (0..blob.layout().count()).for_each(|index| drop(blob.read(index).unwrap()));
        }
        assert_eq!(fs::read_dir(bench.settings.dir.join("staging")).unwrap().count(), 0);
    }
}
