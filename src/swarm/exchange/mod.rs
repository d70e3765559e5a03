//! One pull's side of the swarm: events in, actions out, time given.
//!
//! ```text
//!   tracker's events ─┐                      ┌─▶ fetch piece, fetch chain      (peers)
//!   pieces, failures ─┼──▶ Exchange ──▶ take_actions() ─▶ read run, stop, audit (origin)
//!   the chain's end ──┘                      └─▶ reports (tracker), forget (store), fail
//! ```
//! A piece from a peer is checked with a link of the chain where one is known, else with the statement that the
//! tracker passed on. A chain that a peer sent is a claim of that peer, its *sponsor*, until every piece fits
//! it; a piece that does not fit is asked of the sponsor itself, and a sponsor that cannot give it loses the
//! chain and whatever it vouched for.

mod action;
mod choose;
mod doubt;
mod origin;
mod peers;
mod referral;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::{SeedableRng, rngs::SmallRng};

pub use self::action::{Action, Check, Fetched, Setting};
use self::{origin::Lacking, peers::Peer, referral::Referrals};
use super::message::{Event, Handle, Held, Join, Name, Report, Run, SMALL_MAX};
use crate::{
    mesh::Member,
    piece::{PieceLayout, PieceSet, Statement},
};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    statement: Statement,
    /// Empty for a piece that was on disk when the daemon started.
    voucher: Name,
}

/// What somebody vouched for, and the origin or a chain contradicts; proof tells who was right.
struct Suspect {
    index: u32,
    claim: Claim,
    /// The voucher said the same when it was asked: others put no words into its mouth.
    repeated_by: Option<Member>,
}

/// The chain that pieces are checked with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ChainState {
    Unknown,
    Asked,
    /// `sponsor` is `None` for a blob of one piece, whose chain is its digest.
    Known {
        sponsor: Option<Name>,
    },
}

struct Request {
    peer: Name,
    at: Instant,
    slow: bool,
    /// The tracker does not say that the peer has it, another peer does.
    referred: bool,
}

/// The exchange of one pull.
pub struct Exchange {
    setting: Setting,
    layout: PieceLayout,
    have: PieceSet,
    /// Neither here nor on their way: what a peer can be asked for. See [`Self::note`].
    wanted: PieceSet,
    /// What the pieces that are here are said to be.
    held: BTreeMap<u32, Claim>,
    /// What the tracker says of pieces.
    stated: Vec<Option<Claim>>,
    peers: BTreeMap<Name, Peer>,
    handles: BTreeMap<Handle, Name>,
    /// How many members of this zone that are not whole hold each piece.
    holders: Vec<u32>,
    requests: BTreeMap<u32, Vec<Request>>,
    referrals: Referrals,
    /// The tracker sent the bytes with its answer, and they are being kept.
    given: bool,
    leases: Vec<Run>,
    /// What members of other zones may be asked for.
    imports: PieceSet,
    /// When bytes last came from another zone.
    far_heard_at: Option<Instant>,
    /// Held in this zone by nobody who gives: asked of other zones as well.
    forsaken: PieceSet,
    pace: Duration,
    /// Pulls of this node, this one with them: they share its link.
    pulls: u32,
    chain: ChainState,
    ask_sponsor: BTreeSet<u32>,
    suspects: Vec<Suspect>,
    /// Who has been asked what it stated, and has not answered yet.
    questioned: BTreeSet<Name>,
    front: u32,
    unclosed: bool,
    auditing: bool,
    /// The tracker does not listen to this node.
    discredited: bool,
    origin_failed: Option<String>,
    /// The tracker does not listen, and has nobody who gives more.
    abandoned: bool,
    /// Since when a pull whose origin failed has waited for what others have.
    hopes_since: Option<Instant>,
    lacking: Option<Lacking>,
    proven: bool,
    failed: bool,
    piece_time: Duration,
    random: SmallRng,
    actions: Vec<Action>,
}

impl Exchange {
    /// A pull that holds `resumed` pieces from before.
    #[must_use]
    pub fn new(setting: Setting, resumed: impl IntoIterator<Item = (u32, Statement)>) -> Self {
        let layout = PieceLayout::of(setting.blob_len);
        let count = layout.count();
        let mut have = PieceSet::empty(count);
        let mut wanted = PieceSet::full(count);
        let mut held = BTreeMap::new();
        for (index, statement) in resumed {
            have.insert(index);
            wanted.remove(index);
            held.insert(index, Claim { statement, voucher: Name::new() });
        }
        let chain = if count == 1 { ChainState::Known { sponsor: None } } else { ChainState::Unknown };
        let random = SmallRng::seed_from_u64(setting.seed);
        Self {
            setting,
            layout,
            have,
            wanted,
            held,
            stated: vec![None; count as usize],
            peers: BTreeMap::new(),
            handles: BTreeMap::new(),
            holders: vec![0; count as usize],
            requests: BTreeMap::new(),
            referrals: Referrals::default(),
            given: false,
            leases: Vec::new(),
            imports: PieceSet::empty(count),
            far_heard_at: None,
            forsaken: PieceSet::empty(count),
            pace: Duration::ZERO,
            pulls: 1,
            chain,
            ask_sponsor: BTreeSet::new(),
            suspects: Vec::new(),
            questioned: BTreeSet::new(),
            front: 0,
            unclosed: false,
            auditing: false,
            discredited: false,
            origin_failed: None,
            abandoned: false,
            hopes_since: None,
            lacking: None,
            proven: false,
            failed: false,
            piece_time: Duration::from_millis(100),
            random,
            actions: Vec::new(),
        }
    }

    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    #[must_use]
    pub fn have(&self) -> &PieceSet {
        &self.have
    }

    /// Who answers for piece `index` that is here.
    #[must_use]
    pub fn voucher(&self, index: u32) -> Option<&Name> {
        self.held.get(&index).map(|claim| &claim.voucher)
    }

    /// The member called `name`, if it is in the swarm.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.peers.get(name).map(|peer| &peer.member)
    }

    /// Whether the tracker does not believe this member.
    #[must_use]
    pub fn is_discredited(&self) -> bool {
        self.discredited
    }

    /// Whether it needs something of a swarm whose tracker does not listen to it.
    #[must_use]
    pub fn is_at_mercy(&self) -> bool {
        self.discredited && !self.proven && (self.unclosed || !self.have.is_full())
    }

    /// Whether that swarm has nobody who gives it more.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    /// How far apart announcements are to be, at least; nothing in a small swarm.
    #[must_use]
    pub fn pace(&self) -> Duration {
        self.pace
    }

    /// This many pulls are under way on the node, this one with them.
    pub fn share_with(&mut self, pulls: usize) {
        self.pulls = u32::try_from(pulls).unwrap_or(u32::MAX).max(1);
    }

    /// What to say first to a tracker.
    #[must_use]
    pub fn join(&self) -> Join {
        Join {
            digest: self.setting.digest.clone(),
            blob_len: self.setting.blob_len,
            from: self.setting.me.clone(),
            held: if self.proven { 0 } else { self.have.len() },
            reading: self.leases.clone(),
            reads_origin: self.setting.reads_origin,
            whole: self.proven,
        }
    }

    /// A tracker took the join: what it knows comes next, what this pull holds is announced.
    pub fn joined(&mut self) {
        for peer in self.peers.values_mut() {
            peer.left(&mut self.holders);
        }
        self.handles.clear();
        self.discredited = false;
        self.stated.fill(None);
        self.imports = PieceSet::empty(self.layout.count());
        self.pace = Duration::ZERO;
        self.origin_failed = None;
        self.abandoned = false;
        self.hopes_since = None;
        self.lacking = None;
        if self.proven {
            return;
        }
        let me = self.setting.me.name.clone();
        for (&index, claim) in &self.held {
            let voucher = if claim.voucher.is_empty() { me.clone() } else { claim.voucher.clone() };
            let held = Held { index, statement: claim.statement, voucher };
            self.actions.push(Action::Tell(Report::Held(held)));
        }
        if self.unclosed {
            self.actions.push(Action::Tell(Report::Unclosed));
        }
    }

    /// The tracker says something.
    pub fn told(&mut self, events: impl IntoIterator<Item = Event>, now: Instant) {
        for event in events {
            self.hear(event);
        }
        self.settle(now);
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Joined { handle, member } => self.peer_joined(handle, member),
            Event::Gone { handle } => self.peer_gone(handle),
            Event::Stated(held) => {
                let claim = Claim { statement: held.statement, voucher: held.voucher };
                self.stated[held.index as usize] = Some(claim);
            }
            Event::Arrived { handle, pieces } => self.peer_has(handle, &pieces),
            Event::Whole { handle } => self.peer_whole(handle),
            Event::PieceLost { handle, index } => self.peer_lost(handle, index),
            Event::Lease(run) => {
                self.origin_failed = None;
                self.leases.push(run.clone());
                run.clone().for_each(|index| self.note(index));
                self.actions.push(Action::ReadOrigin { run });
            }
            Event::Revoke(run) => {
                self.leases.retain(|lease| *lease != run);
                run.clone().for_each(|index| self.note(index));
                self.actions.push(Action::StopOrigin { run });
            }
            Event::Content(bytes) => self.take(bytes),
            Event::Pace(pace) => self.pace = pace,
            Event::Import(run) => self.import(run, true),
            Event::ImportOver(run) => self.import(run, false),
            Event::Audit { each } => self.audit(each),
            Event::Recheck { index } => self.recheck(index),
            Event::Dropped { voucher } => self.drop_vouched(&voucher),
            Event::OriginFailed { reason } => self.origin_failed = Some(reason),
            Event::Discredited => self.ask_everybody(),
        }
    }

    /// Keeps all of a small blob, and asks nobody for it in the meantime.
    fn take(&mut self, bytes: Bytes) {
        let is_all = self.layout.count() == 1 && bytes.len() == self.layout.len_of(0);
        if is_all && !self.have.is_full() {
            self.given = true;
            self.note(0);
            self.actions.push(Action::Keep { bytes });
        }
    }

    fn import(&mut self, run: Run, ours: bool) {
        for index in run {
            let _was = if ours { self.imports.insert(index) } else { self.imports.remove(index) };
        }
    }

    /// Whether the piece is wanted may be another matter now.
    fn note(&mut self, index: u32) {
        let asked = self.requests.contains_key(&index);
        let coming = self.given || asked || self.leases.iter().any(|run| run.contains(&index));
        if self.have.contains(index) || coming {
            self.wanted.remove(index);
        } else {
            self.wanted.insert(index);
        }
    }

    fn request_ended(&mut self, peer: &str, index: u32) -> Option<Request> {
        let requests = self.requests.entry(index).or_default();
        let request = requests.iter().position(|request| request.peer == peer);
        let request = request.map(|position| requests.swap_remove(position));
        if requests.is_empty() {
            self.requests.remove(&index);
            self.note(index);
        }
        request
    }

    /// A request to a peer ended, or what the tracker gave is kept or refused.
    pub fn fetched(&mut self, peer: &str, index: u32, outcome: Fetched, now: Instant) {
        self.given = false;
        let request = self.request_ended(peer, index);
        if let (Fetched::Good(_), Some(request)) = (outcome, &request) {
            self.piece_time = (self.piece_time * 7 + now.duration_since(request.at)) / 8;
        }
        let referred = request.is_some_and(|request| request.referred);
        // That it has the piece was another peer's word.
        let outcome = if referred && outcome == Fetched::Absent { Fetched::Busy } else { outcome };
        self.peer_answered(peer, index, outcome, now);
        match outcome {
            Fetched::Good(statement) => {
                self.hopes_since = None;
                self.came_from_peer(peer, index, statement);
            }
            Fetched::Wrong => self.came_wrong(peer, index),
            Fetched::Absent | Fetched::Busy | Fetched::Failed => {}
        }
        self.settle(now);
    }

    /// No byte came for this request in a while.
    pub fn slow(&mut self, peer: &str, index: u32, now: Instant) {
        let mut requests = self.requests.get_mut(&index).into_iter().flatten();
        if let Some(request) = requests.find(|request| request.peer == peer) {
            request.slow = true;
        }
        if !(self.is_far(peer) && self.others_cross(now)) {
            self.peer_is_slow(peer, now);
        }
        self.settle(now);
    }

    /// Bytes of a piece still come from a peer. Of an import the tracker hears it, and gives it to nobody else.
    pub fn fetching(&mut self, peer: &str, index: u32, now: Instant) {
        self.heard_from(peer, now);
        if self.imports.contains(index) {
            self.actions.push(Action::Tell(Report::Reading { start: index }));
        }
    }

    /// How far the in-order reader has come.
    pub fn front(&mut self, index: u32) {
        self.front = index;
    }

    /// A piece that was here is rotten, and no longer in the store.
    pub fn lost(&mut self, index: u32, now: Instant) {
        if self.have.remove(index) {
            self.note(index);
            self.held.remove(&index);
            self.actions.push(Action::Tell(Report::Lost { index }));
        }
        self.settle(now);
    }

    /// The blob is proven: nothing is left to do but to serve.
    pub fn proven(&mut self) {
        self.proven = true;
        for run in std::mem::take(&mut self.leases) {
            self.actions.push(Action::StopOrigin { run });
        }
        self.judge_suspects();
        self.actions.push(Action::Tell(Report::Whole));
        if self.setting.blob_len <= SMALL_MAX && !self.peers.values().any(|peer| peer.whole) {
            self.actions.push(Action::Share);
        }
    }

    /// Time passed: call it about ten times a second.
    pub fn tick(&mut self, now: Instant) {
        self.forsaken = self.find_forsaken();
        self.settle(now);
    }

    fn settle(&mut self, now: Instant) {
        if self.proven || self.failed {
            return;
        }
        self.seek_chain(now);
        self.request(now);
        self.give_up_if_stuck(now);
    }

    fn came_from_peer(&mut self, peer: &str, index: u32, statement: Statement) {
        let voucher = match &self.chain {
            ChainState::Known { sponsor } => sponsor.clone().unwrap_or_else(|| peer.to_owned()),
            ChainState::Unknown | ChainState::Asked => {
                // The voucher may have been convicted while the piece was on its way.
                let stated = self.stated[index as usize].as_ref();
                match stated.filter(|claim| claim.statement == statement) {
                    Some(claim) => claim.voucher.clone(),
                    None if self.have.contains(index) => return,
                    None => return self.actions.push(Action::Forget { index }),
                }
            }
        };
        self.ask_sponsor.remove(&index);
        self.keep(index, Claim { statement, voucher });
    }

    fn keep(&mut self, index: u32, claim: Claim) {
        if self.have.insert(index) {
            self.referrals.forget(index);
            self.note(index);
            let Claim { statement, voucher } = claim.clone();
            self.held.insert(index, claim);
            self.actions.push(Action::Tell(Report::Held(Held { index, statement, voucher })));
        }
    }

    fn forget(&mut self, index: u32) {
        if self.have.remove(index) {
            self.note(index);
            self.held.remove(&index);
            self.actions.push(Action::Forget { index });
        }
    }

    fn fail(&mut self, reason: String) {
        if !self.failed {
            self.failed = true;
            self.actions.push(Action::Fail { reason });
        }
    }
}

#[cfg(test)]
mod tests;
