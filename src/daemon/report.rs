//! What the admin door tells operators, gathered from the modules.

use std::sync::Arc;

use parking_lot::Mutex;

use super::gate::MeshDoor;
use crate::{
    door::admin::{MemberLine, MeshLine, PullingLine, Report, Status, StoreLine},
    mesh::{Member, MemberState, Mesh},
    pull::{PullState, PullStatus, Pulls},
    store::Store,
};

/// Gathers the status of the node.
pub(super) struct Reporter {
    pub(super) mesh: Mesh,
    pub(super) pulls: Pulls,
    pub(super) store: Store,
    pub(super) mesh_door: Arc<Mutex<MeshDoor>>,
    /// Why containerd cannot be reached, if it could not at the last look.
    pub(super) containerd_absent: Arc<Mutex<Option<String>>>,
}

impl Report for Reporter {
    fn status(&self) -> Status {
        let (usage, offered) = (self.store.usage(), self.store.offered());
        let MeshDoor { open, trouble, .. } = self.mesh_door.lock().clone();
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
            mesh: MeshLine { open, reason: trouble },
        }
    }

    fn unready(&self) -> Vec<String> {
        let mesh = self.mesh_door.lock().unready();
        let containerd = self.containerd_absent.lock().clone();
        mesh.into_iter().chain(containerd).collect()
    }
}

impl Reporter {
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
