//! Which tracker a flight has, and what they say to each other.

use std::time::{Duration, Instant};

use super::Session;
use crate::{
    mesh::Member,
    pull::track::{Dialer, Line, SILENCE_MAX, SILENCE_OF_ONE_MAX},
    swarm::message::{Event, Report},
};

/// A pull leaves a tracker that does not listen to it when no byte has come for so long: what it cannot say may be that it
/// reaches nobody, or that what it was given does not fit together.
const STARVED_AFTER: Duration = Duration::from_secs(5);
/// Trackers that it leaves before it fails: the one that discredited it, its own, and one more.
const LEFT_MAX: usize = 3;
/// A tracker that failed is passed over for so long, unless nobody else is left.
const AVOIDED_FOR: Duration = Duration::from_secs(5);

impl Session {
    /// Whether the tracker is still there, and whether another one should be.
    pub(super) fn watch_line(&mut self, now: Instant) {
        let lives = |name: &str| {
            self.shared.mesh.heard_at(name).is_some_and(|at| now.duration_since(at) < SILENCE_MAX)
        };
        let silent = |line: &Line| {
            let most = if lives(&line.tracker.name) { SILENCE_OF_ONE_MAX } else { SILENCE_MAX };
            now.duration_since(line.heard_at) > most
        };
        if let Some(line) = self.line.take_if(|line| silent(line)) {
            tracing::info!(digest = %self.flight.want.digest, tracker = %line.tracker.name, "the tracker is silent");
            self.shared.mesh.failed(&line.tracker.name);
            self.line_lost(line.number, &line.tracker.name, now);
        }
        let is_starved = now.duration_since(self.fed_at) > STARVED_AFTER || self.exchange.is_abandoned();
        if self.exchange.is_at_mercy() && is_starved {
            self.leave_tracker();
        }
        if std::mem::take(&mut self.redial) {
            self.dial();
        }
        // A tracker that was passed over has had its time: the crowd meets at the first of the rank again.
        let avoided = self.avoided.len();
        self.avoided.retain(|_, at| now.duration_since(*at) < AVOIDED_FOR);
        if self.avoided.len() < avoided {
            self.reconsider();
        }
    }

    /// Nothing comes, and the tracker does not listen to that either: this node tracks the pull itself, or, if it was that
    /// one, the next in rank does.
    pub(super) fn leave_tracker(&mut self) {
        let Some(line) = &self.line else { return };
        let (digest, tracker) = (&self.flight.want.digest, line.tracker.name.clone());
        tracing::warn!(%digest, %tracker, "nothing comes where this node does not count: the pull goes on elsewhere");
        self.left.push(tracker);
        if self.left.len() >= LEFT_MAX {
            return self.fail("discredited".to_owned());
        }
        self.dial();
    }

    /// The first in the digest's rank that has not just failed; this node if nobody is left, or one did not listen.
    pub(super) fn tracker(&self) -> Member {
        if !self.left.is_empty() && !self.left.contains(&self.me.name) {
            return self.me.clone();
        }
        let rank = self.shared.mesh.rank(&self.flight.want.digest);
        rank.into_iter()
            .find(|member| !self.avoided.contains_key(&member.name) && !self.left.contains(&member.name))
            .unwrap_or_else(|| self.me.clone())
    }

    pub(super) fn dial(&mut self) {
        self.line = None;
        if let Some(dialing) = self.dialing.take() {
            dialing.abort();
        }
        self.line_number += 1;
        let dialer = Dialer {
            mesh: self.shared.mesh.clone(),
            trackers: self.shared.trackers.clone(),
            news: self.flight.news.clone(),
        };
        let dialed = dialer.run(self.tracker(), self.exchange.join(), self.line_number);
        self.dialing = Some(self.tasks.spawn(dialed));
    }

    pub(super) fn line_open(&mut self, line: Line) {
        if line.number == self.line_number {
            self.line = Some(line);
            self.fed_at = Instant::now();
            // All that is here is announced anew.
            self.unsaid.clear();
            self.exchange.joined();
        }
    }

    pub(super) fn line_lost(&mut self, number: u64, tracker: &str, now: Instant) {
        if number != self.line_number {
            return;
        }
        self.line = None;
        if self.proven {
            // The next tracker asks who has the blob.
            self.over = true;
            return;
        }
        self.avoided.insert(tracker.to_owned(), now);
        // This node refuses itself when it is full: with the next tick comes another one.
        match tracker == self.me.name {
            true => self.redial = true,
            false => self.dial(),
        }
    }

    pub(super) fn told(&mut self, number: u64, events: Vec<Event>, now: Instant) {
        let Some(line) = self.line.as_mut().filter(|line| line.number == number) else { return };
        line.heard_at = now;
        let mut banned = Vec::new();
        for event in &events {
            if let Event::Joined { member, .. } = event
                && self.shared.trackers.is_banned(member)
            {
                banned.push(member.name.clone());
            }
        }
        let tracker = line.tracker.name.clone();
        self.exchange.told(events, now);
        banned.iter().for_each(|name| self.exchange.ban(name));
        if self.exchange.is_discredited() && !std::mem::replace(&mut self.warned, true) {
            self.fed_at = now;
            tracing::warn!(
                digest = %self.flight.want.digest, %tracker,
                "the tracker does not count on this node any more, and says why in its log: this node takes the blob from \
                 others, and reads it from the registry where nobody else can"
            );
        }
    }

    pub(super) fn say(&mut self, reports: Vec<Report>, now: Instant) {
        let Some(line) = &mut self.line else { return };
        if !line.say(reports, &self.me.name, now) {
            let (number, tracker) = (line.number, line.tracker.name.clone());
            self.line_lost(number, &tracker, now);
        }
    }

    pub(super) fn called_by(&mut self, tracker: &str) {
        self.avoided.remove(tracker);
        self.reconsider();
    }

    /// Somebody else may be the first in rank now.
    pub(super) fn reconsider(&mut self) {
        let current = self.line.as_ref().map(|line| &line.tracker.name);
        if current.is_some_and(|current| *current != self.tracker().name) && !self.proven {
            self.dial();
        }
    }
}
