//! What stands for a while, gathered when it is asked for: `flotilla_members{state}`, `flotilla_mesh_open`,
//! `flotilla_certificate_expiry_seconds`, `flotilla_containerd_answers`, `flotilla_pulls_in_progress`,
//! `flotilla_store_bytes{kind}`.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::{report::Reporter, upkeep::Containerd};
use crate::{
    mesh::{LEFT, MemberState},
    pull::{PullState, PullStatus},
};

impl Collector for Reporter {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let members = self.members_by_state();
        family(
            encoder,
            ("flotilla_members", "Members by how this node sees them, itself among them"),
            "state",
            &members,
        )?;
        let door = self.mesh_door.lock().clone();
        single(
            encoder,
            ("flotilla_mesh_open", "Whether this node takes part in the mesh"),
            u64::from(door.open),
        )?;
        if let Some(until) = door.until {
            let since = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
            let about = "When this node's certificate expires, in seconds since 1970";
            single(encoder, ("flotilla_certificate_expiry_seconds", about), since.as_secs())?;
        }
        let answers = matches!(*self.containerd.lock(), Containerd::Answers(_));
        let about = "Whether containerd answered when it was last asked";
        single(encoder, ("flotilla_containerd_answers", about), u64::from(answers))?;
        let pulls = self.pulls.list();
        let runs = |pull: &&PullStatus| matches!(pull.state, PullState::Waiting | PullState::Arriving);
        let pulls = pulls.iter().filter(runs).count() as u64;
        single(encoder, ("flotilla_pulls_in_progress", "Blobs that are being pulled"), pulls)?;
        let usage = self.store.usage();
        let bytes = [("held", usage.bytes), ("charged", usage.charged), ("quota", usage.quota)];
        let about = "Bytes of all blobs, those that count against the quota, and the quota";
        family(encoder, ("flotilla_store_bytes", about), "kind", &bytes)
    }
}

impl Reporter {
    fn members_by_state(&self) -> [(&'static str, u64); 4] {
        let mut counts = [("joining", 0), ("alive", 0), ("unreachable", 0), ("left", 0)];
        for (_, state) in self.mesh.all() {
            let at = match state {
                MemberState::Joining => 0,
                MemberState::Alive => 1,
                MemberState::Unreachable { reason } if reason != LEFT => 2,
                // Who said good-bye is no alarm.
                MemberState::Unreachable { .. } => 3,
            };
            counts[at].1 += 1;
        }
        counts
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").finish_non_exhaustive()
    }
}

fn single(encoder: &mut DescriptorEncoder<'_>, (name, about): (&str, &str), value: u64) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, about, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

/// One gauge with a value for each word of one label.
fn family(
    encoder: &mut DescriptorEncoder<'_>,
    (name, about): (&str, &str),
    label: &'static str,
    values: &[(&'static str, u64)],
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, about, None, MetricType::Gauge)?;
    for (word, value) in values {
        ConstGauge::new(*value).encode(metric.encode_family(&[(label, *word)])?)?;
    }
    Ok(())
}
