//! A private containerd.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use flotilla::{
    containerd::{Client, Ingest, Ingested, Namespace},
    oci::{Algorithm, Digest},
};
use futures_util::{Stream, stream};
use tempfile::TempDir;

use crate::lab::containerd::{self, Programs};

const LEASE: &str = "flotilla-test";

/// A running containerd with root, state and socket of its own; killed on drop.
pub(crate) struct Daemon {
    dir: TempDir,
    binaries: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts one; `None`, and a line that says why, if there is no containerd here.
    pub(crate) fn start() -> Option<Self> {
        let Some(Programs { bin: binaries, .. }) = containerd::any() else {
            println!("skipped: no containerd here; cargo xtask setup gets it where it can");
            return None;
        };
        if !rustix::process::geteuid().is_root() {
            println!("skipped: containerd needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.toml"), config(dir.path())).unwrap();
        let child = boot(&binaries, dir.path());
        Some(Self { dir, binaries, child })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.dir.path().join("sock"))
    }

    /// A namespace, with the lease that [`ingest_of`] writes under: newer versions collect what nothing refers to
    /// within a second.
    pub(crate) async fn namespace(&self, name: &str) -> Namespace {
        let namespace = self.client().namespace(name);
        let expires = SystemTime::now() + Duration::from_secs(3600);
        namespace.create_lease(LEASE, expires).await.unwrap();
        namespace
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn start_again(&mut self) {
        self.child = boot(&self.binaries, self.dir.path());
    }

    /// `ctr` on this containerd.
    pub(crate) fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.join("ctr"));
        command.arg("--address").arg(self.dir.path().join("sock")).args(arguments);
        command
    }

    /// Runs `ctr` to its end, and returns what it printed.
    pub(crate) fn run_ctr(&self, arguments: &[&str]) -> String {
        let output = self.ctr(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have been killed by the test already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nothing but stores and their services.
fn config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.restart", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]
[grpc]
  address = "{dir}/sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
"#
    )
}

/// Starts containerd, and returns when it says that it serves.
fn boot(binaries: &Path, dir: &Path) -> Child {
    let mut child = Command::new(binaries.join("containerd"))
        .arg("--config")
        .arg(dir.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let (booted, boots) = mpsc::sync_channel(1);
    // Reads to the end, so that containerd never waits for its log.
    thread::spawn(move || {
        let mut said = Vec::new();
        for line in log.lines().map_while(Result::ok) {
            if line.contains("successfully booted") {
                let _ = booted.send(Ok(()));
                said.clear();
            }
            said.push(line);
        }
        let _ = booted.send(Err(said.join("\n")));
    });
    if let Err(log) = boots.recv().unwrap() {
        panic!("containerd did not start:\n{log}");
    }
    child
}

/// Bytes that no other test writes, `len` of them.
pub(crate) fn bytes(name: &str, len: usize) -> Bytes {
    let seed = blake3::hash(name.as_bytes());
    let mut bytes = vec![0; len];
    blake3::Hasher::new_keyed(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

/// An order to write `blob` under a private ref, and under the lease of [`Daemon::namespace`].
pub(crate) fn ingest_of(blob: &[u8]) -> Ingest {
    let digest = sha256(blob);
    Ingest {
        r#ref: format!("flotilla-{digest}"),
        digest,
        len: blob.len() as u64,
        labels: BTreeMap::from([("containerd.io/uncompressed".to_owned(), "sha256:tar".to_owned())]),
        lease: Some(LEASE.to_owned()),
    }
}

/// The blob in pieces of 1 MiB.
pub(crate) fn pieces(blob: &Bytes) -> impl Stream<Item = io::Result<Bytes>> + use<> {
    let blob = blob.clone();
    let starts = (0..blob.len()).step_by(1 << 20);
    stream::iter(starts.map(move |start| Ok(blob.slice(start..blob.len().min(start + (1 << 20))))))
}

/// Writes `blob`, which must be new.
pub(crate) async fn store(namespace: &Namespace, blob: &Bytes) -> Digest {
    let ingest = ingest_of(blob);
    let ingested = namespace.ingest(&ingest, pieces(blob)).await.unwrap();
    assert_eq!(ingested, Ingested::Written);
    ingest.digest
}
