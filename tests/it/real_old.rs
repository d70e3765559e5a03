//! A containerd older than Flotilla works with: one clear line, and its pulls are left to it.

use std::{fs, time::Duration};

use flotilla::{
    oci::{Algorithm, Digest},
    wire::containerd::services::{
        snapshots::v1::{PrepareSnapshotRequest, snapshots_client::SnapshotsClient},
        version::v1::{
            VersionResponse,
            version_server::{Version, VersionServer},
        },
    },
};
use tokio::{net::UnixListener, runtime::Runtime};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Endpoint, Server},
};

use crate::{
    lab::{flotilla::Flotilla, node::NodePlan, story::flotilla_program},
    real_image::eventually,
};

/// All that it knows is its version.
struct Old;

#[tonic::async_trait]
impl Version for Old {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        let version = "v1.5.18".to_owned();
        Ok(Response::new(VersionResponse { version, revision: String::new() }))
    }
}

#[test]
fn a_containerd_that_is_too_old_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    fs::create_dir(dir.path().join("containerd")).unwrap();
    let socket = dir.path().join("containerd/c.sock");
    let listener = runtime.block_on(async { UnixListener::bind(&socket).unwrap() });
    let old = Server::builder().add_service(VersionServer::new(Old));
    runtime.spawn(old.serve_with_incoming(UnixListenerStream::new(listener)));

    let settings = NodePlan::settings("old", dir.path(), "127.0.0.1", &dir.path().join("certs.d"));
    let mut daemon =
        Flotilla::start(flotilla_program(), dir.path().join("flotilla"), &settings, None).unwrap();
    let process = daemon.process().unwrap();
    let line = process.wait_for("v1.5.18").unwrap();
    assert!(line.contains("Flotilla works with 1.6 and newer: please update containerd"), "{line}");
    assert!(line.contains("pulls are left to it"), "{line}");

    let target = Digest::of(Algorithm::Sha256, b"a layer").to_string();
    let plugin = dir.path().join("flotilla/run/snapshots.sock");
    let mounts = runtime.block_on(async {
        let endpoint = Endpoint::try_from(format!("unix://{}", plugin.display())).unwrap();
        let mut client = SnapshotsClient::new(endpoint.connect().await.unwrap());
        let key = format!("k8s.io/1/extract-1-x {target}");
        let request = PrepareSnapshotRequest { snapshotter: "flotilla".into(), key, ..Default::default() };
        let prepared = tokio::time::timeout(Duration::from_secs(60), client.prepare(request)).await;
        prepared.unwrap().unwrap().into_inner().mounts
    });
    assert_eq!(mounts.len(), 1, "containerd gets a snapshot to fill");
    let labels = ["outcome=\"declined\"", "reason=\"containerd_version\""];
    eventually("it to be counted", || daemon.metrics().unwrap().sum("flotilla_layers_total", &labels) > 0.0);
    let lines = daemon.process().unwrap().lines();
    let of_it = lines.iter().filter(|line| line.contains("v1.5.18") && line.contains("WARN"));
    assert_eq!(of_it.count(), 1, "{lines:?}");
    daemon.stop().unwrap();
}
