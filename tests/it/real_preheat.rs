//! `flotilla preheat` in a crowd of real daemons behind real containerds.

use serde_json::Value;

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        image::Published,
        node::Node,
        process::output,
        samples,
        story::{on_every_containerd, tell},
    },
    real_image::{stored, stored_path},
    real_layers::counted,
    real_mesh::{bytes_from, crowd_image, layer_bytes, layers_sent, meet},
};

on_every_containerd!(into_containerd);

#[test]
fn chosen_nodes_pull_to_their_stores() {
    tell("1.6", into_the_store);
}

#[test]
fn one_platform_of_several_is_what_the_chosen_nodes_have() {
    tell("1.6", one_platform);
}

#[test]
fn by_digest_the_cluster_gives_what_a_registry_that_is_down_does_not() {
    tell("1.6", by_digest_from_the_cluster);
}

#[test]
fn what_failed_is_named_by_node_and_reason() {
    tell("1.6", failures);
}

/// `flotilla preheat --json`: the nodes' last lines and the summary, and whether all is well.
fn preheat(node: &Node, arguments: &[&str]) -> (Vec<Value>, Value, bool) {
    let mut command = node.daemon().unwrap().command(&["preheat", "--json"]);
    let ended = command.args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    let mut lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&ended.stderr)));
    let is_last = |line: &Value| matches!(line["node"]["state"].as_str(), Some("done" | "failed"));
    lines.retain(is_last);
    let mut nodes: Vec<Value> = lines.into_iter().map(|line| line["node"].clone()).collect();
    nodes.sort_by_key(|node| node["node"].as_str().map(str::to_owned));
    (nodes, summary["summary"].clone(), ended.status.success())
}

fn into_the_store(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/ahead:v1");
    let name = lab.name("demo/ahead:v1");
    let mut nodes = lab
        .crowd_of(&containerd, 4, |plan| {
            let zone = if plan.place().0 == "n4" { "\"b\"" } else { "\"a\"" };
            plan.setting("node", "zone", zone)
        })
        .unwrap();
    meet(&mut nodes);
    let (chosen, all_well) = {
        let (chosen, summary, all_well) = preheat(&nodes[0], &["--nodes", "zone=a+n*", &name]);
        assert_eq!((&summary["nodes"], &summary["failed"]), (&3.into(), &0.into()), "{chosen:?}");
        (chosen, all_well)
    };
    assert!(all_well);
    let whole = layer_bytes(&image);
    let names: Vec<&str> = chosen.iter().map(|node| node["node"].as_str().unwrap()).collect();
    assert_eq!(names, ["n1", "n2", "n3"]);
    for node in &chosen {
        let bytes = &node["bytes"];
        let sum: u64 = ["local", "peer", "origin"].iter().map(|from| bytes[from].as_u64().unwrap()).sum();
        assert!(sum >= node["bytes_total"].as_u64().unwrap() && sum > whole, "{node}");
    }
    let (sent, by_containerd) = layers_sent(&lab.registry(), &image);
    assert!(sent <= whole * 5 / 4 && by_containerd == 0, "{sent} of {whole}");
    assert_eq!(bytes_from(&nodes[3], "peer") + bytes_from(&nodes[3], "origin"), 0, "n4 was not meant");

    // Nothing leaves the registry for who was preheated, nor for containerd that asks for it now.
    nodes[1].pull(&name).unwrap();
    assert_eq!(layers_sent(&lab.registry(), &image), (sent, 0));
    // For people: a line a change, and the sum.
    let mut said = nodes[3].daemon().unwrap().command(&["preheat", "--nodes", "n4", &name]);
    let said = String::from_utf8(said.output().unwrap().stdout).unwrap();
    assert!(said.contains("n4 ") && said.ends_with("1 of 1 nodes have it\n"), "{said}");
    assert_eq!(layers_sent(&lab.registry(), &image), (sent, 0));
}

fn into_containerd(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/ready:v1");
    let name = lab.name("demo/ready:v1");
    let mut nodes = lab.crowd(&containerd, 2).unwrap();
    meet(&mut nodes);
    let (told, summary, all_well) = preheat(&nodes[0], &["--into", "containerd", &name]);
    assert!(all_well && summary["done"] == 2, "{told:?}");
    let (sent, by_containerd) = layers_sent(&lab.registry(), &image);
    assert!(sent <= layer_bytes(&image) * 5 / 4 && by_containerd == 0, "{sent}");
    for node in &nodes {
        assert!(node.is_complete(&name).unwrap(), "{}", node.name);
        assert_eq!(counted(node.daemon().unwrap(), "intercepted"), 4.0);
        assert!(stored(lab, node, &image) > 0);
        let ran = node.run(&name, &["/bin/ls", "/noise"]).unwrap();
        assert_eq!(ran.output.split_whitespace().collect::<Vec<_>>(), ["31", "32", "33"]);
    }
    assert_eq!(layers_sent(&lab.registry(), &image), (sent, 0), "a pod that comes later needs nothing");
}

fn failures(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/partly:v1");
    let name = lab.name("demo/partly:v1");
    let mut nodes = lab.crowd(&containerd, 3).unwrap();
    meet(&mut nodes);
    nodes[2].flotilla().kill().unwrap();
    let (told, summary, all_well) = preheat(&nodes[0], &[&name]);
    assert!(!all_well && summary["done"] == 2 && summary["failed"] == 1, "{told:?}");
    assert_eq!((&told[2]["node"], &told[2]["state"]), (&"n3".into(), &"failed".into()));
    assert!(told[2]["reason"].as_str().unwrap().contains("no daemon listens there"), "{}", told[2]);
    assert!(layers_sent(&lab.registry(), &image).0 > 0);

    let (told, _, all_well) = preheat(&nodes[0], &["--nodes", "n1,n2", "--platform", "linux/s390x", &name]);
    // Of a manifest that no index names, the config tells.
    let reasons =
        told.iter().map(|node| node["reason"].as_str().unwrap().contains("has no image for linux/s390x"));
    assert!(!all_well && reasons.eq([true, true]), "{told:?}");
    let (told, _, all_well) =
        preheat(&nodes[0], &["--nodes", "n2", "--platform", "linux/s390x", "--into", "containerd", &name]);
    assert!(!all_well && told[0]["reason"].as_str().unwrap().contains("s390x"), "{told:?}");
}

/// Which of the images the store of a node has whole, and that it has nothing of the others.
fn has(lab: &Lab, node: &Node, images: &[Published]) -> Vec<bool> {
    let of_image = |image: &Published| {
        let layers = image.layers.iter().map(|layer| &layer.blob.digest);
        let blobs: Vec<_> =
            [&image.manifest.digest, &image.config.digest].into_iter().chain(layers).collect();
        let stored = blobs.iter().filter(|digest| stored_path(lab, node, digest).exists()).count();
        assert!(stored == 0 || stored == blobs.len(), "{}: {stored} blobs of {}", node.name, image.name);
        stored > 0
    };
    images.iter().map(of_image).collect()
}

fn one_platform(lab: &Lab, containerd: Programs) {
    let (_, images) = samples::several_platforms(lab.images(), "demo/several:v1").unwrap();
    let name = lab.name("demo/several:v1");
    let mut nodes = lab.crowd(&containerd, 3).unwrap();
    meet(&mut nodes);
    let order = ["--nodes", "n2,n3", "--platform", "linux/arm64", &name];
    let (told, summary, all_well) = preheat(&nodes[0], &order);
    assert!(all_well && summary["done"] == 2, "{told:?}");
    let [amd64, arm64, s390x] = &images;
    for node in &nodes {
        let chosen = node.name != "n1";
        assert_eq!(has(lab, node, &images), [false, chosen, false], "{}", node.name);
    }
    let whole = layer_bytes(arm64);
    let (sent, _) = layers_sent(&lab.registry(), arm64);
    assert!((whole..=whole * 5 / 4).contains(&sent), "{sent} of {whole}");
    for other in [amd64, s390x] {
        assert_eq!(layers_sent(&lab.registry(), other), (0, 0), "{}", other.name);
    }
}

fn by_digest_from_the_cluster(lab: &Lab, containerd: Programs) {
    let (index, images) = samples::several_platforms(lab.images(), "demo/several:v1").unwrap();
    let mut nodes = lab.crowd(&containerd, 3).unwrap();
    meet(&mut nodes);
    let by_tag = lab.name("demo/several:v1");
    assert!(preheat(&nodes[0], &["--nodes", "n1", &by_tag]).2);
    let own = images.iter().zip(has(lab, &nodes[0], &images)).find(|(_, has)| *has).unwrap().0;
    lab.registry().process().kill().unwrap();

    let by_digest = lab.name(&format!("demo/several@{}", index.digest));
    output(nodes[1].daemon().unwrap().command(&["pull", &by_digest])).unwrap();
    let (told, _, all_well) = preheat(&nodes[2], &["--nodes", "n3", &by_digest]);
    assert!(all_well, "{told:?}");
    for node in &nodes[1..] {
        assert_eq!(stored(lab, node, own), own.layers.len(), "{}", node.name);
        assert_eq!(bytes_from(node, "origin"), 0, "{}", node.name);
        assert!(bytes_from(node, "peer") >= layer_bytes(own), "{}", node.name);
    }
    let failed = nodes[2].daemon().unwrap().command(&["preheat", &by_tag]).output().unwrap();
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(!failed.status.success() && said.contains("the registry does not say what"), "{said}");
}
