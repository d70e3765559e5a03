//! What is promised of membership, told with many nodes.

use std::time::{Duration, Instant};

use super::{Fault, Life, Member, Message, Node, Sim, member};
use crate::mesh::{MESSAGE_LEN_MAX, swim::watch::LARGE};

const SECOND: Duration = Duration::from_secs(1);
/// How long it may take until everybody sees everybody.
const JOINED_MAX: Duration = Duration::from_secs(30);
/// Bytes a second that a node may send when nothing happens.
const IDLE_MAX: f64 = 1024.0;

/// 6 s at 10 members and 20 s at 10,000, and between them by the powers of ten.
fn detection_max(count: usize) -> Duration {
    Duration::from_secs_f64(6.0 + 14.0 / 3.0 * ((count as f64).log10() - 1.0))
}

fn ends(sim: &Sim, after: Duration) -> Instant {
    sim.now + after
}

/// Joins, rests, loses one member; prints the figures and holds them.
fn life_of(mut sim: Sim, count: usize, rest: Duration, fault: Fault) {
    let complete = sim.run_until(ends(&sim, SECOND * 60), Sim::is_complete);
    let complete_after = sim.elapsed();
    assert!(complete, "{count}: views are not complete after {complete_after:?}");
    // Until the news has been told often enough, and the connections that are kept have been made.
    sim.run_for(SECOND * if count < LARGE { 2 * u32::try_from(count).unwrap() } else { 30 });
    sim.figures.mark(sim.now);
    sim.run_for(rest);
    let (mean, most) = sim.figures.rate(sim.now);
    let dials = sim.figures.dials as f64 / rest.as_secs_f64() / count as f64;
    sim.kill(count / 2, fault);
    let all_know = |sim: &Sim| sim.figures.noticed_by(1.0, count - 1).is_some();
    sim.run_until(ends(&sim, detection_max(count)), all_know);
    let noticed = |share| sim.figures.noticed_by(share, count - 1);
    let seconds = |time: Option<Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64());
    println!(
        "{count} members, loss {}: complete after {:.1} s; idle {mean:.0} B/s a node (most {most:.0}), {dials:.2} dials/s; \
         one {fault:?}: half know after {:.1} s, 99 % {:.1} s, all {:.1} s; {} false deaths",
        sim.loss,
        complete_after.as_secs_f64(),
        seconds(noticed(0.5)),
        seconds(noticed(0.99)),
        seconds(noticed(1.0)),
        sim.figures.false_downs,
    );
    assert_eq!(sim.figures.false_downs, 0, "{count}");
    // What is lost is asked again, through others.
    let idle_max = if sim.loss > 0.01 { 1.25 * IDLE_MAX } else { IDLE_MAX };
    assert!(mean <= idle_max, "{count}: {mean} B/s");
    assert!(noticed(1.0).is_some_and(|time| time <= detection_max(count)), "{count}: {:?}", noticed(1.0));
    assert!(sim.run_until(ends(&sim, SECOND * 10), Sim::is_complete), "{count}");
}

#[test]
fn ten_members() {
    for seed in 0..12 {
        let mut sim = Sim::joining(10, seed);
        sim.loss = 0.01 * (seed % 3) as f64;
        life_of(sim, 10, SECOND * 60, if seed % 4 == 3 { Fault::Refusing } else { Fault::Silent });
    }
}

#[test]
fn a_hundred_members() {
    for seed in 0..2 {
        let mut sim = Sim::joining(100, seed);
        sim.loss = 0.01 * seed as f64;
        life_of(sim, 100, SECOND * 60, Fault::Silent);
    }
}

#[test]
fn a_thousand_members() {
    let mut sim = Sim::joining(1000, 1);
    sim.loss = 0.01;
    life_of(sim, 1000, SECOND * 10, Fault::Silent);
}

#[test]
#[ignore = "FLOTILLA_SIM_MEMBERS (10,000 if unset) takes many minutes and 0.3 MiB for each"]
fn as_many_members_as_asked_for() {
    let count = std::env::var("FLOTILLA_SIM_MEMBERS").ok().map_or(10_000, |text| text.parse().unwrap());
    let mut sim = Sim::ready(count, 1);
    sim.loss = 0.01;
    life_of(sim, count, SECOND * 10, Fault::Silent);
}

/// All start within a second and know three seeds.
fn joined_at_once(count: usize, seed: u64) {
    let mut sim = Sim::joining(count, seed);
    let complete = sim.run_until(ends(&sim, JOINED_MAX), Sim::is_complete);
    let (mean, most) = sim.figures.sums();
    println!(
        "{count} members join at once through three seeds: complete after {:.1} s; {} KiB sent a node, {} KiB by the one that \
         sent most; the longest message {} KiB",
        sim.elapsed().as_secs_f64(),
        mean >> 10,
        most >> 10,
        sim.figures.longest >> 10,
    );
    assert!(complete, "{count}");
    assert!(sim.figures.longest <= MESSAGE_LEN_MAX);
    assert_eq!(sim.figures.false_downs, 0);
}

#[test]
fn three_hundred_join_at_once() {
    joined_at_once(300, 1);
}

#[test]
#[ignore = "FLOTILLA_SIM_MEMBERS (10,000 if unset) takes hours at 10,000"]
fn as_many_as_asked_for_join_at_once() {
    let count = std::env::var("FLOTILLA_SIM_MEMBERS").ok().map_or(10_000, |text| text.parse().unwrap());
    joined_at_once(count, 1);
}

#[test]
fn the_same_seed_makes_the_same_history() {
    let history = |seed| {
        let mut sim = Sim::joining(20, seed);
        sim.loss = 0.05;
        sim.figures.mark(sim.now);
        sim.run_for(SECOND * 30);
        (sim.count, sim.figures.rate(sim.now))
    };
    assert_eq!(history(5), history(5));
    assert_ne!(history(5), history(6));
}

#[test]
fn one_that_is_slow_but_alive_is_not_thrown_out() {
    for seed in 0..4 {
        let mut sim = Sim::ready(10, seed);
        sim.nodes[4].slowness = Duration::from_millis(350);
        sim.run_for(SECOND * 60);
        assert_eq!(sim.figures.false_downs, 0, "answers after 700 ms, seed {seed}");
        sim.nodes[4].slowness = Duration::ZERO;
        for _ in 0..20 {
            sim.nodes[7].stalled_until = Some(sim.now + Duration::from_millis(1500));
            sim.run_for(SECOND * 3);
        }
        assert_eq!(sim.figures.false_downs, 0, "stands still for 1.5 s, seed {seed}");
        assert!(sim.is_complete());
    }
}

#[test]
fn one_that_has_slept_judges_nobody_by_its_sleep_and_comes_back() {
    let mut sim = Sim::ready(10, 3);
    sim.run_for(SECOND * 5);
    sim.nodes[2].stalled_until = Some(sim.now + SECOND * 20);
    sim.run_for(SECOND * 20);
    // The others have given it up.
    let given_up = sim.figures.false_downs;
    assert!(given_up >= 9, "{given_up}");
    sim.figures.false_downs = 0;
    assert!(sim.run_until(ends(&sim, SECOND * 10), Sim::is_complete), "it is back");
    assert_eq!(sim.figures.false_downs, 0, "and has given up nobody");
    assert!(sim.nodes[2].renewals >= 1);
}

#[test]
fn one_that_leaves_is_missed_at_once() {
    let mut sim = Sim::ready(50, 1);
    sim.run_for(SECOND * 3);
    let now = sim.now;
    sim.nodes[9].swim.leave(now);
    sim.after(9);
    sim.figures.watch(9, now);
    sim.run_for(Duration::from_millis(10));
    sim.nodes[9].fault = Fault::Refusing;
    sim.figures.false_downs = 0;
    sim.run_for(SECOND * 3);
    let all = sim.figures.noticed_by(1.0, 49);
    assert!(all.is_some_and(|time| time <= SECOND * 2), "{all:?}");
    assert_eq!(sim.figures.false_downs, 0);
}

#[test]
fn a_restart_is_a_new_generation_and_one_by_a_clock_that_ran_backwards_too() {
    for generation in [1_700_000_100_000, 1_600_000_000_000] {
        let mut sim = Sim::joining(10, 2);
        assert!(sim.run_until(ends(&sim, SECOND * 20), Sim::is_complete));
        sim.kill(6, Fault::Refusing);
        sim.run_for(Duration::from_millis(300));
        sim.restart(6, generation);
        let back = sim.run_until(ends(&sim, SECOND * 10), Sim::is_complete);
        let me = sim.nodes[6].swim.me().member().generation;
        assert!(back && me >= 1_700_000_000_000, "generation {generation}, now {me}");
    }
}

#[test]
fn a_mesh_that_was_cut_in_two_becomes_one() {
    for seed in 0..3 {
        let mut sim = Sim::ready(40, seed);
        for node in &mut sim.nodes[..15] {
            node.part = 1;
        }
        sim.run_for(SECOND * 90);
        assert_eq!(sim.nodes[0].swim.live().len(), 15);
        assert_eq!(sim.nodes[39].swim.live().len(), 25);
        for node in &mut sim.nodes {
            node.part = 0;
        }
        let healed = sim.now;
        let whole = sim.run_until(ends(&sim, SECOND * 90), Sim::is_complete);
        println!("40 members cut in two are one after {:.1} s", (sim.now - healed).as_secs_f64());
        assert!(whole, "seed {seed}");
        let most = sim.nodes.iter().map(|node| node.renewals).max();
        assert!(most <= Some(4), "{most:?} lives");
    }
}

#[test]
fn half_of_them_gone_at_once_are_missed_and_nobody_else() {
    let mut sim = Sim::ready(60, 4);
    sim.run_for(SECOND * 3);
    for number in 0..30 {
        sim.nodes[number].fault = Fault::Silent;
    }
    let missed = sim.run_until(ends(&sim, SECOND * 90), Sim::is_complete);
    println!(
        "30 of 60 members gone at once are missed by all after {:.1} s",
        sim.elapsed().as_secs_f64() - 3.0
    );
    assert!(missed);
    assert_eq!(sim.figures.false_downs, 0);
}

#[test]
fn whoever_has_missed_the_news_hears_it_when_views_are_compared() {
    let mut sim = Sim::ready(50, 6);
    // Member 0 has never heard of those from 40 on, nor they of it.
    let others: Vec<Life> = sim.nodes[1..40].iter().map(|node| node.swim.me().clone()).collect();
    let now = sim.now;
    sim.nodes[0] = Node::new(member(0, 1_700_000_000_000), 1, now);
    sim.nodes[0].swim.apply(others.into_iter().map(foca::Member::alive), false, now);
    sim.after(0);
    sim.figures.mark(now);
    let complete = sim.run_until(ends(&sim, SECOND * 30), Sim::is_complete);
    let travelled = sim.figures.exchanged;
    println!(
        "10 unknown of 50: complete after {:.1} s, {travelled} members travelled",
        sim.elapsed().as_secs_f64()
    );
    assert!(complete && travelled <= 20, "{travelled}");
}

#[test]
fn two_of_one_name_do_not_bury_each_other_for_ever() {
    let mut sim = Sim::new(10, 8);
    // The last one has the name of the first and started later.
    let namesake = Member { name: "node-0".into(), ..member(9, 1_900_000_000_000) };
    sim.nodes[9] = Node::new(namesake, 77, sim.now);
    for number in 0..10 {
        sim.put(Duration::ZERO, number, Message::Start);
    }
    sim.run_for(SECOND * 120);
    let renewals: Vec<u32> = sim.nodes.iter().map(|node| node.renewals).collect();
    println!("lives after two minutes with two of one name: {renewals:?}");
    assert!(renewals.iter().all(|&count| count <= 10), "{renewals:?}");
    assert!(sim.figures.conflicts >= 1);
}

/// A certificate put on a second node by mistake, and taken away again.
#[test]
fn who_was_mistaken_for_a_namesake_comes_back_when_that_is_gone() {
    let cases = [(10, true), (10, false), (35, true), (90, false), (150, true)];
    for (seed, (lasts, leaves)) in (9..).zip(cases) {
        let mut sim = Sim::ready(10, seed);
        sim.kill(9, Fault::Refusing);
        sim.run_for(SECOND * 10);
        let mistaken = Member { name: "node-0".into(), ..member(9, 1_900_000_000_000) };
        sim.nodes[9] = Node::new(mistaken, 77, sim.now);
        sim.put(Duration::ZERO, 9, Message::Start);
        sim.run_for(SECOND * lasts);
        assert!(sim.figures.conflicts >= 1);
        if leaves {
            let now = sim.now;
            sim.nodes[9].swim.leave(now);
            sim.after(9);
            sim.run_for(SECOND);
        }
        sim.kill(9, Fault::Refusing);
        sim.run_for(SECOND * 2);
        sim.restart(9, 1_900_000_010_000);
        let before = sim.now;
        let complete = sim.run_until(ends(&sim, SECOND * 600), Sim::is_complete);
        println!(
            "a namesake for {lasts} s is gone (left: {leaves}): all see all after {:.1} s",
            (sim.now - before).as_secs_f64()
        );
        assert!(complete && sim.now - before < SECOND * 30);
    }
}

/// Its former life is over then, and it is not.
#[test]
fn a_namesake_that_moves_does_not_give_the_name_away() {
    let mut sim = Sim::ready(10, 15);
    sim.kill(9, Fault::Refusing);
    sim.run_for(SECOND * 10);
    let later = Member { name: "node-0".into(), ..member(9, 1_900_000_000_000) };
    sim.nodes[9] = Node::new(later, 77, sim.now);
    sim.put(Duration::ZERO, 9, Message::Start);
    sim.run_for(SECOND * 10);
    for number in 0..3 {
        let (address, now) = (format!("moved-{number}:7442"), sim.now);
        sim.by_address.insert(address.clone(), 9);
        sim.nodes[9].swim.advertise(address, now);
        sim.after(9);
        sim.run_for(SECOND * 40);
    }
    let generations = [0, 9].map(|number| sim.nodes[number].swim.me().member().generation);
    assert_eq!(generations, [1_700_000_000_000, 1_900_000_000_000]);
}
