//! What containerd's suite does not ask but containerd relies on.

use std::{collections::HashMap, fs, os::unix::fs::MetadataExt, sync::atomic::Ordering};

use flotilla::{
    oci::{Algorithm, Digest},
    wire::containerd::services::snapshots::v1::{Info, Kind},
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tonic::Code;

use super::{
    mounting::Mounted,
    plugin::{Plugin, rooted},
    tree::{apply, file},
};

const TARGET: &str = "containerd.io/snapshot.ref";

fn code<T>(answer: Result<T, tonic::Status>) -> Code {
    answer.err().expect("is refused").code()
}

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[tokio::test]
async fn mounts_are_those_of_containerds_overlay_snapshotter() {
    let plugin = Plugin::direct().await;
    let root = plugin.root().display().to_string();
    let bottom = plugin.prepare("1", "").await.unwrap();
    assert_eq!((bottom[0].r#type.as_str(), bottom[0].target.as_str()), ("bind", ""));
    assert_eq!(bottom[0].source, format!("{root}/snapshots/1/fs"));
    assert_eq!(bottom[0].options, ["rw", "rbind"]);
    plugin.commit("one", "1").await.unwrap();
    let above = plugin.prepare("2", "one").await.unwrap();
    let mut options = vec![
        format!("workdir={root}/snapshots/2/work"),
        format!("upperdir={root}/snapshots/2/fs"),
        format!("lowerdir={root}/snapshots/1/fs"),
    ];
    if std::path::Path::new("/sys/module/overlay/parameters/index").exists() {
        options.push("index=off".to_owned());
    }
    assert_eq!((above[0].r#type.as_str(), above[0].source.as_str()), ("overlay", "overlay"));
    assert_eq!(above[0].options, options);
    assert_eq!(plugin.mounts("2").await.unwrap(), above);
    assert_eq!(code(plugin.mounts("one").await), Code::FailedPrecondition);
    let mode = |path: &str| fs::metadata(plugin.root().join(path)).unwrap().mode() & 0o7777;
    assert_eq!([mode(""), mode("snapshots/2/fs"), mode("snapshots/2/work")], [0o700, 0o755, 0o711]);
}

#[tokio::test]
async fn usage_is_counted_now_or_at_the_commit() {
    let plugin = Plugin::direct().await;
    let mounts = plugin.prepare("active", "").await.unwrap();
    let (empty, inodes) = plugin.usage("active").await.unwrap();
    assert_eq!(inodes, 1);
    apply(Mounted::new(&mounts, &plugin.place()).path(), &[file("big", "x".repeat(1 << 20), 0o644)]);
    let counted = plugin.usage("active").await.unwrap();
    assert!(counted.0 >= empty + (1 << 20) && counted.1 == 2, "{counted:?}");
    plugin.commit("layer", "active").await.unwrap();
    fs::write(plugin.root().join("snapshots/1/fs/later"), "not counted").unwrap();
    assert_eq!(plugin.usage("layer").await.unwrap(), counted);
    plugin.view("view", "layer").await.unwrap();
    assert_eq!(plugin.usage("view").await.unwrap(), (0, 0));
    assert_eq!(code(plugin.usage("absent").await), Code::NotFound);
}

#[tokio::test]
async fn a_label_may_be_called_anything() {
    let plugin = Plugin::direct().await;
    plugin.prepare_with("key", "", labels(&[("keep", "me"), ("empty", "")])).await.unwrap();
    assert_eq!(plugin.stat("key").await.unwrap().labels, labels(&[("keep", "me")]), "none is empty");
    let odd = "example.com/a.b/c d";
    let info = Info { name: "key".into(), labels: labels(&[(odd, "1"), ("other", "2")]), ..Info::default() };
    let updated = plugin.update(info, &[&format!("labels.{odd}")]).await.unwrap();
    assert_eq!(updated.labels, labels(&[("keep", "me"), (odd, "1")]));
    let filter = format!("labels.\"{odd}\"==1");
    assert_eq!(plugin.list(&[&filter]).await.unwrap(), [updated]);
    let absent = Info { name: "absent".into(), ..Info::default() };
    assert_eq!(code(plugin.update(absent, &[]).await), Code::NotFound);
}

#[tokio::test]
async fn a_bad_filter_is_refused_and_an_empty_one_matches_all() {
    let plugin = Plugin::direct().await;
    plugin.prepare("key", "").await.unwrap();
    assert_eq!(plugin.list(&[""]).await.unwrap().len(), 1);
    for bad in ["name=", "name==", "==x", "name==a b", "labels.\"open", "name==x,"] {
        assert_eq!(code(plugin.list(&[bad]).await), Code::InvalidArgument, "{bad}");
    }
}

#[tokio::test]
async fn a_listing_comes_in_messages_of_a_hundred() {
    let plugin = Plugin::direct().await;
    for number in 0..205 {
        plugin.snapshots.view(&format!("key-{number:03}"), "", &HashMap::new()).unwrap();
    }
    let pages = plugin.pages(&[]).await.unwrap();
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 5]);
    let late = plugin.pages(&["name==key-204"]).await.unwrap();
    assert_eq!(late.iter().map(Vec::len).collect::<Vec<_>>(), [1], "empty pages are not sent");
}

#[tokio::test]
async fn a_commit_can_name_a_parent_only_where_there_is_none() {
    let plugin = Plugin::direct().await;
    for name in ["one", "two"] {
        plugin.prepare("active", "").await.unwrap();
        plugin.commit(name, "active").await.unwrap();
    }
    plugin.prepare("loose", "").await.unwrap();
    assert_eq!(code(plugin.commit_with("n", "loose", "absent", rooted(&[])).await), Code::NotFound);
    assert_eq!(code(plugin.commit_with("n", "loose", "loose", rooted(&[])).await), Code::InvalidArgument);
    plugin.commit_with("rebased", "loose", "one", rooted(&[])).await.unwrap();
    assert_eq!(plugin.stat("rebased").await.unwrap().parent, "one");
    assert_eq!(code(plugin.remove("one").await), Code::FailedPrecondition);

    plugin.prepare("tied", "one").await.unwrap();
    assert_eq!(code(plugin.commit_with("n", "tied", "two", rooted(&[])).await), Code::InvalidArgument);
    plugin.commit_with("tied-same", "tied", "one", rooted(&[])).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_the_code_that_containerd_expects() {
    let plugin = Plugin::direct().await;
    plugin.prepare("active", "").await.unwrap();
    plugin.view("view", "").await.unwrap();
    assert_eq!(code(plugin.prepare("key", "absent").await), Code::NotFound);
    assert_eq!(code(plugin.prepare("key", "active").await), Code::InvalidArgument);
    assert_eq!(code(plugin.prepare("", "").await), Code::InvalidArgument);
    assert_eq!(code(plugin.commit("layer", "view").await), Code::FailedPrecondition);
    assert_eq!(code(plugin.commit("layer", "absent").await), Code::NotFound);
    plugin.commit("layer", "active").await.unwrap();
    assert_eq!(code(plugin.commit("other", "layer").await), Code::FailedPrecondition);
    plugin.prepare("active", "").await.unwrap();
    assert_eq!(code(plugin.commit("layer", "active").await), Code::AlreadyExists);
    assert_eq!(code(plugin.remove("absent").await), Code::NotFound);
    assert_eq!(plugin.list(&[]).await.unwrap().len(), 3, "a refusal leaves nothing behind");
    assert!(fs::read_dir(plugin.root().join("staging")).unwrap().next().is_none());
    assert_eq!(fs::read_dir(plugin.root().join("snapshots")).unwrap().count(), 3);
}

#[tokio::test]
async fn a_commit_replaces_labels() {
    let plugin = Plugin::direct().await;
    plugin.prepare_with("active", "", labels(&[("old", "1")])).await.unwrap();
    plugin.commit_with("layer", "active", "", labels(&[("new", "2")])).await.unwrap();
    assert_eq!(plugin.stat("layer").await.unwrap().labels, labels(&[("new", "2")]));
}

#[tokio::test]
async fn a_removed_directory_leaves_at_once_and_is_deleted_in_cleanup() {
    let plugin = Plugin::direct().await;
    let mounts = plugin.prepare("active", "").await.unwrap();
    apply(Mounted::new(&mounts, &plugin.place()).path(), &[file("some", "thing", 0o644)]);
    plugin.remove("active").await.unwrap();
    assert!(!plugin.root().join("snapshots/1").exists());
    plugin.cleanup().await.unwrap();
    assert!(fs::read_dir(plugin.root().join("dead")).unwrap().next().is_none());
}

#[tokio::test]
async fn a_tree_of_ours_is_found_by_target_and_parent() {
    let plugin = Plugin::direct().await;
    let chain_id = Digest::of(Algorithm::Sha256, b"a layer");
    let make = |content: &str, parent: &str| {
        let staging = plugin.snapshots.stage().unwrap();
        fs::write(staging.path().join("file"), content).unwrap();
        plugin.snapshots.commit_tree(staging, &chain_id, parent, HashMap::new()).unwrap()
    };
    let bottom = make("at the bottom", "");
    let upper = make("above", &bottom.name);
    assert_ne!(bottom.name, upper.name, "one chain ID, two parents, two snapshots");
    let target = chain_id.to_string();
    assert_eq!(plugin.snapshots.find(&target, "").unwrap(), Some(bottom.clone()));
    assert_eq!(plugin.snapshots.find(&target, &bottom.name).unwrap(), Some(upper.clone()));
    assert_eq!(plugin.snapshots.find(&target, &upper.name).unwrap(), None);

    let filter = format!("labels.\"{TARGET}\"=={target},parent==\"{}\"", bottom.name);
    let listed = plugin.list(&[&filter]).await.unwrap();
    assert_eq!(listed.len(), 1, "containerd finds it as it looks for it after AlreadyExists");
    assert_eq!((listed[0].name.as_str(), listed[0].kind()), (upper.name.as_str(), Kind::Committed));
    assert!(plugin.usage(&upper.name).await.unwrap().0 > 0);

    let below = plugin.snapshots.below(&upper.name).unwrap();
    let contents: Vec<_> = below.iter().map(|fs| fs::read_to_string(fs.join("file")).unwrap()).collect();
    assert_eq!(contents, ["above", "at the bottom"]);
    assert!(plugin.snapshots.below("").unwrap().is_empty());
    let mounted = Mounted::new(&plugin.view("look", &upper.name).await.unwrap(), &plugin.place());
    assert_eq!(fs::read_to_string(mounted.path().join("file")).unwrap(), "above");
}

#[tokio::test]
async fn only_a_prepare_with_a_target_is_intercepted() {
    let plugin = Plugin::direct().await;
    let target = Digest::of(Algorithm::Sha256, b"present").to_string();
    plugin.recorder.present.lock().push(target.clone());
    let key = format!("k8s.io/7/extract-1-x {target}");
    let wanted = labels(&[(TARGET, &target)]);

    assert_eq!(code(plugin.prepare_with(&key, "", wanted.clone()).await), Code::AlreadyExists);
    assert_eq!(code(plugin.prepare(&key, "").await), Code::AlreadyExists, "the key alone tells it too");
    assert!(plugin.list(&[]).await.unwrap().is_empty(), "nothing is made");
    plugin.prepare("k8s.io/8/box", "").await.unwrap();
    plugin.view_with("k8s.io/9/view", "", wanted).await.unwrap();

    let asked = plugin.recorder.asked.lock().clone();
    assert_eq!(asked.len(), 2);
    assert_eq!((asked[0].namespace.as_str(), asked[0].target.as_deref()), ("k8s.io", Some(target.as_str())));

    plugin.commit("k8s.io/10/layer", "k8s.io/8/box").await.unwrap();
    plugin.remove("k8s.io/9/view").await.unwrap();
    assert_eq!(code(plugin.remove(&key).await), Code::NotFound);
    let heard = plugin.recorder.heard.lock().clone();
    assert_eq!(heard, ["committed k8s.io/8/box", "removed k8s.io/9/view", &format!("removed {key}")]);
}

/// More than the 200 streams that HTTP/2 servers grant by habit: a Remove must not queue behind them.
#[tokio::test]
async fn waiting_prepares_hold_nothing_up_and_leave_nothing_when_they_are_dropped() {
    const WAITING: usize = 300;
    let plugin = Plugin::direct().await;
    plugin.prepare("box", "").await.unwrap();
    plugin.recorder.slow.store(true, Ordering::Relaxed);
    let keys: Vec<_> = (0..WAITING).map(|number| format!("extract-{number}")).collect();
    let mut prepares: FuturesUnordered<_> =
        keys.iter().map(|key| plugin.prepare_with(key, "", labels(&[(TARGET, "wanted")]))).collect();
    while plugin.recorder.asked.lock().len() < WAITING {
        tokio::select! {
            answer = prepares.next() => panic!("a waiting Prepare answered {answer:?}"),
            () = plugin.recorder.waiting.notified() => {}
        }
    }
    plugin.stat("box").await.unwrap();
    plugin.commit("layer", "box").await.unwrap();
    plugin.remove("layer").await.unwrap();
    assert!(plugin.list(&[]).await.unwrap().is_empty());
    drop(prepares);
    plugin.prepare("after", "").await.unwrap();
    assert_eq!(plugin.list(&[]).await.unwrap().len(), 1);
}
