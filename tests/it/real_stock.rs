//! The lab itself: every containerd pulls and runs without Flotilla, so that a story that fails with it
//! fails because of it.

use std::process::Command;

use crate::lab::{
    Lab,
    containerd::{self, Programs},
    net::SHAPE_100_MBIT,
    process::output,
    samples,
    story::{missing, on_every_containerd},
    tool,
};

on_every_containerd!(pulls_and_runs, survives_a_restart, brings_odd_images, speaks_to_other_clients);

fn pulls_and_runs(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let name = lab.name("demo/small:v1");
    let node = lab.node(&containerd).stock().start().unwrap();

    let reference = node.pull(&name).unwrap();
    assert!(reference.contains("sha256:"), "{reference}");
    assert!(node.is_complete(&name).unwrap());
    for layer in &image.layers {
        assert_eq!(node.content_size(&layer.blob.digest), Some(layer.blob.size));
    }

    let ran = node.run(&name, &["/bin/cat", "/etc/lab"]).unwrap();
    assert_eq!((ran.exit_code, ran.output.as_str()), (0, "a small image\n"));
    let failed = node.run(&name, &["/bin/sh", "-c", "echo no; exit 7"]).unwrap();
    assert_eq!((failed.exit_code, failed.output.as_str()), (7, "no\n"));
    let refused = node.run(&name, &["/bin/absent"]).unwrap_err().to_string();
    assert!(refused.contains("/bin/absent"), "{refused}");

    // The registry saw each layer fetched once, by this containerd, and every byte of it.
    let reads = lab.registry().blob_reads("demo/small");
    for layer in &image.layers {
        let sent: Vec<u64> = reads
            .iter()
            .filter(|read| read.uri.contains(&layer.blob.digest))
            .map(|read| read.body_bytes)
            .collect();
        assert_eq!(sent, [layer.blob.size], "{}", layer.blob.digest);
    }
    assert!(reads.iter().all(|read| read.user_agent.starts_with("containerd/")), "{reads:?}");
    assert_eq!(lab.registry().body_bytes("demo/small"), image.bytes());

    assert!(node.cri.images().unwrap().contains(&name));
    assert!(node.cri.fs_info().unwrap().contains("overlayfs"));
    node.cri.remove(&name).unwrap();
    assert!(!node.cri.images().unwrap().contains(&name));
    let gone = node.pull(&lab.name("demo/absent:v1")).unwrap_err().to_string();
    assert!(gone.contains("demo/absent:v1"), "{gone}");
}

fn survives_a_restart(lab: &Lab, containerd: Programs) {
    samples::small(lab.images(), "demo/small:v1").unwrap();
    let name = lab.name("demo/small:v1");
    let mut node = lab.node(&containerd).stock().start().unwrap();
    node.pull(&name).unwrap();
    node.containerd.kill().unwrap();
    assert!(node.pull(&name).is_err(), "nobody should answer");
    node.containerd.start_again().unwrap();
    assert_eq!(node.run(&name, &["/bin/cat", "/etc/lab"]).unwrap().exit_code, 0);
    node.containerd.stop().unwrap();
    node.containerd.start_again().unwrap();
    assert!(node.cri.images().unwrap().contains(&name));
}

fn brings_odd_images(lab: &Lab, containerd: Programs) {
    let images = lab.images();
    samples::many_layers(images, "demo/many:v1", 99).unwrap();
    samples::empty_layer(images, "demo/empty:v1").unwrap();
    samples::twin_compressions(images, "demo/twins:v1").unwrap();
    samples::sharing(images, "demo/sharing").unwrap();
    let node = lab.node(&containerd).stock().start().unwrap();
    let pulled = |image: &str, command: &[&str]| {
        let name = lab.name(image);
        node.pull(&name).unwrap();
        let ran = node.run(&name, command).unwrap();
        assert_eq!(ran.exit_code, 0, "{image}: {}", ran.output);
        ran.output
    };
    assert_eq!(pulled("demo/many:v1", &["/bin/ls", "/many"]).lines().count(), 99);
    pulled("demo/empty:v1", &["/bin/stat", "/noise/9"]);
    assert_eq!(pulled("demo/twins:v1", &["/bin/echo", "twins"]), "twins\n");
    pulled("demo/sharing:a", &["/bin/ls", "/noise/12"]);
    pulled("demo/sharing:b", &["/bin/ls", "/noise/13"]);
}

fn speaks_to_other_clients(lab: &Lab, containerd: Programs) {
    let (Some(crictl), Some(nerdctl)) = (tool("crictl"), tool("nerdctl")) else {
        eprintln!("skipped: no crictl and nerdctl here; cargo xtask setup builds them where Go is");
        return;
    };
    samples::small(lab.images(), "demo/small:v1").unwrap();
    let name = lab.name("demo/small:v1");
    let node = lab.node(&containerd).stock().start().unwrap();
    let socket = node.containerd.socket().display().to_string();

    let mut pull = Command::new(crictl);
    pull.args(["--runtime-endpoint", &format!("unix://{socket}"), "pull", &name]);
    assert!(output(pull).unwrap().contains("Image is up to date"));
    let mut pull = Command::new(nerdctl);
    pull.args(["--address", &socket, "--namespace", "other", "--hosts-dir"]).arg(lab.hosts_dir());
    pull.args(["--data-root"]).arg(lab.dir().join("nerdctl")).args(["pull", "--quiet", &name]);
    output(pull).unwrap();
    assert!(node.containerd.ctr_in("other", &["images", "list", "--quiet"]).unwrap().contains(&name));
}

#[test]
fn a_network_shapes_and_counts() {
    let (None, Some(containerd)) = (missing(), containerd::find("1.6")) else {
        eprintln!("skipped: no lab or no containerd 1.6 here");
        return;
    };
    let lab = Lab::new().unwrap();
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let network = lab.network(Some(SHAPE_100_MBIT)).unwrap();
    let name = network.registry.name("demo/small:v1");
    let node = lab.node(&containerd).stock().in_network(&network).unwrap().start().unwrap();
    let place = node.network.clone().unwrap();
    place.count_from(&[&network.place]).unwrap();

    node.pull(&name).unwrap();
    let received = place.received_from(&network.place).unwrap();
    assert!((image.bytes()..image.bytes() * 11 / 10).contains(&received), "{received} of {}", image.bytes());
    assert!(place.traffic().unwrap().received >= received);
    let client = network.registry.requests().pop().unwrap().client;
    assert_eq!(client, place.address());

    place.connected(false).unwrap();
    place.connected(true).unwrap();
    assert_eq!(node.run(&name, &["/bin/cat", "/etc/lab"]).unwrap().exit_code, 0);
}
