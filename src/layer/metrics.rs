//! What became of each layer, for operators.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
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

/// `flotilla_layers_total{outcome,reason}` and `flotilla_prepare_seconds`.
#[derive(Clone, Debug)]
pub struct Metrics {
    layers: Family<LayerLabels, Counter>,
    prepare_seconds: Histogram,
}

/// From a layer that is there already (milliseconds) to the longest budget that anybody is likely to set.
const PREPARE_BUCKETS: [f64; 10] = [0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0];

impl Metrics {
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let layers = Family::default();
        let prepare_seconds = Histogram::new(PREPARE_BUCKETS);
        registry.register("flotilla_layers", "Layers that containerd asked for", layers.clone());
        registry.register(
            "flotilla_prepare_seconds",
            "How long containerd waited for an answer to Prepare",
            prepare_seconds.clone(),
        );
        Self { layers, prepare_seconds }
    }

    pub(super) fn count(&self, outcome: Outcome, reason: &'static str) {
        self.layers.get_or_create(&LayerLabels { outcome: outcome.name(), reason }).inc();
    }

    pub(super) fn observe_prepare(&self, took: Duration) {
        self.prepare_seconds.observe(took.as_secs_f64());
    }
}
