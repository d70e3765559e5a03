//! A member whose messages are beyond their limits: refused in words on both sides, and nothing else suffers.

use std::time::SystemTime;

use flotilla::{
    identity::{self, Identity},
    wire::mesh::{Join, PullerMessage, Report, VERSION, report, swarm_client::SwarmClient},
};
use futures_util::stream;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, runtime::Runtime};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    lab::{
        Lab, certs,
        containerd::Programs,
        samples,
        story::{flotilla_program, tell},
    },
    real_image::Pulled,
};

#[test]
fn messages_over_their_limits_are_refused_in_words() {
    tell("1.6", refuses_messages);
}

/// The swarm of the member n1, as another member calls it.
async fn dial(address: String, identity: Identity) -> SwarmClient<Channel> {
    let connect = tower::service_fn(move |_| {
        let (address, identity) = (address.clone(), identity.clone());
        async move {
            let tcp = TcpStream::connect(address).await?;
            let name = ServerName::try_from("n1").unwrap();
            let connected = identity::connect(&identity, tcp, name, &[b"h2"]).await;
            connected.map(|connected| TokioIo::new(connected.stream)).map_err(std::io::Error::other)
        }
    });
    SwarmClient::new(Endpoint::from_static("http://n1").connect_with_connector(connect).await.unwrap())
}

fn refuses_messages(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let mut node = lab.crowd(&containerd, 1).unwrap().remove(0);
    let address = node.flotilla().address_of("mesh").unwrap();
    let tls = certs::node(flotilla_program(), &lab.dir().join("tls"), "n8", "127.0.0.1").unwrap();
    let settings = identity::Settings {
        ca: tls.join("ca.pem"),
        cert: tls.join("node.pem"),
        key: tls.join("node-key.pem"),
    };
    let identity = identity::load(&settings, SystemTime::now()).unwrap();
    let runtime = Runtime::new().unwrap();
    let mut swarm = runtime.block_on(dial(address, identity));
    let mut refused = |message: PullerMessage| -> Status {
        runtime.block_on(swarm.join(stream::iter([message]))).unwrap_err()
    };

    let join = Join { version: VERSION, blob_len: u64::MAX, ..Join::default() };
    let status = refused(PullerMessage { join: Some(join), reports: Vec::new() });
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("blob_len"), "{status}");
    let process = node.flotilla().process().unwrap();
    let line = process.wait_for("refused a message of a member: ").unwrap();
    assert!(line.contains("peer=n8") && line.contains("blob_len"), "{line}");

    // Longer than any message may be: nobody reads it to its end.
    let report = Report { report: Some(report::Report::Content(vec![0; 64 << 10])) };
    let status = refused(PullerMessage { join: None, reports: vec![report; 100] });
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let line = process.wait_for("message length too large").unwrap();
    assert!(line.contains("refused a message of a member: ") && line.contains("peer=n8"), "{line}");

    node.pull(&lab.name(&image.name)).unwrap();
    Pulled::new(lab, &node, &image).was_brought_by_flotilla();
}
