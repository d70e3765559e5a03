//! Who is to be asked at its own address: whoever calls, before it becomes a member, and whoever a connection
//! to has died.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{FORGET_AFTER, RETRY_EVERY_MAX, life::Life};

/// Asked again after this, then half as often each time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Check {
    life: Life,
    /// Why it could not be asked, the last time.
    reason: Option<String>,
    since: Instant,
    asked_at: Option<Instant>,
    retry_after: Duration,
    /// When to ask; `None` while it is being asked.
    next: Option<Instant>,
}

/// By name.
#[derive(Debug, Default)]
pub(super) struct Checks {
    entries: BTreeMap<String, Check>,
}

impl Checks {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Asks `life`, at once if nobody of this name has been asked within the last second.
    pub(super) fn add(&mut self, life: Life, now: Instant) {
        let asked_at = self.entries.get(life.name()).and_then(|check| check.asked_at);
        let soonest = asked_at.map_or(now, |at| now.max(at + RETRY_AFTER));
        match self.entries.get_mut(life.name()) {
            Some(check) if check.life.member() == life.member() && check.life == life => {
                check.next = check.next.map(|at| at.min(soonest));
            }
            Some(_) | None => {
                let (name, reason, retry_after) = (life.name().to_owned(), None, RETRY_AFTER);
                let next = Some(soonest);
                self.entries.insert(name, Check { life, reason, since: now, asked_at, retry_after, next });
            }
        }
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<String> {
        self.entries.remove(name).and_then(|check| check.reason)
    }

    /// Why it cannot be asked, if it could not.
    pub(super) fn reason(&self, life: &Life) -> Option<&str> {
        let check = self.entries.get(life.name()).filter(|check| check.life == *life)?;
        check.reason.as_deref()
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.entries.values().filter_map(|check| check.next).min()
    }

    /// One whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<Life> {
        let check = self.entries.values_mut().find(|check| check.next.is_some_and(|at| at <= now))?;
        check.next = None;
        check.asked_at = Some(now);
        Some(check.life.clone())
    }

    /// Notes why it could not be asked; whether that is news.
    pub(super) fn failed(&mut self, life: &Life, reason: &str, now: Instant) -> bool {
        let Some(check) = self.entries.get_mut(life.name()).filter(|check| check.life == *life) else {
            return false;
        };
        check.next = Some(now + check.retry_after);
        check.retry_after = (check.retry_after * 2).min(RETRY_EVERY_MAX);
        check.reason.replace(reason.to_owned()).as_deref() != Some(reason)
    }

    /// Drops whoever has not answered for long, and says who that was.
    pub(super) fn forget(&mut self, now: Instant) -> Vec<Life> {
        let old = self.entries.extract_if(.., |_, check| now.duration_since(check.since) >= FORGET_AFTER);
        old.map(|(_, check)| check.life).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Life, Option<&str>)> {
        self.entries.values().map(|check| (&check.life, check.reason.as_deref()))
    }
}
