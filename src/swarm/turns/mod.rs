//! Readers of one registry host, limited for the whole cluster.
//!
//! ```text
//!   a flight's read ── take(host) ──▶ a turn kept from the last read ─────────────────────▶ reads
//!                          │                                                                  │
//!                          └── Turns.Take, to the host's HRW-first ──▶ Keeper ── Go ──────────┘
//!                                 (the stream is the turn: its end gives it back)
//! ```
//! Trackers limit the readers of a digest; the keeper of a host limits those of all digests. A turn goes from one lease
//! of this node to the next until somebody else waits for it, so that it costs a question now and then and not one a
//! lease. A keeper is a help and no condition: whoever cannot reach one reads without a turn, and does not ask it again
//! for a while.

mod keeper;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Streaming;

use self::keeper::{Heard, Keeper, Ticket};
pub use self::keeper::{NoPlace, Word};
use crate::{
    mesh::{Member, Mesh},
    oci::{Algorithm, Digest},
    wire::mesh::{self as wire, turns_client::TurnsClient},
};

/// A keeper that does not say within this that it has heard is done without: a far one that is busy takes half of it to
/// be connected to.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Nobody waits longer for a turn: half of what makes the mirror cut off a client that gets nothing.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// So many waits in a row that were too long are the keeper's fault, not the crowd's.
const LATE_MAX: u32 = 8;
/// A host whose keeper cannot be reached, or gives no turns, is read without for this long.
const UNASKED_FOR: Duration = Duration::from_secs(15);
/// A turn that nobody waits for is kept for the next lease for this long: leases follow each other within milliseconds.
const KEPT_FOR: Duration = Duration::from_millis(100);
/// A turn between two leases hears within this that somebody waits.
const SWEEP: Duration = Duration::from_millis(10);
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two looks at who is a member still.
const TICKS_PER_LOOK: usize = 10;
/// Words to one place that may be unread: there are two in a place's life.
const WORDS_MAX: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// What turns are counted as.
#[derive(Clone, Debug, Default)]
pub struct TurnMetrics {
    turns: Family<Outcome, Counter>,
    throttled: Counter,
}

impl TurnMetrics {
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "flotilla_origin_turns",
            "Turns at registry hosts that reads of this node asked for, by how that ended",
            metrics.turns.clone(),
        );
        registry.register(
            "flotilla_origin_throttled",
            "Times that a registry told a reader to come later and this node, its keeper, let all wait",
            metrics.throttled.clone(),
        );
        metrics
    }
}

/// The turns that this node keeps, and those that it has. Cheap to clone.
#[derive(Clone)]
pub struct Turns(Arc<Inner>);

struct Inner {
    mesh: Mesh,
    metrics: TurnMetrics,
    kept: Mutex<Kept>,
    /// Hosts that are read without turns, since when.
    unasked: Mutex<HashMap<String, Instant>>,
    /// Waits in a row that were too long, by host.
    late: Mutex<HashMap<String, u32>>,
    tasks: TaskTracker,
    sweeps: AtomicBool,
    /// Turns between two leases, by host.
    idle: Mutex<HashMap<String, Vec<(Held, Instant)>>>,
}

struct Kept {
    keeper: Keeper,
    owners: HashMap<Ticket, mpsc::Sender<Word>>,
}

/// A place in the queue here, or a turn of this keeper's; dropping it gives it up.
pub struct Place {
    turns: Turns,
    ticket: Ticket,
    words: mpsc::Receiver<Word>,
}

/// A turn, wherever it is kept.
enum Held {
    Here(Place),
    There(Box<Streaming<wire::TurnWord>>),
}

/// Leave to read from a host, until it is dropped.
pub struct Turn {
    turns: Turns,
    host: String,
    held: Option<Held>,
}

impl Turns {
    /// At most `readers_max` read from one host. Starts the task that keeps the time; it ends with `stop`.
    #[must_use]
    pub fn new(
        mesh: Mesh,
        readers_max: usize,
        metrics: TurnMetrics,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let kept = Kept { keeper: Keeper::new(readers_max), owners: HashMap::new() };
        let inner = Inner {
            mesh,
            metrics,
            kept: Mutex::new(kept),
            unasked: Mutex::default(),
            late: Mutex::default(),
            tasks,
            sweeps: AtomicBool::new(false),
            idle: Mutex::default(),
        };
        let inner = Arc::new(inner);
        inner.tasks.spawn(keep_time(Arc::downgrade(&inner), stop));
        Self(inner)
    }

    /// Waits for leave to read from `host`; without one if nobody can give it.
    pub async fn take(&self, host: &str) -> Turn {
        let turn = |held| Turn { turns: self.clone(), host: host.to_owned(), held };
        if let Some(held) = self.idle(host) {
            return turn(Some(held));
        }
        let me = self.0.mesh.me();
        let is_alone = self.0.mesh.members().iter().all(|member| member.name == me.name);
        if is_alone || self.0.unasked.lock().contains_key(host) {
            return turn(None);
        }
        let asked = tokio::time::timeout(WAIT_MAX, self.ask(host)).await;
        let (outcome, held) = match asked {
            Ok(Ok(held)) => {
                self.0.late.lock().remove(host);
                ("given", Some(held))
            }
            Ok(Err(why)) => {
                tracing::info!(%host, "for {UNASKED_FOR:?} reads are without turns: {why}");
                self.0.late.lock().remove(host);
                self.ask_no_more(host);
                ("unkept", None)
            }
            Err(_) => {
                tracing::info!(%host, "reads without a turn: none came within {WAIT_MAX:?}");
                if self.was_late(host) >= LATE_MAX {
                    self.ask_no_more(host);
                }
                ("late", None)
            }
        };
        self.0.metrics.turns.get_or_create(&Outcome { outcome }).inc();
        turn(held)
    }

    fn ask_no_more(&self, host: &str) {
        self.0.unasked.lock().insert(host.to_owned(), Instant::now());
    }

    /// One more wait was too long: how many in a row that makes.
    fn was_late(&self, host: &str) -> u32 {
        let mut late = self.0.late.lock();
        let late = late.entry(host.to_owned()).or_default();
        *late += 1;
        *late
    }

    /// The host told this node to come later: so does its keeper tell everybody.
    pub async fn throttled(&self, host: &str, retry_after: Duration) {
        let keeper = self.keeper_of(host);
        let me = self.0.mesh.me();
        if keeper.name == me.name {
            self.heard_throttled(host, &me.name, retry_after);
            return;
        }
        let request = wire::ThrottledRequest {
            host: host.to_owned(),
            retry_after_ms: u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX),
        };
        let telling = async {
            let channel = self.0.mesh.control(&keeper).await.map_err(|error| error.to_string())?;
            TurnsClient::new(channel).throttled(request).await.map_err(|status| status.to_string())
        };
        if let Ok(Err(why)) = tokio::time::timeout(ANSWER_MAX, telling).await {
            tracing::debug!(%host, keeper = %keeper.name, "could not tell that it throttles: {why}");
        }
    }

    /// The answering side of a member's [`Turns::throttled`].
    pub fn heard_throttled(&self, host: &str, name: &str, retry_after: Duration) {
        let heard = {
            let mut kept = self.0.kept.lock();
            let heard = kept.keeper.throttled(host, name, retry_after, Instant::now());
            kept.deliver();
            heard
        };
        match heard {
            Heard::Nothing => {}
            Heard::Alone(quiet) => {
                tracing::info!(%host, member = %name, "the registry throttles only this member: no turns for {quiet:?}");
            }
            Heard::All(quiet) => {
                self.0.metrics.throttled.inc();
                tracing::info!(%host, member = %name, "the registry throttles: nobody has a turn for {quiet:?}");
            }
        }
    }

    /// A place in the queue for `host` here, for `name`.
    ///
    /// # Errors
    /// The member or the keeper has too many.
    pub fn queue(&self, host: &str, name: &str) -> Result<Place, NoPlace> {
        let mut kept = self.0.kept.lock();
        let ticket = kept.keeper.ask(host, name, Instant::now())?;
        let (owner, words) = mpsc::channel(WORDS_MAX);
        kept.owners.insert(ticket, owner);
        kept.deliver();
        Ok(Place { turns: self.clone(), ticket, words })
    }

    fn keeper_of(&self, host: &str) -> Member {
        let rank = self.0.mesh.rank(&name_of(host));
        rank.into_iter().next().unwrap_or_else(|| self.0.mesh.me())
    }

    async fn ask(&self, host: &str) -> Result<Held, String> {
        let (keeper, me, name) = (self.keeper_of(host), self.0.mesh.me(), name_of(host));
        if keeper.name == me.name {
            let mut place = self.queue(host, &me.name).map_err(|error| error.to_string())?;
            return match place.word().await {
                Some(_) => Ok(Held::Here(place)),
                None => Err("this node stops".to_owned()),
            };
        }
        let asking = async {
            let channel = self.0.mesh.control(&keeper).await.map_err(|error| {
                self.0.mesh.failed(&keeper.name);
                error.to_string()
            })?;
            let request = wire::TakeRequest { host: host.to_owned() };
            TurnsClient::new(channel).take(request).await.map_err(|status| status.to_string())
        };
        let silent = || format!("`{}` does not answer", keeper.name);
        let mut words = tokio::select! {
            asked = tokio::time::timeout(ANSWER_MAX, asking) => asked.map_err(|_| silent())??.into_inner(),
            () = self.0.mesh.gone(&keeper, &name) => return Err(silent()),
        };
        match words.message().await {
            Ok(Some(_)) => Ok(Held::There(Box::new(words))),
            Ok(None) => Err(format!("`{}` stops", keeper.name)),
            Err(status) => Err(status.to_string()),
        }
    }

    /// A turn that the last lease has left.
    fn idle(&self, host: &str) -> Option<Held> {
        let mut idle = self.0.idle.lock();
        let left = idle.get_mut(host)?;
        while let Some((mut held, _)) = left.pop() {
            if !held.is_over() {
                return Some(held);
            }
        }
        None
    }
}

/// What the keeper of a host is ranked by.
fn name_of(host: &str) -> Digest {
    Digest::of(Algorithm::Sha256, host.as_bytes())
}

impl Place {
    /// The next word; `None` when the keeper is gone.
    pub async fn word(&mut self) -> Option<Word> {
        self.words.recv().await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut kept = self.turns.0.kept.lock();
        kept.owners.remove(&self.ticket);
        kept.keeper.left(self.ticket, Instant::now());
        kept.deliver();
    }
}

impl Held {
    /// It is asked back, or its keeper is gone.
    fn is_over(&mut self) -> bool {
        match self {
            Self::Here(place) => place.word().now_or_never().is_some(),
            Self::There(words) => words.message().now_or_never().is_some(),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(mut held) = self.held.take()
            && !held.is_over()
        {
            let inner = &self.turns.0;
            inner.idle.lock().entry(std::mem::take(&mut self.host)).or_default().push((held, Instant::now()));
            let is_runtime_there = tokio::runtime::Handle::try_current().is_ok();
            if is_runtime_there && !inner.sweeps.swap(true, Ordering::AcqRel) {
                inner.tasks.spawn(sweep(Arc::downgrade(inner)));
            }
        }
    }
}

impl Kept {
    fn deliver(&mut self) {
        for (ticket, word) in self.keeper.take_words() {
            if let Some(owner) = self.owners.get(&ticket) {
                let _has_room = owner.try_send(word);
            }
        }
    }
}

/// Gives up what nobody has needed, or somebody waits for, until nothing is left.
async fn sweep(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(inner) = inner.upgrade() else { return };
        let now = Instant::now();
        let mut over = Vec::new();
        let is_empty = {
            let mut idle = inner.idle.lock();
            idle.retain(|_, left| {
                let is_over = |(held, since): &mut (Held, Instant)| {
                    held.is_over() || now.duration_since(*since) >= KEPT_FOR
                };
                over.extend(left.extract_if(.., is_over).map(|(held, _)| held));
                !left.is_empty()
            });
            if idle.is_empty() {
                inner.sweeps.store(false, Ordering::Release);
            }
            idle.is_empty()
        };
        // A place's end is its keeper's business, which may be this node.
        drop(over);
        if is_empty {
            return;
        }
    }
}

async fn keep_time(inner: Weak<Inner>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for tick in (0..TICKS_PER_LOOK).cycle() {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        let Some(inner) = inner.upgrade() else { return };
        let now = Instant::now();
        inner.unasked.lock().retain(|_, since| now.duration_since(*since) < UNASKED_FOR);
        if inner.kept.lock().keeper.is_idle() {
            continue;
        }
        let live: Option<HashSet<String>> = (tick == 0).then(|| {
            let members = inner.mesh.members().into_iter().chain([inner.mesh.me()]);
            members.map(|member| member.name).collect()
        });
        let mut kept = inner.kept.lock();
        if let Some(live) = live {
            for ticket in kept.keeper.only(|name| live.contains(name)) {
                kept.owners.remove(&ticket);
            }
        }
        kept.keeper.tick(now);
        kept.deliver();
    }
    // What waits here would wait for ever.
    if let Some(inner) = inner.upgrade() {
        inner.kept.lock().owners.clear();
        let _given_back = std::mem::take(&mut *inner.idle.lock());
    }
}
