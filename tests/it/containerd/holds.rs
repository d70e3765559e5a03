//! Holding a ref: what containerd's own writers then do.

use std::{
    io::Write as _,
    process::{Child, Stdio},
};

use bytes::Bytes;
use flotilla::containerd::{HeldRef, Hold, HoldOutcome, Ingest, Ingested, Namespace};
use futures_util::stream;

use super::{
    content::leave_part,
    daemon::{Daemon, bytes, ingest_of, pieces, store},
};

/// containerd's own ref for a layer.
fn hold_of(blob: &[u8]) -> Hold {
    let Ingest { digest, len, labels, lease, .. } = ingest_of(blob);
    Hold { r#ref: format!("layer-{digest}"), digest, len, labels, lease }
}

async fn held(namespace: &Namespace, hold: &Hold) -> HeldRef {
    let outcome = namespace.hold(hold).await.unwrap();
    let HoldOutcome::Held(held) = outcome else { panic!("{outcome:?}") };
    held
}

/// A writer of containerd's own kind: it opens the ref, and waits where that is locked.
fn fetch(daemon: &Daemon, hold: &Hold, blob: &Bytes) -> Child {
    let (digest, len) = (hold.digest.to_string(), hold.len.to_string());
    let flags = ["--expected-digest", &digest, "--expected-size", &len];
    let arguments = [&["-n", "k8s.io", "content", "ingest"], &flags[..], &[&hold.r#ref]].concat();
    let mut fetching = daemon.ctr(&arguments).stdin(Stdio::piped()).spawn().unwrap();
    fetching.stdin.take().unwrap().write_all(blob).unwrap();
    fetching
}

#[tokio::test]
async fn containerd_waits_for_a_held_blob_and_takes_ours() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let blob = bytes("handed over", 40_000);
    let hold = hold_of(&blob);
    let held = held(&namespace, &hold).await;
    let mut fetching = fetch(&daemon, &hold, &blob);
    assert!(matches!(namespace.hold(&hold).await.unwrap(), HoldOutcome::FetchedByContainerd));
    store(&namespace, &blob).await;
    // containerd's own writer has not written a byte: the blob is the one with our labels.
    assert_eq!(namespace.status(&hold.r#ref).await.unwrap().unwrap().offset, 0);
    held.release().await;
    assert!(fetching.wait().unwrap().success());
    assert_eq!(namespace.info(&hold.digest).await.unwrap().unwrap().labels, hold.labels);
    namespace.abort(&hold.r#ref).await.unwrap();
    assert_eq!(namespace.status(&hold.r#ref).await.unwrap(), None);
}

#[tokio::test]
async fn a_ref_that_is_given_up_is_fetched_by_containerd() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let blob = bytes("given up", 40_000);
    let hold = hold_of(&blob);
    let held = held(&namespace, &hold).await;
    let mut fetching = fetch(&daemon, &hold, &blob);
    assert_eq!(namespace.info(&hold.digest).await.unwrap(), None);
    held.release().await;
    // Nothing refers to what it committed, so that newer versions may have collected it by now.
    assert!(fetching.wait().unwrap().success());
}

#[tokio::test]
async fn a_released_ref_is_free_at_once() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let hold = hold_of(&bytes("again", 1000));
    for _ in 0..20 {
        held(&namespace, &hold).await.release().await;
    }
}

#[tokio::test]
async fn the_layers_of_several_deep_images_can_be_held_at_once() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let mut all = Vec::new();
    for n in 0..300 {
        all.push(held(&namespace, &hold_of(format!("layer {n}").as_bytes())).await);
    }
    // The connection still has room for other calls.
    store(&namespace, &bytes("beside", 3 << 20)).await;
    for held in all {
        held.release().await;
    }
}

#[tokio::test]
async fn a_blob_that_is_there_needs_no_hold() {
    let Some(daemon) = Daemon::start() else { return };
    let (one, two) = (daemon.namespace("one").await, daemon.namespace("two").await);
    let blob = bytes("there", 1000);
    let hold = hold_of(&blob);
    store(&one, &blob).await;
    assert!(matches!(one.hold(&hold).await.unwrap(), HoldOutcome::Exists));
    assert!(matches!(two.hold(&hold).await.unwrap(), HoldOutcome::Shared));
    assert_eq!(two.info(&hold.digest).await.unwrap().unwrap().labels, hold.labels);
    assert!(matches!(two.hold(&hold).await.unwrap(), HoldOutcome::Exists));
}

#[tokio::test]
async fn what_containerd_has_begun_is_left_to_it() {
    let Some(daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let blob = bytes("begun", 3 << 20);
    let hold = hold_of(&blob);
    let theirs = Ingest { r#ref: hold.r#ref.clone(), ..ingest_of(&blob) };
    leave_part(&namespace, &theirs, pieces(&blob.slice(..2 << 20))).await;
    assert!(matches!(namespace.hold(&hold).await.unwrap(), HoldOutcome::FetchedByContainerd));
    assert_eq!(namespace.status(&hold.r#ref).await.unwrap().unwrap().offset, 2 << 20);
}

#[tokio::test]
async fn a_restart_of_containerd_loses_the_hold_but_not_the_client() {
    let Some(mut daemon) = Daemon::start() else { return };
    let namespace = daemon.namespace("k8s.io").await;
    let blob = bytes("restart", 1000);
    let hold = hold_of(&blob);
    let mut first = held(&namespace, &hold).await;
    daemon.kill();
    assert!(first.lost().await.is_absent());
    assert!(namespace.hold(&hold).await.unwrap_err().is_absent());
    daemon.start_again();
    held(&namespace, &hold).await.release().await;
    let ingest = ingest_of(&blob);
    assert_eq!(namespace.ingest(&ingest, pieces(&blob)).await.unwrap(), Ingested::Written);
    let unread = stream::poll_fn(|_| panic!("containerd has the blob: nobody needs its bytes"));
    assert_eq!(namespace.ingest(&ingest, unread).await.unwrap(), Ingested::Existed);
}
