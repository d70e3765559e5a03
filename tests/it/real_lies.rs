//! A member whose registry gives it wrong bytes, while nobody has proven the layer yet: what it states is believed
//! until the chain does not close.

use std::{fs, os::unix::fs::FileExt as _, path::Path};

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        image::Compression,
        node::Node,
        process::output,
        registry::Registry,
        samples,
        story::{Network, tell},
    },
    real_image::log,
    real_mesh::{meet, metric, pull_at_once},
    real_peers::assert_true,
};

/// The member that is lied to, and lies to the others.
const LIAR: &str = "n2";
const LAYER_LEN: u64 = 16 << 20;

#[test]
fn a_member_that_reads_lies_is_convicted_by_name() {
    tell("1.6", reads_lies);
}

fn reads_lies(lab: &Lab, containerd: Programs) {
    let layers = [
        samples::busybox(lab.images(), Compression::Gzip).unwrap(),
        samples::noise(lab.images(), LAYER_LEN, 91).unwrap(),
    ];
    let image = lab.images().publish("demo/lies:v1", &layers, &["/bin/ls", "/noise"]).unwrap();
    let network = lab.network(Some("rate 100mbit burst 64kb latency 50ms")).unwrap();
    let name = network.registry.name(&image.name);
    let false_registry = false_registry(lab, &network, &image.layers[1].blob.digest);
    let hosts_dir = hosts_dir(lab, &network, &false_registry);
    // Slow enough that all are there before the registry has been read.
    let mut nodes = lab
        .crowd_of(&containerd, 4, |plan| {
            let plan = plan.in_network(&network).unwrap().setting("registry", "origin_rate", "\"1MB\"");
            if plan.place().0 == LIAR { plan.setting("registry", "hosts_dir", &hosts_dir) } else { plan }
        })
        .unwrap();
    meet(&mut nodes);
    pull_at_once(&nodes, &name);

    let (misled, honest): (Vec<Node>, Vec<Node>) = nodes.into_iter().partition(|node| node.name == LIAR);
    let convictions = |node: &Node, peer: &str| {
        metric(node, "flotilla_pieces_refused_total", &["reason=\"convicted\"", peer])
    };
    let of_the_liar = format!("peer=\"{LIAR}\"");
    let named = |node: &&Node| {
        log(node).contains("banned: it stated wrong bytes") && convictions(node, &of_the_liar) > 0
    };
    assert!(honest.iter().any(|node| named(&node)), "nobody has named {LIAR}");
    for node in honest.iter().chain(&misled) {
        assert_eq!(convictions(node, ""), convictions(node, &of_the_liar), "{} convicts others", node.name);
        assert_eq!(metric(node, "flotilla_layers_total", &["outcome=\"intercepted\""]), 2, "{}", node.name);
        assert_true(lab, node, &name, &image);
    }
    // Its registry gives it nothing that can be proven: the others do.
    let misled = &misled[0];
    assert_eq!(metric(misled, "flotilla_pieces_refused_total", &["reason=\"misled\""]), 1);
    assert!(log(misled).contains("the registry gave this node other bytes than the image has"));
    assert!(log(misled).contains("the tracker does not count on this node any more"));

    let layer = &image.layers[1].blob;
    let sent = [&network.registry, &false_registry].map(|registry| bytes_read(registry, &layer.digest));
    eprintln!("read by Flotilla: {sent:?} of {} bytes, true and false", layer.size);
    // One image for everybody, and at most one more to find the liar, with what the liar reads for itself.
    assert!(sent.iter().sum::<u64>() * 100 <= layer.size * 205, "{sent:?} of {}", layer.size);
}

/// Bytes of a blob that a registry sent to daemons.
fn bytes_read(registry: &Registry, digest: &str) -> u64 {
    registry.settle().unwrap();
    let requests = registry.requests();
    let reads = requests.iter().filter(|read| read.method == "GET" && read.uri.contains(digest));
    reads.filter(|read| read.user_agent.starts_with("flotilla/")).map(|read| read.body_bytes).sum()
}

/// A registry that has the same images, but for some bytes in every piece of one layer.
fn false_registry(lab: &Lab, network: &Network, digest: &str) -> Registry {
    let (from, to) = (lab.dir().join("blobs"), lab.dir().join("false-blobs"));
    let mut copy = std::process::Command::new("cp");
    copy.arg("--archive").arg(&from).arg(&to);
    output(copy).unwrap();
    let hex = digest.trim_start_matches("sha256:");
    let data = to.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data");
    spoil(&data);
    let place = network.switch.plug("false", 251).unwrap();
    Registry::start(&to.display().to_string(), lab.dir().join("false-registry"), Some(&place)).unwrap()
}

fn spoil(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    for place in (4321..len).step_by(64 << 10) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], place).unwrap();
    }
}

/// A `hosts_dir` in which `registry` stands for the network's, as the setting's value.
fn hosts_dir(lab: &Lab, network: &Network, registry: &Registry) -> String {
    let dir = lab.dir().join("false-hosts");
    let folder = dir.join(network.registry.host());
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("hosts.toml"), format!("server = \"http://{}\"\n", registry.host())).unwrap();
    format!("[{dir:?}]")
}
