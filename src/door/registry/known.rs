//! What manifests have told of other blobs: their lengths, and what manifests among them are called.

use std::collections::HashMap;

use parking_lot::Mutex;
use serde::Deserialize;

use crate::{
    oci::{Descriptor, Digest, MEDIA_TYPE_LEN_MAX, Repository},
    piece::BLOB_LEN_MAX,
};

/// Descriptors remembered, of about 200 bytes each and 1 KiB at most; beyond it all are learnt again.
const KNOWN_MAX: usize = 1 << 15;

/// Media type of a manifest that does not name its own.
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// Lengths and media types, of each repository's blobs as its own manifests have them. Nothing is proven by them: a blob
/// of another length has another digest, and where its bytes are they say themselves what they are.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashMap<(Repository, Digest), (u64, String)>>);

/// Every manifest that there is, as far as it names others.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    blobs: Vec<Descriptor>,
    manifests: Option<Vec<Descriptor>>,
}

impl Known {
    pub(super) fn len_of(&self, repository: &Repository, digest: &Digest) -> Option<u64> {
        self.0.lock().get(&(repository.clone(), digest.clone())).map(|(len, _)| *len)
    }

    pub(super) fn media_type_of(&self, repository: &Repository, digest: &Digest) -> Option<String> {
        let known = self.0.lock();
        let (_, media_type) = known.get(&(repository.clone(), digest.clone()))?;
        (!media_type.is_empty()).then(|| media_type.clone())
    }

    pub(super) fn note(&self, repository: &Repository, digest: Digest, len: u64, media_type: String) {
        if len > BLOB_LEN_MAX || media_type.len() > MEDIA_TYPE_LEN_MAX {
            return;
        }
        let mut known = self.0.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert((repository.clone(), digest), (len, media_type));
    }

    /// Learns what the manifest `bytes` of `repository` names, and says what it is.
    pub(super) fn read(&self, repository: &Repository, bytes: &[u8]) -> &'static str {
        let Ok(document) = serde_json::from_slice::<Document>(bytes) else { return "application/json" };
        let kind = kind_of(&document);
        let Document { config, layers, blobs, manifests, .. } = document;
        let all = config.into_iter().chain(layers).chain(blobs).chain(manifests.unwrap_or_default());
        for Descriptor { digest, size, media_type, .. } in all {
            self.note(repository, digest, size, media_type);
        }
        kind
    }
}

/// The type that a manifest states, of those that clients know; else what its fields make it.
fn kind_of(document: &Document) -> &'static str {
    const TYPES: [&str; 5] = [
        OCI_MANIFEST,
        OCI_INDEX,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.artifact.manifest.v1+json",
    ];
    let stated = document.media_type.as_deref().unwrap_or_default();
    let by_fields = match (document.schema_version, &document.manifests) {
        (1, _) => SCHEMA_1,
        (_, Some(_)) => OCI_INDEX,
        (_, None) => OCI_MANIFEST,
    };
    TYPES.into_iter().find(|known| *known == stated).unwrap_or(by_fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn repository() -> Repository {
        "r.local/a".parse().unwrap()
    }

    #[test]
    fn manifests_tell_lengths_and_types_of_what_they_name() {
        let known = Known::default();
        let [config, layer, image] = [1, 2, 3].map(|byte| Digest::of(Algorithm::Sha256, &[byte]));
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{config}","size":7}},"layers":[{{"digest":"{layer}","size":8}}]}}"#
        );
        let of = repository();
        assert_eq!(known.read(&of, manifest.as_bytes()), OCI_MANIFEST);
        assert_eq!((known.len_of(&of, &config), known.len_of(&of, &layer)), (Some(7), Some(8)));
        assert_eq!(known.media_type_of(&of, &config), None);
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/x","digest":"{image}","size":9}}]}}"#
        );
        assert_eq!(known.read(&of, index.as_bytes()), OCI_INDEX);
        assert_eq!(known.media_type_of(&of, &image).as_deref(), Some("application/x"));
        let other: Repository = "r.local/b".parse().unwrap();
        assert_eq!((known.len_of(&other, &config), known.media_type_of(&other, &image)), (None, None));
    }

    #[test]
    fn what_cannot_be_is_not_remembered() {
        let (known, of, digest) = (Known::default(), repository(), Digest::of(Algorithm::Sha256, b""));
        known.note(&of, digest.clone(), BLOB_LEN_MAX + 1, "a/b".into());
        known.note(&of, digest.clone(), 1, "x".repeat(MEDIA_TYPE_LEN_MAX + 1));
        assert_eq!(known.len_of(&of, &digest), None);
        let huge = format!(
            r#"{{"schemaVersion":2,"layers":[{{"digest":"{digest}","size":18446744073709551615}}]}}"#
        );
        known.read(&of, huge.as_bytes());
        assert_eq!(known.len_of(&of, &digest), None);
    }

    #[test]
    fn a_type_is_what_clients_know() {
        let known = Known::default();
        let docker = "application/vnd.docker.distribution.manifest.list.v2+json";
        let read = |text: &str| known.read(&repository(), text.as_bytes());
        assert_eq!(read(&format!(r#"{{"schemaVersion":2,"mediaType":"{docker}"}}"#)), docker);
        assert_eq!(read(r#"{"schemaVersion":2,"mediaType":"text/html"}"#), OCI_MANIFEST);
        assert_eq!(read(r#"{"schemaVersion":1,"fsLayers":[]}"#), SCHEMA_1);
        assert_eq!(read("<html>"), "application/json");
    }
}
