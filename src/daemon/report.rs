//! What the admin door tells operators, gathered from the modules.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{gate::MeshDoor, upkeep::Containerd};
use crate::{
    door::admin::{ContainerdLine, MemberLine, MeshLine, PullingLine, Report, Status, StoreLine},
    identity::date,
    mesh::{Member, MemberState, Mesh},
    pull::{PullState, PullStatus, Pulls},
    store::Store,
};

/// Gathers the status of the node. Cheap to clone.
#[derive(Clone)]
pub(super) struct Reporter {
    pub(super) mesh: Mesh,
    pub(super) pulls: Pulls,
    pub(super) store: Store,
    pub(super) mesh_door: Arc<Mutex<MeshDoor>>,
    /// How containerd was at the last look.
    pub(super) containerd: Arc<Mutex<Containerd>>,
}

impl Report for Reporter {
    fn status(&self) -> Status {
        let (usage, offered) = (self.store.usage(), self.store.offered());
        let MeshDoor { open, trouble, wanted, until } = self.mesh_door.lock().clone();
        Status {
            node: self.mesh.me().name,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            members: self.members(),
            pulls: self.pulls.list().iter().map(pulling).collect(),
            store: StoreLine {
                bytes: usage.bytes,
                blobs: usage.blobs,
                quota: usage.quota,
                charged: usage.charged,
                offered_blobs: offered.blobs,
                offered_bytes: offered.bytes,
                offered_unread: offered.unread,
            },
            mesh: MeshLine { open, reason: trouble, wanted, certificate_until: until.map(date) },
            containerd: Some(containerd(&self.containerd.lock())),
        }
    }

    fn unready(&self) -> Vec<String> {
        let mesh = self.mesh_door.lock().unready();
        let containerd = containerd(&self.containerd.lock()).reason;
        mesh.into_iter().chain(containerd).collect()
    }
}

impl Reporter {
    pub(super) fn new(mesh: Mesh, pulls: Pulls, store: Store) -> Self {
        Self { mesh, pulls, store, mesh_door: Arc::default(), containerd: Arc::default() }
    }

    fn members(&self) -> Vec<MemberLine> {
        let line = |(member, state): (Member, MemberState)| MemberLine {
            name: member.name,
            zone: member.zone,
            address: member.address,
            state: state_of(state),
        };
        self.mesh.all().into_iter().map(line).collect()
    }
}

fn containerd(seen: &Containerd) -> ContainerdLine {
    let (version, reason) = match seen {
        Containerd::NotAsked => (None, None),
        Containerd::Answers(version) => (Some(version.to_string()), None),
        Containerd::Lost(reason) => (None, Some(reason.clone())),
    };
    ContainerdLine { answers: version.is_some(), version, reason }
}

fn pulling(status: &PullStatus) -> PullingLine {
    let state = match &status.state {
        PullState::Waiting => "waiting".to_owned(),
        PullState::Arriving => "arriving".to_owned(),
        PullState::Proven => "proven".to_owned(),
        PullState::Failed(reason) => format!("failed: {reason}"),
    };
    PullingLine {
        digest: status.digest.to_string(),
        image: status.image.clone(),
        bytes_total: status.len,
        bytes: status.bytes.into(),
        state,
    }
}

fn state_of(state: MemberState) -> String {
    match state {
        MemberState::Joining => "joining".to_owned(),
        MemberState::Alive => "alive".to_owned(),
        MemberState::Unreachable { reason } => format!("unreachable: {reason}"),
    }
}
