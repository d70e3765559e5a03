//! The holder: every end of a hold, with a real containerd at the other side.

use std::{sync::Arc, time::Duration};

use flotilla::{
    containerd::Namespace,
    layer::{
        hold::{End, Ended, Held, Holder, Limits, Wanted},
        intercept::{Catalog, Image},
    },
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    daemon::{Daemon, store},
    image::Archive,
};

const HOUR: Duration = Duration::from_secs(3600);

/// A containerd that knows an image, but has lost its layers: as in the middle of a pull.
struct Story {
    daemon: Daemon,
    namespace: Namespace,
    archive: Archive,
    image: Arc<Image>,
    holder: Holder,
    ends: mpsc::Receiver<Ended>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Story {
    async fn start(limits: Limits) -> Option<Self> {
        let daemon = Daemon::start()?;
        let client = daemon.client();
        let namespace = daemon.namespace("k8s.io").await;
        let archive = Archive::new(&["one", "two"]);
        archive.import(&daemon, "k8s.io");
        let catalog = Catalog::new(client.clone());
        let top = archive.chain_ids()[1].to_string();
        let image = catalog.find("k8s.io", &top, &Default::default()).await.unwrap().image;
        for layer in image.layers.iter() {
            let digest = layer.descriptor.digest.to_string();
            daemon.run_ctr(&["-n", "k8s.io", "content", "rm", &digest]);
        }
        // Removing is a mark only: the backend's copy would be shared back until it is collected.
        daemon.run_ctr(&["-n", "k8s.io", "content", "prune", "references"]);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (holder, ends) = Holder::new(client, tasks.clone(), stop.clone(), limits);
        Some(Self { daemon, namespace, archive, image, holder, ends, tasks, stop })
    }

    async fn hold(&self, index: usize, extract_key: &str) -> Held {
        let image = &self.image;
        self.holder.hold(Wanted { namespace: "k8s.io", image, index, extract_key, lease: None }).await
    }

    /// The next end, which must be that of layer `index`.
    async fn end(&mut self, index: usize) -> End {
        let ended = self.ends.recv().await.unwrap();
        assert_eq!(ended.r#ref, self.image.layers[index].r#ref);
        assert_eq!(ended.digest, self.image.layers[index].descriptor.digest);
        ended.end
    }
}

fn patient() -> Limits {
    Limits { idle_max: HOUR, total_max: None }
}

#[tokio::test]
async fn a_hold_ends_with_the_last_key_that_wanted_it() {
    let Some(mut story) = Story::start(patient()).await else { return };
    assert_eq!(story.hold(0, "first").await, Held::Holding);
    assert_eq!(story.hold(0, "second").await, Held::Holding);
    assert_eq!(story.holder.len(), 1);
    story.holder.key_gone("first");
    assert_eq!(story.holder.len(), 1);
    story.holder.key_gone("second");
    assert_eq!(story.end(0).await, End::KeyRemoved);
    // An empty ingest stays, for containerd to go on with; the ref is free.
    assert_eq!(story.namespace.status(&story.image.layers[0].r#ref).await.unwrap().unwrap().offset, 0);
    assert_eq!(story.hold(0, "third").await, Held::Holding);
    story.holder.prepare_cancelled("third");
    assert_eq!(story.end(0).await, End::PrepareCancelled);
}

#[tokio::test]
async fn a_committed_blob_ends_its_hold_and_sweeps_the_ingest() {
    let Some(mut story) = Story::start(patient()).await else { return };
    assert_eq!(story.hold(0, "key").await, Held::Holding);
    assert_eq!(story.hold(1, "key").await, Held::Holding);
    let digest = store(&story.namespace, &story.archive.layers[1].clone()).await;
    story.holder.blob_committed("elsewhere", &digest);
    assert_eq!(story.holder.len(), 2);
    story.holder.blob_committed("k8s.io", &digest);
    assert_eq!(story.end(1).await, End::BlobCommitted);
    assert_eq!(story.namespace.status(&story.image.layers[1].r#ref).await.unwrap(), None);
    assert_eq!(story.hold(1, "key").await, Held::Present);
    assert_eq!(story.holder.len(), 1);
}

#[tokio::test]
async fn a_hold_at_its_limit_is_left_to_containerd() {
    let limits = Limits { idle_max: Duration::ZERO, total_max: None };
    let Some(mut story) = Story::start(limits).await else { return };
    assert_eq!(story.hold(0, "key").await, Held::Holding);
    assert_eq!(story.end(0).await, End::IdleMax);
    assert_eq!(story.hold(0, "next").await, Held::Refused("hold_idle_max"));
    story.holder.set_limits(Limits { idle_max: HOUR, total_max: Some(Duration::ZERO) });
    assert_eq!(story.hold(1, "key").await, Held::Holding);
    assert_eq!(story.end(1).await, End::TotalMax);
}

#[tokio::test]
async fn shutdown_drops_all_holds() {
    let Some(mut story) = Story::start(patient()).await else { return };
    for index in [0, 1] {
        assert_eq!(story.hold(index, "key").await, Held::Holding);
    }
    story.stop.cancel();
    story.tasks.close();
    story.tasks.wait().await;
    let ends = [story.ends.recv().await.unwrap().end, story.ends.recv().await.unwrap().end];
    assert_eq!(ends, [End::Shutdown; 2]);
    assert!(story.holder.is_empty());
    assert_eq!(story.hold(0, "late").await, Held::Refused("shutdown"));
}

#[tokio::test]
async fn a_lost_hold_is_told_and_not_retaken() {
    let Some(mut story) = Story::start(patient()).await else { return };
    assert_eq!(story.hold(0, "key").await, Held::Holding);
    story.daemon.kill();
    assert_eq!(story.end(0).await, End::Lost);
    assert!(End::Lost.declines());
    assert_eq!(story.hold(0, "next").await, Held::Refused("containerd_absent"));
    story.daemon.start_again();
    assert!(story.holder.is_empty());
    assert_eq!(story.hold(0, "a new pull").await, Held::Holding);
}

#[tokio::test]
async fn keys_that_come_and_go_at_once_leave_nothing_held() {
    let Some(mut story) = Story::start(patient()).await else { return };
    for round in 0..20 {
        let key = format!("key {round}");
        let holding = story.hold(0, &key);
        // Posted before, while or after the ref is opened.
        let (held, ()) = tokio::join!(holding, async { story.holder.key_gone(&key) });
        story.holder.key_gone(&key);
        if held == Held::Holding {
            assert_eq!(story.end(0).await, End::KeyRemoved);
        }
    }
    assert!(story.holder.is_empty());
}
