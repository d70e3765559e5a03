//! What becomes of a member that nobody believes.

use super::*;

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

#[test]
fn a_banned_member_that_nobody_can_serve_is_sent_away() {
    let now = Instant::now();
    let mut swarm = swarm(now);
    let banned = swarm.join(&join("banned"), now).unwrap();
    assert!(!swarm.has(banned), "it reads for itself, where it tracks itself");
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

    let held = |index: u32, voucher: &str| {
        let statement = blake3::hash(&index.to_le_bytes());
        Report::Held(Held { index, statement, voucher: voucher.to_owned() })
    };
    let lies = [held(3, "banned"), Report::Refused { handle: sound }, Report::Unclosed];
    swarm.reports(banned, lies, now);
    swarm.reports(sound, [held(0, "sound"), held(1, "banned")], now);
    let events = told(&mut swarm, sound);
    let of_banned =
        |event: &&Event| matches!(event, Event::Joined { .. } | Event::Arrived { .. } | Event::Audit { .. });
    assert_eq!(events.iter().filter(of_banned).count(), 0, "{events:?}");
    assert!(events.iter().any(|event| matches!(event, Event::Lease(_))), "the reader reads on: {events:?}");
    // What it vouched for is nobody's; what others hold, it hears of.
    swarm.join(&join("third"), now).unwrap();
    let stated: Vec<(Handle, Event)> = swarm.take_events();
    let indices = stated.iter().filter_map(|(_, event)| match event {
        Event::Stated(held) => Some(held.index),
        _ => None,
    });
    assert!(indices.eq([0]), "{stated:?}");
}

#[test]
fn who_is_discredited_gives_its_leases_back_and_stays() {
    let now = Instant::now();
    let mut swarm = Swarm::new(BLOB_LEN, [], now);
    let [liar, one, other] = ["liar", "one", "other"].map(|name| swarm.join(&join(name), now).unwrap());
    let leases = |events: &[Event]| -> Vec<Run> {
        events.iter().filter_map(|e| if let Event::Lease(run) = e { Some(run.clone()) } else { None }).collect()
    };
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
    // With the last of the others it goes too.
    swarm.leave(one, now);
    assert!(swarm.has(liar));
    swarm.leave(other, now);
    assert!(!swarm.has(liar));
}
