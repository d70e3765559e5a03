//! Who fetched the layers of an image, by the registry's log and by Flotilla's metrics.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::lab::{Lab, flotilla::Flotilla, image::Published, process::PATIENCE, registry::Request};

/// How often we look for a line of the registry's log, which comes after the bytes that it tells of.
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// Every layer of the image left the registry, whole and once, and none of its bytes went to anybody but Flotilla.
pub(crate) fn came_by_flotilla(lab: &Lab, image: &Published) {
    let deadline = Instant::now() + PATIENCE;
    for layer in &image.layers {
        let sent = || -> u64 { reads(lab, &layer.blob.digest).iter().map(|read| read.body_bytes).sum() };
        while sent() < layer.blob.size && Instant::now() < deadline {
            thread::park_timeout(LOOK_AFTER);
        }
        assert_eq!(sent(), layer.blob.size, "bytes of {} that left the registry", layer.blob.digest);
        nobody_else_fetched(lab, &layer.blob.digest);
    }
}

/// No byte of a layer went to anybody but Flotilla.
pub(crate) fn nobody_else_fetched(lab: &Lab, digest: &str) {
    let reads = reads(lab, digest);
    assert!(reads.iter().all(|read| read.user_agent.starts_with("flotilla/")), "{digest}: {reads:?}");
}

/// Requests for a blob's bytes.
fn reads(lab: &Lab, digest: &str) -> Vec<Request> {
    let mut requests = lab.registry().requests();
    requests.retain(|request| request.method == "GET" && request.uri.contains(digest));
    requests
}

/// How many of the layers that containerd asked for ended so, for any reason.
pub(crate) fn counted(daemon: &Flotilla, outcome: &str) -> f64 {
    daemon.metrics().unwrap().sum("flotilla_layers_total", &[&format!("outcome=\"{outcome}\"")])
}

/// Nothing was left to containerd: no layer declined, none that it had begun to fetch.
pub(crate) fn containerd_was_left_nothing(daemon: &Flotilla) {
    let left = (counted(daemon, "declined"), counted(daemon, "bypassed"));
    assert_eq!(left, (0.0, 0.0), "{}", daemon.metrics().unwrap().page());
}
