//! What one node makes of what it hears.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{frame::FRAME_LEN_MAX, *};
use crate::{mesh::Role, wire::mesh as wire};

fn life(name: &str, generation: u64, revision: u32) -> Life {
    let (name, address) = (name.to_owned(), format!("{name}:7442"));
    Life::new(Member { name, address, zone: None, generation, role: Role::Peer }, revision)
}

fn swim(name: &str) -> (Swim, Instant) {
    let now = Instant::now();
    (Swim::new(life(name, 5, 0).member().clone(), 7, now), now)
}

/// A member that has answered at its own address.
fn meet(swim: &mut Swim, other: &Life, now: Instant) {
    swim.called(other.clone(), now).unwrap();
    swim.poll(8, now);
    let greeted = swim.take_actions().into_iter().find_map(|action| match action {
        Action::Greet(target) => Some(target),
        Action::Send { .. } | Action::Watch { .. } | Action::Compare { .. } => None,
    });
    let target = greeted.expect("whoever calls is asked at its own address");
    assert_eq!(target, Target::Member(other.clone()));
    swim.apply_event(Event::Answered { target, life: other.clone() }, now);
}

fn names(swim: &Swim) -> Vec<&str> {
    swim.live().into_iter().map(|member| &*member.name).collect()
}

/// Polls whenever something is due.
fn run(swim: &mut Swim, end: Instant) {
    while let Some(at) = swim.next_due(0).filter(|at| *at <= end) {
        swim.poll(0, at);
    }
}

/// A frame of `from` for `to`.
fn frame(from: &Life, to: &Life, message: foca::Message<Life>, updates: &[foca::Member<Life>]) -> Bytes {
    use foca::Codec as _;
    let mut bytes = Vec::new();
    let head = foca::Header { src: from.clone(), src_incarnation: 0, dst: to.clone(), message };
    Codec.encode_header(&head, &mut bytes).unwrap();
    bytes.extend_from_slice(&u16::try_from(updates.len()).unwrap().to_be_bytes());
    updates.iter().for_each(|update| Codec.encode_member(update, &mut bytes).unwrap());
    bytes.into()
}

#[test]
fn who_calls_is_a_member_once_it_has_answered_at_its_own_address() {
    let (mut a, now) = swim("a");
    let b = life("b", 1, 0);
    a.called(b.clone(), now).unwrap();
    assert_eq!(names(&a), ["a"]);
    assert_eq!(a.all()[1].1, MemberState::Joining);
    // A frame does not make it one either.
    a.frame("b", &frame(&b, a.me(), foca::Message::Ping(1), &[foca::Member::alive(life("c", 1, 0))]), now)
        .unwrap();
    assert_eq!(names(&a), ["a"]);
    meet(&mut a, &b, now);
    assert_eq!(names(&a), ["a", "b"]);
    assert_eq!(a.take_changes(), [Change::Joined(b.member().clone())]);
    assert!(a.take_actions().iter().any(|action| matches!(action, Action::Compare { with } if *with == b)));
}

#[test]
fn who_cannot_be_asked_is_none_and_that_is_told_once_for_each_reason() {
    let (mut a, mut now) = swim("a");
    let b = life("b", 1, 0);
    a.called(b.clone(), now).unwrap();
    for (reason, told) in [("refused", true), ("refused", false), ("no route", true)] {
        now += Duration::from_secs(60);
        a.poll(8, now);
        assert_eq!(a.take_actions().len(), 1, "{reason}");
        let target = Target::Member(b.clone());
        a.apply_event(Event::Failed { target, reason: reason.into(), is_final: true }, now);
        assert_eq!(a.take_changes().len(), usize::from(told), "{reason}");
        assert_eq!(a.all()[1].1, MemberState::Unreachable { reason: reason.into() });
    }
    run(&mut a, now + FORGET_AFTER);
    assert_eq!(a.take_changes(), [Change::Forgotten(b.member().clone())]);
    assert_eq!(a.all().len(), 1);
}

#[test]
fn a_frame_speaks_for_whom_the_certificate_names() {
    let (mut a, now) = swim("a");
    let (b, c) = (life("b", 1, 0), life("c", 1, 0));
    meet(&mut a, &b, now);
    meet(&mut a, &c, now);
    let forged = frame(&b, a.me(), foca::Message::Gossip, &[foca::Member::down(b.clone())]);
    let refused = FrameError::Name { claimed: "b".into(), certified: "c".into() };
    assert_eq!(a.frame("c", &forged, now), Err(refused));
    assert_eq!(names(&a), ["a", "b", "c"]);
    let of_ours = frame(a.me(), a.me(), foca::Message::Gossip, &[]);
    assert!(matches!(a.frame("a", &of_ours, now), Err(FrameError::Name { .. })));
}

#[test]
fn a_ping_is_answered_and_what_is_no_frame_refused() {
    let (mut a, now) = swim("a");
    let b = life("b", 1, 0);
    meet(&mut a, &b, now);
    a.take_actions();
    let ping = frame(&b, a.me(), foca::Message::Ping(3), &[]);
    a.frame("b", &ping, now).unwrap();
    let actions = a.take_actions();
    let [Action::Send { to, frame: ack }] = &actions[..] else { panic!("{actions:?}") };
    let head = Frame::decode(ack).unwrap().head;
    assert!(*to == b && head.dst == b && matches!(head.message, foca::Message::Ack(3)));
    for cut in 0..ping.len() - 1 {
        if let Ok(frame) = Frame::decode(&ping[..cut]) {
            assert_eq!(cut, frame.head_len, "only the head alone is a frame, too");
        }
    }
    let long = vec![0; FRAME_LEN_MAX + 1];
    assert_eq!(a.frame("b", &long, now), Err(FrameError::TooLong { len: long.len() }));
}

#[test]
fn one_that_refuses_connections_is_left_out_at_once_and_back_when_it_answers() {
    let (mut a, now) = swim("a");
    let b = life("b", 1, 0);
    meet(&mut a, &b, now);
    a.take_changes();
    a.apply_event(Event::Unsent { to: b.clone(), reason: "refused".into(), is_final: true }, now);
    assert_eq!(names(&a), ["a"]);
    let (member, reason) = (b.member().clone(), "refused".to_owned());
    assert_eq!(a.take_changes(), [Change::Unreachable { member, reason }]);
    let later = now + Duration::from_secs(1);
    a.poll(8, later);
    a.apply_event(Event::Answered { target: Target::Member(b.clone()), life: b.clone() }, later);
    assert_eq!(names(&a), ["a", "b"]);
    assert_eq!(a.take_changes(), [Change::Joined(b.member().clone())]);
}

#[test]
fn one_that_stays_away_is_down_after_its_time_and_told_once() {
    let (mut a, mut now) = swim("a");
    let b = life("b", 1, 0);
    meet(&mut a, &b, now);
    a.take_changes();
    a.apply_event(Event::Unsent { to: b.clone(), reason: "refused".into(), is_final: true }, now);
    now += Duration::from_secs(5);
    run(&mut a, now);
    assert_eq!(a.take_changes().len(), 1);
    assert!(a.all().iter().any(|(_, state)| *state == MemberState::Unreachable { reason: "refused".into() }));
    // It comes back as another daemon.
    let again = life("b", 2, 0);
    meet(&mut a, &again, now);
    let (old, new) = (b.member().clone(), again.member().clone());
    assert_eq!(a.take_changes(), [Change::Replaced { old, new: new.clone() }, Change::Joined(new)]);
}

#[test]
fn a_namesake_elsewhere_is_refused_in_words() {
    let (mut a, now) = swim("a");
    let b = life("b", 9, 0);
    meet(&mut a, &b, now);
    let elsewhere = |name: &str, generation| {
        Life::new(Member { address: "x:1".into(), ..life(name, generation, 0).member().clone() }, 0)
    };
    for (namesake, stays) in [(elsewhere("b", 3), "b:7442"), (elsewhere("a", 99), "a:7442")] {
        let name = namesake.name().to_owned();
        let refusal = Refusal::NameTaken { name, stays: stays.into() };
        assert_eq!(a.called(namesake, now), Err(refusal));
    }
    // Whoever started last counts, once it has answered.
    meet(&mut a, &elsewhere("b", 12), now);
    assert_eq!(a.live()[1].address, "x:1");
}

#[test]
fn more_than_there_is_room_for_are_ignored_and_those_who_are_down_make_room() {
    let (mut a, now) = swim("a");
    let many = (0..MEMBERS_MAX).map(|n| foca::Member::alive(life(&format!("n{n}"), 1, 0)));
    a.apply(many, false, now);
    a.take_changes();
    let b = life("b", 1, 0);
    assert_eq!(a.called(b.clone(), now), Err(Refusal::Full));
    a.hear_updates(vec![foca::Member::alive(b.clone())], true, now);
    assert_eq!((a.live().len(), a.take_changes()), (MEMBERS_MAX + 1, vec![Change::Full]));
    a.hear_updates(vec![foca::Member::down(life("n7", 1, 0))], true, now);
    a.hear_updates(vec![foca::Member::alive(b.clone())], true, now);
    assert_eq!(a.live().len(), MEMBERS_MAX + 1);
    assert!(a.live().contains(&b.member()));
}

#[test]
fn views_that_are_the_same_say_so_and_only_what_differs_travels() {
    let ((mut a, now), (mut b, _)) = (swim("a"), swim("b"));
    let both: Vec<_> = (0..500).map(|n| foca::Member::alive(life(&format!("n{n}"), 1, 0))).collect();
    let (in_a, in_b) = (a.me().clone(), b.me().clone());
    a.apply(both.iter().cloned().chain([foca::Member::alive(in_b)]), false, now);
    b.apply(both.iter().cloned().chain([foca::Member::alive(in_a.clone())]), false, now);
    assert_eq!(a.compared(&b.compare(&a.comparison()).unwrap()), Ok(None));

    a.apply([foca::Member::alive(life("only-a", 1, 0)), foca::Member::down(life("n3", 1, 0))], false, now);
    b.apply([foca::Member::alive(life("only-b", 1, 0)), foca::Member::down(life("n4", 1, 0))], false, now);
    let parts = b.compare(&a.comparison()).unwrap();
    assert!(parts.parts.len() <= 4);
    let request = a.compared(&parts).unwrap().expect("they differ");
    // only-a, n4 (alive for a), n3 (down for a); and only-b is wanted.
    assert_eq!((request.updates.len(), request.wanted.len()), (3, 1));
    let answer = b.exchange("a", request, now).unwrap();
    assert_eq!(answer.updates.len(), 2, "only-b, and that n4 is down");
    a.exchanged(&in_a, answer, now).unwrap();
    assert_eq!(a.compared(&b.compare(&a.comparison()).unwrap()), Ok(None));
    assert_eq!(a.live().len(), 502);

    assert_eq!(a.compare(&wire::CompareRequest { sums: vec![0; 3] }), Err(CompareError::Parts(3)));
    let stranger = wire::ExchangeRequest {
        updates: vec![frame::update_to_wire(&foca::Member::alive(life("x", 1, 0)))],
        wanted: Vec::new(),
    };
    a.exchange("stranger", stranger, now).unwrap();
    assert_eq!(a.live().len(), 502, "who is no member is asked for no opinion");
}
