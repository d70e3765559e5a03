//! Who may read from which registry host now: asks in, grants out, time given.
//!
//! A turn is one connection that reads blobs from a host. The keeper of a host gives out so many at a time, in the order
//! of asking, and one member has at most half of them while others wait. Whoever has a turn keeps it from read to read,
//! until it is told that somebody waits. A registry that has had enough is left alone for as long as it asks, and has
//! half as many readers afterwards; they come back one after the other. What one member says again and no other does,
//! is its own matter.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::swarm::message::Name;

/// A place in the queue of a host, or a turn.
pub(super) type Ticket = u64;

/// Hosts with readers at a time. More than this the cluster does not pull from; others are read without turns.
const HOSTS_MAX: usize = 1024;
/// Places that one member has in all queues together: leases of a hundred layers that it pulls at once.
const PLACES_MAX: usize = 512;
/// A turn is asked back when it is this old and somebody waits: some leases, each of which would else cost a question.
const TURN_TIME: Duration = Duration::from_millis(300);
/// One that was asked back this long ago does not come back, and another one is asked back for it.
const BACK_WITHIN: Duration = Duration::from_secs(2);
/// After so long one counts no more: its holder reads one run for a minute, or keeps it for nothing.
const TURN_MAX: Duration = Duration::from_secs(60);
/// The least and the most that a registry is left alone for: without a `Retry-After`, and whatever it asks. A client of
/// the mirror is cut off after a minute without a byte; somebody is to have asked again by then.
const QUIET_MIN: Duration = Duration::from_secs(1);
const QUIET_MAX: Duration = Duration::from_secs(20);
/// What a member said is remembered for this long: the quotas of registries are counted by the minute and more.
const WORD_KEPT: Duration = Duration::from_secs(300);
/// Of readers that are met by the same limit only the first halves their number.
const HALVED_FOR: Duration = Duration::from_secs(2);
/// One reader more after so long without a word from the registry.
const RECOVERY: Duration = Duration::from_secs(10);

/// Why there is no place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoPlace {
    #[error("turns of {HOSTS_MAX} registry hosts are kept here already")]
    Hosts,
    #[error("`{0}` has its {PLACES_MAX} places")]
    Member(Name),
}

/// What a place's owner is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It is your turn.
    Go,
    /// Others wait, or the registry wants to be left alone: no further run with this turn.
    GiveBack,
}

/// The turns of all hosts that one member keeps.
pub(super) struct Keeper {
    readers_max: usize,
    hosts: BTreeMap<String, Host>,
    next: Ticket,
    words: Vec<(Ticket, Word)>,
}

struct Host {
    /// At most so many turns.
    limit: usize,
    out: Vec<Turn>,
    waiting: VecDeque<(Ticket, Name)>,
    quiet_until: Option<Instant>,
    /// Members that were told to come later, and when.
    told_off: BTreeMap<Name, Instant>,
    /// Those of them that have no turns until then.
    shy: BTreeMap<Name, Instant>,
    halved_at: Option<Instant>,
    recovers_at: Instant,
}

struct Turn {
    ticket: Ticket,
    name: Name,
    since: Instant,
    asked_back: Option<Instant>,
}

/// What comes of a registry's word to one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It has no turn: its word counts for nothing.
    Nothing,
    /// Only this member is told off, again and again.
    Alone(Duration),
    /// Nobody has a turn for so long.
    All(Duration),
}

impl Keeper {
    /// At most `readers_max` turns a host, at least one.
    pub(super) fn new(readers_max: usize) -> Self {
        Self { readers_max: readers_max.max(1), hosts: BTreeMap::new(), next: 0, words: Vec::new() }
    }

    /// Whom to tell what, in order.
    pub(super) fn take_words(&mut self) -> Vec<(Ticket, Word)> {
        std::mem::take(&mut self.words)
    }

    /// `name` wants to read from `host`.
    pub(super) fn ask(&mut self, host: &str, name: &str, now: Instant) -> Result<Ticket, NoPlace> {
        if self.hosts.len() >= HOSTS_MAX && !self.hosts.contains_key(host) {
            return Err(NoPlace::Hosts);
        }
        if self.hosts.values().map(|host| host.places_of(name)).sum::<usize>() >= PLACES_MAX {
            return Err(NoPlace::Member(name.to_owned()));
        }
        self.next += 1;
        let limit = self.readers_max;
        let host = self.hosts.entry(host.to_owned()).or_insert_with(|| Host::new(limit, now));
        host.waiting.push_back((self.next, name.to_owned()));
        host.settle(now, &mut self.words);
        Ok(self.next)
    }

    /// A place is given up, or a turn given back.
    pub(super) fn left(&mut self, ticket: Ticket, now: Instant) {
        for host in self.hosts.values_mut() {
            host.out.retain(|turn| turn.ticket != ticket);
            host.waiting.retain(|(waiting, _)| *waiting != ticket);
        }
        self.tick(now);
    }

    /// The registry told a member that has a turn to come later.
    pub(super) fn throttled(&mut self, host: &str, name: &str, retry_after: Duration, now: Instant) -> Heard {
        let Some(host) = self.hosts.get_mut(host) else { return Heard::Nothing };
        if host.turns_of(name) == 0 {
            return Heard::Nothing;
        }
        let quiet = retry_after.clamp(QUIET_MIN, QUIET_MAX);
        host.told_off.retain(|_, at| now.duration_since(*at) < WORD_KEPT);
        let confirmed = host.told_off.keys().any(|other| other != name);
        let again = host.told_off.insert(name.to_owned(), now).is_some();
        if again && !confirmed {
            host.shy.insert(name.to_owned(), now + quiet);
            host.ask_back(now, usize::MAX, &mut self.words, |turn| turn.name == name);
            return Heard::Alone(quiet);
        }
        host.quiet_until = host.quiet_until.max(Some(now + quiet));
        if host.halved_at.is_none_or(|at| now.duration_since(at) >= HALVED_FOR) {
            host.halved_at = Some(now);
            host.limit = (host.limit / 2).max(1);
        }
        host.recovers_at = now + quiet + RECOVERY;
        host.ask_back(now, usize::MAX, &mut self.words, |_| true);
        Heard::All(quiet)
    }

    /// Members that are gone have no places: their connections may look open for minutes. The places that were theirs.
    pub(super) fn only(&mut self, is_live: impl Fn(&str) -> bool) -> Vec<Ticket> {
        let mut gone = Vec::new();
        for host in self.hosts.values_mut() {
            gone.extend(host.out.extract_if(.., |turn| !is_live(&turn.name)).map(|turn| turn.ticket));
            host.waiting.retain(|(ticket, name)| {
                let live = is_live(name);
                if !live {
                    gone.push(*ticket);
                }
                live
            });
        }
        gone
    }

    pub(super) fn is_idle(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Time passed: call it about ten times a second.
    pub(super) fn tick(&mut self, now: Instant) {
        for host in self.hosts.values_mut() {
            if host.limit < self.readers_max && now >= host.recovers_at {
                host.limit += 1;
                host.recovers_at = now + RECOVERY;
            }
            host.settle(now, &mut self.words);
        }
        self.hosts.retain(|_, host| host.limit < self.readers_max || !host.is_over(now));
    }
}

impl Host {
    fn new(limit: usize, now: Instant) -> Self {
        Self {
            limit,
            out: Vec::new(),
            waiting: VecDeque::new(),
            quiet_until: None,
            told_off: BTreeMap::new(),
            shy: BTreeMap::new(),
            halved_at: None,
            recovers_at: now,
        }
    }

    /// Nobody reads from it, and nothing is known of it that counts.
    fn is_over(&mut self, now: Instant) -> bool {
        self.told_off.retain(|_, at| now.duration_since(*at) < WORD_KEPT);
        self.out.is_empty() && self.waiting.is_empty() && self.told_off.is_empty()
    }

    fn turns_of(&self, name: &str) -> usize {
        self.out.iter().filter(|turn| turn.name == name).count()
    }

    fn places_of(&self, name: &str) -> usize {
        self.turns_of(name) + self.waiting.iter().filter(|(_, waiting)| waiting == name).count()
    }

    fn settle(&mut self, now: Instant, words: &mut Vec<(Ticket, Word)>) {
        for turn in self.out.extract_if(.., |turn| now.duration_since(turn.since) >= TURN_MAX) {
            words.push((turn.ticket, Word::GiveBack));
        }
        self.shy.retain(|_, until| now < *until);
        if self.quiet_until.is_some_and(|until| now < until) {
            return;
        }
        while self.out.len() < self.limit {
            let Some((ticket, name)) = self.next_in_turn() else { break };
            self.out.push(Turn { ticket, name, since: now, asked_back: None });
            words.push((ticket, Word::Go));
        }
        let comes_back =
            |turn: &&Turn| turn.asked_back.is_some_and(|at| now.duration_since(at) < BACK_WITHIN);
        let wanted = self.waiting.len().saturating_sub(self.out.iter().filter(comes_back).count());
        self.ask_back(now, wanted, words, |turn| now.duration_since(turn.since) >= TURN_TIME);
    }

    fn ask_back(
        &mut self,
        now: Instant,
        at_most: usize,
        words: &mut Vec<(Ticket, Word)>,
        which: impl Fn(&Turn) -> bool,
    ) {
        let asked = self.out.iter_mut().filter(|turn| turn.asked_back.is_none() && which(turn));
        for turn in asked.take(at_most) {
            turn.asked_back = Some(now);
            words.push((turn.ticket, Word::GiveBack));
        }
    }

    /// Who has waited longest; those that have half of the turns come after the others.
    fn next_in_turn(&mut self) -> Option<(Ticket, Name)> {
        let share = (self.limit / 2).max(1);
        let may = |(_, name): &(Ticket, Name)| !self.shy.contains_key(name);
        let fits = |place: &(Ticket, Name)| may(place) && self.turns_of(&place.1) < share;
        let at = self.waiting.iter().position(fits).or_else(|| self.waiting.iter().position(may))?;
        self.waiting.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "r.local:5000";

    fn told(keeper: &mut Keeper) -> Vec<(Ticket, Word)> {
        keeper.take_words()
    }

    #[test]
    fn so_many_read_at_a_time_in_the_order_of_asking() {
        let (mut keeper, now) = (Keeper::new(2), Instant::now());
        let [a, b, c] = ["a", "b", "c"].map(|name| keeper.ask(HOST, name, now).unwrap());
        assert_eq!(told(&mut keeper)[..2], [(a, Word::Go), (b, Word::Go)]);
        keeper.ask("other.local", "a", now).unwrap();
        assert_eq!(told(&mut keeper).len(), 1, "another host has turns of its own");
        keeper.left(a, now);
        assert_eq!(told(&mut keeper), [(c, Word::Go)]);
    }

    #[test]
    fn a_turn_is_asked_back_when_somebody_waits() {
        let (mut keeper, now) = (Keeper::new(1), Instant::now());
        let a = keeper.ask(HOST, "a", now).unwrap();
        keeper.tick(now + 2 * QUIET_MIN);
        assert_eq!(told(&mut keeper), [(a, Word::Go)], "nobody waits");
        let b = keeper.ask(HOST, "b", now + 2 * QUIET_MIN).unwrap();
        assert_eq!(told(&mut keeper), [(a, Word::GiveBack)]);
        keeper.tick(now + 3 * QUIET_MIN);
        assert_eq!(told(&mut keeper), [], "once");
        let c = keeper.ask(HOST, "c", now + 3 * QUIET_MIN).unwrap();
        keeper.left(a, now + 3 * QUIET_MIN);
        assert_eq!(told(&mut keeper), [(b, Word::Go)]);
        keeper.tick(now + 3 * QUIET_MIN + TURN_TIME);
        assert_eq!(told(&mut keeper), [(b, Word::GiveBack)], "somebody waits already");
        keeper.left(b, now + 3 * QUIET_MIN);
        assert_eq!(told(&mut keeper), [(c, Word::Go)]);
    }

    #[test]
    fn one_member_does_not_keep_the_others_out() {
        let (mut keeper, now) = (Keeper::new(4), Instant::now());
        let greedy: Vec<Ticket> = (0..PLACES_MAX).map(|_| keeper.ask(HOST, "a", now).unwrap()).collect();
        let go = |words: Vec<(Ticket, Word)>| -> Vec<Ticket> {
            words.into_iter().filter(|(_, word)| *word == Word::Go).map(|(ticket, _)| ticket).collect()
        };
        assert_eq!(go(told(&mut keeper)), greedy[..4], "nobody else waits");
        assert_eq!(keeper.ask(HOST, "a", now), Err(NoPlace::Member("a".into())));
        let b = keeper.ask(HOST, "b", now).unwrap();
        keeper.left(greedy[0], now);
        assert_eq!(go(told(&mut keeper)), [b], "three of four are more than half");
        keeper.left(b, now);
        assert_eq!(go(told(&mut keeper)), [greedy[4]], "what nobody else wants is not kept back");
        // It gives nothing back: its turns count for a minute, or until it is gone.
        let [c, d] = ["c", "d"].map(|name| keeper.ask(HOST, name, now).unwrap());
        keeper.tick(now + TURN_MAX);
        assert!(go(told(&mut keeper)).contains(&c));
        assert_eq!(
            keeper.only(|name| name != "a").len(),
            PLACES_MAX - 5,
            "one has left, four were out too long"
        );
        keeper.tick(now + TURN_MAX);
        assert!(go(told(&mut keeper)).len() <= 1, "{d} has its turn by now");
        assert!(keeper.hosts[HOST].waiting.is_empty() && keeper.hosts[HOST].out.len() == 2);
    }

    #[test]
    fn a_registry_that_has_had_enough_is_left_alone_and_then_read_by_fewer() {
        let (mut keeper, now) = (Keeper::new(4), Instant::now());
        let out: Vec<Ticket> = ["a", "b", "c", "d"].map(|name| keeper.ask(HOST, name, now).unwrap()).into();
        told(&mut keeper);
        let wait = Duration::from_secs(5);
        assert_eq!(keeper.throttled(HOST, "stranger", wait, now), Heard::Nothing);
        assert_eq!(keeper.throttled(HOST, "a", wait, now), Heard::All(wait));
        assert_eq!(told(&mut keeper).len(), 4, "all are asked back");
        assert_eq!(keeper.throttled(HOST, "b", Duration::MAX, now), Heard::All(QUIET_MAX), "not for ever");
        out.iter().for_each(|&ticket| keeper.left(ticket, now));
        for name in ["a", "b", "c", "d"] {
            keeper.ask(HOST, name, now).unwrap();
        }
        keeper.tick(now + QUIET_MAX - Duration::from_millis(1));
        assert_eq!(told(&mut keeper), []);
        let go = |keeper: &mut Keeper| told(keeper).iter().filter(|(_, word)| *word == Word::Go).count();
        keeper.tick(now + QUIET_MAX);
        assert_eq!(go(&mut keeper), 2, "halved once");
        keeper.tick(now + QUIET_MAX + RECOVERY);
        assert_eq!(go(&mut keeper), 1);
    }

    #[test]
    fn what_one_member_alone_is_told_again_holds_up_no_other() {
        let (mut keeper, now) = (Keeper::new(4), Instant::now());
        keeper.ask(HOST, "a", now).unwrap();
        assert_eq!(keeper.throttled(HOST, "a", QUIET_MIN, now), Heard::All(QUIET_MIN));
        let later = now + 2 * QUIET_MIN;
        assert_eq!(keeper.throttled(HOST, "a", QUIET_MAX, later), Heard::Alone(QUIET_MAX));
        told(&mut keeper);
        let again = keeper.ask(HOST, "a", later).unwrap();
        let b = keeper.ask(HOST, "b", later).unwrap();
        let words = told(&mut keeper);
        assert!(words.contains(&(b, Word::Go)) && !words.contains(&(again, Word::Go)), "{words:?}");
        assert_eq!(
            keeper.throttled(HOST, "b", QUIET_MIN, later),
            Heard::All(QUIET_MIN),
            "a second one says so"
        );
    }

    #[test]
    fn who_does_not_give_back_is_made_up_for_by_others() {
        let (mut keeper, now) = (Keeper::new(3), Instant::now());
        let out = ["a", "b", "c"].map(|name| keeper.ask(HOST, name, now).unwrap());
        told(&mut keeper);
        let later = now + TURN_TIME;
        keeper.ask(HOST, "d", later).unwrap();
        assert_eq!(told(&mut keeper), [(out[0], Word::GiveBack)], "one waits");
        keeper.tick(later + BACK_WITHIN);
        assert_eq!(told(&mut keeper), [(out[1], Word::GiveBack)]);
    }

    #[test]
    fn a_quiet_outlasts_the_last_reader() {
        let (mut keeper, now) = (Keeper::new(1), Instant::now());
        let a = keeper.ask(HOST, "a", now).unwrap();
        keeper.throttled(HOST, "a", QUIET_MAX, now);
        keeper.left(a, now);
        told(&mut keeper);
        keeper.ask(HOST, "a", now + QUIET_MIN).unwrap();
        assert_eq!(told(&mut keeper), []);
    }

    #[test]
    fn a_host_that_nobody_reads_is_forgotten() {
        let (mut keeper, now) = (Keeper::new(4), Instant::now());
        for number in 0..HOSTS_MAX {
            keeper.ask(&format!("r{number}.local"), &format!("n{number}"), now).unwrap();
        }
        assert_eq!(keeper.ask(HOST, "a", now), Err(NoPlace::Hosts));
        keeper.left(1, now);
        assert!(keeper.ask(HOST, "a", now).is_ok());
    }
}
