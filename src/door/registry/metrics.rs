//! What clients asked of the mirror, for operators.

use http::StatusCode;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    what: &'static str,
    status: u16,
}

/// `flotilla_mirror_requests_total{what,status}`.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<Labels, Counter>,
}

impl Metrics {
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let requests = Family::default();
        registry.register("flotilla_mirror_requests", "Requests of the mirror's clients", requests.clone());
        Self { requests }
    }

    pub(super) fn count(&self, what: &'static str, status: StatusCode) {
        self.requests.get_or_create(&Labels { what, status: status.as_u16() }).inc();
    }
}
