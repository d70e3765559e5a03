//! What pulls count.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::swarm::TurnMetrics;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Source {
    pub(super) source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Refused {
    pub(super) reason: &'static str,
    /// The certificate's name: as many as the cluster has nodes.
    pub(super) peer: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Outcome {
    pub(super) outcome: &'static str,
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Read {
    pub(super) outcome: &'static str,
}

/// Counters of all pulls of this node.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) bytes: Family<Source, Counter>,
    pub(super) verified: Counter,
    pub(super) refused: Family<Refused, Counter>,
    pub(super) pulls: Family<Outcome, Counter>,
    pub(super) offers_read: Family<Read, Counter>,
    pub(super) turns: TurnMetrics,
}

impl Metrics {
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self { turns: TurnMetrics::register(registry), ..Self::default() };
        registry.register("flotilla_bytes", "Bytes of blobs by where they came from", metrics.bytes.clone());
        registry.register(
            "flotilla_pieces_verified",
            "Pieces that passed their check",
            metrics.verified.clone(),
        );
        registry.register(
            "flotilla_pieces_refused",
            "Pieces that failed their check, by who sent or vouched for them",
            metrics.refused.clone(),
        );
        registry.register(
            "flotilla_offers_read",
            "Blobs of containerd that were read to be proven, once each",
            metrics.offers_read.clone(),
        );
        registry.register("flotilla_pulls", "Pulls that ended", metrics.pulls.clone());
        metrics
    }
}
