//! containerd with our mirror in its hosts.toml: what outlasts its budget is fetched from the mirror while it arrives, and
//! no ref of containerd's is held.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    lab::{Lab, containerd::Programs, node::Node, registry, samples, story::on_every_containerd},
    real_handover::{OTHERS_MAX, TRIES, stack},
    real_image::{Pulled, Pulling, chain_ids, eventually, layers_counted, log, start_flotilla},
};

on_every_containerd!(
    a_slow_pull_comes_by_the_mirror,
    others_are_never_slowed_while_a_pull_comes_by_the_mirror,
    a_mirror_that_is_gone_is_passed_over,
);

/// Layers that were handed over to be fetched from the mirror.
fn by_mirror(node: &Node) -> f64 {
    let labels = ["outcome=\"handed_over\"", "reason=\"mirror\""];
    node.daemon().unwrap().metrics().unwrap().sum("flotilla_layers_total", &labels)
}

/// Enters the node's mirror into the hosts.toml that it and its containerd read, and keeps its port for later starts.
fn enter_mirror(lab: &Lab, node: &mut Node) {
    let mirror = node.daemon().unwrap().address_of("mirror").unwrap();
    registry::lead_by_mirror(&lab.hosts_dir(), &lab.host(), &mirror).unwrap();
    node.settings.text("mirror", "listen", &mirror);
}

fn held_nothing(node: &Node) {
    assert!(!log(node).contains("hold is over"), "{}", log(node));
}

fn a_slow_pull_comes_by_the_mirror(lab: &Lab, containerd: Programs) {
    let image = stack(lab, "slow/stack:v1");
    let plan = lab.node(&containerd).alone().setting("registry", "origin_rate", "\"512KiB\"");
    let mut node = plan.setting("containerd", "prepare_budget", "\"1s\"").start().unwrap();
    enter_mirror(lab, &mut node);
    node.pull(&lab.name("slow/stack:v1")).unwrap();
    let (handed, made) = (layers_counted(&node, "handed_over"), layers_counted(&node, "intercepted"));
    assert!(by_mirror(&node) > 0.0, "{}", log(&node));
    assert_eq!(handed + made, image.layers.len() as f64);
    held_nothing(&node);
    Pulled::new(lab, &node, &image).was_brought_by_flotilla();
}

fn others_are_never_slowed_while_a_pull_comes_by_the_mirror(lab: &Lab, containerd: Programs) {
    let image = stack(lab, "slow/stack:v1");
    let small = samples::small(lab.images(), "demo/small:v1").unwrap();
    let name = lab.name(&small.name);
    let mut node = lab.node(&containerd).alone().start().unwrap();
    enter_mirror(lab, &mut node);
    node.pull(&name).unwrap();
    Pulled::new(lab, &node, &small).runs(&["/bin/echo", "the sandbox image is here"]);
    node.flotilla().stop().unwrap();
    node.settings.set("registry", "origin_rate", "\"48KiB\"").text("containerd", "prepare_budget", "1s");
    let settings = node.settings.clone();
    node.flotilla().configure(&settings).unwrap();
    start_flotilla(&mut node);
    let mut pulling = Pulling::start(&node, &lab.name("slow/stack:v1"));
    eventually("a layer to be handed over", || by_mirror(&node) > 0.0);

    let parent = chain_ids(&small).pop().unwrap();
    let ctr = |arguments: &[&str]| drop(node.containerd.ctr(arguments).unwrap());
    let mut took: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut measure = |what, work: &dyn Fn()| {
        let began = Instant::now();
        work();
        took.entry(what).or_default().push(began.elapsed());
    };
    for number in 0..TRIES {
        let key = format!("{}-{number}", lab.short_name());
        let run = ["run", "--rm", "--snapshotter", "flotilla", &name, &key, "/bin/echo", "it runs"];
        measure("prepare", &|| ctr(&["snapshots", "--snapshotter", "flotilla", "prepare", &key, &parent]));
        measure("remove", &|| ctr(&["snapshots", "--snapshotter", "flotilla", "rm", &key]));
        measure("container", &|| ctr(&run));
    }
    assert!(!pulling.is_over(), "the pull went on all the while");
    for (what, mut times) in took {
        times.sort();
        eprintln!("{} while a pull comes by the mirror: {what} {times:.2?}", containerd.version);
        // A machine that is busy with something else delays single tries; held refs, below, would delay them for seconds.
        assert!(times[TRIES / 2] < OTHERS_MAX, "{what}: {times:?}");
    }
    pulling.end().unwrap();
    held_nothing(&node);
    Pulled::new(lab, &node, &image).was_brought_by_flotilla();
}

fn a_mirror_that_is_gone_is_passed_over(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let node = lab.node(&containerd).alone().start().unwrap();
    // Nobody listens on port 1.
    registry::lead_by_mirror(&lab.hosts_dir(), &lab.host(), "127.0.0.1:1").unwrap();
    node.pull(&lab.name("demo/small:v1")).unwrap();
    Pulled::new(lab, &node, &image).is_complete().is_one_copy().runs(&["/bin/cat", "/etc/lab"]);
}
