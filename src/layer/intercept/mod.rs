//! From a chain ID to the layer, the image and the repositories behind it.
//!
//! ```text
//! Prepare(namespace, chain ID, labels)
//!   │ label cri.manifest-digest ──► that manifest, if its config really folds to the chain ID
//!   │ else: every manifest in the namespace's content store that has a config, newest first
//!   ▼
//! manifest + config, read once, checked against their digests and each other ──► layers, bottom first
//!   ▼
//! labels of the manifest, read every time ──► repositories, `discard_unpacked`
//! ```
//! At Prepare both documents are in the content store already: containerd's unpacker starts from the config. So
//! no snapshot annotation is needed, and none is believed that contradicts them: where nobody sets annotations, an
//! image's author can.

mod cache;
mod image;

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;

use self::cache::Cache;
pub use self::image::{Image, LayerOf, Unfit};
use self::image::{Layers, config_of};
use crate::{
    containerd::{CallError, Client, ContentInfo, Namespace, ReadError},
    oci::{Algorithm, Digest, DigestError, MAX_DOCUMENT_LEN},
};

/// Labels that containerd's pull puts on the Prepare of a layer (`pkg/snapshotters/annotations.go`).
const MANIFEST_DIGEST_LABEL: &str = "containerd.io/snapshot/cri.manifest-digest";
const IMAGE_REF_LABEL: &str = "containerd.io/snapshot/cri.image-ref";

/// Manifests that containerd has taken apart, whether or not it keeps their layers.
const MANIFESTS_FILTER: &str = r#"labels."containerd.io/gc.ref.content.config""#;

/// Most manifests looked at for one chain ID, newest first: some hundreds of images, with the manifests of other
/// platforms that newer clients keep. The cache holds as many.
const MANIFESTS_MAX: usize = 2048;

/// Documents read from containerd at the same time: enough to hide the round trip, too few to be felt.
const READS_AT_ONCE: usize = 8;

/// Where the layers of a node's images come from. Cheap to clone; clones share one cache.
#[derive(Clone, Debug)]
pub struct Catalog {
    client: Client,
    cache: Arc<Mutex<Cache>>,
}

/// The layer that a chain ID stands for: `image.layers[index]` on top of those below it.
#[derive(Clone, Debug)]
pub struct Found {
    pub image: Arc<Image>,
    pub index: usize,
}

impl Found {
    #[must_use]
    pub fn layer(&self) -> &LayerOf {
        &self.image.layers[self.index]
    }
}

/// Why no layer is known for a chain ID, so that containerd must do without us.
#[derive(Debug, thiserror::Error)]
pub enum Declined {
    #[error("chain ID {chain_id:?} of the snapshot in namespace {namespace}")]
    ChainId { namespace: String, chain_id: String, source: DigestError },
    #[error("no manifest in containerd's namespace {namespace} has a layer that makes chain ID {chain_id}")]
    NoImage { namespace: String, chain_id: Digest },
    #[error("the registry of {image} is a stranger, and registry.strangers leaves those to containerd")]
    Stranger { image: String },
    #[error("looking for the image of {chain_id} in containerd's namespace {namespace}")]
    Unfit { namespace: String, chain_id: Digest, source: Arc<Unfit> },
    #[error("looking for the image of {chain_id} in containerd's namespace {namespace}")]
    Call { namespace: String, chain_id: Digest, source: CallError },
}

impl Declined {
    /// The word for a metric's `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ChainId { source: DigestError::UnknownAlgorithm(_), .. } => "digest_algorithm",
            Self::ChainId { .. } => "chain_id",
            Self::NoImage { .. } => "no_image",
            Self::Stranger { .. } => "stranger",
            Self::Unfit { source, .. } => source.reason(),
            Self::Call { source, .. } => source.reason(),
        }
    }
}

impl Catalog {
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, cache: Arc::default() }
    }

    /// The layer that `chain_id` stands for in `namespace`. `labels` are those of the Prepare.
    ///
    /// # Errors
    /// No manifest there makes this chain ID, the one that might is not fit, or containerd does not answer.
    pub async fn find(
        &self,
        namespace: &str,
        chain_id: &str,
        labels: &HashMap<String, String>,
    ) -> Result<Found, Declined> {
        let chain_id: Digest = chain_id.parse().map_err(|source| Declined::ChainId {
            namespace: namespace.into(),
            chain_id: chain_id.chars().take(140).collect(),
            source,
        })?;
        let search = Search {
            catalog: self,
            namespace: self.client.namespace(namespace),
            chain_id: &chain_id,
            image_ref: labels.get(IMAGE_REF_LABEL).map(String::as_str),
        };
        let named = labels.get(MANIFEST_DIGEST_LABEL).and_then(|digest| digest.parse().ok());
        let found = search.run(named).await;
        found.map_err(|stop| stop.declined(namespace, &chain_id))
    }
}

/// Why a search ends without a layer.
enum Stop {
    NoImage,
    Unfit(Arc<Unfit>),
    Call(CallError),
}

impl Stop {
    fn declined(self, namespace: &str, chain_id: &Digest) -> Declined {
        let (namespace, chain_id) = (namespace.to_owned(), chain_id.clone());
        match self {
            Self::NoImage => Declined::NoImage { namespace, chain_id },
            Self::Unfit(source) => Declined::Unfit { namespace, chain_id, source },
            Self::Call(source) => Declined::Call { namespace, chain_id, source },
        }
    }
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

/// What reading one manifest came to.
type Reading = Result<Arc<Layers>, Arc<Unfit>>;

/// One search for one chain ID.
struct Search<'a> {
    catalog: &'a Catalog,
    namespace: Namespace,
    chain_id: &'a Digest,
    image_ref: Option<&'a str>,
}

impl Search<'_> {
    async fn run(&self, named: Option<Digest>) -> Result<Found, Stop> {
        let mut blamed = None;
        if let Some(manifest) = named
            && let Some(info) = self.namespace.info(&manifest).await?
        {
            match self.layers(&info).await? {
                Ok(layers) => {
                    if let Some(index) = layers.index_of(self.chain_id) {
                        return Ok(self.found(&info, &layers, index));
                    }
                    tracing::debug!(%manifest, chain_id = %self.chain_id, "label names a manifest without this layer");
                }
                Err(unfit) => blamed = Some(unfit),
            }
        }
        self.newest(blamed).await
    }

    /// Of all manifests that make the chain ID, the one that was pulled last.
    async fn newest(&self, blamed: Option<Arc<Unfit>>) -> Result<Found, Stop> {
        let mut listed = self.namespace.list(&[MANIFESTS_FILTER]).await?;
        listed.sort_by_key(|info| std::cmp::Reverse(touched(info)));
        listed.truncate(MANIFESTS_MAX);
        let newest = listed.first().map(|info| info.digest.clone());
        let mut blamed = blamed;
        let mut matching = Vec::new();
        for (info, reading) in self.readings(listed).await? {
            match reading {
                Ok(layers) => {
                    let index = layers.index_of(self.chain_id);
                    matching.extend(index.map(|index| (info, layers, index)));
                }
                Err(unfit) if newest.as_ref() == Some(&info.digest) => {
                    blamed.get_or_insert(unfit);
                }
                Err(_) => {}
            }
        }
        let Some((info, layers, index)) = self.latest(matching).await? else {
            return Err(blamed.map_or(Stop::NoImage, Stop::Unfit));
        };
        Ok(self.found(&info, &layers, index))
    }

    /// The layers of each manifest, in any order.
    async fn readings(&self, listed: Vec<ContentInfo>) -> Result<Vec<(ContentInfo, Reading)>, CallError> {
        let reads: Vec<_> = listed
            .into_iter()
            .map(|info| async {
                let reading = self.layers(&info).await?;
                Ok((info, reading))
            })
            .collect();
        let done: Vec<Result<_, CallError>> =
            stream::iter(reads).buffer_unordered(READS_AT_ONCE).collect().await;
        done.into_iter().collect()
    }

    /// Every pull labels its manifest anew, which containerd notes in `updated_at`; the listings of 1.6 and 1.7 leave
    /// that out, so ask for each.
    async fn latest(
        &self,
        matching: Vec<(ContentInfo, Arc<Layers>, usize)>,
    ) -> Result<Option<(ContentInfo, Arc<Layers>, usize)>, CallError> {
        if matching.len() < 2 {
            return Ok(matching.into_iter().next());
        }
        let mut latest: Option<(ContentInfo, Arc<Layers>, usize)> = None;
        for (listed, layers, index) in matching {
            let Some(info) = self.namespace.info(&listed.digest).await? else { continue };
            if latest.as_ref().is_none_or(|(best, ..)| touched(&info) > touched(best)) {
                latest = Some((info, layers, index));
            }
        }
        Ok(latest)
    }

    /// The manifest's layers, from the cache or from containerd.
    async fn layers(&self, info: &ContentInfo) -> Result<Reading, CallError> {
        let key = (self.namespace.name().to_owned(), info.digest.clone());
        if let Some(reading) = self.catalog.cache.lock().get(&key) {
            return Ok(reading);
        }
        let reading = match self.read(info).await {
            Err(ReadError::Call(error)) => return Err(error),
            Err(ReadError::Missing { digest, .. }) => Err(Arc::new(Unfit::Missing { digest })),
            Err(ReadError::TooLarge { digest, .. }) => Err(Arc::new(Unfit::TooLarge { digest })),
            Ok(reading) => reading.map(Arc::new).map_err(Arc::new),
        };
        if reading.as_ref().err().is_none_or(|unfit| unfit.is_lasting()) {
            self.catalog.cache.lock().insert(key, reading.clone());
        }
        Ok(reading)
    }

    async fn read(&self, info: &ContentInfo) -> Result<Result<Layers, Unfit>, ReadError> {
        let manifest = self.namespace.read(&info.digest, MAX_DOCUMENT_LEN).await?;
        if !is_of(&manifest, &info.digest) {
            return Ok(Err(Unfit::Rotten { digest: info.digest.clone() }));
        }
        let config_digest = match config_of(&info.digest, &manifest) {
            Ok(digest) => digest,
            Err(unfit) => return Ok(Err(unfit)),
        };
        let config = self.namespace.read(&config_digest, MAX_DOCUMENT_LEN).await?;
        if !is_of(&config, &config_digest) {
            return Ok(Err(Unfit::Rotten { digest: config_digest }));
        }
        Ok(Layers::read(&info.digest, &manifest, &config))
    }

    fn found(&self, info: &ContentInfo, layers: &Arc<Layers>, index: usize) -> Found {
        let image = Image::new(layers, &info.labels, self.image_ref);
        let key = (self.namespace.name().to_owned(), info.digest.clone());
        Found { image: self.catalog.cache.lock().same(&key, image), index }
    }
}

/// When containerd last wrote about the blob, as far as it says.
fn touched(info: &ContentInfo) -> Option<SystemTime> {
    info.updated_at.max(info.created_at)
}

fn is_of(bytes: &[u8], digest: &Digest) -> bool {
    let algorithm: Algorithm = digest.algorithm();
    Digest::of(algorithm, bytes) == *digest
}
