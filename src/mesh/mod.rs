//! Who is here, where a digest is tracked, and the connections to other members.
//!
//! ```text
//!   seeds ──▶ resolve ──▶ swim (decisions) ──changes──▶ tell (logs), changed(), connections
//!                          │  ▲      ▲
//!                actions   ▼  │      └── frame(), compare(), exchange(), answer(): through the mesh door
//!                 shell, hello (I/O) ──▶ connections: per member one h2 channel and a few HTTP/1.1
//!                                        connections, all mutual TLS
//! ```
//! [`Mesh::run`] is the one task; it owns every call under way. The membership is behind one lock that is held
//! only for a decision. Without an identity there is no mesh: this node is alone and dials nobody.

mod connect;
mod dial;
mod hello;
mod knock;
mod member;
mod rank;
mod rate;
mod resolve;
mod seed;
mod shell;
mod swim;
mod tell;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Channel;

pub use connect::GetError;
pub use dial::ConnectError;
pub use hello::HELLO_LEN_MAX;
pub use member::{Member, MemberError, Role, RoleError, is_name, is_zone};
pub use rank::hrw_rank;
pub use rate::Rate;
pub use seed::{Seed, SeedError};
pub use shell::MESSAGE_LEN_MAX;
pub use swim::{CompareError, FrameError, LEFT, WATCHED};

use self::{
    connect::Connections,
    swim::{Action, Change, Event, Life, Refusal, Swim, key_of},
};
use crate::{identity::Identity, oci::Digest, wire::mesh as wire};

/// `[mesh]`, and what `[node]` says about this member.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the mesh door listens, with the port that it really has.
    pub listen: SocketAddr,
    /// `host` or `host:port` under which others reach it. Without it the address of `listen`; if that is
    /// `0.0.0.0` or `[::]`, the address from which this node dials the first member.
    pub advertise: Option<String>,
    pub members: Vec<Seed>,
    /// This node's name while it has no certificate; with one, the certificate's name counts.
    pub name: String,
    pub zone: Option<String>,
    pub role: Role,
    /// Bytes a second to other members, all together.
    pub upload_rate: Option<u64>,
    /// Bytes a second from other members, all together.
    pub download_rate: Option<u64>,
}

/// How a member is doing, seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It is known but has not answered at its own address yet.
    Joining,
    Alive,
    Unreachable {
        reason: String,
    },
}

/// Why somebody's Hello is refused. The line says it on this side; the caller gets it as the answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HelloError {
    #[error("it speaks version {theirs} of the mesh protocol and this member speaks {}", wire::VERSION)]
    Version { theirs: u32 },
    #[error("its greeting is not valid: {0}")]
    Member(#[from] MemberError),
    #[error("it calls itself `{claimed}` but its certificate names `{certified}` first")]
    Name { claimed: String, certified: String },
    #[error("{0}")]
    Refused(String),
    #[error("this member is alone: it has no certificate")]
    Closed,
}

/// The mesh as this node sees it. Cheap to clone.
#[derive(Clone)]
pub struct Mesh {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    swim: Mutex<Swim>,
    /// Where the door listens.
    listen: Mutex<SocketAddr>,
    /// From the certificate on.
    connections: OnceLock<Connections>,
    version: watch::Sender<u64>,
    /// The membership has something due earlier than the loop believes, or something for it to do.
    wake: Notify,
    /// Callers that were turned away, so that each is told of once for each reason.
    turned_away: Mutex<tell::Complaints>,
    knocks: knock::Knocks,
    upload: Rate,
    download: Rate,
}

impl Mesh {
    /// A mesh that knows nobody yet. `identity: None` is a node alone: the mesh stays closed.
    #[must_use]
    pub fn new(settings: Settings, identity: Option<Identity>, generation: u64) -> Self {
        let me = Member {
            name: identity
                .as_ref()
                .map_or_else(|| settings.name.clone(), |identity| certified(&settings, identity)),
            address: advertised(&settings, settings.listen).unwrap_or_else(|| settings.listen.to_string()),
            zone: settings.zone.clone(),
            generation,
            role: settings.role,
        };
        let shared = Shared {
            swim: Mutex::new(Swim::new(me, rand::random(), Instant::now())),
            listen: Mutex::new(settings.listen),
            connections: identity
                .map(|identity| Connections::new(identity, TaskTracker::new()).into())
                .unwrap_or_default(),
            version: watch::Sender::new(0),
            wake: Notify::new(),
            turned_away: Mutex::default(),
            knocks: knock::Knocks::default(),
            upload: Rate::new(settings.upload_rate),
            download: Rate::new(settings.download_rate),
            settings,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Opens the mesh of a node that was alone until its certificate came; then comes [`Self::run`]. `listen` is
    /// where its door listens now. A pull under way keeps the name with which it began: where the certificate
    /// has another one, the others get nothing from that pull.
    pub fn open(&self, identity: Identity, listen: SocketAddr) {
        let Shared { settings, swim, .. } = &*self.shared;
        let address = advertised(settings, listen).unwrap_or_else(|| listen.to_string());
        *self.shared.listen.lock() = listen;
        swim.lock().certified(certified(settings, &identity), address);
        let opened = self.shared.connections.set(Connections::new(identity, TaskTracker::new()));
        if opened.is_ok() {
            self.shared.version.send_modify(|version| *version += 1);
        }
    }

    /// Looks for the members, asks DNS again, notices who is gone; returns when `stop` is cancelled, with
    /// good-bye said and every connection closed.
    pub async fn run(&self, stop: CancellationToken) {
        match self.shared.connections.get() {
            None => stop.cancelled().await,
            Some(connections) => {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = shell::run_forever(&self.shared, connections) => {}
                    () = resolve::resolve_forever(&self.shared) => {}
                }
                shell::leave(&self.shared, connections).await;
                connections.close().await;
            }
        }
    }

    #[must_use]
    pub fn me(&self) -> Member {
        self.shared.swim.lock().me().member().clone()
    }

    /// Who can be dialed now, this node included, sorted by name.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.shared.swim.lock().live().into_iter().cloned().collect()
    }

    /// What `look` sees in the ring of the live members: this node, and those after it in the order in which they
    /// watch each other. Connections to the first [`WATCHED`] after this node are kept in a large mesh. The
    /// membership waits meanwhile.
    pub fn on_ring<T>(&self, look: impl FnOnce(&[&Member]) -> T) -> T {
        look(&self.shared.swim.lock().ring())
    }

    /// The live member of this name.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<Member> {
        self.shared.swim.lock().live_named(name).cloned()
    }

    /// How far after `from` on the ring `to` is, by their names.
    #[must_use]
    pub fn distance(from: &str, to: &str) -> u64 {
        key_of(to).wrapping_sub(key_of(from))
    }

    /// Everybody with their state, sorted by name. A seed that has never answered stands under its address.
    #[must_use]
    pub fn all(&self) -> Vec<(Member, MemberState)> {
        self.shared.swim.lock().all()
    }

    /// The live members that may track `digest`, best first, without those whose machine does not answer; this node
    /// alone if nobody may.
    #[must_use]
    pub fn rank(&self, digest: &Digest) -> Vec<Member> {
        let swim = self.shared.swim.lock();
        let answers = |member: &&Member| !self.shared.knocks.is_silent(member);
        let ranked: Vec<Member> =
            hrw_rank(digest, swim.live().into_iter().filter(answers)).into_iter().cloned().collect();
        if ranked.is_empty() { vec![swim.me().member().clone()] } else { ranked }
    }

    /// Bumps whenever [`Self::members`] or [`Self::rank`] changes.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// Somebody saw a connection to this member die: it is greeted now, not probed at its next turn.
    pub fn failed(&self, name: &str) {
        self.shared.doubt(name);
    }

    /// A member has answered something that it was asked.
    pub fn heard(&self, name: &str) {
        self.shared.heard_from(name);
    }

    /// When a member last answered anything, on whichever connection.
    #[must_use]
    pub fn heard_at(&self, name: &str) -> Option<Instant> {
        self.shared.knocks.heard_at(name)
    }

    /// The channel for small requests to a member: HTTP/2, kept, dialed again by itself. The certificate
    /// names `to.name`.
    pub async fn control(&self, to: &Member) -> Result<Channel, ConnectError> {
        self.connections()?.control(to).await
    }

    /// Gets `path` from a member over HTTP/1.1 on kept connections. The body is the caller's to bound.
    pub async fn get(
        &self,
        to: &Member,
        path: &str,
    ) -> Result<http::Response<hyper::body::Incoming>, GetError> {
        let answer = self.connections()?.get(to, path).await;
        if answer.is_ok() {
            self.heard(&to.name);
        }
        answer
    }

    /// The answering side of Members.Hello: the whole message, from a caller whose certificate names
    /// `peer_cert_name`.
    pub fn answer(
        &self,
        request: wire::HelloRequest,
        peer_cert_name: &str,
    ) -> Result<wire::HelloResponse, HelloError> {
        let from = match request.version {
            wire::VERSION => Member::from_wire(request.from).map_err(HelloError::Member),
            theirs => Err(HelloError::Version { theirs }),
        };
        let from = from.map(|from| Life::new(from, request.revision));
        let me = from.and_then(|from| self.greeted(from, peer_cert_name));
        let wire::Life { member, revision } = self.told(me, peer_cert_name)?.to_wire();
        Ok(wire::HelloResponse { version: wire::VERSION, member, revision })
    }

    /// The answering side of Members.Swim: frames of a caller whose certificate names `peer_cert_name`; what
    /// this node has for it is the answer.
    pub fn frames(
        &self,
        request: wire::SwimFrames,
        peer_cert_name: &str,
    ) -> Result<wire::SwimFrames, FrameError> {
        if self.shared.connections.get().is_none() {
            return Ok(wire::SwimFrames::default());
        }
        let mut frames = Vec::new();
        let heard = {
            let (mut swim, now) = (self.shared.swim.lock(), Instant::now());
            let mut received = request.frames.iter().take(shell::FRAMES_IN_MESSAGE_MAX);
            let heard = received.try_for_each(|frame| swim.frame(peer_cert_name, frame, now));
            swim.take_actions_if(|action| match action {
                Action::Send { to, frame } if to.name() == peer_cert_name => {
                    frames.push(frame.to_vec());
                    true
                }
                Action::Send { .. } | Action::Greet(_) | Action::Watch { .. } | Action::Compare { .. } => {
                    false
                }
            });
            heard
        };
        self.shared.told();
        if let Err(error) = &heard
            && self.shared.turned_away.lock().is_news(peer_cert_name, &error.to_string())
        {
            tracing::warn!(member = peer_cert_name, "refused a frame of `{peer_cert_name}`: {error}");
        }
        heard.map(|()| wire::SwimFrames { frames })
    }

    /// The answering side of Members.Compare.
    pub fn compare(&self, request: &wire::CompareRequest) -> Result<wire::CompareResponse, CompareError> {
        self.shared.swim.lock().compare(request)
    }

    /// The answering side of Members.Exchange.
    pub fn exchange(
        &self,
        request: wire::ExchangeRequest,
        peer_cert_name: &str,
    ) -> Result<wire::ExchangeResponse, CompareError> {
        let answer = self.shared.swim.lock().exchange(peer_cert_name, request, Instant::now());
        self.shared.told();
        answer
    }

    /// What leaves for other members, all together.
    #[must_use]
    pub fn upload(&self) -> &Rate {
        &self.shared.upload
    }

    /// What comes from other members, all together.
    #[must_use]
    pub fn download(&self) -> &Rate {
        &self.shared.download
    }

    fn connections(&self) -> Result<&Connections, ConnectError> {
        self.shared.connections.get().ok_or(ConnectError::Closed)
    }

    fn greeted(&self, from: Life, peer_cert_name: &str) -> Result<Life, HelloError> {
        if self.shared.connections.get().is_none() {
            return Err(HelloError::Closed);
        }
        if from.name() != peer_cert_name {
            let (claimed, certified) = (from.name().to_owned(), peer_cert_name.to_owned());
            return Err(HelloError::Name { claimed, certified });
        }
        if from.member().is_unspecified() {
            return Err(HelloError::Member(MemberError::Unspecified(from.name().to_owned())));
        }
        let (called, me) = {
            let mut swim = self.shared.swim.lock();
            (swim.called(from, Instant::now()), swim.me().clone())
        };
        self.shared.told();
        called.map(|()| me).map_err(|refusal: Refusal| HelloError::Refused(refusal.to_string()))
    }

    fn told(&self, answer: Result<Life, HelloError>, caller: &str) -> Result<Life, HelloError> {
        if let Err(error) = &answer
            && self.shared.turned_away.lock().is_news(caller, &error.to_string())
        {
            tracing::warn!(member = caller, "refused the greeting of `{caller}`: {error}");
        }
        answer
    }
}

impl Shared {
    fn apply(&self, event: Event) {
        self.swim.lock().apply_event(event, Instant::now());
        self.tell_changes();
    }

    /// Frames that came in the answer of a member.
    fn answered(&self, name: &str, frames: &[bytes::Bytes]) {
        self.heard_from(name);
        {
            let (mut swim, now) = (self.swim.lock(), Instant::now());
            for frame in frames {
                if let Err(error) = swim.frame(name, frame, now) {
                    tracing::debug!(member = name, "dropped a frame: {error}");
                }
            }
        }
        self.tell_changes();
    }

    /// The door has told the membership something: the loop does what comes of it.
    fn told(&self) {
        self.tell_changes();
        self.wake.notify_one();
    }

    fn doubt(&self, name: &str) {
        self.apply(Event::Doubted { name: name.to_owned() });
        self.wake.notify_one();
    }

    /// An answer of `name`: it is not silent. That it can reach us would say nothing.
    fn heard_from(&self, name: &str) {
        if self.knocks.heard(name) {
            self.answers_again(name);
        }
    }

    /// The knocking has ended.
    fn knocked(&self, at: &Member, is_member: bool) {
        if self.knocks.end(at) && is_member {
            self.answers_again(&at.name);
        }
    }

    fn answers_again(&self, name: &str) {
        tracing::info!(member = name, "`{name}` is waited for again");
        self.version.send_modify(|version| *version += 1);
    }

    /// Tells the log, drops connections that mean nothing any more, and wakes who watches.
    fn tell_changes(&self) {
        let changes = self.swim.lock().take_changes();
        let mut live_changed = false;
        for change in changes {
            tell::tell(&change);
            live_changed |= match &change {
                Change::Joined(_) => true,
                Change::Replaced { old: gone, .. }
                | Change::Unreachable { member: gone, .. }
                | Change::Left(gone) => {
                    self.forget(&gone.name);
                    true
                }
                Change::Forgotten(gone) => {
                    self.forget(&gone.name);
                    false
                }
                Change::Silent { .. } | Change::Conflict { .. } | Change::Full => false,
            };
        }
        if live_changed {
            self.version.send_modify(|version| *version += 1);
        }
    }

    fn forget(&self, name: &str) {
        if let Some(connections) = self.connections.get() {
            connections.forget(name);
        }
    }
}

/// Whether `text` can stand in `[mesh] advertise`: a host, or `host:port`.
#[must_use]
pub fn is_advertisable(text: &str) -> bool {
    seed::split(text).is_ok() || seed::split(&seed::join(text.trim_matches(['[', ']']), 1)).is_ok()
}

/// The name of the certificate, which is this node's in the mesh.
fn certified(settings: &Settings, identity: &Identity) -> String {
    let certified = identity.name();
    if certified != settings.name {
        tracing::warn!(
            "this node is called `{}` but its certificate names `{certified}` first: in the mesh it is `{certified}`",
            settings.name
        );
    }
    certified
}

/// `host:port` under which others reach this node, whose door is at `listen`; `None` if only dialing can tell.
fn advertised(settings: &Settings, listen: SocketAddr) -> Option<String> {
    match settings.advertise.as_deref() {
        None => (!listen.ip().is_unspecified()).then(|| listen.to_string()),
        Some(address) if seed::split(address).is_ok() => Some(address.to_ascii_lowercase()),
        Some(host) => Some(seed::join(host.trim_matches(['[', ']']), listen.port()).to_ascii_lowercase()),
    }
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "figures of the wire")]
mod tests;
