//! Content, leases, events and what containerd says of itself.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use flotilla::containerd::{
    CallError, Client, EVENT_FILTERS, Event, Ingest, IngestError, Ingested, Namespace, ReadError,
    VersionError,
};
use futures_util::{Stream, StreamExt as _, future, stream};

use super::{
    daemon::{Daemon, bytes, ingest_of, pieces, sha256, store},
    image::Archive,
};

#[tokio::test]
async fn containerd_tells_its_version_and_where_blobs_lie() {
    let Some(daemon) = Daemon::start() else { return };
    let client = daemon.client();
    let version = client.version().await.unwrap();
    assert!(version.major >= 1, "{version}");
    let namespace = daemon.namespace("shelf").await;
    let blob = bytes("where", 3000);
    let digest = store(&namespace, &blob).await;
    let root = client.content_root().await.unwrap();
    assert!(root.starts_with(daemon.path()), "{}", root.display());
    assert_eq!(std::fs::read(root.join("blobs/sha256").join(digest.hex())).unwrap(), blob);
    assert_eq!(client.namespaces().await.unwrap(), ["shelf"]);
}

#[tokio::test]
async fn nobody_at_the_socket_is_said_so() {
    let client = Client::new(Path::new("/nonexistent/containerd.sock"));
    let error = client.version().await.unwrap_err();
    assert!(matches!(&error, VersionError::Call(CallError::Absent { .. })), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("/nonexistent/containerd.sock") && text.contains("is it running"), "{text}");
}

#[tokio::test]
async fn a_blob_is_written_with_its_labels_and_only_once() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let blob = bytes("written", (9 << 20) + 5);
    let ingest = ingest_of(&blob);
    // In one piece, which takes several messages.
    let whole = stream::iter([Ok(blob.clone())]);
    assert_eq!(namespace.ingest(&ingest, whole).await.unwrap(), Ingested::Written);
    let info = namespace.info(&ingest.digest).await.unwrap().unwrap();
    assert_eq!((info.len, &info.labels), (blob.len() as u64, &ingest.labels));
    assert!(info.created_at.is_some() && info.updated_at.is_some());
    assert_eq!(namespace.read(&ingest.digest, blob.len()).await.unwrap(), blob);
    assert_eq!(namespace.status(&ingest.r#ref).await.unwrap(), None);
    let unread = stream::poll_fn(|_| panic!("containerd has the blob: nobody needs its bytes"));
    assert_eq!(namespace.ingest(&ingest, unread).await.unwrap(), Ingested::Existed);
}

#[tokio::test]
async fn the_empty_blob_can_be_written() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let digest = store(&namespace, &Bytes::new()).await;
    assert_eq!(namespace.read(&digest, 0).await.unwrap(), Bytes::new());
}

#[tokio::test]
async fn a_blob_of_another_namespace_is_shared_without_its_bytes() {
    let Some(daemon) = Daemon::start() else { return };
    let blob = bytes("shared", 2 << 20);
    store(&daemon.namespace("one").await, &blob).await;
    let two = daemon.namespace("two").await;
    let ingest = ingest_of(&blob);
    let unread = stream::poll_fn(|_| panic!("another namespace has the blob: nobody needs its bytes"));
    assert_eq!(two.ingest(&ingest, unread).await.unwrap(), Ingested::Shared);
    assert_eq!(two.info(&ingest.digest).await.unwrap().unwrap().labels, ingest.labels);
    assert_eq!(two.read(&ingest.digest, blob.len()).await.unwrap(), blob);
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_leave_nothing() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let (right, wrong) = (bytes("right", 3 << 20), bytes("wrong", 3 << 20));
    let ingest = ingest_of(&right);
    let error = namespace.ingest(&ingest, pieces(&wrong)).await.unwrap_err();
    assert!(matches!(&error, IngestError::Wrong { digest, .. } if *digest == ingest.digest), "{error:?}");
    assert_eq!(error.reason(), "wrong_bytes");
    assert_eq!(namespace.status(&ingest.r#ref).await.unwrap(), None);
    assert_eq!(namespace.info(&ingest.digest).await.unwrap(), None);
    assert_eq!(namespace.ingest(&ingest, pieces(&right)).await.unwrap(), Ingested::Written);
}

#[tokio::test]
async fn too_few_bytes_too_many_and_a_broken_source_leave_nothing() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let blob = bytes("counted", 3 << 20);
    let ingest = ingest_of(&blob);
    for len in [blob.len() - 1, blob.len() + 1] {
        let other = bytes("counted", len);
        let error = namespace.ingest(&ingest, pieces(&other)).await.unwrap_err();
        assert!(matches!(error, IngestError::Length { got, .. } if got == len as u64), "{error:?}");
        assert_eq!(namespace.status(&ingest.r#ref).await.unwrap(), None);
    }
    let broken = stream::once(future::ready(Err(io::Error::other("disk"))));
    let error = namespace.ingest(&ingest, pieces(&blob).take(2).chain(broken)).await.unwrap_err();
    assert!(matches!(error, IngestError::Source { .. }), "{error:?}");
    assert_eq!(namespace.status(&ingest.r#ref).await.unwrap(), None);
    assert_eq!(namespace.ingest(&ingest, pieces(&blob)).await.unwrap(), Ingested::Written);
}

#[tokio::test]
async fn what_a_dropped_ingest_left_is_thrown_away() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let blob = bytes("resumed", 5 << 20);
    let ingest = ingest_of(&blob);
    leave_part(&namespace, &ingest, pieces(&bytes("another", 2 << 20))).await;
    let left = namespace.status(&ingest.r#ref).await.unwrap().unwrap();
    assert_eq!((left.offset, left.total), (2 << 20, 5 << 20));
    assert_eq!(namespace.ingest(&ingest, pieces(&blob)).await.unwrap(), Ingested::Written);
    assert_eq!(namespace.read(&ingest.digest, blob.len()).await.unwrap(), blob);
}

#[tokio::test]
async fn what_was_left_under_another_length_is_thrown_away() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let blob = bytes("lied about", 3 << 20);
    let ingest = ingest_of(&blob);
    let lie = Ingest { len: 9 << 20, ..ingest.clone() };
    leave_part(&namespace, &lie, pieces(&blob)).await;
    assert_eq!(namespace.ingest(&ingest, pieces(&blob)).await.unwrap(), Ingested::Written);
}

#[tokio::test]
async fn all_bytes_but_wrong_ones_left_behind_do_not_poison_the_ref() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let blob = bytes("poisoned", 2 << 20);
    let ingest = ingest_of(&blob);
    leave_part(&namespace, &ingest, pieces(&bytes("poison", 2 << 20))).await;
    assert_eq!(namespace.ingest(&ingest, pieces(&blob)).await.unwrap(), Ingested::Written);
}

/// Writes these pieces and drops the ingest when all of them were asked for and taken.
pub(crate) async fn leave_part(
    namespace: &Namespace,
    ingest: &Ingest,
    part: impl Stream<Item = io::Result<Bytes>>,
) {
    let (drained, taken) = tokio::sync::oneshot::channel();
    let end = stream::once(async move {
        drained.send(()).unwrap();
        future::pending().await
    });
    tokio::select! {
        result = namespace.ingest(ingest, part.chain(end)) => panic!("{result:?}"),
        taken = taken => taken.unwrap(),
    }
}

#[tokio::test]
async fn small_blobs_are_read_within_a_cap() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let blob = bytes("capped", 5000);
    let digest = store(&namespace, &blob).await;
    let error = namespace.read(&digest, 4999).await.unwrap_err();
    assert!(matches!(error, ReadError::TooLarge { max: 4999, .. }), "{error:?}");
    let missing = sha256(b"nowhere");
    let error = namespace.read(&missing, 10).await.unwrap_err();
    assert!(matches!(error, ReadError::Missing { .. }), "{error:?}");
    assert_eq!(namespace.info(&missing).await.unwrap(), None);
    assert_eq!(namespace.status("nothing").await.unwrap(), None);
    namespace.abort("nothing").await.unwrap();
}

#[tokio::test]
async fn labels_are_set_and_removed_and_found() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let digest = store(&namespace, &bytes("labelled", 10)).await;
    store(&namespace, &bytes("other", 10)).await;
    let label = |value: &str| {
        BTreeMap::from([("containerd.io/distribution.source.127.0.0.1".to_owned(), value.to_owned())])
    };
    namespace.set_labels(&digest, &label("team/app")).await.unwrap();
    let filter = r#"labels."containerd.io/distribution.source.127.0.0.1"==team/app"#;
    let listed = namespace.list(&[filter]).await.unwrap();
    assert_eq!(listed.iter().map(|info| &info.digest).collect::<Vec<_>>(), [&digest]);
    assert_eq!(listed[0].labels.len(), 2);
    assert_eq!(namespace.list(&[]).await.unwrap().len(), 2);
    namespace.set_labels(&digest, &label("")).await.unwrap();
    assert_eq!(namespace.list(&[filter]).await.unwrap(), []);
}

#[tokio::test]
async fn a_lease_keeps_what_is_written_under_it() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let expires = SystemTime::now() + Duration::from_secs(3600);
    namespace.create_lease("kept", expires).await.unwrap();
    namespace.create_lease("kept", expires).await.unwrap();
    let blob = bytes("leased", 100);
    let ingest = Ingest { lease: Some("kept".into()), ..ingest_of(&blob) };
    namespace.ingest(&ingest, pieces(&blob)).await.unwrap();
    let collect = || daemon.run_ctr(&["-n", "k8s.io", "content", "prune", "references"]);
    collect();
    assert!(namespace.info(&ingest.digest).await.unwrap().is_some());
    assert!(daemon.run_ctr(&["-n", "k8s.io", "leases", "ls"]).contains("gc.expire"));
    namespace.delete_lease("kept").await.unwrap();
    namespace.delete_lease("kept").await.unwrap();
    collect();
    assert_eq!(namespace.info(&ingest.digest).await.unwrap(), None);
    let unknown = Ingest { lease: Some("no such lease".into()), ..ingest_of(&blob) };
    let error = namespace.ingest(&unknown, pieces(&blob)).await.unwrap_err();
    assert_eq!(error.reason(), "containerd_refused", "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_blobs_are_told_of_as_they_come() {
    let Some(daemon) = Daemon::start() else { return };
    let client = daemon.client();
    let mut events = Box::pin(client.events(&EVENT_FILTERS));
    let archive = Archive::new(&["told"]);
    let file = archive.write(daemon.path());
    // A subscription cannot be waited for, so there is something to tell until it is.
    let created = async {
        loop {
            match events.next().await.unwrap().unwrap() {
                Event::ImageCreated { namespace, name } => break (namespace, name),
                Event::ContentCreated { .. }
                | Event::ContentDeleted { .. }
                | Event::ImageUpdated { .. }
                | Event::ImageDeleted { .. } => {}
            }
        }
    };
    let importing = async {
        loop {
            for command in [vec!["import", "--no-unpack", file.as_str()], vec!["rm", archive.name()]] {
                let arguments = [vec!["-n", "k8s.io", "images"], command].concat();
                tokio::process::Command::from(daemon.ctr(&arguments)).output().await.unwrap();
            }
        }
    };
    let (namespace, name) = tokio::select! { created = created => created, () = importing => unreachable!() };
    assert_eq!((namespace.as_str(), name.as_str()), ("k8s.io", archive.name()));
}

#[tokio::test]
async fn the_end_of_containerd_ends_its_events() {
    let Some(mut daemon) = Daemon::start() else { return };
    let client = daemon.client();
    client.version().await.unwrap();
    let mut events = Box::pin(client.events(&EVENT_FILTERS));
    tokio::select! {
        biased;
        event = events.next() => panic!("{event:?}"),
        version = client.version() => drop(version.unwrap()),
    }
    daemon.kill();
    assert!(events.next().await.unwrap().unwrap_err().is_absent());
    daemon.start_again();
    client.version().await.unwrap();
}
