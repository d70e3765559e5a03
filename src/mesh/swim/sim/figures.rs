//! What is counted on the way.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// What a message of some bytes costs besides on a kept connection: HTTP/2, gRPC and TLS (106 there, 81 back:
/// `mesh::tests` measures it), TCP and IP (52), and a segment that acknowledges it half of the time (26).
const MESSAGE: usize = 170;
/// What making a connection costs who dials and who is dialed, not resumed (960 and 1,050, measured there), with the packets
/// of its beginning and end (seven each of 52).
const DIAL: [usize; 2] = [1350, 1450];
/// Connections that a node keeps, as in `connect`.
const KEPT_MAX: usize = 128;

pub(super) struct Figures {
    /// Sent by each since the last mark.
    bytes: Vec<usize>,
    since: Option<Instant>,
    /// To whom each has a connection, the one used last at the end.
    kept: Vec<VecDeque<usize>>,
    pub(super) dials: usize,
    pub(super) false_downs: usize,
    pub(super) conflicts: usize,
    /// The longest message.
    pub(super) longest: usize,
    /// Members that travelled to make views equal.
    pub(super) exchanged: usize,
    watched: Option<(usize, Instant)>,
    noticed: BTreeMap<usize, Duration>,
}

impl Figures {
    pub(super) fn new(count: usize) -> Self {
        Self {
            bytes: vec![0; count],
            since: None,
            kept: vec![VecDeque::new(); count],
            dials: 0,
            false_downs: 0,
            conflicts: 0,
            longest: 0,
            exchanged: 0,
            watched: None,
            noticed: BTreeMap::new(),
        }
    }

    pub(super) fn sent(&mut self, from: usize, len: usize) {
        self.bytes[from] += len + MESSAGE;
        self.longest = self.longest.max(len);
    }

    pub(super) fn called(&mut self, from: usize, to: usize, len: usize) {
        self.sent(from, len);
        let kept = &mut self.kept[from];
        let place = kept.iter().position(|kept| *kept == to);
        match place {
            Some(place) => {
                kept.remove(place);
            }
            None => {
                self.dials += 1;
                self.bytes[from] += DIAL[0];
                self.bytes[to] += DIAL[1];
            }
        }
        kept.push_back(to);
        if kept.len() > KEPT_MAX {
            kept.pop_front();
        }
    }

    /// Counts from now on.
    pub(super) fn mark(&mut self, now: Instant) {
        self.bytes.fill(0);
        (self.since, self.dials, self.exchanged) = (Some(now), 0, 0);
    }

    /// Bytes sent by a node since the mark: on average, and by the one that sent most.
    pub(super) fn sums(&self) -> (usize, usize) {
        let sum: usize = self.bytes.iter().sum();
        (sum / self.bytes.len(), self.bytes.iter().max().copied().unwrap_or(0))
    }

    /// Bytes a second sent by a node since the mark: on average, and by the one that sent most.
    pub(super) fn rate(&self, now: Instant) -> (f64, f64) {
        let seconds = self.since.map_or(0.0, |since| (now - since).as_secs_f64());
        let (mean, most) = self.sums();
        (mean as f64 / seconds, most as f64 / seconds)
    }

    pub(super) fn watch(&mut self, number: usize, now: Instant) {
        self.watched = Some((number, now));
        self.noticed.clear();
    }

    pub(super) fn noticed(&mut self, by: usize, gone: usize, now: Instant) {
        if let Some((watched, since)) = self.watched
            && watched == gone
        {
            self.noticed.entry(by).or_insert(now - since);
        }
    }

    /// When so much of `count` had noticed.
    pub(super) fn noticed_by(&self, share: f64, count: usize) -> Option<Duration> {
        let mut times: Vec<Duration> = self.noticed.values().copied().collect();
        times.sort();
        times.get(((count as f64 * share).ceil() as usize).max(1) - 1).copied()
    }
}
