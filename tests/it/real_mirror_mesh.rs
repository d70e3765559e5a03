//! Clients of several nodes' mirrors: a crowd, a liar among the members, a registry that goes away.

use std::thread;

use flotilla::oci::{Algorithm, Digest};
use http::Method;
use tokio::runtime::Runtime;

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        image::{Layer, Published},
        node::Node,
        story::tell,
    },
    mirror::{Got, ask},
    real_image::{eventually, log},
    real_mesh::{bytes_from, crowd_image, layer_bytes, layers_sent, meet, metric, with_a_liar},
};

#[test]
fn a_crowd_by_its_mirrors_asks_the_registry_once() {
    tell("1.6", crowd);
}

#[test]
fn a_member_that_lies_costs_a_client_no_wrong_byte() {
    tell("1.6", liar);
}

#[test]
fn a_registry_that_goes_away_fails_no_pull_by_digest() {
    tell("1.6", outage);
}

#[test]
fn tags_of_a_registry_that_went_away_are_what_members_heard() {
    tell("1.6", outage_by_tag);
}

#[test]
fn where_a_digest_is_enough_a_registry_that_went_away_is_not_missed() {
    tell("1.6", outage_where_a_digest_is_enough);
}

#[test]
fn a_registry_that_goes_away_in_the_middle_of_a_crowd_fails_no_pull_by_digest() {
    tell("1.6", outage_in_the_middle);
}

/// A client of one node's mirror.
pub(crate) struct Client<'a> {
    /// As `ns` names it.
    registry: String,
    mirror: String,
    image: &'a Published,
    runtime: Runtime,
}

impl<'a> Client<'a> {
    pub(crate) fn of(lab: &Lab, node: &Node, image: &'a Published) -> Self {
        let mirror = node.daemon().unwrap().address_of("mirror").unwrap();
        Self { registry: lab.host(), mirror, image, runtime: Runtime::new().unwrap() }
    }

    fn get(&self, rest: &str) -> Got {
        let repository = self.image.name.split(':').next().unwrap();
        let path = format!("/v2/{repository}/{rest}?ns={}", self.registry);
        self.runtime.block_on(ask(&self.mirror, Method::GET, &path, &[]))
    }

    /// Pulls manifest and layers by their digests, and checks each.
    pub(crate) fn pulls_by_digest(&self) {
        self.pulls_layers(&self.image.layers);
    }

    /// Pulls the manifest and some of the layers.
    fn pulls_layers(&self, layers: &[Layer]) {
        let blobs = layers.iter().map(|layer| format!("blobs/{}", layer.blob.digest));
        for rest in [format!("manifests/{}", self.image.manifest.digest)].into_iter().chain(blobs) {
            let got = self.get(&rest);
            let begins = String::from_utf8_lossy(&got.bytes[..got.bytes.len().min(512)]);
            assert!(got.status.is_success(), "{rest}: {} {begins}", got.status);
            assert!(got.whole, "{rest}: cut after {} bytes", got.bytes.len());
            let digest = Digest::of(Algorithm::Sha256, &got.bytes).to_string();
            assert!(rest.ends_with(&digest), "{rest} is {digest}");
        }
    }
}

fn crowd(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/mirrored:v1");
    // Four seconds for one node alone: all are there before anybody has it.
    let mut nodes =
        lab.crowd_of(&containerd, 4, |plan| plan.setting("registry", "origin_rate", "\"4MiB\"")).unwrap();
    meet(&mut nodes);
    let clients: Vec<_> = nodes.iter().map(|node| Client::of(lab, node, &image)).collect();
    thread::scope(|scope| {
        let pulls: Vec<_> = clients.iter().map(|client| scope.spawn(|| client.pulls_by_digest())).collect();
        pulls.into_iter().for_each(|pull| pull.join().unwrap());
    });
    let (sent, by_containerd) = layers_sent(&lab.registry(), &image);
    let over = sent as f64 / layer_bytes(&image) as f64;
    eprintln!("the registry sent {over:.3} x the layers to four nodes");
    assert!(over <= 1.25 && by_containerd == 0, "{over}");
    assert!(nodes.iter().map(|node| bytes_from(node, "peer")).sum::<u64>() > layer_bytes(&image));
}

fn liar(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/lied:v1");
    let (nodes, _liar) = with_a_liar(lab, &containerd);
    Client::of(lab, &nodes[1], &image).pulls_by_digest();
    Client::of(lab, &nodes[0], &image).pulls_by_digest();
    assert!(metric(&nodes[0], "flotilla_pieces_refused_total", &["peer=\"n2\""]) > 0, "it lied");
}

fn outage(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/kept:v1");
    let mut nodes = lab.crowd(&containerd, 3).unwrap();
    meet(&mut nodes);
    Client::of(lab, &nodes[0], &image).pulls_by_digest();
    lab.registry().process().kill().unwrap();
    for node in &nodes[1..] {
        let client = Client::of(lab, node, &image);
        client.pulls_by_digest();
        let manifest = client.get(&format!("manifests/{}", image.manifest.digest));
        assert!(manifest.header("warning").starts_with("111 "), "{:?}", manifest.headers);
        assert_eq!(client.get("manifests/v1").status.as_u16(), 503, "a tag is the registry's word");
        assert_eq!(bytes_from(node, "origin"), 0);
    }
    eventually("the pulls to be told", || bytes_from(&nodes[1], "peer") >= layer_bytes(&image));
}

/// `offline_tags = "members"`; one of them has asked the registry what the tag means, and then no more.
fn outage_by_tag(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/tagged:v1");
    let mut nodes =
        lab.crowd_of(&containerd, 3, |plan| plan.setting("mirror", "offline_tags", "\"members\"")).unwrap();
    meet(&mut nodes);
    let first = Client::of(lab, &nodes[0], &image);
    assert!(first.get("manifests/v1").status.is_success());
    first.pulls_by_digest();
    lab.registry().process().kill().unwrap();
    let client = Client::of(lab, &nodes[1], &image);
    let got = client.get("manifests/v1");
    let digest = Digest::of(Algorithm::Sha256, &got.bytes);
    assert!(got.status.is_success() && digest.to_string() == image.manifest.digest, "{}", got.status);
    assert!(got.header("warning").starts_with("110 "), "{:?}", got.headers);
    client.pulls_by_digest();
    let log = log(&nodes[1]);
    let line = log.lines().find(|line| line.contains("the tag as it was")).unwrap();
    assert!(line.contains("heard_by=\"members\""), "{line}");
    assert_eq!(client.get("manifests/v2").status.as_u16(), 503, "nobody has heard of it");
    assert_eq!(bytes_from(&nodes[1], "origin"), 0);
}

/// `access = "digest"`; who asks knows no manifest, so that nobody has told this node how long the layers are.
fn outage_where_a_digest_is_enough(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/known:v1");
    let mut nodes =
        lab.crowd_of(&containerd, 2, |plan| plan.setting("mirror", "access", "\"digest\"")).unwrap();
    meet(&mut nodes);
    Client::of(lab, &nodes[0], &image).pulls_by_digest();
    lab.registry().process().kill().unwrap();
    let client = Client::of(lab, &nodes[1], &image);
    for layer in &image.layers {
        let got = client.get(&format!("blobs/{}", layer.blob.digest));
        assert_eq!((got.status.as_u16(), got.whole), (200, true), "{got:?}");
        assert_eq!(Digest::of(Algorithm::Sha256, &got.bytes).to_string(), layer.blob.digest.to_string());
        assert!(got.header("warning").starts_with("111 "), "{:?}", got.headers);
    }
    let unknown = Digest::of(Algorithm::Sha256, b"nobody has this");
    assert_eq!(client.get(&format!("blobs/{unknown}")).status.as_u16(), 503);
}

/// The registry dies while four clients read: what each of them lacks is with one or the other node, and with none alone.
fn outage_in_the_middle(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/halved:v1");
    // Seconds for what is asked of each node: the registry is gone before anybody has it all.
    let mut nodes =
        lab.crowd_of(&containerd, 4, |plan| plan.setting("mesh", "upload_rate", "\"4MiB\"")).unwrap();
    meet(&mut nodes);
    let clients: Vec<_> = nodes.iter().map(|node| Client::of(lab, node, &image)).collect();
    let (lower, upper) = image.layers.split_at(2);
    clients[0].pulls_layers(lower);
    clients[1].pulls_layers(upper);
    let whole = layer_bytes(&image);
    let by_peers = || nodes[2..].iter().map(|node| bytes_from(node, "peer")).collect::<Vec<_>>();
    thread::scope(|scope| {
        let pulls: Vec<_> = clients.iter().map(|client| scope.spawn(|| client.pulls_by_digest())).collect();
        eventually("all to have begun", || by_peers().iter().all(|bytes| *bytes >= 1 << 20));
        lab.registry().process().kill().unwrap();
        // A machine that starves its daemons has some of it read before the members have said what they hold.
        let from_it = nodes[2..].iter().map(|node| bytes_from(node, "origin"));
        let at_its_death: Vec<_> = from_it.zip(by_peers()).collect();
        let unfinished = |(origin, peers): &(u64, u64)| origin + peers < whole;
        assert!(at_its_death.iter().all(unfinished), "{at_its_death:?} of {whole}");
        pulls.into_iter().for_each(|pull| pull.join().unwrap());
    });
}
