//! A crash at any instruction leaves a state that the next start understands.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use flotilla::{
    oci::{Algorithm, Digest},
    snapshot::{Cursor, Filter, Info, OpenError, SnapshotError, Snapshots},
};

fn chain_id(seed: &str) -> Digest {
    Digest::of(Algorithm::Sha256, seed.as_bytes())
}

fn layer(snapshots: &Snapshots, seed: &str, parent: &str) -> Info {
    let staging = snapshots.stage().unwrap();
    fs::write(staging.path().join(seed.replace('/', "-")), seed).unwrap();
    snapshots.commit_tree(staging, &chain_id(seed), parent, HashMap::new()).unwrap()
}

fn all(snapshots: &Snapshots) -> Vec<Info> {
    let (mut infos, mut after) = (Vec::new(), Some(Cursor::default()));
    while let Some(cursor) = after {
        let page = snapshots.list(&Filter::default(), cursor).unwrap();
        infos.extend(page.infos);
        after = page.next;
    }
    infos
}

fn entries(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Records and directories belong to each other, one to one, and nothing is half done.
fn expect_sound(root: &Path) -> Vec<Info> {
    let snapshots = Snapshots::open(root).unwrap();
    let infos = all(&snapshots);
    assert_eq!(entries(&root.join("snapshots")).len(), infos.len());
    assert!(entries(&root.join("staging")).is_empty());
    for info in &infos {
        snapshots.usage(&info.name).unwrap();
        for below in snapshots.below(&info.parent).unwrap() {
            assert!(below.is_dir());
        }
    }
    snapshots.cleanup().unwrap();
    assert!(entries(&root.join("dead")).is_empty());
    infos
}

#[test]
fn a_tree_that_was_being_built_is_swept() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(root.path()).unwrap();
    let staging = snapshots.stage().unwrap();
    fs::write(staging.path().join("half"), "of a la").unwrap();
    std::mem::forget(staging);
    drop(snapshots);
    assert_eq!(expect_sound(root.path()), []);
}

#[test]
fn a_tree_in_its_place_without_a_record_is_swept_and_its_id_not_used_again() {
    let root = tempfile::tempdir().unwrap();
    drop(Snapshots::open(root.path()).unwrap());
    fs::create_dir_all(root.path().join("snapshots/41/fs/usr")).unwrap();
    let snapshots = Snapshots::open(root.path()).unwrap();
    assert!(!root.path().join("snapshots/41").exists());
    let next = layer(&snapshots, "a", "");
    assert_eq!(next.name, format!("42/{}", chain_id("a")));
}

#[test]
fn a_removed_record_takes_its_directory_along_at_the_next_start() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(root.path()).unwrap();
    let (gone, kept) = (layer(&snapshots, "gone", ""), layer(&snapshots, "kept", ""));
    drop(snapshots);
    let records = rusqlite::Connection::open(root.path().join("metadata.db")).unwrap();
    assert_eq!(records.execute("DELETE FROM snapshots WHERE name = ?1", [&gone.name]).unwrap(), 1);
    drop(records);
    assert_eq!(expect_sound(root.path()), [kept]);
}

#[test]
fn a_record_without_its_directory_is_kept_apart_and_can_be_removed() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(root.path()).unwrap();
    let lost = layer(&snapshots, "lost", "");
    let above = layer(&snapshots, "above", &lost.name);
    let other = layer(&snapshots, "other", "");
    let lost_fs = snapshots.below(&lost.name).unwrap().remove(0);
    drop(snapshots);
    fs::remove_dir_all(lost_fs).unwrap();

    let snapshots = Snapshots::open(root.path()).unwrap();
    assert_eq!(all(&snapshots), [lost.clone(), above.clone(), other.clone()]);
    assert_eq!(snapshots.find(&chain_id("lost").to_string(), "").unwrap(), None, "is not reused");
    assert_eq!(snapshots.find(&chain_id("other").to_string(), "").unwrap(), Some(other.clone()));
    for parent in [&lost.name, &above.name] {
        let refused = snapshots.prepare("key", parent, &HashMap::new()).unwrap_err();
        assert!(matches!(refused, SnapshotError::DirectoryLost { .. }), "{refused}");
    }
    snapshots.prepare("key", &other.name, &HashMap::new()).unwrap();
    snapshots.remove(&above.name).unwrap();
    snapshots.remove(&lost.name).unwrap();
    let again = layer(&snapshots, "lost", "");
    assert_eq!(snapshots.find(&chain_id("lost").to_string(), "").unwrap(), Some(again));
}

#[test]
fn ids_are_not_used_again_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(root.path()).unwrap();
    let first = layer(&snapshots, "a", "");
    snapshots.remove(&first.name).unwrap();
    snapshots.cleanup().unwrap();
    drop(snapshots);
    let snapshots = Snapshots::open(root.path()).unwrap();
    assert_ne!(layer(&snapshots, "a", "").name, first.name);
}

#[test]
fn threads_that_get_in_each_others_way_leave_a_sound_state() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(root.path()).unwrap();
    let shared = layer(&snapshots, "shared", "");
    let work = |thread: usize| {
        for turn in 0..20 {
            let name = format!("{thread}-{turn}");
            let made = layer(&snapshots, &name, &shared.name);
            // Half of the threads fight for the same keys: whoever comes second is refused and tidies up.
            let key = if thread.is_multiple_of(2) { "contested".to_owned() } else { name.clone() };
            let _lost_the_race = snapshots.prepare(&key, &made.name, &HashMap::new());
            let _lost_the_race = snapshots.commit(&format!("c-{name}"), &key, None, &HashMap::new());
            let _built_upon = snapshots.remove(&made.name);
            snapshots.cleanup().unwrap();
        }
    };
    std::thread::scope(|scope| (0..6).for_each(|thread| _ = scope.spawn(move || work(thread))));
    let before = all(&snapshots);
    assert!(before.len() > 60, "the odd threads alone leave that many");
    drop(snapshots);
    assert_eq!(expect_sound(root.path()), before);
}

#[test]
fn two_daemons_cannot_have_one_root() {
    let root = tempfile::tempdir().unwrap();
    let first = Snapshots::open(root.path()).unwrap();
    let refused = Snapshots::open(root.path()).unwrap_err();
    assert!(matches!(&refused, OpenError::InUse { path } if path == root.path()), "{refused}");
    drop(first);
    Snapshots::open(root.path()).unwrap();
}

#[test]
fn records_of_a_newer_flotilla_are_refused_and_left_alone() {
    let root = tempfile::tempdir().unwrap();
    drop(Snapshots::open(root.path()).unwrap());
    let records = rusqlite::Connection::open(root.path().join("metadata.db")).unwrap();
    records.pragma_update(None, "user_version", 2).unwrap();
    drop(records);
    let refused = Snapshots::open(root.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Newer { found: 2, known: 1, .. }), "{refused}");
}

const ROOT_VARIABLE: &str = "FLOTILLA_TEST_CRASH_ROOT";

/// Works until it is killed, and says after each call what has been promised.
#[test]
#[ignore = "is started, and killed, by the test below"]
fn works_until_it_is_killed() {
    let root = std::env::var_os(ROOT_VARIABLE).expect("started by the test below");
    let snapshots = Snapshots::open(Path::new(&root)).unwrap();
    let mut out = std::io::stderr();
    for turn in 0.. {
        let made = layer(&snapshots, &format!("{turn}"), "");
        writeln!(out, "made {}", made.name).unwrap();
        let key = format!("active-{turn}-{}", made.name);
        snapshots.prepare(&key, &made.name, &HashMap::new()).unwrap();
        writeln!(out, "made {key}").unwrap();
        if turn % 2 == 0 {
            writeln!(out, "going {key}").unwrap();
            snapshots.remove(&key).unwrap();
            writeln!(out, "gone {key}").unwrap();
        } else {
            let name = format!("layer-{turn}-{}", made.name);
            writeln!(out, "going {key}").unwrap();
            snapshots.commit(&name, &key, None, &HashMap::new()).unwrap();
            writeln!(out, "made {name}").unwrap();
        }
    }
}

#[test]
fn whatever_was_promised_before_a_kill_is_there_after_it() {
    let root = tempfile::tempdir().unwrap();
    let mut promised: BTreeSet<String> = BTreeSet::new();
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "snapshots::crash::works_until_it_is_killed", "--ignored", "--nocapture"])
            .env(ROOT_VARIABLE, root.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut take = |line: &str| match line.trim_end().split_once(' ') {
            Some(("made", name)) => _ = promised.insert(name.to_owned()),
            Some(("going" | "gone", name)) => _ = promised.remove(name),
            odd => panic!("the child said {odd:?}: {line}"),
        };
        let mut line = String::new();
        for _ in 0..10 + round {
            line.clear();
            said.read_line(&mut line).unwrap();
            take(&line);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still said before the signal came counts as well; a torn last line does not.
        for line in said.lines().map_while(Result::ok) {
            take(&line);
        }
        let here: BTreeSet<String> = expect_sound(root.path()).into_iter().map(|info| info.name).collect();
        let missing: Vec<_> = promised.difference(&here).collect();
        assert!(missing.is_empty(), "lost in round {round}: {missing:?}");
    }
}
