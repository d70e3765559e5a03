//! Whether a member's machine answers at all.
//!
//! A daemon may be slow, and is waited for. Its kernel is not: it opens a connection within a round trip, however busy
//! the daemon is. So whoever waits for a member's word knocks after a while, and at the same moment at those who would be
//! asked next: machines that are gone cost half a second, be they one or nine. Who does not open is passed over by
//! [`Mesh::rank`] until it answers something or opens, which is looked at every second, or until the membership has
//! decided.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::select_ok};
use parking_lot::Mutex;
use rand::RngExt as _;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{Member, Mesh, Shared};
use crate::oci::Digest;

/// A member that is near and not busy answers a request within milliseconds, and costs no knock.
const PATIENCE: Duration = Duration::from_millis(200);
/// As much more at most, by chance: a crowd that waits for one member does not knock with one hand.
const PATIENCE_MORE_MS: u64 = 100;
/// More than a round trip around the world.
const OPENS_WITHIN: Duration = Duration::from_millis(400);
/// A name that is not known by then, and its connection with it, tells nothing.
const LOOKED_UP_WITHIN: Duration = Duration::from_secs(1);
/// Of two packets one may be lost.
const AGAIN_AFTER: Duration = Duration::from_millis(150);
/// How soon a member that opens again, or that was not gone, is back.
const KNOCKS_EVERY: Duration = Duration::from_secs(1);
/// Those after a member that are looked at with it.
const NEXT: usize = 8;

/// Whom this node knocks at, by name; each by one task.
#[derive(Default)]
pub(super) struct Knocks {
    under_way: Mutex<HashMap<String, Knock>>,
    /// When each member last answered anything: as many as the mesh has had.
    heard_at: Mutex<HashMap<String, Instant>>,
}

struct Knock {
    generation: u64,
    /// Nobody has opened, and nothing has been answered since.
    silent: bool,
    /// It has answered since the knocking began: that counts more.
    heard: bool,
}

impl Knocks {
    pub(super) fn is_silent(&self, member: &Member) -> bool {
        let knock = self.under_way.lock();
        knock.get(&member.name).is_some_and(|knock| knock.silent && knock.generation == member.generation)
    }

    /// `name` answered something. `true` if it was believed silent.
    pub(super) fn heard(&self, name: &str) -> bool {
        let now = Instant::now();
        let mut heard_at = self.heard_at.lock();
        // With every answer: its name is copied once.
        match heard_at.get_mut(name) {
            Some(at) => *at = now,
            None => drop(heard_at.insert(name.to_owned(), now)),
        }
        drop(heard_at);
        let mut under_way = self.under_way.lock();
        under_way.get_mut(name).is_some_and(|knock| {
            knock.heard = true;
            std::mem::take(&mut knock.silent)
        })
    }

    pub(super) fn heard_at(&self, name: &str) -> Option<Instant> {
        self.heard_at.lock().get(name).copied()
    }

    /// `false` if somebody knocks there already.
    fn begin(&self, member: &Member) -> bool {
        let mut under_way = self.under_way.lock();
        let is_new = under_way.get(&member.name).is_none_or(|knock| knock.generation < member.generation);
        if is_new {
            let knock = Knock { generation: member.generation, silent: false, heard: false };
            under_way.insert(member.name.clone(), knock);
        }
        is_new
    }

    /// Nobody opened: whether that is news. `None` if there is nothing to knock for any more.
    fn shut(&self, member: &Member) -> Option<bool> {
        let mut under_way = self.under_way.lock();
        let is_it = |knock: &&mut Knock| knock.generation == member.generation && !knock.heard;
        let knock = under_way.get_mut(&member.name).filter(is_it)?;
        Some(!std::mem::replace(&mut knock.silent, true))
    }

    /// `true` if it was believed silent.
    pub(super) fn end(&self, member: &Member) -> bool {
        let mut under_way = self.under_way.lock();
        let is_it = under_way.get(&member.name).is_some_and(|knock| knock.generation == member.generation);
        is_it && under_way.remove(&member.name).is_some_and(|knock| knock.silent)
    }
}

impl Mesh {
    /// Returns once the machine of `member`, who is asked because of its rank for `digest`, does not answer at all;
    /// never while it may only be slow.
    pub async fn gone(&self, member: &Member, digest: &Digest) {
        let mut changed = self.changed();
        let more = Duration::from_millis(rand::rng().random_range(0..PATIENCE_MORE_MS));
        sleep(PATIENCE + more).await;
        if !self.is_silent(member) {
            let me = self.me().name;
            let is_other = |next: &Member| next.name != me && next.name != member.name;
            let next: Vec<Member> = self.rank(digest).into_iter().filter(is_other).take(NEXT).collect();
            for member in next.iter().chain([member]) {
                self.knock(member);
            }
        }
        while !self.is_silent(member) {
            match timeout(KNOCKS_EVERY, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => std::future::pending().await,
                // Somebody's knock may have ended before it began to be silent.
                Err(_) => self.knock(member),
            }
        }
    }

    /// Whether it has not opened at the last knock, and said nothing since.
    #[must_use]
    pub fn is_silent(&self, member: &Member) -> bool {
        self.shared.knocks.is_silent(member)
    }

    fn knock(&self, at: &Member) {
        if let Some(connections) = self.shared.connections.get()
            && self.shared.knocks.begin(at)
        {
            connections.spawn(knock(Arc::downgrade(&self.shared), at.clone()));
        }
    }
}

/// Until it opens, has answered something, or is no member any more.
async fn knock(shared: Weak<Shared>, at: Member) {
    loop {
        let opens = opens(&at.address).await;
        let Some(shared) = shared.upgrade() else { return };
        let is_member = shared.swim.lock().live_named(&at.name) == Some(&at);
        let shut = match opens {
            // What it was believed to be it still is.
            None if is_member && shared.knocks.is_silent(&at) => Some(false),
            Some(false) if is_member => shared.knocks.shut(&at),
            None | Some(_) => None,
        };
        match shut {
            None => return shared.knocked(&at, is_member),
            Some(false) => {}
            Some(true) => {
                tracing::info!(member = at.name, "`{}` at {} does not answer", at.name, at.address);
                // What leads there leads nowhere, and whoever ranks members ranks them without it.
                shared.forget(&at.name);
                shared.version.send_modify(|version| *version += 1);
                shared.doubt(&at.name);
            }
        }
        drop(shared);
        sleep(KNOCKS_EVERY).await;
    }
}

/// Whether a connection opens, or is refused, which is an answer as well. `None` where something on this side, or on the
/// way, fails: that tells nothing.
async fn opens(address: &str) -> Option<bool> {
    let connecting = async {
        let found: Vec<_> = tokio::net::lookup_host(address).await.ok()?.collect();
        let again = async {
            sleep(AGAIN_AFTER).await;
            TcpStream::connect(&*found).await
        };
        let either = select_ok([TcpStream::connect(&*found).boxed(), again.boxed()]);
        match timeout(OPENS_WITHIN, either).await {
            Ok(Ok(_)) => Some(true),
            Ok(Err(error)) => (error.kind() == io::ErrorKind::ConnectionRefused).then_some(true),
            Err(_) => Some(false),
        }
    };
    timeout(LOOKED_UP_WITHIN, connecting).await.ok().flatten()
}
