//! What failed in a round.

use std::time::Duration;

use super::{fault::Part, node::Member, nodes::Plan};
use crate::{gate::Ended, lab::flotilla::Metrics};

/// Nodes that go together start within this.
const SPREAD_MAX: Duration = Duration::from_millis(100);

/// Pulls that failed, and wrong bytes on any node: every copy is read.
pub fn pulls(plan: &Plan, members: &[Member], each: &[Ended]) -> Vec<String> {
    let mut failures = Vec::new();
    for (member, ended) in members.iter().zip(each) {
        match ended {
            Err(_) if member.part == Part::Killed => {}
            Err(why) => failures.push(format!("{}: the pull failed: {why}", member.name)),
            Ok(_) => failures.extend(plan.image.layers.iter().flat_map(|layer| member.wrong(&layer.digest))),
        }
    }
    failures
}

/// Members that did wrong and were not found out, and those that did none and were banned.
pub fn convictions(members: &[Member], metrics: &[Metrics]) -> Vec<String> {
    let judge = |member: &Member| {
        let peer = format!("peer=\"{}\"", member.name);
        let convicted = refused(metrics, &[&peer, "reason=\"convicted\""]) > 0.0;
        let mismatched = refused(metrics, &[&peer, "reason=\"mismatch\""]) > 0.0;
        let what = match member.part {
            Part::LyingRelay => (!mismatched).then_some("nobody refused a piece of this liar"),
            Part::MisledReader => (!convicted).then_some("was misled by its registry and is not convicted"),
            Part::Sound | Part::Rotten | Part::Stopped | Part::Killed => {
                convicted.then_some("is convicted and did no wrong")
            }
        };
        what.map(|what| format!("{}: {what}", member.name))
    };
    members.iter().filter_map(judge).collect()
}

/// Pieces that were refused, by all daemons together.
pub fn refused(metrics: &[Metrics], labels: &[&str]) -> f64 {
    metrics.iter().map(|metrics| metrics.sum("flotilla_pieces_refused_total", labels)).sum()
}

/// Whether nodes that go together did.
pub fn spread(spread: Duration) -> Option<String> {
    let (took, limit) = (spread.as_millis(), SPREAD_MAX.as_millis());
    (spread > SPREAD_MAX).then(|| format!("released within {took} ms, not within {limit}"))
}
