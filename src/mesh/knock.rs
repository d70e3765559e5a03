//! Whether a member's machine answers at all.
//!
//! A daemon may be slow, and is waited for. Its kernel is not: it answers a connection within a round trip, however busy
//! the daemon is. So whoever waits for a member's word knocks after a while, and at the same moment at those who would be
//! asked next: a machine that is gone costs half a second, and as many as are gone with it cost nothing more. Who does not
//! open is passed over by [`Mesh::rank`] until it is heard from, or until the membership has had time to decide.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt as _,
    future::{join_all, select_ok},
};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use super::{Member, Mesh, dial};
use crate::oci::Digest;

/// A member that is near and not busy answers a request within milliseconds, and costs no knock.
const PATIENCE: Duration = Duration::from_millis(200);
/// More than a round trip around the world.
const OPENS_WITHIN: Duration = Duration::from_millis(400);
/// Of two packets one may be lost.
const AGAIN_AFTER: Duration = Duration::from_millis(150);
/// Others who wait for the same member do not knock as well.
const KNOCKS_EVERY: Duration = Duration::from_secs(1);
/// What the membership may take to notice, at its largest.
const SILENT_FOR: Duration = Duration::from_secs(20);
/// Those after a member that are looked at with it: one rack's worth of a rank is rarely gone at once.
const NEXT: usize = 8;

/// Whom this node has knocked at.
#[derive(Default)]
pub(super) struct Knocks {
    last: Mutex<HashMap<String, Knock>>,
}

#[derive(Clone, Copy)]
struct Knock {
    at: Instant,
    silent: bool,
}

impl Knocks {
    /// Nobody opened at the last knock, and nothing has been heard since.
    pub(super) fn is_silent(&self, name: &str, now: Instant) -> bool {
        let last = self.last.lock();
        last.get(name).is_some_and(|knock| knock.silent && now.duration_since(knock.at) < SILENT_FOR)
    }

    /// A word came from `name`. `true` if it was believed silent.
    pub(super) fn heard(&self, name: &str) -> bool {
        self.last.lock().remove(name).is_some_and(|knock| knock.silent)
    }

    /// Those of `members` at whom nobody has knocked lately; somebody does now.
    fn begin(&self, members: impl Iterator<Item = Member>, now: Instant) -> Vec<Member> {
        let mut last = self.last.lock();
        last.retain(|_, knock| now.duration_since(knock.at) < SILENT_FOR);
        let is_due = |name: &str, last: &HashMap<String, Knock>| {
            last.get(name).is_none_or(|knock| !knock.silent && now.duration_since(knock.at) >= KNOCKS_EVERY)
        };
        let due: Vec<Member> = members.filter(|member| is_due(&member.name, &last)).collect();
        last.extend(due.iter().map(|member| (member.name.clone(), Knock { at: now, silent: false })));
        due
    }

    /// It did not open. `false` if a word came meanwhile.
    fn silent(&self, name: &str, at: Instant) -> bool {
        let mut last = self.last.lock();
        let knock = last.get_mut(name).filter(|knock| knock.at == at);
        knock.is_some_and(|knock| !std::mem::replace(&mut knock.silent, true))
    }
}

impl Mesh {
    /// Returns once the machine of `member`, who is asked because of its rank for `digest`, does not answer at all;
    /// never while it may only be slow.
    pub async fn gone(&self, member: &Member, digest: &Digest) {
        let mut changed = self.changed();
        sleep(PATIENCE).await;
        let knocks = &self.shared.knocks;
        if !knocks.is_silent(&member.name, Instant::now()) {
            let me = self.me();
            let next =
                self.rank(digest).into_iter().filter(|next| next.name != me.name && next.name != member.name);
            self.knock(std::iter::once(member.clone()).chain(next.take(NEXT))).await;
        }
        while !knocks.is_silent(&member.name, Instant::now()) {
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn knock(&self, at: impl Iterator<Item = Member>) {
        let now = Instant::now();
        let due = self.shared.knocks.begin(at, now);
        let knocking = due.iter().map(async |member| {
            if !opens(&member.address).await && self.shared.knocks.silent(&member.name, now) {
                tracing::info!(
                    member = member.name,
                    "`{}` at {} does not answer",
                    member.name,
                    member.address
                );
                // Its connections lead nowhere, and whoever ranks members ranks them without it.
                self.shared.forget(&member.name);
                self.shared.version.send_modify(|version| *version += 1);
                self.failed(&member.name);
            }
        });
        join_all(knocking).await;
    }
}

/// A refusal is one at the second time as well; a packet that was lost is not.
async fn opens(address: &str) -> bool {
    let again = async {
        sleep(AGAIN_AFTER).await;
        dial::connect_tcp(address).await
    };
    let either = select_ok([dial::connect_tcp(address).boxed(), again.boxed()]);
    timeout(OPENS_WITHIN, either).await.is_ok_and(|opened| opened.is_ok())
}
