//! What manifests have told of other blobs: their lengths, and what manifests among them are called.

use std::collections::HashMap;

use parking_lot::Mutex;
use serde::Deserialize;

use crate::oci::{Descriptor, Digest};

/// Descriptors remembered, of about 150 bytes each; beyond it all are learnt again.
const KNOWN_MAX: usize = 1 << 16;

/// Media type of a manifest that does not name its own.
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// Lengths and media types by digest. Nothing is proven by them: a blob of another length has another digest.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashMap<Digest, (u64, String)>>);

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
    pub(super) fn len_of(&self, digest: &Digest) -> Option<u64> {
        self.0.lock().get(digest).map(|(len, _)| *len)
    }

    pub(super) fn media_type_of(&self, digest: &Digest) -> Option<String> {
        self.0.lock().get(digest).map(|(_, media_type)| media_type.clone()).filter(|named| !named.is_empty())
    }

    pub(super) fn note(&self, digest: Digest, len: u64, media_type: String) {
        let mut known = self.0.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(digest, (len, media_type));
    }

    /// Learns what the manifest `bytes` names, and says what it is.
    pub(super) fn read(&self, bytes: &[u8]) -> &'static str {
        let Ok(document) = serde_json::from_slice::<Document>(bytes) else { return "application/json" };
        let kind = kind_of(&document);
        let Document { config, layers, blobs, manifests, .. } = document;
        let all = config.into_iter().chain(layers).chain(blobs).chain(manifests.unwrap_or_default());
        for Descriptor { digest, size, media_type, .. } in all {
            self.note(digest, size, media_type);
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

    #[test]
    fn manifests_tell_lengths_and_types_of_what_they_name() {
        let known = Known::default();
        let [config, layer, image] = [1, 2, 3].map(|byte| Digest::of(Algorithm::Sha256, &[byte]));
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{config}","size":7}},"layers":[{{"digest":"{layer}","size":8}}]}}"#
        );
        assert_eq!(known.read(manifest.as_bytes()), OCI_MANIFEST);
        assert_eq!((known.len_of(&config), known.len_of(&layer)), (Some(7), Some(8)));
        assert_eq!(known.media_type_of(&config), None);
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/x","digest":"{image}","size":9}}]}}"#
        );
        assert_eq!(known.read(index.as_bytes()), OCI_INDEX);
        assert_eq!(known.media_type_of(&image).as_deref(), Some("application/x"));
    }

    #[test]
    fn a_type_is_what_clients_know() {
        let known = Known::default();
        let docker = "application/vnd.docker.distribution.manifest.list.v2+json";
        assert_eq!(known.read(format!(r#"{{"schemaVersion":2,"mediaType":"{docker}"}}"#).as_bytes()), docker);
        assert_eq!(known.read(br#"{"schemaVersion":2,"mediaType":"text/html"}"#), OCI_MANIFEST);
        assert_eq!(known.read(br#"{"schemaVersion":1,"fsLayers":[]}"#), SCHEMA_1);
        assert_eq!(known.read(b"<html>"), "application/json");
    }
}
