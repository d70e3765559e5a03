//! Stories of a crowd, with fixed seeds. The optimum is one copy over one link plus log2(N) pieces
//! (Mundinger, Weber, Weiss 2008): 1.025 x F/B for 8 nodes and 120 pieces.

use super::{
    message::Failure,
    sim::{Fault, Sim},
};

const PIECES: u32 = 120;
const SEEDS: [u64; 3] = [1, 2, 3];

fn crowd_with(fault: Fault, number: usize) -> Vec<Fault> {
    let mut faults = vec![Fault::None; 8];
    faults[number] = fault;
    faults
}

fn run(seed: u64, faults: &[Fault]) -> Sim {
    let mut sim = Sim::new(seed, PIECES, faults);
    sim.run();
    println!("makespan {:.3} x F/B, origin {:.3} x F", sim.makespan(), sim.origin_copies());
    sim
}

fn all_but(number: usize) -> impl Iterator<Item = usize> {
    (0..8).filter(move |&other| other != number)
}

#[test]
fn a_cold_crowd_takes_about_as_long_as_one_copy() {
    for seed in SEEDS {
        let sim = run(seed, &[Fault::None; 8]);
        assert!((0..8).all(|number| sim.finished(number)));
        assert!(sim.origin_copies() < 1.005, "{}", sim.origin_copies());
        assert!(sim.makespan() < 1.20, "{}", sim.makespan());
    }
}

#[test]
fn one_node_alone_pulls_at_the_speed_of_its_link() {
    let sim = run(1, &[Fault::None]);
    assert!(sim.makespan() < 1.01 && sim.origin_copies() < 1.005);
}

#[test]
fn a_peer_that_dies_costs_no_pull() {
    for seed in SEEDS {
        let sim = run(seed, &crowd_with(Fault::Dies(1500), 5));
        assert!(all_but(5).all(|number| sim.finished(number)));
        assert!(sim.origin_copies() < 1.2, "{}", sim.origin_copies());
        assert!(sim.makespan() < 1.5, "{}", sim.makespan());
    }
}

#[test]
fn a_peer_that_stalls_costs_no_pull() {
    for seed in SEEDS {
        let mut sim = Sim::new(seed, PIECES, &crowd_with(Fault::Stalls(1500), 5));
        sim.run_but(5);
        assert!(all_but(5).all(|number| sim.finished(number)));
        assert!(sim.origin_copies() < 1.2, "{}", sim.origin_copies());
        assert!(sim.makespan() < 1.8, "{}", sim.makespan());
    }
}

#[test]
fn a_tracker_that_dies_is_replaced_from_what_the_pullers_hold() {
    for seed in SEEDS {
        let sim = run(seed, &crowd_with(Fault::Dies(1500), 0));
        assert!(all_but(0).all(|number| sim.finished(number)));
        assert!(sim.origin_copies() < 1.2, "{}", sim.origin_copies());
        assert!(sim.makespan() < 1.5, "{}", sim.makespan());
    }
}

#[test]
fn wrong_bytes_of_a_relay_are_refused_and_everybody_completes() {
    for seed in SEEDS {
        let mut sim = Sim::new(seed, PIECES, &crowd_with(Fault::CorruptRelay, 5));
        sim.run_but(5);
        assert!(all_but(5).all(|number| sim.finished(number)));
        assert!(sim.origin_copies() < 1.3, "{}", sim.origin_copies());
        assert_eq!(sim.convictions("node-5"), 0, "nothing that it stated was wrong");
    }
}

#[test]
fn a_member_that_reads_wrong_bytes_from_the_origin_is_convicted_and_everybody_else_completes() {
    for seed in SEEDS {
        let mut sim = Sim::new(seed, PIECES, &crowd_with(Fault::LyingReader, 5));
        sim.run_but(5);
        println!("makespan {:.3} x F/B, origin {:.3} x F", sim.makespan(), sim.origin_copies());
        assert!(all_but(5).all(|number| sim.finished(number)));
        assert!(sim.convictions("node-5") >= 1);
        assert!((0..8).filter(|&n| n != 5).all(|n| sim.convictions(&format!("node-{n}")) == 0));
        assert!(sim.origin_copies() < 2.05, "{}", sim.origin_copies());
    }
}

#[test]
fn an_origin_that_refuses_is_asked_a_few_times_and_everybody_hears_of_it() {
    let mut sim = Sim::new(1, PIECES, &[Fault::None; 8]);
    sim.origin_failure = Some((Failure::Final, "origin_not_found"));
    sim.run();
    assert!((0..8).all(|number| sim.failure(number) == Some("origin_not_found")));
}

#[test]
fn a_slow_origin_is_the_only_limit() {
    let mut sim = Sim::new(1, 40, &[Fault::None; 8]);
    sim.origin_link /= 4.0;
    sim.run();
    assert!(sim.makespan() < 1.15, "{}", sim.makespan());
    assert!(sim.origin_copies() < 1.005, "{}", sim.origin_copies());
}
