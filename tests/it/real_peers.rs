//! Members that lie, rot, die and stall: each costs time, none a pull.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use flotilla::{
    mesh::{Member, Role, hrw_rank},
    oci::{Algorithm, Digest},
    piece::PieceLayout,
};

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        image::{Compression, Published},
        node::Node,
        process::{PATIENCE, output},
        samples,
        story::tell,
    },
    real_image::{rots, stored_path},
    real_mesh::{bytes_from, crowd_image, layer_bytes, layers_sent, meet, metric, pull_at_once, with_a_liar},
};

#[test]
fn a_liar_is_named_and_nothing_wrong_is_kept() {
    tell("1.6", a_liar);
}

#[test]
fn what_has_rotted_is_fetched_from_the_others_for_its_own_containerd() {
    tell("1.6", rot_at_home);
}

#[test]
fn what_rots_on_a_seed_never_leaves_it() {
    tell("1.6", rot);
}

#[test]
fn a_crowd_goes_on_when_its_tracker_is_killed() {
    tell("1.6", |lab, containerd| {
        without_its_tracker(lab, &containerd, |third| third.flotilla().kill().unwrap(), |_| ());
    });
}

#[test]
fn a_crowd_goes_on_when_its_tracker_stops_answering() {
    tell("1.6", |lab, containerd| {
        let signal = |node: &mut Node, signal| node.flotilla().process().unwrap().signal(signal).unwrap();
        without_its_tracker(lab, &containerd, |third| signal(third, "STOP"), |third| signal(third, "CONT"));
    });
}

/// Whether a file holds the bytes of its digest.
fn is_true(path: &Path, digest: &str) -> bool {
    Digest::of(Algorithm::Sha256, &fs::read(path).unwrap()).to_string() == digest
}

fn preheat(node: &Node, name: &str) {
    output(node.daemon().unwrap().command(&["pull", name])).unwrap();
}

/// containerd has the image, Flotilla has its layers, and all of it is what the digests say.
pub(crate) fn assert_true(lab: &Lab, node: &Node, name: &str, image: &Published) {
    assert!(node.is_complete(name).unwrap(), "{}", node.name);
    for layer in &image.layers {
        let digest = &layer.blob.digest;
        for path in [node.content_path(digest), stored_path(lab, node, digest)] {
            assert!(is_true(&path, digest), "{}: {}", node.name, path.display());
        }
    }
}

fn a_liar(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/lied:v1");
    let name = lab.name("demo/lied:v1");
    let (mut nodes, _liar) = with_a_liar(lab, &containerd);
    preheat(&nodes[1], &name);

    let whole = layer_bytes(&image);
    nodes[0].pull(&name).unwrap();
    let line = nodes[0].flotilla().process().unwrap().wait_for("refused a piece").unwrap();
    assert!(line.contains("peer=n2") && line.contains("piece="), "{line}");
    assert!(metric(&nodes[0], "flotilla_pieces_refused_total", &["peer=\"n2\""]) > 0);
    assert_eq!((bytes_from(&nodes[0], "peer"), bytes_from(&nodes[0], "origin")), (0, whole));
    assert_eq!(layers_sent(&lab.registry(), &image).1, 0, "containerd fetched a layer");
    assert_true(lab, &nodes[0], &name, &image);
}

fn rot_at_home(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/rotten:v1");
    let name = lab.name("demo/rotten:v1");
    let mut nodes = lab.crowd(&containerd, 2).unwrap();
    meet(&mut nodes);
    nodes.iter().for_each(|node| preheat(node, &name));
    for layer in &image.layers[1..] {
        rots(&stored_path(lab, &nodes[0], &layer.blob.digest), layer.blob.size / 2);
    }
    nodes[0].pull(&name).unwrap();
    assert_true(lab, &nodes[0], &name, &image);
    // Once, when the first was preheated.
    assert_eq!(layers_sent(&lab.registry(), &image), (layer_bytes(&image), 0));
}

fn rot(lab: &Lab, containerd: Programs) {
    let image = crowd_image(lab.images(), "demo/rotten:v1");
    let name = lab.name("demo/rotten:v1");
    let mut nodes = lab.crowd(&containerd, 2).unwrap();
    meet(&mut nodes);
    preheat(&nodes[0], &name);
    // Before its containerd has it: the file is ours alone.
    let digest = image.layers[3].blob.digest.clone();
    let rotting = stored_path(lab, &nodes[0], &digest);
    let place = (1 << 20) + 12_345;
    let piece = place / PieceLayout::of(image.layers[3].blob.size).piece_len();
    rots(&rotting, place);

    nodes[1].pull(&name).unwrap();
    let said = format!("piece {piece} of {digest} has rotted on disk");
    nodes[0].flotilla().process().unwrap().wait_for(&said).unwrap();
    assert_eq!(metric(&nodes[1], "flotilla_pieces_refused_total", &[]), 0, "a rotten piece was sent");
    assert_eq!(layers_sent(&lab.registry(), &image).1, 0, "containerd fetched a layer");
    assert_true(lab, &nodes[1], &name, &image);

    pull_at_once([&nodes[0]], &name);
    assert_true(lab, &nodes[0], &name, &image);
    assert_eq!(layers_sent(&lab.registry(), &image).1, 0, "containerd fetched a layer");
}

/// Three nodes pull; the third, which tracks the largest layer, is taken away in the middle and given back.
fn without_its_tracker(
    lab: &Lab,
    containerd: &Programs,
    take: impl Fn(&mut Node),
    give_back: impl Fn(&mut Node),
) {
    let image = tracked_by_the_third(lab);
    let name = lab.name(&image.name);
    let mut nodes =
        lab.crowd_of(containerd, 3, |plan| plan.setting("registry", "origin_rate", "\"1MB\"")).unwrap();
    meet(&mut nodes);
    let (third, two) = nodes.split_last_mut().unwrap();
    let two = &*two;
    thread::scope(|scope| {
        let pulling: Vec<_> = two.iter().map(|node| scope.spawn(|| node.pull(&name))).collect();
        let cri = third.cri.clone();
        let (theirs, wanted) = (cri, &name);
        let of_the_third = scope.spawn(move || theirs.pull(wanted));
        for node in two.iter().chain([&*third]) {
            until("a piece has arrived", || bytes_from(node, "origin") + bytes_from(node, "peer") > 0);
        }
        // With the registry stopped nobody can end before the tracker is away.
        lab.registry().process().signal("STOP").unwrap();
        take(third);
        let unfinished = two.iter().all(|node| !node.content_path(&image.layers[1].blob.digest).exists());
        lab.registry().process().signal("CONT").unwrap();
        assert!(unfinished, "the pull was over before its tracker was taken away");
        for pull in pulling {
            pull.join().unwrap().unwrap();
        }
        give_back(third);
        // What a killed daemon's containerd does is its own affair.
        let pulled = of_the_third.join().unwrap();
        assert!(pulled.is_ok() || third.flotilla().process().is_err(), "{pulled:?}");
    });
    for node in two {
        assert_true(lab, node, &name, &image);
        assert_eq!(node.run(&name, &["/bin/ls", "/noise"]).unwrap().exit_code, 0);
    }
}

/// Two layers, the upper of 12 MB, which the mesh's third member tracks.
fn tracked_by_the_third(lab: &Lab) -> Published {
    let member = |name: &str| Member {
        name: name.to_owned(),
        address: String::new(),
        zone: None,
        generation: 0,
        role: Role::Peer,
    };
    let members = ["n1", "n2", "n3"].map(member);
    let tracked = |digest: &str| hrw_rank(&digest.parse().unwrap(), &members)[0].name == "n3";
    let noise = |seed| samples::noise(lab.images(), 12 << 20, seed).unwrap();
    let large = (40..).map(noise).find(|layer| tracked(&layer.blob.digest)).unwrap();
    let layers = [samples::busybox(lab.images(), Compression::Gzip).unwrap(), large];
    lab.images().publish("demo/tracked:v1", &layers, &["/bin/ls", "/noise"]).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "metrics announce nothing: they are read until they say so")]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
