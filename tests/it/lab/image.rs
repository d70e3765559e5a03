//! Images for tests, written straight into the folder of a registry.
//!
//! ```text
//! docker/registry/v2/
//!   blobs/sha256/<2 hex>/<hex>/data
//!   repositories/<name>/_layers/sha256/<hex>/link          "sha256:<hex>": the repository has this blob
//!   repositories/<name>/_manifests/revisions/sha256/<hex>/link
//!   repositories/<name>/_manifests/tags/<tag>/current/link
//! ```
//! That is how Debian's docker-registry keeps them (distribution 2.8, `registry/storage/paths.go`).
//! Pushing would cost a client, time, and the freedom to publish what a registry refuses. Everything is
//! a function of its arguments: the same layer has the same digest on every machine.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use flate2::{GzBuilder, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How a layer's tar is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    fn media_type(self) -> &'static str {
        match self {
            Compression::Plain => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A blob that lies in the registry's folder.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) media_type: String,
    /// `sha256:<hex>`.
    pub(crate) digest: String,
    /// Bytes.
    pub(crate) size: u64,
}

impl Blob {
    pub(crate) fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.size })
    }
}

/// A layer's blob and what it inflates to.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) blob: Blob,
    pub(crate) diff_id: String,
}

/// An image under a name.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    /// `demo/app:v1`.
    pub(crate) name: String,
    pub(crate) manifest: Blob,
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Layer>,
}

impl Published {
    /// Layers, config and manifest, in bytes: what a registry must send at least.
    pub(crate) fn bytes(&self) -> u64 {
        let layers: u64 = self.layers.iter().map(|layer| layer.blob.size).sum();
        layers + self.config.size + self.manifest.size
    }
}

/// The folder of a registry.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    root: PathBuf,
}

impl Images {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Images {
        Images { root: root.into() }
    }

    fn v2(&self) -> PathBuf {
        self.root.join("docker/registry/v2")
    }

    /// Where a blob's bytes lie, for stories in which they rot.
    pub(crate) fn path(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let first = hex.get(..2).unwrap_or_default();
        self.v2().join("blobs/sha256").join(first).join(hex).join("data")
    }

    /// Stores bytes.
    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> io::Result<Blob> {
        let digest = name(Sha256::digest(bytes).as_slice());
        let path = self.path(&digest);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(path, bytes)?;
        Ok(Blob { media_type: media_type.to_owned(), digest, size: bytes.len() as u64 })
    }

    /// Stores a layer whose tar `fill` writes; it is never held in memory.
    pub(crate) fn layer(
        &self,
        compression: Compression,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Layer> {
        fs::create_dir_all(self.v2())?;
        let scratch = tempfile::NamedTempFile::new_in(self.v2())?;
        let file = Hashing::new(BufWriter::with_capacity(1 << 20, scratch.reopen()?));
        let mut tar = Hashing::new(Encoder::new(compression, file)?);
        fill(&mut tar)?;
        let (encoder, diff_id, _) = tar.finish();
        let (mut file, digest, size) = encoder.finish()?.finish();
        file.flush()?;
        drop(file);
        let path = self.path(&digest);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        scratch.persist(path)?;
        Ok(Layer { blob: Blob { media_type: compression.media_type().to_owned(), digest, size }, diff_id })
    }

    /// Stores a layer of the given entries.
    pub(crate) fn entries(&self, compression: Compression, entries: &[Entry<'_>]) -> io::Result<Layer> {
        self.layer(compression, |out| write_entries(out, entries))
    }

    /// Publishes an image `repository:tag` of these layers, the lowest first.
    pub(crate) fn publish(&self, name: &str, layers: &[Layer], command: &[&str]) -> io::Result<Published> {
        self.publish_for(architecture(), name, layers, command)
    }

    /// The same for machines of some architecture.
    pub(crate) fn publish_for(
        &self,
        architecture: &str,
        name: &str,
        layers: &[Layer],
        command: &[&str],
    ) -> io::Result<Published> {
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": { "Cmd": command, "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
            "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|l| &l.diff_id).collect::<Vec<_>>() },
            "history": layers.iter().map(|_| json!({ "created_by": "lab" })).collect::<Vec<_>>(),
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(),
            "layers": layers.iter().map(|layer| layer.blob.descriptor()).collect::<Vec<_>>(),
        });
        let blobs: Vec<&str> =
            layers.iter().map(|layer| layer.blob.digest.as_str()).chain([config.digest.as_str()]).collect();
        let manifest = self.publish_manifest(name, &manifest, &blobs)?;
        Ok(Published { name: name.to_owned(), manifest, config, layers: layers.to_vec() })
    }

    /// Publishes a manifest as it is, which may lie, with the blobs that its repository shall have.
    pub(crate) fn publish_manifest(&self, name: &str, manifest: &Value, blobs: &[&str]) -> io::Result<Blob> {
        let (repository, tag) =
            name.rsplit_once(':').ok_or_else(|| io::Error::other("a name without a tag"))?;
        let media_type = manifest.get("mediaType").and_then(Value::as_str).unwrap_or_default();
        let manifest = self.blob(media_type, manifest.to_string().as_bytes())?;
        let repository = self.v2().join("repositories").join(repository);
        for digest in blobs {
            link(&repository.join("_layers"), digest)?;
        }
        let manifests = repository.join("_manifests");
        link(&manifests.join("revisions"), &manifest.digest)?;
        let tag = manifests.join("tags").join(tag);
        link(&tag.join("index"), &manifest.digest)?;
        fs::create_dir_all(tag.join("current"))?;
        fs::write(tag.join("current/link"), &manifest.digest)?;
        Ok(manifest)
    }
}

fn link(folder: &Path, digest: &str) -> io::Result<()> {
    let folder = folder.join("sha256").join(digest.trim_start_matches("sha256:"));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("link"), digest)
}

/// The architecture of this machine in OCI's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

/// One entry of a tar. Owner 0:0, and one time for all.
#[derive(Clone, Debug)]
pub(crate) enum Entry<'a> {
    Directory {
        path: &'a str,
        mode: u32,
    },
    File {
        path: &'a str,
        mode: u32,
        bytes: &'a [u8],
    },
    /// A file of `len` bytes that do not compress, a function of `seed`.
    Noise {
        path: &'a str,
        len: u64,
        seed: u64,
    },
    Symlink {
        path: &'a str,
        target: &'a str,
    },
    HardLink {
        path: &'a str,
        target: &'a str,
    },
}

/// 2026-01-01T00:00:00Z.
const MTIME: u64 = 1_767_225_600;

/// Writes a whole tar.
pub(crate) fn write_entries(out: &mut dyn Write, entries: &[Entry<'_>]) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(MTIME);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mode(0o777);
        match *entry {
            Entry::Directory { path, mode } => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(mode);
                tar.append_data(&mut header, path, io::empty())?;
            }
            Entry::File { path, mode, bytes } => {
                header.set_mode(mode);
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, path, bytes)?;
            }
            Entry::Noise { path, len, seed } => {
                header.set_mode(0o644);
                header.set_size(len);
                tar.append_data(&mut header, path, io::Read::take(Noise(seed | 1), len))?;
            }
            Entry::Symlink { path, target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, path, target)?;
            }
            Entry::HardLink { path, target } => {
                header.set_entry_type(tar::EntryType::Link);
                header.set_mode(0o644);
                tar.append_link(&mut header, path, target)?;
            }
        }
    }
    tar.finish()
}

/// Endless bytes that do not compress: xorshift64*.
struct Noise(u64);

impl io::Read for Noise {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        for chunk in into.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Ok(into.len())
    }
}

/// Passes bytes on and hashes them.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    len: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Hashing { inner, hash: Sha256::new(), len: 0 }
    }

    fn finish(self) -> (W, String, u64) {
        (self.inner, name(self.hash.finalize().as_slice()), self.len)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn name(hash: &[u8]) -> String {
    format!("sha256:{}", hex::encode(hash))
}

type Sink = Hashing<BufWriter<File>>;

enum Encoder {
    Plain(Sink),
    Gzip(GzEncoder<Sink>),
    Zstd(zstd::Encoder<'static, Sink>),
}

impl Encoder {
    /// The quickest level of each: tests are about the bytes, not their number.
    fn new(compression: Compression, out: Sink) -> io::Result<Encoder> {
        Ok(match compression {
            Compression::Plain => Encoder::Plain(out),
            Compression::Gzip => Encoder::Gzip(GzBuilder::new().write(out, flate2::Compression::fast())),
            Compression::Zstd => Encoder::Zstd(zstd::Encoder::new(out, 1)?),
        })
    }

    fn finish(self) -> io::Result<Sink> {
        match self {
            Encoder::Plain(out) => Ok(out),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl Write for Encoder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Encoder::Plain(out) => out.write(bytes),
            Encoder::Gzip(encoder) => encoder.write(bytes),
            Encoder::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::Plain(out) => out.flush(),
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
        }
    }
}
