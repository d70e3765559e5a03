//! One round: a crowd is started, released, struck where its scenario says so, waited for and counted.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    fault::{Fault, ORIGIN_BACK_AT, Part},
    node::Member,
    nodes::{Crowd, Plan, Way},
    scenario::{Links, Release, TRICKLE},
    verdict,
};
use crate::{
    bench::machine::{self, Processors},
    gate::{Ended, Released, Waiting},
    lab::{Result, flotilla::Metrics},
};

/// What a round gave.
pub struct Round {
    /// From the first release to the end of the last.
    pub makespan_s: f64,
    /// The middle node's own time.
    pub p50_s: f64,
    /// Between the first and the last release of nodes that go together.
    pub spread_ms: f64,
    /// Bodies that the registry sent for the image, from its log; of one that was killed, what went over its interface.
    pub origin_bodies: f64,
    /// All that went over its interface.
    pub origin_frames: f64,
    /// Processor time of all daemons, over the gigabytes that they delivered.
    pub cpu_s_per_gb: f64,
    /// The same of those that unpack nothing, since they have no containerd.
    pub cpu_s_per_gb_relayed: f64,
    /// The daemon with the most.
    pub rss_mib: f64,
    pub processor_busy: f64,
    /// Of the whole machine in the minute before.
    pub load_before: f64,
    /// Pieces that were not what they should be.
    pub refused_pieces: f64,
    /// What only some scenarios count, over the image.
    pub shares: Vec<(&'static str, f64)>,
    pub failures: Vec<String>,
}

/// Starts a crowd, lets it go, and counts.
pub fn run(plan: &Plan) -> Result<Round> {
    let mut crowd = Crowd::start(plan)?;
    if plan.way == Way::Flotilla {
        crowd.spoil(plan.image)?;
        if plan.scenario.seeded {
            crowd.seed()?;
        }
    }
    let before = Counted::now(plan, &mut crowd)?;
    let pulling = crowd.members.iter().take(plan.scenario.pulling(plan.nodes).into());
    let clients = pulling.map(|member| Waiting::start(&member.name, member.client(&crowd.image)));
    let waiting = clients.collect::<Result<Vec<Waiting>>>()?;
    if plan.scenario.fault == Fault::OthersDead && plan.way == Way::Flotilla {
        crowd.strike(Fault::OthersDead)?;
    }
    let (load_before, busy_before) = (machine::load(), Processors::now());

    let pulled = Pulling::default().pull(plan, &mut crowd, waiting)?;

    let processor_busy = Processors::now().busy_since(busy_before);
    let after = Counted::now(plan, &mut crowd)?;
    let whole_log = plan.scenario.fault != Fault::OriginKilled;
    let origin_frames = after.frames - before.frames;
    let per_gb = |counts: &dyn Fn(&Member) -> bool| per_gb(plan, &crowd, [&before, &after], counts);
    let (cpu_s_per_gb, cpu_s_per_gb_relayed) =
        (per_gb(&|_| true), per_gb(&|member| !member.has_containerd()));
    let metrics: Vec<Metrics> = crowd.members.iter().filter_map(Member::metrics).collect();
    let mut failures = verdict::pulls(plan, &crowd.members, &pulled.each);
    if plan.way == Way::Flotilla {
        failures.extend(verdict::convictions(&crowd.members, &metrics));
    }
    failures.extend(verdict::spread(pulled.spread));
    let mut shares = pulled.shares.clone();
    if plan.scenario.seeded {
        shares.push(("cpu_s_per_gb_both_ends", cpu_s_per_gb * f64::from(plan.nodes)));
    }
    if plan.scenario.links == Links::TwoZones {
        shares.push((
            "cross_zone_bytes_over_image",
            (after.crossed - before.crossed) / whole(plan.image.bytes),
        ));
    }
    Ok(Round {
        makespan_s: pulled.makespan.as_secs_f64(),
        p50_s: pulled.p50_s(),
        spread_ms: pulled.spread.as_secs_f64() * 1e3,
        origin_bodies: if whole_log { after.bodies - before.bodies } else { origin_frames },
        origin_frames,
        cpu_s_per_gb,
        cpu_s_per_gb_relayed,
        processor_busy,
        load_before,
        refused_pieces: verdict::refused(&metrics, &[]),
        shares,
        failures,
        rss_mib: crowd.rss_mib(),
    })
}

/// Counters that never go back.
struct Counted {
    bodies: f64,
    frames: f64,
    crossed: f64,
    cpu_s: Vec<Option<f64>>,
}

impl Counted {
    fn now(plan: &Plan, crowd: &mut Crowd) -> Result<Counted> {
        crowd.registry.settle()?;
        let zones = plan.scenario.links == Links::TwoZones;
        Ok(Counted {
            bodies: whole(crowd.registry.body_bytes(plan.image.shape.repository())),
            frames: whole(crowd.registry_network.traffic()?.sent),
            crossed: if zones { whole(crowd.sent_to_second_zone()?) } else { 0.0 },
            cpu_s: crowd.cpu_s(),
        })
    }
}

/// How the pulls go.
#[derive(Default)]
struct Pulling {
    makespan: Duration,
    spread: Duration,
    each: Vec<Ended>,
    shares: Vec<(&'static str, f64)>,
}

impl Pulling {
    fn pull(mut self, plan: &Plan, crowd: &mut Crowd, waiting: Vec<Waiting>) -> Result<Pulling> {
        let start = Instant::now();
        let going = self.release(plan, start, waiting)?;
        self.go_wrong(plan, crowd, start)?;
        // A node that may not go on is waited for when the others have ended.
        let parts: Vec<Part> = crowd.members.iter().map(|member| member.part).collect();
        let mut late = Vec::new();
        let first_late = self.each.len();
        for (one, part) in going.into_iter().zip(parts.into_iter().skip(first_late)) {
            if part.is_waited_for() {
                self.each.push(one.end());
            } else {
                late.push((self.each.len(), one));
                self.each.push(Ok(Duration::ZERO));
            }
        }
        self.makespan = start.elapsed();
        crowd.go_on()?;
        for (at, one) in late {
            let ended = one.end();
            if let Some(slot) = self.each.get_mut(at) {
                *slot = ended;
            }
        }
        Ok(self)
    }

    /// Lets all go; those that are still going.
    fn release(&mut self, plan: &Plan, start: Instant, waiting: Vec<Waiting>) -> Result<Vec<Released>> {
        let mut waiting = waiting.into_iter();
        let mut going: Vec<Released> = Vec::new();
        for (number, wave) in plan.scenario.waves(plan.nodes).iter().enumerate() {
            match plan.scenario.release {
                Release::Together => {}
                Release::Rolling => self.each.extend(going.drain(..).map(Released::end)),
                Release::Trickle => until(start + TRICKLE * u32::try_from(number).unwrap_or(u32::MAX)),
            }
            let first = Instant::now();
            for one in waiting.by_ref().take(wave.len()) {
                going.push(one.release()?);
            }
            self.spread = self.spread.max(first.elapsed());
        }
        Ok(going)
    }

    fn go_wrong(&mut self, plan: &Plan, crowd: &mut Crowd, start: Instant) -> Result<()> {
        let bound = plan.scenario.bound_s(plan.image, plan.nodes).unwrap_or_default();
        let at = |share: f64| start + Duration::from_secs_f64(bound * share);
        let fault = plan.scenario.fault;
        let Some(share) = fault.strikes_at().filter(|_| plan.way == Way::Flotilla) else { return Ok(()) };
        until(at(share));
        crowd.strike(fault)?;
        if fault == Fault::OriginKilled {
            until(at(ORIGIN_BACK_AT));
            self.shares.extend(held(plan, crowd));
            crowd.restart_registry()?;
        }
        Ok(())
    }

    /// Of those that are waited for.
    fn p50_s(&self) -> f64 {
        let mut times: Vec<f64> = self.each.iter().flatten().map(Duration::as_secs_f64).collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
    }
}

/// What the nodes have of the image while the registry is away: the one with the least, and the one with the most.
fn held(plan: &Plan, crowd: &Crowd) -> [(&'static str, f64); 2] {
    let bytes = |metrics: Metrics| metrics.sum("flotilla_bytes_total", &[]) / whole(plan.image.bytes);
    let held: Vec<f64> = crowd.members.iter().filter_map(Member::metrics).map(bytes).collect();
    let least = held.iter().copied().fold(f64::INFINITY, f64::min);
    let most = held.iter().copied().fold(0.0, f64::max);
    [("held_least_over_image", least), ("held_most_over_image", most)]
}

/// Waits for the time at which the scenario has something happen.
fn until(time: Instant) {
    loop {
        let left = time.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::park_timeout(left);
    }
}

/// Of members whose daemon lived through it; NaN where there are none.
fn per_gb(plan: &Plan, crowd: &Crowd, counted: [&Counted; 2], counts: &dyn Fn(&Member) -> bool) -> f64 {
    let [before, after] = counted.map(|counted| &counted.cpu_s);
    let mut spent = Vec::new();
    for (member, (before, after)) in crowd.members.iter().zip(before.iter().zip(after)) {
        if let (Some(before), Some(after), true) = (before, after, counts(member)) {
            spent.push(after - before);
        }
    }
    let delivered = whole(plan.image.bytes) * whole(spent.len() as u64);
    spent.iter().sum::<f64>() / (delivered / 1e9)
}

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "bytes of a crowd are far below 2^52")]
pub fn whole(count: u64) -> f64 {
    count as f64
}
