//! A containerd of our own, to import images into and to look at what it has unpacked.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what is wrong")]

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use flotilla::oci::{Algorithm, Digest, chain_ids};
use serde_json::{Value, json};

use crate::lab::containerd::{self, Programs};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub(crate) struct Containerd {
    programs: Programs,
    daemon: Child,
    directory: tempfile::TempDir,
}

/// A layer as it lies in a registry.
pub(crate) struct Layer {
    pub(crate) blob: Vec<u8>,
    pub(crate) diff_id: Digest,
}

impl Layer {
    pub(crate) fn gzip(tar: &[u8]) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(tar).unwrap();
        Self { blob: encoder.finish().unwrap(), diff_id: Digest::of(Algorithm::Sha256, tar) }
    }

    /// Several members one behind the other, as parallel compressors write them.
    pub(crate) fn gzip_in_members(tar: &[u8]) -> Self {
        let members = tar.chunks(700).map(|part| Self::gzip(part).blob);
        Self { blob: members.flatten().collect(), diff_id: Digest::of(Algorithm::Sha256, tar) }
    }
}

impl Containerd {
    /// Starts one in a directory of its own and waits until it serves.
    /// `None`, said aloud, where there is no containerd.
    pub(crate) fn start() -> Option<Self> {
        let Some(programs) = containerd::any() else {
            eprintln!("skipped: no containerd here; cargo xtask setup gets it where it can");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("containerd.sock"),
            path("ttrpc.sock")
        );
        std::fs::write(path("config.toml"), config).unwrap();
        let mut daemon = Command::new(programs.bin.join("containerd"))
            .args(["--config", &path("config.toml")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(daemon.stderr.take().unwrap()).lines();
        let serves = log.by_ref().any(|line| line.unwrap().contains("containerd successfully booted"));
        assert!(serves, "containerd ended before it served");
        std::thread::spawn(move || log.for_each(drop));
        Some(Self { programs, daemon, directory })
    }

    /// Imports an image and unpacks it with overlayfs. Returns the layers' directories, the bottom one first, or what
    /// containerd says against it.
    pub(crate) fn unpack(&self, name: &str, layers: &[Layer]) -> Result<Vec<PathBuf>, String> {
        let archive = self.directory.path().join(format!("{name}.tar"));
        std::fs::write(&archive, image(name, layers)).unwrap();
        let arguments = ["images", "import", "--snapshotter", "overlayfs", archive.to_str().unwrap()];
        let import = self.ctr(&arguments);
        if !import.status.success() {
            return Err(String::from_utf8_lossy(&import.stderr).into_owned());
        }
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let chain_id = chain_ids(&diff_ids).last().unwrap().to_string();
        let view = format!("view-{name}");
        let mounts =
            self.ctr(&["snapshots", "--snapshotter", "overlayfs", "view", "--mounts", &view, &chain_id]);
        assert!(mounts.status.success(), "{}", String::from_utf8_lossy(&mounts.stderr));
        Ok(lower_directories(&serde_json::from_slice(&mounts.stdout).unwrap()))
    }

    fn ctr(&self, arguments: &[&str]) -> Output {
        let socket = self.directory.path().join("containerd.sock");
        Command::new(self.programs.bin.join("ctr"))
            .arg("--address")
            .arg(socket)
            .args(arguments)
            .output()
            .unwrap()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// The bottom one first.
fn lower_directories(mounts: &Value) -> Vec<PathBuf> {
    let mount = &mounts[0];
    if mount["Type"] == "bind" {
        return vec![PathBuf::from(mount["Source"].as_str().unwrap())];
    }
    let options = mount["Options"].as_array().unwrap().iter().map(|option| option.as_str().unwrap());
    let lower = options.filter_map(|option| option.strip_prefix("lowerdir=")).next().unwrap();
    lower.split(':').rev().map(PathBuf::from).collect()
}

/// An image in the form of an OCI layout in a tar.
fn image(name: &str, layers: &[Layer]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {},
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| layer.diff_id.to_string()).collect::<Vec<_>>(),
        },
    });
    let config =
        blob(&mut archive, config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let layers: Vec<Value> = layers.iter().map(|layer| blob(&mut archive, &layer.blob, GZIP)).collect();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let mut manifest = blob(&mut archive, manifest.to_string().as_bytes(), media_type);
    manifest["annotations"] = json!({ "io.containerd.image.name": format!("test.invalid/{name}:latest") });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    add(&mut archive, "index.json", index.to_string().as_bytes());
    add(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    archive.into_inner().unwrap()
}

/// Adds a blob and returns its descriptor.
fn blob(archive: &mut tar::Builder<Vec<u8>>, bytes: &[u8], media_type: &str) -> Value {
    let digest = Digest::of(Algorithm::Sha256, bytes);
    add(archive, format!("blobs/sha256/{}", digest.hex()), bytes);
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
}

fn add(archive: &mut tar::Builder<Vec<u8>>, path: impl AsRef<Path>, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, path, bytes).unwrap();
}
