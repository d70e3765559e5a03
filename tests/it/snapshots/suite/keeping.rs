//! Scenarios about records: what is there, what it is called, what may be done with it.

use std::{collections::HashMap, time::SystemTime};

use flotilla::wire::containerd::services::snapshots::v1::{Info, Kind};
use tonic::Code;

use crate::snapshots::{
    mounting::Mounted,
    plugin::{GC_ROOT, Plugin, rooted},
    tree::{Change, apply, dir, file, look},
};

pub(super) async fn a_layer_is_written_committed_and_built_upon(plugin: &Plugin) {
    let first = [file("foo", "foo\n", 0o777), dir("a", 0o755), dir("a/b", 0o755), dir("a/b/c", 0o755)];
    let second = [file("bar", "bar\n", 0o777), file("foo", "bar\n", 0o777), Change::Remove("a/b")];
    let plain = plugin.place();

    let mounts = plugin.prepare("preparing", "").await.unwrap();
    apply(Mounted::new(&mounts, &plugin.place()).path(), &first);
    plugin.commit("committed", "preparing").await.unwrap();
    let one = plugin.stat("committed").await.unwrap();
    assert_eq!((one.parent.as_str(), one.kind()), ("", Kind::Committed));
    assert_eq!(plugin.stat("preparing").await.unwrap_err().code(), Code::NotFound);

    let mounts = plugin.prepare("next", "committed").await.unwrap();
    apply(&plain, &first);
    {
        let mounted = Mounted::new(&mounts, &plugin.place());
        assert_eq!(look(mounted.path()), look(&plain));
        apply(mounted.path(), &second);
    }
    let next = plugin.stat("next").await.unwrap();
    assert_eq!((next.parent.as_str(), next.kind()), ("committed", Kind::Active));
    plugin.commit("committed-next", "next").await.unwrap();
    let two = plugin.stat("committed-next").await.unwrap();
    assert_eq!((two.parent.as_str(), two.kind()), ("committed", Kind::Committed));
    assert_eq!(plugin.stat("next").await.unwrap_err().code(), Code::NotFound);

    let listed = plugin.list(&[]).await.unwrap();
    assert!(listed.contains(&one) && listed.contains(&two), "{listed:?}");

    let mounts = plugin.view("look", "committed-next").await.unwrap();
    apply(&plain, &second);
    assert_eq!(look(Mounted::new(&mounts, &plugin.place()).path()), look(&plain));
    plugin.remove("look").await.unwrap();

    let refused = plugin.remove("committed").await.unwrap_err();
    assert!(refused.message().contains("remove"), "{refused}");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    plugin.remove("committed-next").await.unwrap();
    plugin.remove("committed").await.unwrap();
}

pub(super) async fn an_active_snapshot_says_so(plugin: &Plugin) {
    let mounts = plugin.prepare("preparing", "").await.unwrap();
    let mounted = Mounted::new(&mounts, &plugin.place());
    apply(mounted.path(), &[file("foo", "foo\n", 0o777)]);
    let info = plugin.stat("preparing").await.unwrap();
    assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind()), ("preparing", "", Kind::Active));
}

pub(super) async fn a_committed_snapshot_says_so(plugin: &Plugin) {
    let mounts = plugin.prepare("preparing", "").await.unwrap();
    let mounted = Mounted::new(&mounts, &plugin.place());
    apply(mounted.path(), &[file("foo", "foo\n", 0o777)]);
    plugin.commit("committed", "preparing").await.unwrap();
    let info = plugin.stat("committed").await.unwrap();
    assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind()), ("committed", "", Kind::Committed));
}

pub(super) async fn parents_lead_to_the_bottom(plugin: &Plugin) {
    for (active, name, parent) in [("preparing", "A", ""), ("next", "B", "A")] {
        let mounts = plugin.prepare(active, parent).await.unwrap();
        apply(Mounted::new(&mounts, &plugin.place()).path(), &[file("foo", active, 0o777)]);
        plugin.commit(name, active).await.unwrap();
    }
    let upper = plugin.stat("B").await.unwrap();
    assert_eq!(upper.parent, "A");
    assert_eq!(plugin.stat(&upper.parent).await.unwrap().parent, "");
}

pub(super) async fn a_key_is_used_once(plugin: &Plugin) {
    plugin.prepare("preparing", "").await.unwrap();
    plugin.commit("A", "preparing").await.unwrap();
    let taken =
        |answer: Result<_, tonic::Status>| assert_eq!(answer.unwrap_err().code(), Code::AlreadyExists);
    plugin.prepare("new", "A").await.unwrap();
    taken(plugin.view("new", "A").await);
    plugin.prepare("prepared", "A").await.unwrap();
    taken(plugin.prepare("prepared", "A").await);
    plugin.view("viewed", "A").await.unwrap();
    taken(plugin.view("viewed", "A").await);
    taken(plugin.prepare("A", "A").await);
}

/// Two layers, and actives and views on both ends of them; returns (name, kind, parent) of each.
async fn family(plugin: &Plugin, prefix: &str) -> Vec<(String, Kind, String)> {
    let name = |name: &str| format!("{prefix}{name}");
    plugin.prepare(&name("c1-a"), "").await.unwrap();
    plugin.commit(&name("c1"), &name("c1-a")).await.unwrap();
    plugin.prepare(&name("c2-a"), &name("c1")).await.unwrap();
    plugin.commit(&name("c2"), &name("c2-a")).await.unwrap();
    plugin.prepare(&name("a1"), &name("c2")).await.unwrap();
    plugin.prepare(&name("a2"), "").await.unwrap();
    plugin.view(&name("v1"), &name("c2")).await.unwrap();
    plugin.view(&name("v2"), "").await.unwrap();
    vec![
        (name("c1"), Kind::Committed, String::new()),
        (name("c2"), Kind::Committed, name("c1")),
        (name("a1"), Kind::Active, name("c2")),
        (name("a2"), Kind::Active, String::new()),
        (name("v1"), Kind::View, name("c2")),
        (name("v2"), Kind::View, String::new()),
    ]
}

pub(super) async fn only_labels_can_be_updated(plugin: &Plugin) {
    let before = SystemTime::now();
    let family = family(plugin, "").await;
    let after = SystemTime::now();
    for (name, kind, parent) in family {
        let was = plugin.stat(&name).await.unwrap();
        let created: SystemTime = was.created_at.unwrap().try_into().unwrap();
        assert!(before <= created && created <= after, "{name} was created at {created:?}");
        assert_eq!(was.updated_at, was.created_at);

        let labels = rooted(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3")]);
        let wrong_parent = || "doesnotexist".to_owned();
        let wanted = Info { parent: wrong_parent(), labels: labels.clone(), ..was.clone() };
        let asked = SystemTime::now();
        let now = plugin.update(wanted, &[]).await.unwrap();
        let updated: SystemTime = now.updated_at.unwrap().try_into().unwrap();
        assert!(asked <= updated && updated <= SystemTime::now(), "{name} was updated at {updated:?}");
        let untouched = (now.name.clone(), now.kind(), now.parent.clone(), now.created_at);
        assert_eq!(untouched, (name.clone(), kind, parent, was.created_at));
        assert_eq!(now.labels, labels);

        let labels = HashMap::from([("l1", "updated"), ("l4", "v4")].map(owned));
        let now = plugin.update(Info { labels, ..now }, &["labels.l1", "labels.l2"]).await.unwrap();
        assert_eq!(now.labels, rooted(&[("l1", "updated"), ("l3", "v3")]));

        let labels = rooted(&[("l4", "v4")]);
        let now = plugin.update(Info { labels: labels.clone(), ..now }, &["labels"]).await.unwrap();
        assert_eq!(now.labels, labels);

        let refused = plugin.update(Info { parent: wrong_parent(), ..now }, &["parent"]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

pub(super) async fn a_removed_key_is_free_again(plugin: &Plugin) {
    plugin.prepare("committed-a", "").await.unwrap();
    plugin.commit("committed-1", "committed-a").await.unwrap();
    plugin.prepare("reuse-1", "committed-1").await.unwrap();
    plugin.remove("reuse-1").await.unwrap();
    plugin.view("reuse-1", "committed-1").await.unwrap();
    plugin.remove("reuse-1").await.unwrap();
    plugin.prepare("reuse-1", "").await.unwrap();
    plugin.remove("committed-1").await.unwrap();
    plugin.commit("committed-1", "reuse-1").await.unwrap();
    plugin.snapshots.cleanup().unwrap();
    assert_eq!(plugin.stat("committed-1").await.unwrap().kind(), Kind::Committed);
}

pub(super) async fn a_listing_shows_what_its_filters_let_through(plugin: &Plugin) {
    let mark = |value: &str| {
        let mut labels = HashMap::from([owned((GC_ROOT, "check-walk"))]);
        if !value.is_empty() {
            labels.insert("l".to_owned(), value.to_owned());
        }
        labels
    };
    plugin.prepare_with("a-np", "", mark("")).await.unwrap();
    plugin.prepare_with("p-tmp", "", mark("")).await.unwrap();
    plugin.commit_with("p", "p-tmp", "", mark("")).await.unwrap();
    plugin.prepare_with("a", "p", mark("")).await.unwrap();
    plugin.view_with("v", "p", mark("")).await.unwrap();
    plugin.prepare_with("p-wl-tmp", "", mark("")).await.unwrap();
    plugin.commit_with("p-wl", "p-wl-tmp", "", mark("1")).await.unwrap();
    plugin.prepare_with("a-wl", "p-wl", mark("2")).await.unwrap();
    plugin.view_with("v-wl", "p-wl", mark("3")).await.unwrap();
    plugin.prepare_with("a-np-wl", "", mark("2")).await.unwrap();

    let marked = r#"labels."containerd.io/gc.root"==check-walk"#;
    let and_marked = |filter: &str| format!("{filter},{marked}");
    let (active, view) = (and_marked("kind==active"), and_marked("kind==view"));
    let (committed, with_parent) = (and_marked("kind==committed"), and_marked(r#"parent!="""#));
    let expected: [(&[&str], &[&str]); 10] = [
        (&[marked], &["a", "a-np", "a-np-wl", "a-wl", "p", "p-wl", "v", "v-wl"]),
        (&[&active], &["a", "a-np", "a-np-wl", "a-wl"]),
        (&[&view], &["v", "v-wl"]),
        (&[&committed], &["p", "p-wl"]),
        (&["name==p", "name==a-np-wl"], &["a-np-wl", "p"]),
        (&["name==a-wl,labels.l"], &["a-wl"]),
        (&["parent==p"], &["a", "v"]),
        (&[&with_parent], &["a", "a-wl", "v", "v-wl"]),
        (&["labels.l"], &["a-np-wl", "a-wl", "p-wl", "v-wl"]),
        (&["labels.l==2"], &["a-np-wl", "a-wl"]),
    ];
    for (filters, matches) in expected {
        let listed = plugin.list(filters).await.unwrap();
        let mut names: Vec<_> = listed.iter().map(|info| info.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, matches, "{filters:?}");
    }
}

pub(super) async fn what_is_built_upon_stays(plugin: &Plugin) {
    plugin.prepare("base", "").await.unwrap();
    plugin.commit("committed-base", "base").await.unwrap();
    plugin.prepare("intermediate", "committed-base").await.unwrap();
    plugin.commit("committed-inter", "intermediate").await.unwrap();
    plugin.prepare("toplayer", "committed-inter").await.unwrap();
    assert_eq!(plugin.remove("committed-inter").await.unwrap_err().code(), Code::FailedPrecondition);
    for name in ["toplayer", "committed-inter", "committed-base"] {
        plugin.remove(name).await.unwrap();
    }
}

pub(super) async fn a_stat_works_while_listing(plugin: &Plugin) {
    family(plugin, "stats-in-walk-").await;
    let listed = plugin.list(&[]).await.unwrap();
    assert_eq!(listed.len(), 6);
    for info in listed {
        assert_eq!(plugin.stat(&info.name).await.unwrap(), info);
    }
}

/// The suite closes a snapshotter twice; over a socket that is a client that leaves and one that comes.
pub(super) async fn work_goes_on_after_a_client_has_left(plugin: &Plugin) {
    plugin.prepare("prepared", "").await.unwrap();
    plugin.commit("layer", "prepared").await.unwrap();
    assert_eq!(plugin.stat_as_another_client("layer").await.unwrap().name, "layer");
    plugin.remove("layer").await.unwrap();
    assert_eq!(plugin.stat("layer").await.unwrap_err().code(), Code::NotFound);
}
