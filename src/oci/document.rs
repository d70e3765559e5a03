//! Manifests, indexes and configs: the fields that Flotilla reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Algorithm, Digest, Platform};

/// containerd names an ingest after this annotation where a descriptor carries it
/// (`remotes/handlers.go`, `MakeRefKey`).
pub const REF_NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// Largest manifest, index or config read. Registries refuse manifests above 4 MiB; configs with long
/// histories have been seen at 1 MiB.
pub const MAX_DOCUMENT_LEN: usize = 8 << 20;

/// Most layers taken from one manifest: overlay takes fewer than 500 lower directories.
const MAX_LAYERS: usize = 500;

/// Names a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// An image manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// A list of manifests, one a platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
}

/// An image's config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub variant: Option<String>,
    pub rootfs: RootFs,
}

/// The digests of the layers' tars, bottom first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

/// Why a document is not believed.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("{what} has {len} bytes; at most {MAX_DOCUMENT_LEN} are read")]
    TooLarge { what: &'static str, len: usize },
    #[error("{what} is not what its media type says")]
    Json { what: &'static str, source: serde_json::Error },
    #[error("manifest has schema version {0}; only version 2 is handled")]
    SchemaVersion(u32),
    #[error("manifest names {0} layers; at most {MAX_LAYERS} are handled")]
    TooManyLayers(usize),
    #[error("descriptor of {digest} states {size} bytes, which no blob has")]
    Size { digest: Digest, size: u64 },
}

/// Largest blob believed: 1 TiB. Sizes are added up, kept in signed fields by containerd, and reserved on disk.
const MAX_BLOB_LEN: u64 = 1 << 40;

fn parse<T: serde::de::DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DocumentError> {
    if bytes.len() > MAX_DOCUMENT_LEN {
        return Err(DocumentError::TooLarge { what, len: bytes.len() });
    }
    serde_json::from_slice(bytes).map_err(|source| DocumentError::Json { what, source })
}

impl Manifest {
    /// # Errors
    /// Not a schema 2 or OCI manifest, or one beyond the limits.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let manifest: Self = parse("manifest", bytes)?;
        if manifest.schema_version != 2 {
            return Err(DocumentError::SchemaVersion(manifest.schema_version));
        }
        if manifest.layers.len() > MAX_LAYERS {
            return Err(DocumentError::TooManyLayers(manifest.layers.len()));
        }
        let oversize = manifest.layers.iter().find(|layer| layer.size > MAX_BLOB_LEN);
        if let Some(layer) = oversize {
            return Err(DocumentError::Size { digest: layer.digest.clone(), size: layer.size });
        }
        Ok(manifest)
    }
}

impl Index {
    /// # Errors
    /// Not an index, or one beyond the limits.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        parse("index", bytes)
    }

    /// The manifest for `platform`; of several, the first.
    #[must_use]
    pub fn manifest_for(&self, platform: &Platform) -> Option<&Descriptor> {
        let fits = |manifest: &&Descriptor| {
            manifest.platform.as_ref().is_some_and(|offered| platform.takes(offered))
        };
        self.manifests.iter().find(fits)
    }
}

impl ImageConfig {
    /// What the image runs on.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone(),
        }
    }

    /// # Errors
    /// Not an image config, or one beyond the limits.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        parse("image config", bytes)
    }
}

/// Chain IDs of the stacks that `diff_ids` build, bottom first: `chain[0] = diff[0]`,
/// `chain[i] = sha256(chain[i-1] + " " + diff[i])` (image-spec `config.md`).
#[must_use]
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(Algorithm::Sha256, format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diff(byte: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[byte])
    }

    #[test]
    fn chain_ids_fold_from_the_bottom() {
        let chain = chain_ids(&[diff(1), diff(2), diff(3)]);
        assert_eq!(chain[0], diff(1));
        let second = Digest::of(Algorithm::Sha256, format!("{} {}", diff(1), diff(2)).as_bytes());
        assert_eq!(chain[1], second);
        assert_eq!(chain[2], Digest::of(Algorithm::Sha256, format!("{second} {}", diff(3)).as_bytes()));
        assert_eq!(chain_ids(&[]), Vec::<Digest>::new());
    }

    #[test]
    fn a_manifest_that_lies_is_refused() {
        let layer = |size: u64| format!(r#"{{"digest":"{}","size":{size}}}"#, diff(1));
        let manifest = |version: u32, layers: &str| {
            format!(r#"{{"schemaVersion":{version},"config":{},"layers":[{layers}]}}"#, layer(2)).into_bytes()
        };
        assert!(Manifest::parse(&manifest(2, &layer(7))).is_ok());
        assert!(matches!(Manifest::parse(&manifest(1, &layer(7))), Err(DocumentError::SchemaVersion(1))));
        assert!(matches!(Manifest::parse(&manifest(2, &layer(u64::MAX))), Err(DocumentError::Size { .. })));
        let many = vec![layer(1); 501].join(",");
        assert!(matches!(Manifest::parse(&manifest(2, &many)), Err(DocumentError::TooManyLayers(501))));
        assert!(matches!(Manifest::parse(b"<html>"), Err(DocumentError::Json { .. })));
        let huge = vec![b' '; MAX_DOCUMENT_LEN + 1];
        assert!(matches!(Manifest::parse(&huge), Err(DocumentError::TooLarge { .. })));
    }
}
