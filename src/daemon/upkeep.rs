//! What happens again and again while the daemon runs.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::rates::Rates;
use crate::{
    containerd::{Client, Version, VersionError},
    layer::Layers,
    snapshot::Snapshots,
    store::{Store, Swept},
};

/// How often the store looks at its limits: bytes that containerd has dropped on a full disk are to be free within
/// 10 s, so that kubelet's image garbage collection sees them.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// What is looked after.
pub(super) struct Upkept {
    pub(super) layers: Arc<Layers>,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) store: Store,
    pub(super) rates: Rates,
}

/// Limits of the store, rates by the clock, pulls to forget, directories of removed snapshots.
pub(super) fn start(daemon: Upkept, tasks: &TaskTracker, stop: &CancellationToken) {
    tasks.spawn(Arc::clone(&daemon.snapshots).keep_clean(stop.clone()));
    let stop = stop.clone();
    tasks.spawn(async move {
        let mut tick = tokio::time::interval(SWEEP_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            daemon.rates.apply();
            daemon.layers.sweep(Instant::now());
            let store = daemon.store.clone();
            let swept = tokio::task::spawn_blocking(move || store.sweep(SystemTime::now()));
            say(&swept.await.expect("sweeping does not panic"));
        }
    });
}

fn say(swept: &Swept) {
    for removed in &swept.removed {
        let (digest, freed) = (&removed.digest, removed.freed);
        tracing::info!(%digest, freed, why = ?removed.why, arriving = removed.partial, "blob removed");
    }
}

/// How containerd was at the last look.
#[derive(Debug, Default)]
pub(super) enum Containerd {
    #[default]
    NotAsked,
    Answers(Version),
    /// Why its pulls are left to it.
    Lost(String),
}

/// Says in one line when containerd goes and when it comes.
pub(super) async fn watch_containerd(
    client: Client,
    store: Store,
    seen: Arc<Mutex<Containerd>>,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(SWEEP_EVERY);
    let mut before: Option<bool> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let now = match client.version().await {
            Ok(version) => {
                if before != Some(true) {
                    tracing::info!(%version, "containerd answers");
                    say_whether_links_work(&client, &store).await;
                }
                Containerd::Answers(version)
            }
            Err(error) => {
                let reason = crate::pull::chain_of(&error);
                let line = match &error {
                    VersionError::Call(_) => {
                        "containerd does not answer yet; pulls go on without interception"
                    }
                    VersionError::TooOld(_) | VersionError::Unreadable(_) => {
                        "this containerd's pulls are left to it"
                    }
                };
                if before != Some(false) {
                    tracing::warn!(reason, "{line}");
                }
                Containerd::Lost(reason)
            }
        };
        before = Some(matches!(now, Containerd::Answers(_)));
        *seen.lock() = now;
    }
}

/// One copy of a blob on disk takes a hard link between containerd's store and ours.
async fn say_whether_links_work(client: &Client, store: &Store) {
    let Ok(root) = client.content_root().await else { return };
    if let Err(error) = store.links_with(&root) {
        tracing::debug!(error = &error as &dyn std::error::Error, "cannot compare file systems");
    }
}
