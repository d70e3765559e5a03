//! What became of each layer, for operators.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// What became of a layer that containerd asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Flotilla made it: containerd neither fetched nor unpacked.
    Intercepted,
    /// Flotilla pulls it, containerd waits for the blob and unpacks it.
    HandedOver,
    /// containerd pulls it by itself.
    Declined,
    /// containerd had fetched it before it asked.
    Bypassed,
    /// What containerd fetched is offered to the mesh.
    Adopted,
}

impl Outcome {
    /// The word in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Intercepted => "intercepted",
            Self::HandedOver => "handed_over",
            Self::Declined => "declined",
            Self::Bypassed => "bypassed",
            Self::Adopted => "adopted",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LayerLabels {
    outcome: &'static str,
    reason: &'static str,
}

/// `flotilla_layers_total{outcome,reason}`, `flotilla_prepare_seconds`, `flotilla_offered_blobs` and `…_bytes`.
#[derive(Clone, Debug)]
pub struct Metrics {
    layers: Family<LayerLabels, Counter>,
    prepare_seconds: Histogram,
    offered_blobs: Gauge,
    offered_bytes: Gauge,
}

/// From a layer that is there already (milliseconds) to the longest budget that anybody is likely to set.
const PREPARE_BUCKETS: [f64; 10] = [0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0];

impl Metrics {
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let layers = Family::default();
        let prepare_seconds = Histogram::new(PREPARE_BUCKETS);
        let (offered_blobs, offered_bytes) = (Gauge::default(), Gauge::default());
        registry.register(
            "flotilla_offered_blobs",
            "Blobs of containerd that are offered to the mesh, read or not",
            offered_blobs.clone(),
        );
        registry.register("flotilla_offered_bytes", "Bytes of these blobs", offered_bytes.clone());
        registry.register("flotilla_layers", "Layers that containerd asked for", layers.clone());
        registry.register(
            "flotilla_prepare_seconds",
            "How long containerd waited for an answer to Prepare",
            prepare_seconds.clone(),
        );
        Self { layers, prepare_seconds, offered_blobs, offered_bytes }
    }

    pub(super) fn count(&self, outcome: Outcome, reason: &'static str) {
        self.layers.get_or_create(&LayerLabels { outcome: outcome.name(), reason }).inc();
    }

    pub(super) fn set_offered(&self, blobs: u64, bytes: u64) {
        let whole = |number| i64::try_from(number).unwrap_or(i64::MAX);
        self.offered_blobs.set(whole(blobs));
        self.offered_bytes.set(whole(bytes));
    }

    pub(super) fn observe_prepare(&self, took: Duration) {
        self.prepare_seconds.observe(took.as_secs_f64());
    }
}
