//! Offers to the mesh what containerd fetched by itself.
//!
//! ```text
//! image events ─┐
//! images there  ├─▶ queue ─▶ one worker: read once, prove, hard-link ─▶ store
//! at start      │
//! Prepare ──────┘  (a layer that was bypassed or declined)
//! ```

use std::{collections::HashSet, io, sync::Arc};

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Metrics, Outcome, make::blob_path};
use crate::{
    containerd::{CallError, Client, EVENT_FILTERS, Event, Image, Namespace},
    oci::{self, Descriptor, Digest, Index, Manifest},
    store::{AdoptError, Store},
};

/// Layers that wait to be adopted: ten images of 100 layers. Beyond it an offer is dropped; the next event or start
/// makes it again.
const QUEUE_MAX: usize = 1000;

/// A blob of a namespace that containerd has, or soon will.
#[derive(Clone, Debug)]
struct Offer {
    namespace: String,
    digest: Digest,
    len: u64,
}

/// Takes offers; a worker adopts them one after the other.
#[derive(Clone)]
pub struct Adopter {
    queue: mpsc::Sender<Offer>,
    waiting: Arc<Mutex<HashSet<Digest>>>,
}

/// What adopting needs.
pub struct AdoptParts {
    pub containerd: Client,
    pub store: Store,
    pub metrics: Metrics,
    /// Namespaces whose images are adopted; empty for all.
    pub namespaces: Vec<String>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Adopter {
    /// Starts the worker, and a task that watches containerd's images.
    #[must_use]
    pub fn start(parts: AdoptParts) -> Self {
        let (queue, offers) = mpsc::channel(QUEUE_MAX);
        let adopter = Self { queue, waiting: Arc::default() };
        let parts = Arc::new(parts);
        let worker = Worker { parts: Arc::clone(&parts), waiting: Arc::clone(&adopter.waiting) };
        parts.tasks.spawn(worker.run(offers));
        let watcher = Watcher { parts: Arc::clone(&parts), adopter: adopter.clone() };
        parts.tasks.spawn(watcher.run());
        adopter
    }

    /// Asks for a layer to be adopted once containerd has it. Never blocks.
    pub fn offer(&self, namespace: &str, layer: &Descriptor) {
        let offer = Offer { namespace: namespace.to_owned(), digest: layer.digest.clone(), len: layer.size };
        if self.waiting.lock().insert(offer.digest.clone()) {
            let digest = offer.digest.clone();
            if self.queue.try_send(offer).is_err() {
                self.waiting.lock().remove(&digest);
            }
        }
    }
}

struct Worker {
    parts: Arc<AdoptParts>,
    waiting: Arc<Mutex<HashSet<Digest>>>,
}

impl Worker {
    async fn run(self, mut offers: mpsc::Receiver<Offer>) {
        loop {
            let offer = tokio::select! {
                () = self.parts.stop.cancelled() => return,
                offer = offers.recv() => match offer { Some(offer) => offer, None => return },
            };
            self.waiting.lock().remove(&offer.digest);
            self.adopt(&offer).await;
        }
    }

    async fn adopt(&self, offer: &Offer) {
        if self.parts.store.get(&offer.digest).is_some() {
            return;
        }
        // Whether containerd has it is for its own database to say: a file without a record is about to go.
        let namespace = self.parts.containerd.namespace(&offer.namespace);
        let Ok(Some(info)) = namespace.info(&offer.digest).await else { return };
        let Ok(root) = self.parts.containerd.content_root().await else { return };
        if info.len != offer.len {
            tracing::warn!(layer = %offer.digest, stated = offer.len, len = info.len, "a manifest lies about a layer's size");
            return;
        }
        let path = blob_path(&root, &offer.digest);
        let (store, digest, len) = (self.parts.store.clone(), offer.digest.clone(), offer.len);
        let adopted = tokio::task::spawn_blocking(move || store.adopt(&digest, len, &path).map(|_| ()));
        match adopted.await.expect("adopting does not panic") {
            Ok(()) => {
                self.parts.metrics.count(Outcome::Adopted, "containerd");
                tracing::info!(layer = %offer.digest, namespace = offer.namespace, size = offer.len, outcome = "adopted", "layer");
            }
            Err(error) => self.say_why_not(offer, &error),
        }
    }

    fn say_why_not(&self, offer: &Offer, error: &AdoptError) {
        let vanished = std::error::Error::source(error)
            .and_then(|source| source.downcast_ref::<io::Error>())
            .is_some_and(|source| source.kind() == io::ErrorKind::NotFound);
        if !vanished {
            tracing::warn!(layer = %offer.digest, error = error as &dyn std::error::Error, "layer not adopted");
        }
    }
}

/// Watches containerd's images, and reads them all whenever the watch begins anew.
struct Watcher {
    parts: Arc<AdoptParts>,
    adopter: Adopter,
}

/// How long to wait for containerd after it went away: its own restart takes about a second.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(2);

impl Watcher {
    async fn run(self) {
        loop {
            let ended = tokio::select! {
                () = self.parts.stop.cancelled() => return,
                ended = self.watch() => ended,
            };
            if let Err(error) = ended {
                tracing::debug!(error = &error as &dyn std::error::Error, "not watching containerd's images");
            }
            if tokio::time::timeout(RETRY_AFTER, self.parts.stop.cancelled()).await.is_ok() {
                return;
            }
        }
    }

    async fn watch(&self) -> Result<(), CallError> {
        let mut events = std::pin::pin!(self.parts.containerd.events(&EVENT_FILTERS));
        // The subscription is made with the first poll, so that nothing falls between the scan and the events.
        let mut first = std::pin::pin!(events.next());
        let early = futures_util::poll!(first.as_mut());
        self.scan().await?;
        let mut next = match early {
            std::task::Poll::Ready(event) => event,
            std::task::Poll::Pending => first.await,
        };
        while let Some(event) = next {
            match event? {
                Event::ImageCreated { namespace, name } | Event::ImageUpdated { namespace, name } => {
                    self.offer_named(&namespace, &name).await?;
                }
                Event::ContentCreated { .. } | Event::ImageDeleted { .. } => {}
            }
            next = events.next().await;
        }
        Ok(())
    }

    async fn offer_named(&self, namespace: &str, name: &str) -> Result<(), CallError> {
        if self.is_ours(namespace) {
            let client = self.parts.containerd.namespace(namespace);
            for image in client.images().await?.into_iter().filter(|image| image.name == name) {
                self.offer_image(&client, &image).await;
            }
        }
        Ok(())
    }

    fn is_ours(&self, namespace: &str) -> bool {
        self.parts.namespaces.is_empty() || self.parts.namespaces.iter().any(|ours| ours == namespace)
    }

    async fn scan(&self) -> Result<(), CallError> {
        for name in self.parts.containerd.namespaces().await? {
            if !self.is_ours(&name) {
                continue;
            }
            let namespace = self.parts.containerd.namespace(&name);
            for image in namespace.images().await? {
                self.offer_image(&namespace, &image).await;
            }
        }
        Ok(())
    }

    /// Offers the layers of an image; of an index, those of every manifest that is there.
    async fn offer_image(&self, namespace: &Namespace, image: &Image) {
        let mut manifests = vec![image.target.clone()];
        if oci::is_index(&image.media_type) {
            let read = namespace.read(&image.target, oci::MAX_DOCUMENT_LEN).await;
            let index = read.ok().and_then(|bytes| Index::parse(&bytes).ok());
            let entries = index.map(|index| index.manifests).unwrap_or_default();
            manifests = entries.into_iter().map(|entry| entry.digest).collect();
        }
        for manifest in manifests {
            let read = namespace.read(&manifest, oci::MAX_DOCUMENT_LEN).await;
            let Some(manifest) = read.ok().and_then(|bytes| Manifest::parse(&bytes).ok()) else { continue };
            for layer in &manifest.layers {
                self.adopter.offer(namespace.name(), layer);
            }
        }
    }
}
