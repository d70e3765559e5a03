//! A crowd of real daemons behind real containerds: each layer leaves the registry once, and whoever comes later
//! asks no registry for it.

use std::{collections::BTreeMap, net::SocketAddr, thread};

use serde_json::Value;

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        image::{Compression, Images, Published},
        node::{MESH_PORT, Node},
        process::output,
        registry::Registry,
        samples,
        story::{Plan, tell},
    },
    liar::Liar,
    real_image::eventually,
};

#[test]
fn a_crowd_asks_the_registry_once_on_containerd_1_6() {
    tell("1.6", a_crowd_asks_the_registry_once);
}

#[test]
fn a_crowd_asks_the_registry_once_on_containerd_2_1() {
    tell("2.1", a_crowd_asks_the_registry_once);
}

#[test]
fn a_preheated_node_feeds_the_others_on_containerd_1_6() {
    tell("1.6", a_preheated_node_feeds_the_others);
}

/// Four layers, 17 MB, in pieces of 1 MiB.
pub(crate) fn crowd_image(images: &Images, name: &str) -> Published {
    let noise = |mib: u64, seed| samples::noise(images, mib << 20, seed).unwrap();
    let layers =
        [samples::busybox(images, Compression::Gzip).unwrap(), noise(4, 31), noise(5, 32), noise(7, 33)];
    images.publish(name, &layers, &["/bin/ls", "/noise"]).unwrap()
}

pub(crate) fn layer_bytes(image: &Published) -> u64 {
    image.layers.iter().map(|layer| layer.blob.size).sum()
}

/// Two who know each other. `n2` serves wrong bytes: its daemon listens beside its address, at which is the liar.
pub(crate) fn with_a_liar(lab: &Lab, containerd: &Programs) -> (Vec<Node>, Liar) {
    with_a_liar_of(lab, containerd, |plan| plan)
}

/// The same, their plans changed.
pub(crate) fn with_a_liar_of<'lab>(
    lab: &'lab Lab,
    containerd: &Programs,
    change: impl Fn(Plan<'lab>) -> Plan<'lab>,
) -> (Vec<Node>, Liar) {
    let mut nodes = lab
        .crowd_of(containerd, 2, |plan| {
            let plan = change(plan);
            let (name, address) = plan.place();
            let beside = format!("\"{address}:{}\"", MESH_PORT + 1);
            if name == "n2" { plan.setting("mesh", "listen", &beside) } else { plan }
        })
        .unwrap();
    let daemon: SocketAddr = nodes[1].flotilla().address_of("mesh").unwrap().parse().unwrap();
    let mut address = daemon;
    address.set_port(MESH_PORT);
    let liar = Liar::start("n2", &lab.dir().join("tls"), address, daemon);
    meet(&mut nodes);
    (nodes, liar)
}

/// Waits until everybody knows everybody.
pub(crate) fn meet(nodes: &mut [Node]) {
    let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
    for node in nodes {
        let me = node.name.clone();
        for other in names.iter().filter(|name| **name != me) {
            node.flotilla().process().unwrap().wait_for(&format!("member `{other}` is here")).unwrap();
        }
    }
}

/// All pull, none waits for another.
pub(crate) fn pull_at_once<'a>(nodes: impl IntoIterator<Item = &'a Node>, image: &str) {
    thread::scope(|scope| {
        let pulls: Vec<_> =
            nodes.into_iter().map(|node| scope.spawn(move || node.pull(image).map(|_| ()))).collect();
        for pull in pulls {
            pull.join().unwrap().unwrap();
        }
    });
}

/// One of a node's metrics.
pub(crate) fn metric(node: &Node, name: &str, labels: &[&str]) -> u64 {
    let page = node.daemon().unwrap().metrics().unwrap();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are whole")]
    let value = page.sum(name, labels) as u64;
    value
}

pub(crate) fn bytes_from(node: &Node, source: &str) -> u64 {
    metric(node, "flotilla_bytes_total", &[&format!("source=\"{source}\"")])
}

/// Bytes of layers that the registry sent, and how many requests for them came from a containerd.
pub(crate) fn layers_sent(registry: &Registry, image: &Published) -> (u64, usize) {
    registry.settle().unwrap();
    let repository = image.name.split(':').next().unwrap();
    let mut reads = registry.blob_reads(repository);
    reads.retain(|read| image.layers.iter().any(|layer| read.uri.contains(&layer.blob.digest)));
    let by_containerd = reads.iter().filter(|read| read.user_agent.starts_with("containerd/")).count();
    (reads.iter().map(|read| read.body_bytes).sum(), by_containerd)
}

fn a_crowd_asks_the_registry_once(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/crowd:v1");
    // One node alone needs four seconds for the image: all of the crowd are there before it has it. A link keeps
    // little on its way, unlike loopback, where megabytes of a range that is given up may have been sent.
    let network = lab.network(Some("rate 40mbit burst 64kb latency 50ms")).unwrap();
    let name = network.registry.name("demo/crowd:v1");
    let mut nodes = lab.crowd_of(&containerd, 4, |plan| plan.in_network(&network).unwrap()).unwrap();
    meet(&mut nodes);
    let (late, crowd) = nodes.split_last().unwrap();
    pull_at_once(crowd, &name);

    let whole = layer_bytes(&image);
    let (sent, by_containerd) = layers_sent(&network.registry, &image);
    assert_eq!(by_containerd, 0, "containerd fetched a layer");
    // What was on its way when a lease moved to another node is lost: a megabyte or two, whatever the image has.
    // That a large image stays below 1.10 is for the demo to show.
    assert!((whole..=whole * 5 / 4).contains(&sent), "the registry sent {sent} of {whole} bytes");
    let pieces: u64 = image.layers.iter().map(|layer| layer.blob.size.div_ceil(1 << 20)).sum();
    for node in crowd {
        let (peer, origin) = (bytes_from(node, "peer"), bytes_from(node, "origin"));
        assert!(peer > 0, "{} got nothing from the others", node.name);
        assert!(peer + origin >= whole, "{}: {peer} + {origin} of {whole}", node.name);
        assert!(metric(node, "flotilla_pieces_verified_total", &[]) >= pieces, "{}", node.name);
        assert_eq!(metric(node, "flotilla_pieces_refused_total", &[]), 0, "{}", node.name);
    }

    pull_at_once([late], &name);
    assert_eq!(
        layers_sent(&network.registry, &image),
        (sent, 0),
        "a latecomer asked the registry for a layer"
    );
    // A piece that was slow to come is asked of a second peer, and may come twice.
    assert!(bytes_from(late, "peer") >= whole && bytes_from(late, "origin") == 0);
    for node in &nodes {
        assert!(node.is_complete(&name).unwrap(), "{}", node.name);
        let ran = node.run(&name, &["/bin/ls", "/noise"]).unwrap();
        assert_eq!(ran.output.split_whitespace().collect::<Vec<_>>(), ["31", "32", "33"]);
    }
}

fn a_preheated_node_feeds_the_others(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/preheat:v1");
    let name = lab.name("demo/preheat:v1");
    let mut nodes = lab.crowd(&containerd, 2).unwrap();
    meet(&mut nodes);
    for node in &nodes {
        let status: Value = serde_json::from_str(&node.daemon().unwrap().status().unwrap()).unwrap();
        let states: Vec<&Value> = status["members"].as_array().unwrap().iter().map(|m| &m["state"]).collect();
        assert_eq!(states, ["alive", "alive"], "{status}");
        assert_eq!((&status["node"], &status["mesh"]["open"]), (&Value::from(&*node.name), &true.into()));
        let gauges = [("flotilla_members", "state=\"alive\""), ("flotilla_members", "state=\"unreachable\"")];
        assert_eq!(gauges.map(|(name, label)| metric(node, name, &[label])), [2, 0], "{}", node.name);
        let switches = ["flotilla_mesh_open", "flotilla_containerd_answers"];
        // containerd starts after the daemon, which looks again and again.
        eventually("containerd is seen", || switches.iter().all(|name| metric(node, name, &[]) == 1));
        let status: Value = serde_json::from_str(&node.daemon().unwrap().status().unwrap()).unwrap();
        assert_eq!(
            (&status["containerd"]["answers"], &status["containerd"]["reason"]),
            (&true.into(), &Value::Null)
        );
    }

    let whole = layer_bytes(&image);
    let [first, second] = &nodes[..] else { panic!("two nodes") };
    // Of an empty store, of the same store again, and of another node's.
    for (node, source) in [(first, "bytes_origin"), (first, "bytes_local"), (second, "bytes_peer")] {
        assert_eq!(
            preheat(node, &name, &image),
            BTreeMap::from([(source.to_owned(), whole)]),
            "{}",
            node.name
        );
    }
    assert_eq!(layers_sent(&lab.registry(), &image), (whole, 0));

    // containerd finds what is there already.
    pull_at_once(&nodes, &name);
    assert_eq!(layers_sent(&lab.registry(), &image), (whole, 0));
    assert_eq!(metric(first, "flotilla_layers_total", &["outcome=\"intercepted\""]), 4);
    let status: Value = serde_json::from_str(&first.daemon().unwrap().status().unwrap()).unwrap();
    let images: Vec<&Value> = status["pulls"].as_array().unwrap().iter().map(|pull| &pull["image"]).collect();
    assert!(images.iter().all(|image| **image == name.as_str()), "{images:?}");
    assert_eq!((&status["store"]["blobs"], &status["store"]["bytes"]), (&4.into(), &whole.into()));
    assert_eq!(metric(first, "flotilla_store_bytes", &["kind=\"held\""]), whole);
}

/// `flotilla pull --json`: bytes by source, of those sources that gave any.
fn preheat(node: &Node, name: &str, image: &Published) -> BTreeMap<String, u64> {
    let said = output(node.daemon().unwrap().command(&["pull", "--json", name])).unwrap();
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), image.layers.len(), "{said}");
    let mut sums = BTreeMap::new();
    for line in &lines {
        assert_eq!(line["outcome"], "proven", "{line}");
        let layer = image.layers.iter().find(|layer| line["digest"] == layer.blob.digest.as_str()).unwrap();
        assert_eq!(line["size"], layer.blob.size);
        for source in ["bytes_local", "bytes_peer", "bytes_origin"] {
            *sums.entry(source.to_owned()).or_insert(0) += line[source].as_u64().unwrap();
        }
    }
    sums.retain(|_, bytes| *bytes > 0);
    sums
}
