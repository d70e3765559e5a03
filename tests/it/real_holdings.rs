//! What containerd had before Flotilla came, and what it gets by itself afterwards, is what the mesh lives from.

use std::fs;

use serde_json::Value;

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        image::{Compression, Published},
        node::Node,
        samples,
        story::{flotilla_program, on_every_containerd, tell},
    },
    real_image::{Pulled, eventually, log, stored_path},
    real_mesh::{bytes_from, layer_bytes, layers_sent, meet, metric},
};

on_every_containerd!(an_old_cluster_feeds_a_new_node);

#[test]
fn what_has_rotted_is_reported_and_not_offered_on_containerd_1_6() {
    tell("1.6", what_has_rotted_is_reported_and_not_offered);
}

/// Three layers, two of them no other image's.
fn image(lab: &Lab, name: &str, seed: u64) -> Published {
    let noise = |mib: u64, seed| samples::noise(lab.images(), mib << 20, seed).unwrap();
    let busybox = samples::busybox(lab.images(), Compression::Gzip).unwrap();
    lab.images()
        .publish(name, &[busybox, noise(3, seed), noise(18, seed + 1)], &["/bin/ls", "/noise"])
        .unwrap()
}

/// Two nodes, of which the first has a containerd as it comes from the distribution, and no Flotilla yet.
fn an_old_node_and_a_new_one(lab: &Lab, containerd: &Programs) -> Vec<Node> {
    let nodes = lab.crowd_of(containerd, 2, |plan| match plan.place().0 {
        // Whatever containerd drops has to go at once, as on a full disk.
        "n1" => plan.later().setting("store", "keep_free", "\"100%\""),
        _ => plan,
    });
    nodes.unwrap()
}

fn install(lab: &Lab, nodes: &mut [Node]) {
    nodes[0].install(flotilla_program(), lab.dir().join("n1/flotilla")).unwrap();
    meet(nodes);
}

/// One of the store's figures in `flotilla status`.
fn figure(node: &Node, name: &str) -> u64 {
    let status: Value = serde_json::from_str(&node.daemon().unwrap().status().unwrap()).unwrap();
    status["store"][name].as_u64().unwrap()
}

fn offers(node: &Node, blobs: usize) {
    eventually(&format!("{blobs} blobs to be offered"), || figure(node, "offered_blobs") == blobs as u64);
}

/// The registry loses the layers, and can still say what the image is: containerd itself fetches manifest and config.
fn without_layers(lab: &Lab, image: &Published) {
    for layer in &image.layers {
        let hex = layer.blob.digest.trim_start_matches("sha256:");
        let dir = lab.dir().join("blobs/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex);
        // Another image may have lost it before.
        let _gone = fs::remove_file(dir.join("data"));
    }
}

/// The second node pulls what only the first one has.
fn comes_from_the_old_node(lab: &Lab, nodes: &[Node], image: &Published) {
    let name = lab.name(&image.name);
    without_layers(lab, image);
    let sent = layers_sent(&lab.registry(), image);
    let (from_peer, from_origin) = (bytes_from(&nodes[1], "peer"), bytes_from(&nodes[1], "origin"));
    nodes[1].pull(&name).unwrap();
    assert_eq!(layers_sent(&lab.registry(), image), sent, "somebody asked the registry for a layer");
    assert_eq!(bytes_from(&nodes[1], "origin"), from_origin);
    assert!(bytes_from(&nodes[1], "peer") > from_peer);
    Pulled::new(lab, &nodes[1], image).is_complete().runs(&["/bin/ls", "/noise"]);
    // On the old node too: containerd's file and ours are one.
    Pulled::new(lab, &nodes[0], image).is_complete().is_one_copy();
}

fn an_old_cluster_feeds_a_new_node(lab: &Lab, containerd: Programs) {
    let (before, after) = (image(lab, "demo/before:v1", 61), image(lab, "demo/after:v1", 71));
    let mut nodes = an_old_node_and_a_new_one(lab, &containerd);
    nodes[0].pull(&lab.name("demo/before:v1")).unwrap();
    install(lab, &mut nodes);
    // Layers, config and manifest.
    let of_before = before.layers.len() + 2;
    nodes[0].flotilla().process().unwrap().wait_for("containerd's blobs are offered").unwrap();
    offers(&nodes[0], of_before);
    comes_from_the_old_node(lab, &nodes, &before);
    assert!(bytes_from(&nodes[1], "peer") >= layer_bytes(&before));

    // What plain containerd pulls from now on is offered as well.
    nodes[0].pull(&lab.name("demo/after:v1")).unwrap();
    // The lowest layer is the same.
    let of_both = of_before + after.layers.len() + 2 - 1;
    offers(&nodes[0], of_both);
    comes_from_the_old_node(lab, &nodes, &after);

    // Everything is read once, whether somebody asked or not, and never again.
    eventually("everything to be read", || figure(&nodes[0], "offered_unread") == 0);
    assert_eq!(metric(&nodes[0], "flotilla_offers_read_total", &["outcome=\"proven\""]), of_both as u64);
    nodes[0].flotilla().stop().unwrap();
    nodes[0].flotilla().start_again().unwrap();
    offers(&nodes[0], of_both);
    assert_eq!(figure(&nodes[0], "offered_unread"), 0);
    assert_eq!(metric(&nodes[0], "flotilla_offers_read_total", &[]), 0, "a restart read it again");

    goes_with_its_image(lab, &nodes[0], &before, of_both - (of_before - 1));
}

/// The image is removed: what only it needs is offered no more, and its bytes are free.
fn goes_with_its_image(lab: &Lab, node: &Node, image: &Published, left: usize) {
    node.cri.remove(&lab.name(&image.name)).unwrap();
    offers(node, left);
    for layer in &image.layers[1..] {
        let digest = &layer.blob.digest;
        eventually("the bytes to be free", || {
            !node.content_path(digest).exists() && !stored_path(lab, node, digest).exists()
        });
    }
}

fn what_has_rotted_is_reported_and_not_offered(lab: &Lab, containerd: Programs) {
    let image = image(lab, "demo/rotten:v1", 81);
    let mut nodes = an_old_node_and_a_new_one(lab, &containerd);
    nodes[0].pull(&lab.name("demo/rotten:v1")).unwrap();
    let rotten = &image.layers[1].blob;
    let path = nodes[0].content_path(&rotten.digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes[1 << 20] ^= 1;
    fs::write(&path, &bytes).unwrap();
    install(lab, &mut nodes);
    offers(&nodes[0], image.layers.len() + 2);

    let sent = layers_sent(&lab.registry(), &image).0;
    nodes[1].pull(&lab.name("demo/rotten:v1")).unwrap();
    assert_eq!(
        layers_sent(&lab.registry(), &image).0,
        sent + rotten.size,
        "all but the rotten layer came from n1"
    );
    Pulled::new(lab, &nodes[1], &image).is_complete().runs(&["/bin/ls", "/noise"]);
    offers(&nodes[0], image.layers.len() + 1);
    let log = log(&nodes[0]);
    let said: Vec<&str> = log.lines().filter(|line| line.contains("is not offered")).collect();
    assert!(
        matches!(said[..], [line] if line.contains(&rotten.digest) && line.contains("content rm")),
        "{said:?}"
    );
    assert_eq!(fs::read(&path).unwrap(), bytes, "containerd's file is left as it is");
}
