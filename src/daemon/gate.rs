//! The mesh door: shut until there is a valid certificate, open from then on.
//!
//! ```text
//!   shut ── valid files ──▶ open ── renewed files ──▶ open, the new certificate in use
//!    │ absent, half, expired: looked at again          │ unusable files: the old certificate stays in use
//! ```
//! Whoever installs or renews certificates restarts nothing. Each state is said once in the log, and stands in
//! `/readyz` and `status` while it lasts.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Settings, build::Entrance, modules, sockets};
use crate::{
    door,
    identity::{self, Identity, IdentityError},
    mesh::Mesh,
    preheat::Preheats,
    pull::{Pulls, chain_of},
};

/// How often the certificate files are looked at: what comes is in use within this time.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How often a certificate that is near its end is spoken of.
const REMIND_EVERY: Duration = Duration::from_hours(24);

/// How the mesh door stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MeshDoor {
    pub(super) open: bool,
    /// Why it is shut, or what is wrong with the files of the certificate in use.
    pub(super) trouble: Option<String>,
    /// Whether this node is meant to be in a mesh: members are named, or there is some file of a certificate.
    pub(super) wanted: bool,
    /// When the certificate in use expires.
    pub(super) until: Option<SystemTime>,
}

impl MeshDoor {
    fn of(identity: &Identity, open: bool, trouble: Option<String>) -> Self {
        Self { open, trouble, wanted: true, until: Some(identity.not_after()) }
    }

    /// The line of `/readyz`, if there is one to say.
    pub(super) fn unready(&self) -> Option<String> {
        let trouble = self.trouble.as_ref().filter(|_| self.wanted)?;
        Some(match self.open {
            true => format!("the mesh certificate cannot be renewed: {trouble}"),
            false => format!("the mesh port is closed: {trouble}"),
        })
    }
}

/// Opens the mesh door and looks after its certificate.
pub(super) struct Gate {
    pub(super) settings: Settings,
    pub(super) mesh: Mesh,
    pub(super) pulls: Pulls,
    pub(super) preheats: Preheats,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    /// Once the door is open.
    pub(super) identity: Option<Identity>,
    pub(super) door: Arc<Mutex<MeshDoor>>,
    /// When it was last said that the certificate is near its end.
    pub(super) reminded: Option<SystemTime>,
}

impl Gate {
    /// Begins with what the start found, and goes on until the daemon stops.
    pub(super) fn begin(mut self, found: Entrance) {
        match found {
            Ok((identity, listener)) => self.open(identity, listener),
            Err(error) => self.stays_shut(chain_of(&error), !matches!(error, IdentityError::Absent { .. })),
        }
        let tasks = self.tasks.clone();
        tasks.spawn(self.keep());
    }

    async fn keep(mut self) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let now = SystemTime::now();
            match self.identity.clone() {
                Some(identity) => {
                    self.renew(&identity, now);
                    self.remind(&identity, now);
                }
                None => self.try_to_open(now),
            }
        }
    }

    fn open(&mut self, identity: Identity, listener: TcpListener) {
        sockets::announce("mesh", &listener);
        let parts = door::peer::Parts {
            identity: identity.clone(),
            mesh: self.mesh.clone(),
            pulls: self.pulls.clone(),
            preheats: self.preheats.clone(),
        };
        self.tasks.spawn(door::peer::serve(listener, parts, self.stop.clone(), self.tasks.clone()));
        let (mesh, stop) = (self.mesh.clone(), self.stop.clone());
        self.tasks.spawn(async move { mesh.run(stop).await });
        *self.door.lock() = MeshDoor::of(&identity, true, None);
        self.identity = Some(identity);
    }

    fn try_to_open(&mut self, now: SystemTime) {
        let identity = match identity::load(&modules::identity(&self.settings), now) {
            Ok(identity) => identity,
            Err(error) => {
                let some_file = !matches!(error, IdentityError::Absent { .. });
                return self.stays_shut(chain_of(&error), some_file);
            }
        };
        let listening = sockets::listen(modules::mesh_listen(&self.settings), "mesh.listen");
        let bound = listening.and_then(|listener| sockets::address(&listener).map(|at| (listener, at)));
        match bound {
            Ok((listener, at)) => {
                tracing::info!(name = identity.name(), "a valid certificate has come: the mesh opens");
                self.mesh.open(identity.clone(), at);
                self.open(identity, listener);
            }
            Err(error) => self.stays_shut(chain_of(&error), true),
        }
    }

    fn stays_shut(&self, reason: String, some_file: bool) {
        let wanted = some_file || !self.settings.texts("mesh.members").is_empty();
        let door = MeshDoor { open: false, trouble: Some(reason.clone()), wanted, until: None };
        let before = std::mem::replace(&mut *self.door.lock(), door.clone());
        match (before == door, wanted) {
            (true, _) => {}
            (false, true) => tracing::warn!(reason, "the mesh port stays closed; this node serves itself"),
            (false, false) => tracing::info!(reason, "the mesh port stays closed; this node serves itself"),
        }
    }

    fn renew(&self, identity: &Identity, now: SystemTime) {
        let mut door = self.door.lock();
        match identity.reload(now) {
            Ok(renewed) => {
                if renewed {
                    tracing::info!(name = identity.name(), "new certificate in use");
                } else if door.trouble.is_some() {
                    tracing::info!(name = identity.name(), "the certificate files are in order again");
                }
                *door = MeshDoor::of(identity, true, None);
            }
            Err(error) => {
                let trouble = Some(chain_of(&error));
                let open = now <= identity.not_after();
                if door.trouble == trouble && door.open == open {
                    return;
                }
                let reason = trouble.clone().unwrap_or_default();
                match open {
                    true => tracing::warn!(
                        reason,
                        "the certificate files cannot be used; the certificate of before stays in use"
                    ),
                    false => tracing::warn!(
                        reason,
                        "the certificate has expired: other members refuse this node until there is a new one"
                    ),
                }
                *door = MeshDoor::of(identity, open, trouble);
            }
        }
    }

    /// Who forgot the certificate learns of it while all is well.
    fn remind(&mut self, identity: &Identity, now: SystemTime) {
        if !identity.is_near_its_end(now) {
            self.reminded = None;
            return;
        }
        let is_fresh = |at: SystemTime| now.duration_since(at).is_ok_and(|since| since < REMIND_EVERY);
        if now > identity.not_after() || self.reminded.is_some_and(is_fresh) {
            return;
        }
        self.reminded = Some(now);
        tracing::warn!(
            until = identity::date(identity.not_after()),
            "the certificate expires soon: put a new pair in its place (`flotilla certs node`), nothing has to be restarted"
        );
    }
}
