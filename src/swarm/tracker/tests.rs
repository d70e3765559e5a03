//! What becomes of a member that nobody believes.

use super::*;
use crate::swarm::message::Run;

const BLOB_LEN: u64 = 4 << 20;

fn member(name: &str) -> Member {
    let address = format!("{name}:7442");
    Member { name: name.to_owned(), address, zone: None, generation: 1, role: Role::Peer }
}

fn join(name: &str) -> Join {
    Join {
        digest: crate::oci::Digest::of(crate::oci::Algorithm::Sha256, b"blob"),
        blob_len: BLOB_LEN,
        from: member(name),
        held: 0,
        reading: Vec::new(),
        reads_origin: true,
        whole: false,
    }
}

/// A swarm that asks nobody, and a member whom its tracker has banned.
fn swarm(now: Instant) -> Swarm {
    let mut swarm = Swarm::new(BLOB_LEN, [], now);
    swarm.distrust(&"banned".to_owned());
    swarm
}

fn told(swarm: &mut Swarm, handle: Handle) -> Vec<Event> {
    let events = swarm.take_events().into_iter();
    events.filter(|(to, _)| *to == handle).map(|(_, event)| event).collect()
}

fn leases(events: &[Event]) -> Vec<Run> {
    let lease = |event: &Event| if let Event::Lease(run) = event { Some(run.clone()) } else { None };
    events.iter().filter_map(lease).collect()
}

fn held(index: u32, voucher: &str) -> Report {
    let statement = blake3::hash(&index.to_le_bytes());
    Report::Held(Held { index, statement, voucher: voucher.to_owned() })
}

#[test]
fn a_banned_member_reads_where_nobody_else_can_and_nobody_waits_for_it() {
    let now = Instant::now();
    let mut swarm = swarm(now);
    let banned = swarm.join(&join("banned"), now).unwrap();
    let events = told(&mut swarm, banned);
    assert_eq!(events[0], Event::Discredited);
    let first = leases(&events);
    assert!(!first.is_empty() && !events.iter().any(|event| matches!(event, Event::OriginFailed { .. })));
    // One that cannot read is told so at once, however long the other reads.
    let poor = swarm.join(&Join { reads_origin: false, ..join("poor") }, now).unwrap();
    swarm.reports(banned, [Report::Reading { start: first[0].start }], now);
    assert!(told(&mut swarm, poor).iter().any(|event| matches!(event, Event::OriginFailed { .. })));
    // One that can takes over.
    let sound = swarm.join(&join("sound"), now).unwrap();
    let all = swarm.take_events();
    assert!(all.contains(&(banned, Event::Revoke(first[0].clone()))), "{all:?}");
    assert!(all.iter().any(|(to, event)| *to == sound && matches!(event, Event::Lease(_))), "{all:?}");
    // Left alone by its registry as well, it hears that nobody reads.
    swarm.leave(sound, now);
    swarm.leave(poor, now);
    for run in leases(&told(&mut swarm, banned)) {
        let failure = super::super::message::Failure::Later { retry_after: Duration::from_secs(60) };
        swarm.reports(banned, [Report::Returned { run, failure, reason: "busy".to_owned() }], now);
    }
    assert!(told(&mut swarm, banned).iter().any(|event| matches!(event, Event::OriginFailed { .. })));
    // Nobody else has to wait for what the registry told it.
    let next = swarm.join(&join("next"), now).unwrap();
    assert!(!leases(&told(&mut swarm, next)).is_empty());
}

#[test]
fn a_banned_member_takes_and_is_not_heard() {
    let now = Instant::now();
    let mut swarm = swarm(now);
    let sound = swarm.join(&join("sound"), now).unwrap();
    assert!(told(&mut swarm, sound).iter().any(|event| matches!(event, Event::Lease(_))));
    let banned = swarm.join(&join("banned"), now).unwrap();
    let events = told(&mut swarm, banned);
    assert!(events.contains(&Event::Discredited) && events.iter().all(|e| !matches!(e, Event::Lease(_))));
    assert!(events.contains(&Event::Joined { handle: sound, member: member("sound") }));

    let lies = [held(3, "banned"), Report::Refused { handle: sound }, Report::Unclosed];
    swarm.reports(banned, lies, now);
    swarm.reports(sound, [held(0, "sound"), held(1, "banned")], now);
    let events = told(&mut swarm, sound);
    let of_banned =
        |event: &&Event| matches!(event, Event::Joined { .. } | Event::Arrived { .. } | Event::Audit { .. });
    assert_eq!(events.iter().filter(of_banned).count(), 0, "{events:?}");
    assert!(events.iter().any(|event| matches!(event, Event::Lease(_))), "the reader reads on: {events:?}");
    // What it had vouched for before is with whoever holds it.
    let third = swarm.join(&join("third"), now).unwrap();
    let events = told(&mut swarm, third);
    assert!(events.contains(&Event::Arrived { handle: sound, pieces: vec![0, 1] }), "{events:?}");
    assert!(!events.iter().any(|event| matches!(event, Event::Joined { handle, .. } if *handle == banned)));
}

#[test]
fn who_is_discredited_gives_its_leases_back_and_stays() {
    let now = Instant::now();
    let mut swarm = Swarm::new(BLOB_LEN, [], now);
    let [liar, one, other] = ["liar", "one", "other"].map(|name| swarm.join(&join(name), now).unwrap());
    let given = leases(&told(&mut swarm, liar));
    assert!(!given.is_empty());
    swarm.reports(one, [Report::Refused { handle: liar }], now);
    assert!(told(&mut swarm, liar).is_empty(), "one word is not enough");
    swarm.reports(other, [Report::Refused { handle: liar }], now);
    let all = swarm.take_events();
    let of = |handle: Handle| -> Vec<Event> {
        all.iter().filter(|(to, _)| *to == handle).map(|(_, event)| event.clone()).collect()
    };
    for run in given {
        assert!(of(liar).contains(&Event::Revoke(run)), "{all:?}");
    }
    assert!(of(liar).contains(&Event::Discredited) && of(one).contains(&Event::Gone { handle: liar }));
    assert!(swarm.has(liar) && leases(&of(liar)).is_empty());
    assert!(!leases(&of(one)).is_empty() || !leases(&of(other)).is_empty(), "others read it: {all:?}");
    // It is told once, and no more of it is said.
    swarm.tick(now);
    swarm.reports(other, [Report::Refused { handle: liar }], now);
    assert!(!told(&mut swarm, liar).contains(&Event::Discredited));
    // With the last of the others gone, it reads for itself.
    swarm.leave(one, now);
    assert!(leases(&told(&mut swarm, liar)).is_empty());
    swarm.leave(other, now);
    assert!(!leases(&told(&mut swarm, liar)).is_empty());
}

#[test]
fn who_is_discredited_reads_alone_what_it_does_not_have() {
    let now = Instant::now();
    let mut swarm = Swarm::new(BLOB_LEN, [], now);
    let reader = swarm.join(&join("reader"), now).unwrap();
    let poor = swarm.join(&Join { reads_origin: false, ..join("poor") }, now).unwrap();
    swarm.reports(reader, [held(0, "reader"), held(1, "reader")], now);
    swarm.take_events();
    swarm.reports(poor, [Report::Silent { handle: reader }], now);
    let events = told(&mut swarm, reader);
    assert!(events.contains(&Event::Discredited), "{events:?}");
    let runs = leases(&events);
    assert!(!runs.is_empty() && runs.iter().all(|run| run.start >= 2), "{events:?}");
}

#[test]
fn a_small_blob_whose_reader_is_busy_is_read_by_another_one() {
    let now = Instant::now();
    let crowd = |blob_len| {
        let mut swarm = Swarm::new(blob_len, [], now);
        let handles =
            ["one", "two", "three"].map(|name| swarm.join(&Join { blob_len, ..join(name) }, now).unwrap());
        (swarm, handles)
    };
    let waiting = [Report::Waiting { start: 0 }];
    let (mut swarm, handles) = crowd(1000);
    let mut reader = handles[0];
    assert!(told(&mut swarm, reader).contains(&Event::Lease(0..1)));
    let mut readers = vec![reader];
    for _ in 0..2 {
        swarm.reports(reader, waiting.clone(), now);
        let all = swarm.take_events();
        assert!(all.contains(&(reader, Event::Revoke(0..1))), "{all:?}");
        reader = all.iter().find(|(_, event)| *event == Event::Lease(0..1)).expect("somebody reads it").0;
        readers.push(reader);
    }
    readers.sort_unstable();
    assert_eq!(readers, handles, "each is asked once");
    swarm.reports(reader, waiting.clone(), now);
    assert!(swarm.take_events().is_empty(), "all are busy: the last one goes on");
    // Of a large blob it is the registry that is waited for.
    let (mut swarm, handles) = crowd(BLOB_LEN);
    swarm.take_events();
    swarm.reports(handles[0], waiting, now);
    assert!(!swarm.take_events().iter().any(|(_, event)| matches!(event, Event::Revoke(_))));
}
