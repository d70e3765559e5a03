//! What a manifest, its config and its labels say together. Pure.

use std::{collections::BTreeMap, sync::Arc};

use serde::Deserialize;

use crate::{
    containerd::{SOURCE_LABEL_PREFIX, UNCOMPRESSED_LABEL},
    oci::{
        Compression, Descriptor, Digest, DigestError, DocumentError, ImageConfig, MAX_DOCUMENT_LEN, Manifest,
        REF_NAME_ANNOTATION, Reference, Repository, Unhandled, chain_ids, is_manifest, layer_compression,
    },
};

/// containerd sets one such label for each layer of a manifest, unless it is told to discard layers once they are
/// unpacked (`images/handlers.go`, `ChildGCLabelsFilterLayers`).
const LAYER_EDGE_PREFIX: &str = "containerd.io/gc.ref.content.l.";

/// Most repositories tried for one image: a label's value is at most 4096 bytes, and more tries than this would
/// take longer than containerd's own pull.
const ORIGINS_MAX: usize = 32;

/// An image in one namespace of containerd, as it is pulled now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub manifest: Digest,
    /// As the client named it, if that agrees with where containerd got the manifest.
    pub name: Option<String>,
    /// Bottom first.
    pub layers: Arc<[LayerOf]>,
    /// Where the layers may be read, most likely first. A host without a port may have lost it.
    pub origins: Vec<Repository>,
    /// containerd does not keep the layers of this image.
    pub discard_unpacked: bool,
    /// The manifest's `distribution.source` labels, whole.
    pub sources: BTreeMap<String, String>,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerOf {
    pub descriptor: Descriptor,
    /// Digest of the tar.
    pub diff_id: Digest,
    /// Of this layer on those below it.
    pub chain_id: Digest,
    pub compression: Result<Compression, Unhandled>,
    /// containerd's name for its own download of this layer.
    pub r#ref: String,
}

/// The layers that a manifest and its config agree on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layers {
    pub(super) manifest: Digest,
    pub(super) layers: Arc<[LayerOf]>,
    /// Bytes of the manifest, most of which are still in `layers`.
    pub(super) manifest_len: usize,
}

/// Why a manifest that is there cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("{digest} is missing from containerd's content store")]
    Missing { digest: Digest },
    #[error(
        "{digest} is larger than the {MAX_DOCUMENT_LEN} bytes up to which manifests and configs are read"
    )]
    TooLarge { digest: Digest },
    #[error("containerd's copy of {digest} has other bytes: run `ctr content rm {digest}` and pull again")]
    Rotten { digest: Digest },
    #[error("manifest {manifest} cannot be used")]
    Manifest { manifest: Digest, source: DocumentError },
    #[error("manifest {manifest} says that it is {media_type:?}")]
    MediaType { manifest: Digest, media_type: String },
    #[error("config of manifest {manifest} cannot be used")]
    Config { manifest: Digest, source: DocumentError },
    #[error("manifest {manifest} names {layers} layers and its config {diff_ids}")]
    Count { manifest: Digest, layers: usize, diff_ids: usize },
    #[error("manifest {manifest} names content that cannot be checked")]
    DigestAlgorithm { manifest: Digest, source: DigestError },
}

impl Unfit {
    /// The word for a metric's `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing",
            Self::TooLarge { .. } => "too_large",
            Self::Rotten { .. } => "rotten",
            Self::Manifest { source: DocumentError::SchemaVersion(_), .. } => "schema_version",
            Self::Manifest { .. } => "manifest",
            Self::MediaType { .. } => "media_type",
            Self::Config { .. } => "config",
            Self::Count { .. } => "count",
            Self::DigestAlgorithm { .. } => "digest_algorithm",
        }
    }

    /// The same bytes would give the same verdict again.
    pub(super) fn is_lasting(&self) -> bool {
        !matches!(self, Self::Missing { .. } | Self::Rotten { .. })
    }
}

/// Which config the manifest is about.
pub(super) fn config_of(digest: &Digest, manifest: &[u8]) -> Result<Digest, Unfit> {
    parse_manifest(digest, manifest).map(|manifest| manifest.config.digest)
}

fn parse_manifest(digest: &Digest, bytes: &[u8]) -> Result<Manifest, Unfit> {
    let unfit = |source| match unknown_algorithm(bytes) {
        Some(source) => Unfit::DigestAlgorithm { manifest: digest.clone(), source },
        None => Unfit::Manifest { manifest: digest.clone(), source },
    };
    let manifest = Manifest::parse(bytes).map_err(unfit)?;
    if !manifest.media_type.is_empty() && !is_manifest(&manifest.media_type) {
        let media_type = manifest.media_type.chars().take(140).collect();
        return Err(Unfit::MediaType { manifest: digest.clone(), media_type });
    }
    Ok(manifest)
}

/// The first digest in a manifest or config whose algorithm is unknown: one that is well-formed otherwise.
fn unknown_algorithm(document: &[u8]) -> Option<DigestError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Loose {
        config: Named,
        layers: Vec<Named>,
        rootfs: Stack,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Named {
        digest: String,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Stack {
        diff_ids: Vec<String>,
    }
    let Loose { config, layers, rootfs } = serde_json::from_slice(document).ok()?;
    let named = layers.into_iter().chain([config]).map(|named| named.digest);
    let mut errors = named.chain(rootfs.diff_ids).filter_map(|digest| digest.parse::<Digest>().err());
    errors.find(|error| matches!(error, DigestError::UnknownAlgorithm(_)))
}

impl Layers {
    /// Folds a manifest and its config, both already checked against their digests.
    pub(super) fn read(digest: &Digest, manifest: &[u8], config: &[u8]) -> Result<Self, Unfit> {
        let manifest_len = manifest.len();
        let manifest = parse_manifest(digest, manifest)?;
        let config = ImageConfig::parse(config).map_err(|source| match unknown_algorithm(config) {
            Some(source) => Unfit::DigestAlgorithm { manifest: digest.clone(), source },
            None => Unfit::Config { manifest: digest.clone(), source },
        })?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let (layers, diff_ids) = (manifest.layers.len(), diff_ids.len());
            return Err(Unfit::Count { manifest: digest.clone(), layers, diff_ids });
        }
        let chain_ids = chain_ids(&diff_ids);
        let stack = manifest.layers.into_iter().zip(diff_ids).zip(chain_ids);
        let layers =
            stack.map(|((descriptor, diff_id), chain_id)| LayerOf::new(descriptor, diff_id, chain_id));
        Ok(Self { manifest: digest.clone(), layers: layers.collect(), manifest_len })
    }

    pub(super) fn index_of(&self, chain_id: &Digest) -> Option<usize> {
        self.layers.iter().position(|layer| layer.chain_id == *chain_id)
    }
}

impl LayerOf {
    fn new(descriptor: Descriptor, diff_id: Digest, chain_id: Digest) -> Self {
        // containerd `remotes/handlers.go`, `MakeRefKey`.
        let r#ref = match descriptor.annotations.get(REF_NAME_ANNOTATION) {
            Some(name) => format!("layer-{name}@{}", descriptor.digest),
            None => format!("layer-{}", descriptor.digest),
        };
        let compression = layer_compression(&descriptor.media_type);
        Self { descriptor, diff_id, chain_id, compression, r#ref }
    }
}

impl Image {
    /// The image of `layers`, with what the labels of its manifest and the client's name for it say.
    pub(super) fn new(layers: &Layers, labels: &BTreeMap<String, String>, image_ref: Option<&str>) -> Self {
        let sources: BTreeMap<String, String> = labels
            .iter()
            .filter(|(key, _)| key.starts_with(SOURCE_LABEL_PREFIX))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let mut origins = repositories(&sources);
        let reference = image_ref.and_then(|name| name.parse::<Reference>().ok());
        let reference = reference.filter(|reference| put_first(&mut origins, &reference.repository));
        origins.truncate(ORIGINS_MAX);
        let keeps_layers = labels.keys().any(|key| key.starts_with(LAYER_EDGE_PREFIX));
        Self {
            manifest: layers.manifest.clone(),
            name: reference.map(|reference| reference.to_string()),
            layers: Arc::clone(&layers.layers),
            origins,
            discard_unpacked: !layers.layers.is_empty() && !keeps_layers,
            sources,
        }
    }

    /// For people: the client's name, else a repository with the manifest's digest, else that digest alone.
    #[must_use]
    pub fn title(&self) -> String {
        match (&self.name, self.origins.first()) {
            (Some(name), _) => name.clone(),
            (None, Some(repository)) => format!("{repository}@{}", self.manifest.short()),
            (None, None) => self.manifest.short(),
        }
    }

    /// The labels that the blob of layer `index` gets in containerd's content store.
    #[must_use]
    pub fn blob_labels(&self, index: usize) -> BTreeMap<String, String> {
        let mut labels = self.sources.clone();
        labels.insert(UNCOMPRESSED_LABEL.to_owned(), self.layers[index].diff_id.to_string());
        labels
    }
}

/// Every repository that `distribution.source` labels name; what is no repository is left out.
fn repositories(sources: &BTreeMap<String, String>) -> Vec<Repository> {
    let named = sources.iter().flat_map(|(key, paths)| {
        let host = key.strip_prefix(SOURCE_LABEL_PREFIX).unwrap_or_default();
        // An IPv6 address has lost its brackets together with its port.
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        paths.split(',').filter_map(move |path| format!("{host}/{path}").parse().ok())
    });
    named.collect()
}

/// Puts the client's own name for the repository, which still has its port, in place of the same repository
/// without; `false`, and nothing changed, if it is none of them.
fn put_first(origins: &mut Vec<Repository>, named: &Repository) -> bool {
    let same = |origin: &Repository| origin.path == named.path && origin.host_name() == named.host_name();
    let Some(at) = origins.iter().position(same) else { return false };
    origins.remove(at);
    origins.insert(0, named.clone());
    true
}

#[cfg(test)]
mod tests;
