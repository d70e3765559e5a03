//! The form of `flotilla status --json`. Operators script against it: add fields, do not change them.

use serde::{Deserialize, Serialize};

use crate::pull::BySource;

/// What this node knows of itself and of the mesh.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub node: String,
    pub version: String,
    pub members: Vec<MemberLine>,
    pub pulls: Vec<PullingLine>,
    pub store: StoreLine,
    pub mesh: MeshLine,
    /// Absent from a daemon that is older than this.
    #[serde(default)]
    pub containerd: Option<ContainerdLine>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemberLine {
    pub name: String,
    pub zone: Option<String>,
    pub address: String,
    pub state: String,
}

/// A pull in progress.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PullingLine {
    pub digest: String,
    pub image: Option<String>,
    pub bytes_total: u64,
    pub bytes: BytesBySource,
    pub state: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BytesBySource {
    pub local: u64,
    pub peer: u64,
    pub origin: u64,
}

impl From<BySource> for BytesBySource {
    fn from(BySource { local, peer, origin }: BySource) -> Self {
        Self { local, peer, origin }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreLine {
    /// Bytes of all blobs.
    pub bytes: u64,
    pub blobs: u64,
    /// Most bytes that may count against the quota.
    pub quota: u64,
    /// Bytes that do: what containerd does not link, and what is arriving.
    pub charged: u64,
    /// Blobs of containerd that are offered to the mesh, and their bytes.
    pub offered_blobs: u64,
    pub offered_bytes: u64,
    /// Those of them that nobody has read yet; the others are among `blobs`.
    pub offered_unread: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeshLine {
    pub open: bool,
    /// Why it is closed, or why its certificate cannot be renewed.
    pub reason: Option<String>,
    /// Whether this node is meant to be in a mesh: members are named, or there is some file of a certificate.
    #[serde(default = "unless_told")]
    pub wanted: bool,
    /// When the certificate in use expires, RFC 3339.
    #[serde(default)]
    pub certificate_until: Option<String>,
}

/// An older daemon says why its mesh is closed, and not whether it matters.
fn unless_told() -> bool {
    true
}

/// The containerd of this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerdLine {
    /// Whether it answered when it was last asked, which is every few seconds.
    pub answers: bool,
    pub version: Option<String>,
    /// Why its pulls are left to it.
    pub reason: Option<String>,
}
