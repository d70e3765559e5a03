//! Layers as stories: tars built entry by entry, unpacked into a fresh directory.

mod hostile;
mod tar;
mod trees;

use std::{fs, io::Write, os::unix::fs::PermissionsExt, path::Path};

use super::{Built, Layer, UnpackError, unpack};
use crate::oci::{Algorithm, Compression, Digest};
use tar::Tar;

/// A staging directory inside another one, so that what leaves it would be seen.
struct Staging {
    outside: tempfile::TempDir,
}

impl Staging {
    fn new() -> Self {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("fs")).unwrap();
        fs::set_permissions(outside.path().join("fs"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(outside.path().join("secret"), "untouched").unwrap();
        Self { outside }
    }

    fn path(&self) -> std::path::PathBuf {
        self.outside.path().join("fs")
    }

    fn join(&self, path: &str) -> std::path::PathBuf {
        self.path().join(path)
    }

    /// Nothing but the staging directory and the secret are there, and the secret is as it was.
    fn assert_confined(&self) {
        let mut names: Vec<_> =
            fs::read_dir(self.outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["fs", "secret"]);
        assert_eq!(fs::read(self.outside.path().join("secret")).unwrap(), b"untouched");
        let metadata = fs::metadata(self.outside.path().join("secret")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&metadata), 1);
    }
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn unpack_bytes(tar: &[u8], staging: &Path, bottom: bool) -> Result<Built, UnpackError> {
    let diff_id = sha256(tar);
    unpack(&Layer { compression: Compression::None, diff_id: &diff_id, bottom }, tar, staging)
}

/// Unpacks as a layer that has others below it.
fn unpacked(tar: Tar) -> (Staging, Built) {
    let staging = Staging::new();
    let built = unpack_bytes(&tar.end(), &staging.path(), false).unwrap();
    (staging, built)
}

/// Unpacks as the bottom layer.
fn unpacked_bottom(tar: Tar) -> Staging {
    let staging = Staging::new();
    unpack_bytes(&tar.end(), &staging.path(), true).unwrap();
    staging
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
