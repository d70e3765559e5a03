//! Stories of a crowd, with fixed seeds. F/B is the time of one copy over one link; the optimum is that and
//! log2(N) pieces (Mundinger, Weber, Weiss 2008).

use super::{
    message::Failure,
    sim::{Fault, Plan, Sim},
};

const SEEDS: [u64; 3] = [1, 2, 3];
const BLOB_MIB: u64 = 120;
const CROWD: usize = 8;
/// What a cold crowd of eight may take, over F/B. Faults may cost half as much again.
const COLD_MAX: f64 = 1.09;
const FAULT_MAX: f64 = COLD_MAX * 1.5;

fn run(plan: Plan) -> Sim {
    let mut sim = Sim::new(plan);
    sim.run().report();
    sim
}

fn with_fault(seed: u64, number: usize, fault: impl Fn(&Plan) -> Fault) -> Sim {
    let plan = Plan::cold(seed, CROWD, BLOB_MIB);
    let fault = fault(&plan);
    run(plan.fault(number, fault))
}

#[test]
fn a_cold_crowd_takes_about_as_long_as_one_copy() {
    for seed in SEEDS {
        let sim = run(Plan::cold(seed, CROWD, BLOB_MIB));
        assert_eq!(sim.finished(), CROWD);
        assert!(sim.origin_copies() < 1.005, "{}", sim.origin_copies());
        assert!(sim.makespan() < COLD_MAX, "{}", sim.makespan());
    }
}

#[test]
fn twice_the_crowd_takes_hardly_longer() {
    let sim = run(Plan::cold(1, 2 * CROWD, BLOB_MIB));
    assert!(sim.origin_copies() < 1.005, "{}", sim.origin_copies());
    assert!(sim.makespan() < 1.08 * sim.optimum() + 0.02, "{}", sim.makespan());
}

#[test]
fn a_layer_of_few_pieces_is_passed_on_from_the_first() {
    // 96 pieces, of which sixteen nodes need the first ones before they have anything to give.
    let makespans = SEEDS.map(|seed| run(Plan::cold(seed, 2 * CROWD, 24)).makespan());
    assert!(makespans.iter().sum::<f64>() < 1.29 * SEEDS.len() as f64, "{makespans:?}");
}

#[test]
fn a_leech_is_nobodys_source() {
    for seed in SEEDS {
        let sim = with_fault(seed, 0, |_| Fault::Leech);
        assert_eq!(sim.finished(), CROWD);
        // What it reads before others come is read again for them.
        assert!(sim.origin_copies() < 1.02, "{}", sim.origin_copies());
        assert!(sim.makespan() < 1.15 * COLD_MAX, "{}", sim.makespan());
    }
    let alone = run(Plan::cold(1, 1, BLOB_MIB).fault(0, Fault::Leech));
    assert!(alone.makespan() < 1.01 && alone.origin_copies() < 1.005, "{}", alone.origin_copies());
    // The other of its zone brings in everything.
    let mut plan = Plan::cold(1, 4, 40).two_zones(0.5);
    plan.nodes[1].fault = Fault::Leech;
    assert_eq!(run(plan).finished(), 4);
}

#[test]
fn a_zone_asks_others_for_what_its_own_holder_does_not_give() {
    // Nodes 1 and 3 are the zone; 1 has the blob, and freezes before anybody asks it.
    let mut plan = Plan::cold(1, 4, 40).two_zones(0.5).seeded(1).seeded(0);
    plan.nodes[1].fault = Fault::Stalls(0);
    let sim = run(plan.begins(3, 1.0));
    assert_eq!(sim.finished(), 4);
    assert!(sim.origin_copies() < 0.001, "{}", sim.origin_copies());
}

#[test]
fn one_node_alone_pulls_at_the_speed_of_its_link() {
    let sim = run(Plan::cold(1, 1, BLOB_MIB));
    assert!(sim.makespan() < 1.01 && sim.origin_copies() < 1.005);
}

#[test]
fn a_member_that_has_the_blob_spares_the_origin() {
    let sim = run(Plan::cold(1, 2, BLOB_MIB).seeded(0));
    assert!(sim.origin_copies() < 0.001 && sim.makespan() < 1.02, "{}", sim.makespan());
}

#[test]
fn a_peer_that_dies_costs_no_pull() {
    for seed in SEEDS {
        let sim = with_fault(seed, 5, |plan| Fault::Dies(plan.at(3.0)));
        assert_eq!(sim.finished(), CROWD - 1);
        assert!(sim.origin_copies() < 1.2, "{}", sim.origin_copies());
        assert!(sim.makespan() < FAULT_MAX, "{}", sim.makespan());
    }
}

#[test]
fn a_peer_that_stalls_costs_no_pull() {
    for seed in SEEDS {
        let sim = with_fault(seed, 5, |plan| Fault::Stalls(plan.at(3.0)));
        assert_eq!(sim.finished(), CROWD - 1);
        assert!(sim.origin_copies() < 1.2, "{}", sim.origin_copies());
        assert!(sim.makespan() < FAULT_MAX, "{}", sim.makespan());
    }
}

#[test]
fn a_slow_peer_slows_nobody_else() {
    let sim = with_fault(1, 5, |_| Fault::Slow(25));
    assert_eq!(sim.finished(), CROWD);
    assert!(sim.share_of_crowd(0.8) < 1.3, "{}", sim.share_of_crowd(0.8));
}

#[test]
fn a_tracker_that_dies_or_freezes_is_replaced_from_what_the_pullers_hold() {
    for seed in SEEDS {
        for fault in [|plan: &Plan| Fault::Dies(plan.at(3.0)), |plan: &Plan| Fault::Stalls(plan.at(3.0))] {
            let sim = with_fault(seed, 0, fault);
            assert_eq!(sim.finished(), CROWD - 1);
            assert!(sim.origin_copies() < 1.2, "{}", sim.origin_copies());
            assert!(sim.makespan() < FAULT_MAX, "{}", sim.makespan());
        }
    }
}

#[test]
fn wrong_bytes_of_a_relay_are_refused_and_everybody_completes() {
    for seed in SEEDS {
        let sim = with_fault(seed, 5, |_| Fault::CorruptRelay);
        assert_eq!(sim.finished(), CROWD, "the relay as well");
        assert!(sim.origin_copies() < 1.2, "{}", sim.origin_copies());
        assert!(sim.makespan() < FAULT_MAX, "{}", sim.makespan());
        assert_eq!(sim.convictions(5), 0, "nothing that it stated was wrong");
    }
}

#[test]
fn a_member_that_reads_wrong_bytes_from_the_origin_is_convicted_and_everybody_completes() {
    // Node 0 is the tracker as well.
    for (seed, liar) in SEEDS.into_iter().zip([5, 3, 7]).chain(SEEDS.map(|seed| (seed, 0))) {
        let sim = with_fault(seed, liar, |_| Fault::LyingReader);
        assert_eq!(sim.finished(), CROWD, "whom the origin lies to as well");
        assert!(sim.convictions(liar) >= 1 && sim.knows_that_it_was_misled(liar));
        assert!((0..CROWD).filter(|&number| number != liar).all(|number| sim.convictions(number) == 0));
        assert!(sim.origin_copies() < 2.05, "{}", sim.origin_copies());
        assert!(sim.makespan() < 2.2 * COLD_MAX, "{}", sim.makespan());
    }
}

#[test]
fn an_origin_that_refuses_is_asked_a_few_times_and_everybody_hears_of_it() {
    let mut plan = Plan::cold(1, CROWD, BLOB_MIB);
    plan.origin_failure = Some((0, Failure::Final, "origin_not_found"));
    let sim = run(plan);
    assert!((0..CROWD).all(|number| sim.failure(number) == Some("origin_not_found")));
}

#[test]
fn an_origin_that_dies_leaves_everybody_with_what_the_crowd_holds() {
    for (seed, delay) in SEEDS.into_iter().zip([0, 10, 50]) {
        let sim = run(Plan::cold(seed, CROWD, BLOB_MIB).delay(delay).origin_gone(3.0));
        assert!((0..CROWD).all(|number| sim.failure(number) == Some("origin_unreachable")));
        assert!(sim.everybody_holds_the_same(), "what one has reached all");
    }
}

#[test]
fn who_has_the_blob_is_heard_late_rather_than_not_at_all() {
    let plan = |seconds| Plan::cold(1, 4, 40).seeded(3).answers_after(3, seconds).origin_gone(0.0);
    // Long after leases are given without its answer.
    assert_eq!(run(plan(2.5)).finished(), 4);
    let sim = run(plan(3.5));
    assert!((0..3).all(|number| sim.failure(number) == Some("origin_unreachable")), "nobody waits for ever");
}

#[test]
fn who_alone_has_the_blob_is_waited_for_when_the_origin_is_gone() {
    for seed in SEEDS {
        let mut plan = Plan::cold(seed, 4, 20).seeded(3).origin_gone(0.0);
        // Long enough to be taken for silent by everybody.
        plan.nodes[3].fault = Fault::Wakes(plan.at(7.0));
        assert_eq!(run(plan).finished(), 4);
    }
    let sim = run(Plan::cold(1, 4, 20).seeded(3).fault(3, Fault::Stalls(0)).origin_gone(0.0));
    assert!((0..3).all(|number| sim.failure(number) == Some("origin_unreachable")), "nobody waits for ever");
}

#[test]
fn a_slow_origin_is_the_only_limit() {
    let sim = run(Plan::cold(1, CROWD, 40).origin_link(0.25));
    assert!(sim.makespan() < 1.1, "{}", sim.makespan());
    assert!(sim.origin_copies() < 1.005, "{}", sim.origin_copies());
}

#[test]
fn who_comes_late_lives_from_the_crowd() {
    let late = (1..CROWD).fold(Plan::cold(1, CROWD, BLOB_MIB), |plan, n| plan.begins(n, n as f64));
    let sim = run(late);
    assert_eq!(sim.finished(), CROWD);
    assert!(sim.origin_copies() < 1.01, "{}", sim.origin_copies());
    assert!(sim.makespan() < 1.15, "{}", sim.makespan());
}

#[test]
fn each_zone_is_fed_once_over_a_thin_link_and_none_starves() {
    for seed in SEEDS {
        for link in [0.25, 1.0] {
            let sim = run(Plan::cold(seed, CROWD, 40).two_zones(link));
            assert_eq!(sim.finished(), CROWD);
            assert!(sim.origin_copies() < 1.01, "{}", sim.origin_copies());
            // What the origin gave to one zone the other imports: all in all one copy, both ways together.
            assert!(sim.cross_copies() < 1.1, "{}", sim.cross_copies());
            // Half of the blob over the thin link, each way.
            assert!(sim.makespan() < COLD_MAX * (0.5 / link).max(1.0) + 0.2, "{}", sim.makespan());
        }
    }
}

#[test]
fn what_waits_behind_others_on_the_link_between_zones_is_not_asked_for_twice() {
    for seed in SEEDS {
        let sim = run(Plan::cold(seed, CROWD, 40).two_zones(0.25).unfair());
        assert_eq!(sim.finished(), CROWD);
        assert!(sim.cross_copies() < 1.1, "{}", sim.cross_copies());
    }
}

#[test]
fn a_member_whom_nobody_believes_is_served_alone_in_its_zone_too() {
    for seed in SEEDS {
        let mut plan = Plan::cold(seed, 4, 40).two_zones(1.0).fault(1, Fault::CorruptRelay);
        plan.nodes[3].zone = 0;
        let sim = run(plan);
        assert_eq!(sim.finished(), 4);
        assert!(sim.is_discredited(1));
        assert!(sim.origin_copies() < 1.2, "{}", sim.origin_copies());
    }
}

#[test]
fn an_importer_that_stalls_or_dies_starves_no_zone() {
    for fault in [|plan: &Plan| Fault::Dies(plan.at(1.0)), |plan: &Plan| Fault::Stalls(plan.at(1.0))] {
        for number in [3, 5] {
            let plan = Plan::cold(1, CROWD, 40).two_zones(0.5);
            let fault = fault(&plan);
            let sim = run(plan.fault(number, fault));
            assert_eq!(sim.finished(), CROWD - 1);
            assert!(sim.cross_copies() < 1.3, "{}", sim.cross_copies());
        }
    }
}

#[test]
fn a_hundred_nodes_take_hardly_longer_than_eight() {
    let sim = run(Plan::cold(1, 100, BLOB_MIB));
    assert_eq!(sim.finished(), 100);
    assert!(sim.origin_copies() < 1.02, "{}", sim.origin_copies());
    assert!(sim.makespan() < 1.3, "{}", sim.makespan());
}

#[test]
fn a_thousand_nodes_complete_from_one_copy() {
    let sim = run(Plan::cold(1, 1000, 20));
    assert_eq!(sim.finished(), 1000);
    assert!(sim.origin_copies() < 1.05, "{}", sim.origin_copies());
}

/// `FLOTILLA_SIM_NODES=10000 cargo test --release simulated_on_demand -- --ignored --nocapture`
#[test]
#[ignore = "on demand: minutes"]
fn simulated_on_demand() {
    let nodes = std::env::var("FLOTILLA_SIM_NODES").map_or(10_000, |nodes| nodes.parse().unwrap());
    let sim = run(Plan::cold(1, nodes, 10));
    assert_eq!(sim.finished(), nodes);
    assert!(sim.origin_copies() < 1.05, "{}", sim.origin_copies());
}

#[test]
fn full_queues_on_every_link_cost_little() {
    for (delay, most) in [(20, 1.1), (50, 1.17)] {
        for seed in SEEDS {
            let sim = run(Plan::cold(seed, CROWD, BLOB_MIB).delay(delay));
            assert_eq!(sim.finished(), CROWD);
            assert!(sim.makespan() < most, "{}", sim.makespan());
        }
    }
}
