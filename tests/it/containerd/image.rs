//! Images made here, as OCI archives for `ctr image import`.

use std::{fs::File, io::Write as _, path::Path};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use flotilla::oci::{Digest, chain_ids};
use serde_json::json;

use super::daemon::{Daemon, sha256};

/// An image with one layer for each of some words; a layer holds one file of that name.
pub(crate) struct Archive {
    name: String,
    pub(crate) manifest: Digest,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) layers: Vec<Bytes>,
    blobs: Vec<Bytes>,
    index: Bytes,
}

impl Archive {
    /// Layers are gzip.
    pub(crate) fn new(words: &[&str]) -> Self {
        Self::compressed(words, Some(Compression::default()))
    }

    /// The same tars, in another wrapping: other blobs, other manifest, same chain IDs.
    pub(crate) fn uncompressed(words: &[&str]) -> Self {
        Self::compressed(words, None)
    }

    fn compressed(words: &[&str], compression: Option<Compression>) -> Self {
        let tars: Vec<Vec<u8>> = words.iter().map(|word| tar_of(word)).collect();
        let diff_ids: Vec<Digest> = tars.iter().map(|tar| sha256(tar)).collect();
        let (suffix, layers): (&str, Vec<Bytes>) = match compression {
            Some(level) => ("+gzip", tars.iter().map(|tar| gzip(tar, level)).collect()),
            None => ("", tars.into_iter().map(Bytes::from).collect()),
        };
        let arch = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
        let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
        let config = document(&json!({"architecture": arch, "os": "linux", "rootfs": rootfs}));
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        let stack: Vec<_> = layers.iter().map(|layer| descriptor(&media_type, layer)).collect();
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = document(&json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": stack,
        }));
        let name = format!("example.test/{}{}:v1", words.join("-"), suffix.replace('+', "-"));
        let mut target = descriptor(manifest_type, &manifest);
        target["annotations"] = json!({"io.containerd.image.name": name});
        let index = document(&json!({"schemaVersion": 2, "manifests": [target]}));
        let digest = sha256(&manifest);
        let blobs = layers.iter().cloned().chain([config, manifest]).collect();
        Self { name, manifest: digest, diff_ids, layers, blobs, index }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn chain_ids(&self) -> Vec<Digest> {
        chain_ids(&self.diff_ids)
    }

    /// Writes the archive into `dir`, and returns its path.
    pub(crate) fn write(&self, dir: &Path) -> String {
        let path = dir.join(format!("{}.tar", self.manifest.hex()));
        let mut tar = tar::Builder::new(File::create(&path).unwrap());
        add(&mut tar, "oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#);
        add(&mut tar, "index.json", &self.index);
        for blob in &self.blobs {
            add(&mut tar, &format!("blobs/sha256/{}", sha256(blob).hex()), blob);
        }
        tar.into_inner().unwrap().flush().unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Imports the image without unpacking it.
    pub(crate) fn import(&self, daemon: &Daemon, namespace: &str) {
        let file = self.write(daemon.path());
        daemon.run_ctr(&["-n", namespace, "images", "import", "--no-unpack", &file]);
    }
}

fn document(json: &serde_json::Value) -> Bytes {
    json.to_string().into()
}

fn descriptor(media_type: &str, blob: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": sha256(blob), "size": blob.len()})
}

fn tar_of(word: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, word, word.as_bytes());
    tar.into_inner().unwrap()
}

fn add(tar: &mut tar::Builder<impl std::io::Write>, path: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, path, bytes).unwrap();
}

fn gzip(bytes: &[u8], level: Compression) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), level);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap().into()
}
