//! The loop of a flight: news in, the exchange's actions out.

mod line;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use super::{
    PullError, Shared,
    flight::{Flight, News},
    hands::Hands,
    metrics,
    track::Line,
};
use crate::{
    mesh::Member,
    origin::OriginError,
    piece::Chain,
    store::{Arriving, Blob},
    swarm::{
        exchange::{Action, Exchange, Fetched, Setting},
        message::Report,
    },
};

const TICK: Duration = Duration::from_millis(100);

pub(super) struct Session {
    flight: Arc<Flight>,
    shared: Arc<Shared>,
    hands: Hands,
    me: Member,
    exchange: Exchange,
    /// Every task of this flight; they end with it.
    tasks: JoinSet<()>,
    reads: HashMap<u32, AbortHandle>,
    line: Option<Line>,
    dialing: Option<AbortHandle>,
    line_number: u64,
    redial: bool,
    /// Announcements that a large swarm's tracker gets later, in one batch.
    unsaid: Vec<Report>,
    said_at: Instant,
    avoided: HashMap<String, Instant>,
    chain: Option<Arc<Chain>>,
    origin_error: Option<Arc<OriginError>>,
    unwanted_since: Option<Instant>,
    /// The blob is in the store; the flight goes on as a seed.
    proven: bool,
    released: bool,
    over: bool,
    /// A tracker has discredited this node, and it was told to the operator.
    warned: bool,
    /// When anything last came or was under way, or the line was opened.
    fed_at: Instant,
    /// Trackers that did not listen, and whose swarms gave nothing.
    left: Vec<String>,
}

impl Session {
    pub(super) fn new(flight: Arc<Flight>, shared: Arc<Shared>, arriving: &Arriving) -> Self {
        let want = flight.want.clone();
        let me = shared.mesh.me();
        let setting = Setting {
            digest: want.digest.clone(),
            blob_len: want.len,
            me: me.clone(),
            reads_origin: !want.origins.is_empty(),
            seed: rand::random(),
        };
        let have = arriving.have();
        let resumed = have.iter().filter_map(|index| arriving.statement(index).map(|stated| (index, stated)));
        // A blob of one piece needs no more than its digest.
        let chain = Chain::from_bytes(&want.digest, want.len, &[]).ok().map(Arc::new);
        Self {
            hands: Hands {
                parts: shared.clone(),
                leads: flight.leads.clone(),
                arrival: flight.arrival.clone(),
                news: flight.news.clone(),
                want,
            },
            exchange: Exchange::new(setting, resumed),
            flight,
            shared,
            me,
            tasks: JoinSet::new(),
            reads: HashMap::new(),
            line: None,
            dialing: None,
            line_number: 0,
            redial: false,
            unsaid: Vec::new(),
            said_at: Instant::now(),
            avoided: HashMap::new(),
            chain,
            origin_error: None,
            unwanted_since: None,
            proven: false,
            released: false,
            over: false,
            warned: false,
            fed_at: Instant::now(),
            left: Vec::new(),
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<News>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut mesh_changed = self.shared.mesh.changed();
        let stop = self.shared.stop.clone();
        self.exchange.share_with(self.shared.readings.pulls());
        self.dial();
        while !self.over {
            let now = tokio::select! {
                () = stop.cancelled() => {
                    let digest = self.flight.want.digest.clone();
                    self.end(Err(PullError::Stopped { digest }));
                    break;
                }
                Some(news) = inbox.recv() => {
                    let now = Instant::now();
                    self.hear(news, now);
                    now
                }
                Ok(()) = mesh_changed.changed() => {
                    self.reconsider();
                    Instant::now()
                }
                Some(_) = self.tasks.join_next() => continue,
                _ = ticks.tick() => {
                    let now = Instant::now();
                    self.tick(now);
                    now
                }
            };
            self.act(now);
        }
        self.tasks.shutdown().await;
    }

    fn hear(&mut self, news: News, now: Instant) {
        if matches!(news, News::Fetching { .. } | News::Reading(_) | News::AwaitsTurn(_)) {
            self.fed_at = now;
        }
        let exchange = &mut self.exchange;
        match news {
            News::LineOpen(line) => self.line_open(*line),
            News::LineLost { number, tracker } => self.line_lost(number, &tracker, now),
            News::Told { number, events } => self.told(number, events, now),
            News::CalledBy(tracker) => self.called_by(&tracker),
            News::Fetched { peer, index, outcome, len } => {
                exchange.fetched(&peer, index, outcome, now);
                if let Fetched::Good(_) = outcome {
                    self.count("peer", index, len, now);
                }
            }
            News::Referred { index, to } => exchange.referred(index, to),
            News::Slow { peer, index } => exchange.slow(&peer, index, now),
            News::Fetching { peer, index } => exchange.fetching(&peer, index, now),
            News::Chain { sponsor, chain, unfit } => {
                self.chain = chain;
                exchange.chain_checked(&sponsor, unfit, now);
            }
            News::ChainFailed { sponsor, why } => exchange.chain_failed(&sponsor, why, now),
            News::Read { index, statement, len } => {
                exchange.read(index, statement, now);
                self.count("origin", index, len, now);
            }
            News::ReadWrong => exchange.read_wrong(now),
            News::Reading(index) => exchange.reading(index),
            News::AwaitsTurn(index) => exchange.awaits_turn(index),
            News::ReadEnded { run, failure } => {
                self.reads.remove(&run.start);
                exchange.read_ended(&run, failure, now);
            }
            News::Origin(error) => self.origin_error = Some(error),
            News::Small(bytes) => self.say(vec![Report::Content(bytes)], now),
            News::Audited(found) => exchange.audited(found, now),
            News::Statements { voucher, said } => {
                exchange.statements(&voucher, said.as_ref().map(|(by, said)| (by, &said[..])));
            }
            News::Rotten(index) => exchange.lost(index, now),
            News::Front(index) => exchange.front(index),
            News::Unclosed => exchange.unclosed(now),
            News::Committed(committed) => {
                let digest = self.flight.want.digest.clone();
                self.end(committed.map_err(|source| PullError::Commit { digest, source }));
            }
            News::Disk(source) => {
                let digest = self.flight.want.digest.clone();
                self.end(Err(PullError::Disk { digest, source }));
            }
        }
    }

    fn count(&mut self, source: &'static str, index: u32, len: usize, now: Instant) {
        if !self.exchange.have().contains(index) {
            return;
        }
        self.fed_at = now;
        // Two of the same may have been under way; the first is what the blob is made of.
        if !self.flight.arrival.arrived(index) {
            return;
        }
        self.shared.metrics.bytes.get_or_create(&metrics::Source { source }).inc_by(len as u64);
        let layout = self.flight.arrival.layout();
        let have = self.exchange.have();
        let last = layout.count() - 1;
        let short = layout.piece_len() - layout.len_of(last) as u64;
        let missing_tail = if have.contains(last) { short } else { 0 };
        let arrived = u64::from(have.len()) * layout.piece_len() - missing_tail;
        self.flight.status.send_modify(|status| {
            let counted = if source == "peer" { &mut status.bytes.peer } else { &mut status.bytes.origin };
            *counted += len as u64;
            status.arrived = arrived;
            status.last_piece_at = Some(now);
        });
    }

    fn act(&mut self, now: Instant) {
        let mut reports = std::mem::take(&mut self.unsaid);
        for action in self.exchange.take_actions() {
            self.perform(action, &mut reports);
        }
        // The tracker of a large swarm passes on in batches, and would drown in single announcements.
        let too_soon = now.duration_since(self.said_at) < self.exchange.pace();
        if too_soon && reports.iter().all(|report| matches!(report, Report::Held(_))) {
            self.unsaid = reports;
        } else if !reports.is_empty() {
            self.said_at = now;
            self.say(reports, now);
        }
    }

    fn perform(&mut self, action: Action, reports: &mut Vec<Report>) {
        let hands = self.hands.clone();
        match action {
            Action::Fetch { peer, index, check } => {
                self.tasks.spawn(hands.fetch(peer, index, check, self.chain.clone()));
            }
            Action::FetchChain { peer } => {
                self.tasks.spawn(hands.fetch_chain(peer));
            }
            Action::DropChain => self.chain = None,
            Action::ReadOrigin { run } => {
                let start = run.start;
                let reading = self.tasks.spawn(hands.read(run, self.chain.clone()));
                self.reads.insert(start, reading);
            }
            Action::StopOrigin { run } => {
                if let Some(reading) = self.reads.remove(&run.start) {
                    reading.abort();
                    self.tasks.spawn(async move { hands.leads.turn().await });
                }
            }
            Action::Tell(report) => reports.push(report),
            Action::Forget { index } => self.flight.arrival.take_back(index),
            Action::Audit { order } => {
                self.tasks.spawn(hands.audit(order));
            }
            Action::AskStatements { voucher } => {
                self.tasks.spawn(hands.ask_statements(voucher));
            }
            Action::Ban { member, index } => hands.ban(&member, index),
            Action::Misled { index } => hands.misled(&self.me.name, index),
            Action::Keep { bytes } => {
                let tracker = self.line.as_ref().map(|line| line.tracker.clone());
                let given =
                    hands.given(tracker.unwrap_or_else(|| self.me.clone()), bytes, self.chain.clone());
                self.tasks.spawn(given);
            }
            Action::Share => {
                self.tasks.spawn(hands.share());
            }
            Action::Fail { reason } => self.fail(reason),
        }
    }

    fn fail(&mut self, reason: String) {
        let digest = self.flight.want.digest.clone();
        let error = match self.origin_error.take() {
            _ if reason == "wrong_digest" => PullError::WrongDigest { digest },
            Some(source) => PullError::Origin { digest, source },
            None => PullError::Swarm { digest, reason },
        };
        if let (PullError::WrongDigest { .. }, Some(arriving)) = (&error, self.flight.arrival.arriving()) {
            arriving.abandon();
        }
        self.end(Err(error));
    }

    fn end(&mut self, end: Result<Blob, PullError>) {
        let proven = end.is_ok();
        self.flight.finish(&self.shared, end);
        self.proven |= proven;
        match proven {
            true => self.exchange.proven(),
            false => self.over = true,
        }
    }

    fn tick(&mut self, now: Instant) {
        let held = *self.flight.handles.borrow() > 0;
        if self.proven && !held && !self.released {
            self.released = true;
            self.flight.release();
        }
        let wanted = held || self.proven;
        let since = *self.unwanted_since.get_or_insert(now);
        if wanted {
            self.unwanted_since = None;
        } else if now.duration_since(since) > self.shared.settings.linger {
            let digest = self.flight.want.digest.clone();
            return self.end(Err(PullError::Forgotten { digest }));
        }
        self.watch_line(now);
        let too_soon = now.duration_since(self.said_at) < self.exchange.pace();
        let unsaid = !self.unsaid.is_empty() && !too_soon;
        if unsaid || self.line.as_ref().is_some_and(|line| line.is_quiet(now)) {
            self.said_at = now;
            let reports = std::mem::take(&mut self.unsaid);
            self.say(reports, now);
        }
        self.exchange.share_with(self.shared.readings.pulls());
        self.exchange.tick(now);
    }
}
