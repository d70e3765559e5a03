//! Offers to the mesh what containerd has: everything that an image of the chosen namespaces refers to.
//!
//! ```text
//! image and content events ──┐
//! every 10 minutes ──────────┼─▶ Watcher: lists, follows references (`reach`) ─▶ store.offer
//! after a reconnect ─────────┘                                                     │
//!                       Reader: what nobody has asked for yet, one by one, when idle ◀┘
//! ```
//! Offering reads nothing. A blob is read once (`pull`), by whoever asks first or by the reader here; from then on it is
//! a blob of the store like others, in the same file that containerd has.

mod due;
mod reach;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    due::{Due, Listing},
    reach::{Found, reachable},
};
use super::{Metrics, Outcome};
use crate::{
    containerd::{CallError, Client, EVENT_FILTERS, Event},
    oci::Digest,
    pull::Pulls,
    store::Store,
};

/// Blobs offered at a time. A node with 300 images has some 10,000; these are 15 MB of memory.
const OFFERED_MAX: usize = 1 << 16;
/// How long to wait for containerd after it went away: its own restart takes about a second.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What adopting needs.
pub struct AdoptParts {
    pub containerd: Client,
    pub store: Store,
    pub pulls: Pulls,
    pub metrics: Metrics,
    /// Namespaces whose images are offered; empty for all.
    pub namespaces: Vec<String>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// What each namespace has.
type Contents = HashMap<String, HashMap<Digest, Found>>;

/// Starts to watch containerd's images, and to read them when the node is idle.
pub fn start(parts: AdoptParts) {
    let layers = Arc::default();
    let (tasks, stop) = (parts.tasks.clone(), parts.stop.clone());
    let reader = Reader {
        store: parts.store.clone(),
        pulls: parts.pulls.clone(),
        metrics: parts.metrics.clone(),
        layers: Arc::clone(&layers),
    };
    let watcher = Watcher { parts, contents: HashMap::new(), layers, said: false };
    let stopped = stop.clone();
    tasks.spawn(async move { stopped.run_until_cancelled(watcher.run()).await });
    tasks.spawn(async move { stop.run_until_cancelled(reader.run()).await });
}

/// Keeps the store's offers what containerd has.
struct Watcher {
    parts: AdoptParts,
    contents: Contents,
    /// Which of the offered blobs are layers.
    layers: Arc<Mutex<HashSet<Digest>>>,
    /// How much was found at start has been said.
    said: bool,
}

impl Watcher {
    async fn run(mut self) {
        loop {
            // While containerd is away its files are there, and go on being offered.
            if let Err(error) = self.watch().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "not watching containerd's images");
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    async fn watch(&mut self) -> Result<(), CallError> {
        let mut events = Box::pin(self.parts.containerd.events(&EVENT_FILTERS));
        let mut due = Due::new(Instant::now());
        // The subscription is made with the first poll, so that nothing falls between the listing and the events.
        if let Some(event) = first(&mut events) {
            self.hear(event?, &mut due);
        }
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.hear(event?, &mut due),
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(due.at().into()) => {
                    let began = Instant::now();
                    let listing = due.take(began);
                    self.list(&listing).await?;
                    due.listed(&listing, began, Instant::now());
                }
            }
        }
    }

    fn hear(&mut self, event: Event, due: &mut Due) {
        if !self.is_ours(event.namespace()) {
            return;
        }
        if let Event::ContentDeleted { namespace, digest } = &event {
            self.deleted(namespace, digest);
        }
        due.hear(event);
    }

    fn deleted(&mut self, namespace: &str, digest: &Digest) {
        let was_here = self.contents.get_mut(namespace).is_some_and(|blobs| blobs.remove(digest).is_some());
        if was_here && !self.contents.values().any(|blobs| blobs.contains_key(digest)) {
            self.parts.store.withdraw(digest);
            self.count();
        }
    }

    async fn list(&mut self, listing: &Listing) -> Result<(), CallError> {
        let root = self.parts.containerd.content_root().await?;
        let there: BTreeSet<String> = self.parts.containerd.namespaces().await?.into_iter().collect();
        self.contents.retain(|namespace, _| there.contains(namespace));
        for name in there {
            let is_wanted = match listing {
                Listing::All => true,
                Listing::Namespaces(names) => names.contains(&name),
            };
            if is_wanted && self.is_ours(&name) {
                let namespace = self.parts.containerd.namespace(&name);
                // What comes between the two is looked for again, since its image's event comes after both.
                let found = reachable(&namespace.images().await?, &namespace.list(&[]).await?);
                self.contents.insert(name, found);
            }
        }
        self.offer(root.join("blobs")).await;
        Ok(())
    }

    fn is_ours(&self, namespace: &str) -> bool {
        self.parts.namespaces.is_empty() || self.parts.namespaces.iter().any(|ours| ours == namespace)
    }

    async fn offer(&mut self, dir: PathBuf) {
        let all: HashMap<&Digest, &Found> = self.contents.values().flatten().take(OFFERED_MAX).collect();
        if all.len() == OFFERED_MAX {
            tracing::warn!(OFFERED_MAX, "containerd has more blobs than are offered to the mesh");
        }
        let layers = all.iter().filter(|(_, found)| found.is_layer);
        *self.layers.lock() = layers.map(|(&digest, _)| digest.clone()).collect();
        let lens = all.into_iter().map(|(digest, found)| (digest.clone(), found.len)).collect();
        let store = self.parts.store.clone();
        let offering = tokio::task::spawn_blocking(move || store.offer(&dir, lens));
        offering.await.expect("offering does not panic");
        self.count();
        if !std::mem::replace(&mut self.said, true) {
            let offered = self.parts.store.offered();
            tracing::info!(
                blobs = offered.blobs,
                bytes = offered.bytes,
                unread = offered.unread,
                "containerd's blobs are offered to the mesh"
            );
        }
    }

    fn count(&self) {
        let offered = self.parts.store.offered();
        self.parts.metrics.set_offered(offered.blobs, offered.bytes);
    }
}

/// What is there without waiting.
fn first<S: Stream>(stream: &mut Pin<Box<S>>) -> Option<S::Item> {
    futures_util::FutureExt::now_or_never(stream.next()).flatten()
}

/// Reads what is offered and not read yet.
struct Reader {
    store: Store,
    pulls: Pulls,
    metrics: Metrics,
    layers: Arc<Mutex<HashSet<Digest>>>,
}

impl Reader {
    async fn run(self) {
        let mut changed = self.store.holdings_changed();
        let mut before = HashSet::new();
        loop {
            changed.mark_unchanged();
            let unread: HashMap<Digest, u64> = self.store.unread().into_iter().collect();
            let read =
                before.iter().filter(|digest| !unread.contains_key(*digest) && self.store.holds(digest));
            read.for_each(|digest| self.adopted(digest));
            // The smallest first: most of what there is comes early.
            let next = unread.iter().min_by_key(|(_, len)| **len).map(|(digest, _)| digest.clone());
            before = unread.into_keys().collect();
            match next {
                Some(digest) => self.pulls.read_when_idle(&digest).await,
                None if changed.changed().await.is_err() => return,
                None => {}
            }
        }
    }

    fn adopted(&self, digest: &Digest) {
        if self.layers.lock().contains(digest) {
            self.metrics.count(Outcome::Adopted, "containerd");
            tracing::info!(layer = %digest, outcome = "adopted", "layer");
        }
    }
}
