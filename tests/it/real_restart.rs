//! Ends and new beginnings in the middle of a pull: of containerd, and of Flotilla.

use std::{fs, os::unix::fs::MetadataExt as _, process::Stdio};

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
    real_image::{Pulled, Pulling, eventually, log, start_flotilla},
};

on_every_containerd!(
    containerd_ends_in_the_middle_of_a_pull,
    flotilla_ends_in_the_middle_of_a_pull,
    containerd_starts_without_flotilla,
    an_idle_daemon_ends_at_once,
);

#[test]
fn a_daemon_that_was_killed_resumes_what_it_had() {
    tell("1.6", what_was_there_is_resumed);
}

/// A stop that waits for what never ends costs every restart the ten seconds that it is given.
fn an_idle_daemon_ends_at_once(lab: &Lab, containerd: Programs) {
    samples::small(lab.images(), "demo/small:v1").unwrap();
    let mut node = lab.node(&containerd).alone().start().unwrap();
    node.pull(&lab.name("demo/small:v1")).unwrap();
    node.flotilla().stop().unwrap();
    let log = fs::read_to_string(node.flotilla().log()).unwrap();
    assert!(!log.contains("stopped with tasks under way"), "{log}");
}

/// How somebody ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Stopped,
    Killed,
}

/// Busybox, and a layer of eight pieces: 8 s at the rate below.
fn large(lab: &Lab, name: &str) -> Published {
    samples::large_layer(lab.images(), name, 8 << 20).unwrap()
}

fn slow_node(lab: &Lab, containerd: &Programs) -> Node {
    let plan = lab.node(containerd).alone().setting("registry", "origin_rate", "\"1MiB\"");
    plan.setting("containerd", "prepare_budget", "\"1s\"").start().unwrap()
}

/// Waits until some pieces of the image's large layer are on the node's disk.
fn some_pieces_are_here(lab: &Lab, node: &Node, image: &Published) {
    let digest = image.layers[1].blob.digest.replace(':', "-");
    let data = lab.dir().join(&node.name).join("flotilla/data/arriving").join(digest).join("data");
    eventually("some pieces", || fs::metadata(&data).is_ok_and(|data| data.blocks() * 512 >= 3 << 20));
}

fn containerd_ends_in_the_middle_of_a_pull(lab: &Lab, containerd: Programs) {
    for (ending, name) in [(Ending::Stopped, "large/stopped:v1"), (Ending::Killed, "large/killed:v1")] {
        let image = large(lab, name);
        let mut node = slow_node(lab, &containerd);
        let pulling = Pulling::start(&node, &lab.name(name));
        some_pieces_are_here(lab, &node, &image);
        match ending {
            Ending::Stopped => node.containerd.stop().unwrap(),
            Ending::Killed => node.containerd.kill().unwrap(),
        }
        pulling.end().unwrap_err();
        node.containerd.start_again().unwrap();
        // With any snapshotter a pull fails whose first layer is unpacked already and falls to the collection
        // that a containerd makes at its start, before the second is prepared on it.
        node.containerd.collect_garbage().unwrap();
        node.pull(&lab.name(name)).unwrap();
        Pulled::new(lab, &node, &image).containerd_fetched_none().is_complete().is_one_copy();
        Pulled::new(lab, &node, &image).runs(&["/bin/stat", "/noise/7"]);
    }
}

fn flotilla_ends_in_the_middle_of_a_pull(lab: &Lab, containerd: Programs) {
    let small = samples::small(lab.images(), "demo/small:v1").unwrap();
    for (ending, name) in [(Ending::Stopped, "large/stopped:v1"), (Ending::Killed, "large/killed:v1")] {
        let image = large(lab, name);
        let mut node = slow_node(lab, &containerd);
        node.pull(&lab.name("demo/small:v1")).unwrap();
        // A budget longer than the test, so that containerd waits and fetches nothing.
        node.flotilla().stop().unwrap();
        let mut settings = node.settings.clone();
        node.flotilla().configure(settings.text("containerd", "prepare_budget", "10m")).unwrap();
        start_flotilla(&mut node);
        let pulling = Pulling::start(&node, &lab.name(name));
        some_pieces_are_here(lab, &node, &image);
        match ending {
            Ending::Stopped => node.flotilla().stop().unwrap(),
            Ending::Killed => node.flotilla().kill().unwrap(),
        }
        let _a_pull_needs_its_snapshotter = pulling.end();
        start_flotilla(&mut node);
        node.pull(&lab.name(name)).unwrap();
        // This daemon counts from its start. (Once the other was gone, containerd may have fetched by itself.)
        let metrics = node.daemon().unwrap().metrics().unwrap();
        let resumed = metrics.sum("flotilla_bytes_total", &["source=\"origin\""]);
        let size = image.layers[1].blob.size;
        assert!(
            resumed <= (size - (2 << 20)) as f64,
            "{resumed} of {size} bytes were read again after it was {ending:?}"
        );
        let pulled = Pulled::new(lab, &node, &image);
        pulled.is_complete().is_one_copy().runs(&["/bin/stat", "/noise/7"]);
        Pulled::new(lab, &node, &small).is_complete().runs(&["/bin/cat", "/etc/lab"]);
    }
}

fn what_was_there_is_resumed(lab: &Lab, containerd: Programs) {
    let image = large(lab, "large/resumed:v1");
    let name = lab.name(&image.name);
    let mut node = slow_node(lab, &containerd);
    // Flotilla's own pull: while there is no daemon, containerd would fetch by itself.
    let mut pull = node.daemon().unwrap().command(&["pull", &name]);
    let mut pulling = pull.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    some_pieces_are_here(lab, &node, &image);
    node.flotilla().kill().unwrap();
    assert!(!pulling.wait().unwrap().success(), "the pull was over before the daemon was killed");
    node.flotilla().start_again().unwrap();

    let said = output(node.daemon().unwrap().command(&["pull", "--json", &name])).unwrap();
    let large = &image.layers[1].blob;
    let lines = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.into_iter().find(|line| line["digest"] == large.digest.as_str()).unwrap();
    let bytes = |source: &str| line[source].as_u64().unwrap();
    assert!(bytes("bytes_local") > 0, "nothing was resumed: {line}");
    assert_eq!(bytes("bytes_local") + bytes("bytes_origin"), large.size, "{line}");
}

fn containerd_starts_without_flotilla(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let name = lab.name("demo/small:v1");
    let mut node = lab.node(&containerd).alone().start().unwrap();
    // The lab starts Flotilla first.
    eventually("Flotilla to meet containerd", || {
        let log = log(&node);
        log.contains("containerd does not answer yet") && log.contains("containerd answers")
    });
    eventually("readiness", || node.daemon().unwrap().get("/readyz").unwrap() == "ready\n");
    node.pull(&name).unwrap();
    Pulled::new(lab, &node, &image).runs(&["/bin/cat", "/etc/lab"]);
    node.flotilla().stop().unwrap();
    node.containerd.stop().unwrap();
    node.containerd.start_again().unwrap();
    node.cri.images().unwrap();
    start_flotilla(&mut node);
    // CRI has looked for its images while their snapshots were out of reach, and looks again when asked to pull.
    node.pull(&name).unwrap();
    node.pull(&lab.name("lab/pause:1")).unwrap();
    Pulled::new(lab, &node, &image).left_the_registry_once().is_complete().is_one_copy();
    Pulled::new(lab, &node, &image).runs(&["/bin/cat", "/etc/lab"]);
}
