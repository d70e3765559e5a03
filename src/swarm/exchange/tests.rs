//! What is asked for first, and how long a peer's failures are held against it.

use std::collections::BTreeMap;

use super::*;
use crate::{mesh::Role, oci::Algorithm};

const PIECES: u32 = 512;
const PIECE_LEN: u64 = 256 << 10;

fn statement(index: u32) -> Statement {
    blake3::hash(&index.to_le_bytes())
}

fn member(name: &str) -> Member {
    let address = format!("{name}:7442");
    Member { name: name.to_owned(), address, zone: None, generation: 1, role: Role::Peer }
}

/// A pull of this member, and what its tracker tells first: somebody has stated every piece.
fn begun(me: Member) -> (Exchange, Vec<Event>) {
    let setting = Setting {
        digest: crate::oci::Digest::of(Algorithm::Sha256, b"blob"),
        blob_len: u64::from(PIECES) * PIECE_LEN,
        me,
        reads_origin: true,
        seed: 7,
    };
    let mut exchange = Exchange::new(setting, []);
    assert_eq!(exchange.layout.count(), PIECES);
    exchange.joined();
    let stated =
        |index| Event::Stated(Held { index, statement: statement(index), voucher: "reader".to_owned() });
    (exchange, (0..PIECES).map(stated).collect())
}

/// A pull and the requests that it has out.
struct Pull {
    exchange: Exchange,
    out: BTreeMap<(Name, u32), Check>,
    now: Instant,
}

impl Pull {
    /// Whose tracker has just said which pieces each peer has.
    fn of(peers: &[(&str, Vec<u32>)]) -> Self {
        let (mut exchange, mut events) = begun(member("me"));
        let now = Instant::now();
        for (handle, (name, pieces)) in (1..).zip(peers) {
            events.push(Event::Joined { handle, member: member(name) });
            events.push(Event::Arrived { handle, pieces: pieces.clone() });
        }
        exchange.told(events, now);
        Self { exchange, out: BTreeMap::new(), now }
    }

    /// What it asks for now, in its order.
    fn asks(&mut self) -> Vec<(Name, u32)> {
        let mut asked = Vec::new();
        for action in self.exchange.take_actions() {
            if let Action::Fetch { peer, index, check } = action {
                asked.push((peer.name.clone(), index));
                self.out.insert((peer.name, index), check);
            }
        }
        asked
    }

    /// One request ends.
    fn ends(&mut self, peer: &str, index: u32, outcome: Fetched) {
        assert!(self.out.remove(&(peer.to_owned(), index)).is_some(), "{peer} was not asked for {index}");
        self.exchange.fetched(peer, index, outcome, self.now);
    }

    /// Every request to a peer ends.
    fn all_end(&mut self, peer: &str, outcome: impl Fn(u32) -> Fetched) {
        for index in self.out_at(peer) {
            self.ends(peer, index, outcome(index));
        }
    }

    fn out_at(&self, peer: &str) -> Vec<u32> {
        self.out.keys().filter(|(name, _)| name == peer).map(|(_, index)| *index).collect()
    }

    fn later(&mut self, by: Duration) {
        self.now += by;
        self.exchange.tick(self.now);
    }
}

fn good(index: u32) -> Fetched {
    Fetched::Good(statement(index))
}

#[test]
fn the_readers_next_pieces_come_first_and_then_the_rarest() {
    let all: Vec<u32> = (0..PIECES).collect();
    let common: Vec<u32> = all.iter().copied().filter(|index| ![40, 50].contains(index)).collect();
    let mut pull = Pull::of(&[("a", all), ("b", common.clone()), ("c", common)]);
    let asked = pull.asks();
    let order: Vec<u32> = asked.iter().map(|(_, index)| *index).collect();
    assert_eq!(order[..2], [0, 1], "what the reader waits for: {asked:?}");
    let of_a: Vec<u32> = asked[2..].iter().filter(|(name, _)| name == "a").map(|(_, index)| *index).collect();
    assert!(of_a.len() >= 2, "{asked:?}");
    let mut rare = of_a[..2].to_vec();
    rare.sort_unstable();
    assert_eq!(rare, [40, 50], "what only one has: {asked:?}");

    // The reader has jumped: as soon as there is room it is served there.
    pull.exchange.front(20);
    let (peer, index) = asked[2].clone();
    pull.ends(&peer, index, good(index));
    let next = pull.asks();
    assert_eq!(next[0].1, 20, "{next:?}");
}

#[test]
fn a_pull_that_gets_no_more_stays_as_long_as_others_take_what_it_has() {
    let mut pull = Pull::of(&[("a", vec![0, 1]), ("b", vec![0])]);
    for (peer, index) in pull.asks() {
        pull.ends(&peer, index, good(index));
    }
    let failed = |pull: &mut Pull| {
        pull.exchange.take_actions().iter().any(|action| matches!(action, Action::Fail { .. }))
    };
    pull.exchange.told([Event::OriginFailed { reason: "origin_unreachable".to_owned() }], pull.now);
    assert!(pull.exchange.have().len() == 2 && !failed(&mut pull), "b lacks what it has");
    pull.later(Duration::from_secs(2));
    // Whoever comes gets something as well.
    pull.exchange.told([Event::Joined { handle: 3, member: member("c") }], pull.now);
    pull.later(Duration::from_secs(2));
    assert!(!failed(&mut pull));
    pull.exchange.told([Event::Arrived { handle: 2, pieces: vec![1] }], pull.now);
    pull.later(Duration::from_secs(2));
    assert!(!failed(&mut pull), "c is still getting some of it");
    pull.later(Duration::from_secs(2));
    assert!(failed(&mut pull), "c takes nothing");
}

#[test]
fn a_pull_whose_pieces_everybody_has_ends_at_once() {
    let mut pull = Pull::of(&[("a", vec![0, 1])]);
    for (peer, index) in pull.asks() {
        pull.ends(&peer, index, good(index));
    }
    pull.exchange.told([Event::OriginFailed { reason: "origin_unreachable".to_owned() }], pull.now);
    assert!(pull.exchange.take_actions().iter().any(|action| matches!(action, Action::Fail { .. })));
}

#[test]
fn failures_are_forgiven_and_forgotten_and_wrong_bytes_are_not() {
    let all: Vec<u32> = (0..PIECES).collect();
    let mut pull = Pull::of(&[("fails", all.clone()), ("lies", all.clone()), ("gives", all)]);
    pull.asks();
    assert!(["fails", "lies", "gives"].iter().all(|peer| !pull.out_at(peer).is_empty()), "{:?}", pull.out);

    // Requests that fail together are one failure: it is asked again after 0.2 s, then after 0.4 s, then after 10 s.
    for pause in [200, 400, 10_000].map(Duration::from_millis) {
        pull.all_end("fails", |_| Fetched::Failed);
        pull.asks();
        assert!(pull.out_at("fails").is_empty(), "{pause:?}");
        pull.later(pause - Duration::from_millis(1));
        pull.all_end("gives", good);
        pull.asks();
        assert!(pull.out_at("fails").is_empty(), "{pause:?}");
        pull.later(Duration::from_millis(1));
        pull.all_end("gives", good);
        pull.asks();
        assert!(!pull.out_at("fails").is_empty(), "{pause:?}");
    }
    // One piece, and it is asked like any other.
    pull.all_end("fails", good);
    pull.all_end("gives", good);
    pull.asks();
    let (forgiven, other) = (pull.out_at("fails").len(), pull.out_at("gives").len());
    assert!(forgiven > 0 && forgiven.abs_diff(other) <= 1, "{forgiven} and {other}");

    for _ in 0..3 {
        let index = pull.out_at("lies")[0];
        pull.ends("lies", index, Fetched::Wrong);
        pull.asks();
    }
    pull.all_end("lies", |_| Fetched::Busy);
    pull.later(Duration::from_secs(24 * 3600));
    pull.all_end("gives", good);
    pull.all_end("fails", good);
    pull.later(Duration::from_secs(1));
    pull.asks();
    assert!(pull.out_at("lies").is_empty(), "never again");
}

/// A pull that holds two pieces under the word of "reader", which the tracker then takes back; it reads them again, and
/// the first is another one. What it asks the suspect, and what becomes of the suspect when the blob is proven.
fn doubted(said: Option<Statement>, answers_late: bool) -> Vec<Action> {
    let mut pull = Pull::of(&[("a", vec![0, 1])]);
    pull.asks();
    pull.all_end("a", good);
    pull.exchange.take_actions();
    let dropped = |voucher: &str| [Event::Dropped { voucher: voucher.to_owned() }];
    pull.exchange.told(dropped("reader"), pull.now);
    let asked = |action: &Action| matches!(action, Action::AskStatements { voucher } if voucher == "reader");
    assert_eq!(pull.exchange.take_actions().iter().filter(|action| asked(action)).count(), 1, "one question");

    let truth = blake3::hash(b"another piece");
    pull.exchange.read(0, truth, pull.now);
    pull.exchange.read(1, statement(1), pull.now);
    let reader = member("reader");
    let all: Option<Vec<Statement>> = said.map(|said| vec![said; PIECES as usize]);
    let answer = all.as_ref().map(|all| (&reader, &all[..]));
    if answers_late {
        pull.exchange.proven();
    }
    pull.exchange.statements("reader", answer);
    if !answers_late {
        pull.exchange.proven();
    }
    // What was judged is not judged again.
    pull.exchange.statements("reader", answer);
    let verdicts = pull.exchange.take_actions().into_iter();
    verdicts.filter(|action| matches!(action, Action::Ban { .. } | Action::Misled { .. })).collect()
}

#[test]
fn who_stated_other_bytes_and_says_so_is_banned_when_the_blob_is_proven() {
    for answers_late in [false, true] {
        let banned = vec![Action::Ban { member: member("reader"), index: 0 }];
        assert_eq!(doubted(Some(statement(0)), answers_late), banned);
        assert_eq!(doubted(Some(statement(1)), answers_late), [], "what it repeats is true");
        assert_eq!(doubted(None, answers_late), [], "on nobody's word but its own");
    }
}

#[test]
fn a_member_finds_out_that_it_was_misled() {
    let mut pull = Pull::of(&[("a", Vec::new())]);
    let wrong = blake3::hash(b"what its registry gave it");
    pull.exchange.read(5, wrong, pull.now);
    pull.exchange.told([Event::Dropped { voucher: "me".to_owned() }], pull.now);
    let actions = pull.exchange.take_actions();
    assert!(actions.contains(&Action::Forget { index: 5 }), "{actions:?}");
    assert!(actions.contains(&Action::AskStatements { voucher: "me".to_owned() }), "{actions:?}");
    let mut said: Vec<Statement> = (0..PIECES).map(statement).collect();
    said[5] = wrong;
    pull.exchange.statements("me", Some((&member("me"), &said)));
    pull.exchange.read(5, statement(5), pull.now);
    pull.exchange.proven();
    assert!(pull.exchange.take_actions().contains(&Action::Misled { index: 5 }));
}

#[test]
fn what_waits_on_the_link_between_zones_is_asked_for_twice_only_near_by_or_when_nothing_crosses() {
    let zoned = |name: &str, zone: &str| Member { zone: Some(zone.to_owned()), ..member(name) };
    let (mut exchange, mut events) = begun(zoned("me", "here"));
    let now = Instant::now();
    for (handle, name) in (1..).zip(["far", "farther"]) {
        events.push(Event::Joined { handle, member: zoned(name, "there") });
        events.push(Event::Whole { handle });
    }
    events.push(Event::Import(0..2));
    exchange.told(events, now);
    let asks = |exchange: &mut Exchange| -> Vec<(Name, u32)> {
        let fetch = |action| {
            if let Action::Fetch { peer, index, .. } = action { Some((peer.name, index)) } else { None }
        };
        exchange.take_actions().into_iter().filter_map(fetch).collect()
    };
    let first = asks(&mut exchange);
    assert_eq!(first.len(), 2, "the import and nothing else: {first:?}");
    let (moves, waits) = (first[0].clone(), first[1].clone());
    let half = Duration::from_millis(500);
    exchange.fetching(&moves.0, moves.1, now + half);
    exchange.slow(&waits.0, waits.1, now + half);
    assert_eq!(asks(&mut exchange), []);
    let silent = |action: &Action| matches!(action, Action::Tell(Report::Silent { .. }));
    exchange.tick(now + 3 * half);
    assert!(!exchange.take_actions().iter().any(silent));
    // Somebody near has got it meanwhile.
    let near = [
        Event::Joined { handle: 3, member: zoned("near", "here") },
        Event::Arrived { handle: 3, pieces: vec![waits.1] },
    ];
    exchange.told(near, now + 3 * half);
    assert_eq!(asks(&mut exchange), [("near".to_owned(), waits.1)]);
    // Or nothing crosses any more.
    exchange.told([Event::Gone { handle: 3 }], now + 3 * half);
    exchange.fetched("near", waits.1, Fetched::Failed, now + 3 * half);
    exchange.tick(now + 4 * half);
    assert_eq!(asks(&mut exchange), []);
    exchange.tick(now + 6 * half);
    let again = asks(&mut exchange);
    assert_eq!(again.len(), 1, "{again:?}");
    assert!(again[0].1 == waits.1 && again[0].0 != waits.0, "{again:?}");
}
