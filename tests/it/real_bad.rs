//! What is wrong with disks, images and neighbours: one clear line, nothing lost, and containerd's own pull still
//! works.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        image::{Blob, Compression, Layer, Published},
        node::Node,
        process::output,
        registry::Registry,
        samples,
        story::on_every_containerd,
    },
    real_image::{Pulled, eventually, layers_counted, log, start_flotilla, stored_path},
};

on_every_containerd!(
    layers_that_are_not_ours_are_declined,
    layers_that_containerd_cannot_read_either_are_declined,
    an_image_of_schema_1_is_left_to_containerd,
    a_config_beyond_all_measure_is_declined,
    an_image_that_lies_fails_as_without_us,
    a_disk_of_its_own_is_copied_to_and_that_is_said,
    a_full_store_leaves_the_pull_to_containerd,
    a_store_that_turns_read_only_leaves_the_pull_to_containerd,
    removing_an_image_frees_a_full_disk,
    a_full_disk_fails_the_pull_and_nothing_else,
    a_place_that_is_taken_is_named,
);

/// An image whose middle layer has another media type than ours.
fn with_media_type(lab: &Lab, name: &str, media_type: &str) -> Published {
    let images = lab.images();
    let mut odd = samples::noise(images, 300_000, 41).unwrap();
    odd.blob = Blob { media_type: media_type.to_owned(), ..odd.blob };
    let above = samples::noise(images, 300_000, 42).unwrap();
    let layers: [Layer; 3] = [samples::busybox(images, Compression::Gzip).unwrap(), odd, above];
    images.publish(name, &layers, &["/bin/ls", "/noise"]).unwrap()
}

fn layers_that_are_not_ours_are_declined(lab: &Lab, containerd: Programs) {
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let image = with_media_type(lab, "odd/foreign:v1", foreign);
    let node = lab.node(&containerd).alone().start().unwrap();
    node.pull(&lab.name("odd/foreign:v1")).unwrap();
    let metrics = node.daemon().unwrap().metrics().unwrap();
    let foreign = metrics.sum("flotilla_layers_total", &["outcome=\"declined\"", "reason=\"foreign\""]);
    assert_eq!(foreign, 1.0, "{}", metrics.page());
    let reads = lab.registry().blob_reads("odd/foreign");
    for (index, by) in ["flotilla/", "containerd/", "flotilla/"].into_iter().enumerate() {
        let layer = &image.layers[index].blob;
        let of_it: Vec<_> = reads.iter().filter(|read| read.uri.contains(&layer.digest)).collect();
        assert!(of_it.iter().all(|read| read.user_agent.starts_with(by)), "layer {index}: {of_it:?}");
        assert_eq!(of_it.iter().map(|read| read.body_bytes).sum::<u64>(), layer.size, "layer {index}");
    }
    let ls = Pulled::new(lab, &node, &image).is_complete().runs(&["/bin/ls", "/noise"]);
    assert_eq!(ls.lines().count(), 2);
}

/// Schema 1 has no list of diff IDs, so there is nothing to fold: 1.6 and 1.7 fetch and convert it, 2.x refuse it.
fn an_image_of_schema_1_is_left_to_containerd(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "odd/new:v1").unwrap();
    let root = lab.dir().join("old-blobs").display().to_string();
    let registry = Registry::start_old(&root, lab.dir().join("old-registry")).unwrap();
    lab.trust_plain_http(registry.host()).unwrap();
    let name = registry.name("odd/old:v1");
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--format", "v2s1"]);
    skopeo.args([format!("docker://{}", lab.name("odd/new:v1")), format!("docker://{name}")]);
    output(skopeo).unwrap();

    let without = lab.node(&containerd).stock().start().unwrap().pull(&name);
    let node = lab.node(&containerd).alone().start().unwrap();
    match node.pull(&name) {
        Ok(_) => {
            without.unwrap();
            let ran = node.run(&name, &["/bin/cat", "/etc/lab"]).unwrap();
            assert_eq!((ran.exit_code, ran.output.as_str()), (0, "a small image\n"));
            let metrics = node.daemon().unwrap().metrics().unwrap();
            let left = metrics.sum("flotilla_layers_total", &["outcome=\"declined\"", "reason=\"no_image\""]);
            assert_eq!(left, image.layers.len() as f64, "{}", metrics.page());
        }
        Err(error) => {
            let refused = |error: String| error.contains("schema 1 image manifests are no longer supported");
            assert!(refused(without.unwrap_err().to_string()) && refused(error.to_string()), "{error}");
        }
    }
    let requests = registry.requests();
    assert!(requests.iter().all(|request| !request.user_agent.starts_with("flotilla/")), "{requests:?}");
}

/// Of such a layer not a byte is asked for; of the others all that is missing.
fn layers_that_containerd_cannot_read_either_are_declined(lab: &Lab, containerd: Programs) {
    let node = lab.node(&containerd).alone().start().unwrap();
    for (name, media_type, reason) in [
        ("odd/encrypted:v1", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
        ("odd/brotli:v1", "application/vnd.oci.image.layer.v1.tar+brotli", "media_type"),
    ] {
        let image = with_media_type(lab, name, media_type);
        node.pull(&lab.name(name)).unwrap_err();
        let log = log(&node);
        let digest = &image.layers[1].blob.digest;
        let words = [digest.as_str(), "outcome=\"declined\"", &format!("reason=\"{reason}\"")];
        let is_said = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(is_said, "{name}:\n{log}");
        let reads = lab.registry().requests();
        let ours =
            reads.iter().filter(|read| read.uri.contains(digest) && read.user_agent.starts_with("flotilla/"));
        assert_eq!(ours.count(), 0, "{name}");
    }
}

/// Nobody reads nine megabytes of history to find a layer; containerd does by itself.
fn a_config_beyond_all_measure_is_declined(lab: &Lab, containerd: Programs) {
    let images = lab.images();
    let small = samples::small(images, "demo/small:v1").unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(images.path(&small.config.digest)).unwrap()).unwrap();
    config["history"] = json!([{ "created_by": "x".repeat(9 << 20) }]);
    let config = images.blob(&small.config.media_type, config.to_string().as_bytes()).unwrap();
    let layers: Vec<_> = small.layers.iter().map(|layer| layer.blob.descriptor()).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": small.manifest.media_type,
        "config": config.descriptor(),
        "layers": layers,
    });
    let blobs = small.layers.iter().map(|layer| &layer.blob).chain([&config]);
    let digests: Vec<&str> = blobs.map(|blob| blob.digest.as_str()).collect();
    let manifest = images.publish_manifest("odd/history:v1", &manifest, &digests).unwrap();
    let image = Published { name: "odd/history:v1".to_owned(), manifest, config, ..small };
    let node = lab.node(&containerd).alone().start().unwrap();
    node.pull(&lab.name(&image.name)).unwrap();
    let log = log(&node);
    let line =
        log.lines().find(|line| line.contains("outcome=\"declined\"")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains(&image.config.digest) && line.contains("8388608"), "{line}");
    let pulled = Pulled::new(lab, &node, &image);
    pulled.containerd_fetched_all().is_complete().is_one_copy().runs(&["/bin/cat", "/etc/lab"]);
}

fn an_image_that_lies_fails_as_without_us(lab: &Lab, containerd: Programs) {
    let good = samples::small(lab.images(), "demo/small:v1").unwrap();
    let liars = liars(lab);
    let ours = lab.node(&containerd).alone().start().unwrap();
    let stock = lab.node(&containerd).stock().start().unwrap();
    for Liar { name, digest, reason } in liars {
        let name = lab.name(name);
        let (here, there) = (ours.pull(&name), stock.pull(&name));
        assert_eq!(here.is_ok(), there.is_ok(), "{name}: with us {here:?}, without {there:?}");
        assert!(here.is_err(), "{name} should not be pulled by anybody");
        let Some(reason) = reason else { continue };
        let log = log(&ours);
        let of_it = |line: &&str| line.contains(&digest) && line.contains("outcome=");
        let said: Vec<&str> = log.lines().filter(of_it).collect();
        let reason = format!("reason=\"{reason}\"");
        assert!(said.iter().any(|line| line.contains(&reason)), "{name}: no {reason} in {said:?}\n{log}");
    }
    ours.pull(&lab.name("demo/small:v1")).unwrap();
    Pulled::new(lab, &ours, &good).is_complete().is_one_copy().runs(&["/bin/cat", "/etc/lab"]);
}

/// An image of which something is not as it is said.
struct Liar {
    name: &'static str,
    /// Of the layer that is not.
    digest: String,
    /// What the log says of that layer; nothing where containerd asks no snapshotter for it.
    reason: Option<&'static str>,
}

fn liars(lab: &Lab) -> Vec<Liar> {
    let images = lab.images();
    let busybox = samples::busybox(images, Compression::Gzip).unwrap();
    let publish = |name: &'static str, layer: &Layer, reason: &'static str| {
        images.publish(name, &[busybox.clone(), layer.clone()], &["/bin/sh"]).unwrap();
        Liar { name, digest: layer.blob.digest.clone(), reason: Some(reason) }
    };
    let mut longer = samples::noise(images, 100_000, 51).unwrap();
    longer.blob.size += 1000;
    let mut shorter = samples::noise(images, 100_000, 52).unwrap();
    shorter.blob.size -= 1000;
    let mut other_diff = samples::noise(images, 100_000, 53).unwrap();
    other_diff.diff_id = busybox.diff_id.clone();
    let absent = samples::noise(images, 100_000, 54).unwrap();
    fs::remove_file(images.path(&absent.blob.digest)).unwrap();
    let rotten = samples::noise(images, 2 << 20, 55).unwrap();
    let mut bytes = fs::read(images.path(&rotten.blob.digest)).unwrap();
    bytes[1 << 20] ^= 1;
    fs::write(images.path(&rotten.blob.digest), bytes).unwrap();
    vec![
        publish("liar/longer:v1", &longer, "no_origin"),
        publish("liar/shorter:v1", &shorter, "no_origin"),
        publish("liar/other-diff:v1", &other_diff, "diff_id"),
        publish("liar/absent:v1", &absent, "no_origin"),
        publish("liar/rotten:v1", &rotten, "wrong_digest"),
        Liar { name: fewer_diffs(lab, &busybox), digest: String::new(), reason: None },
    ]
}

/// An image whose config knows of fewer layers than its manifest.
fn fewer_diffs(lab: &Lab, busybox: &Layer) -> &'static str {
    let images = lab.images();
    let second = samples::noise(images, 100_000, 56).unwrap();
    let honest = images.publish("liar/fewer:v0", std::slice::from_ref(busybox), &["/bin/sh"]).unwrap();
    let layers = [busybox.blob.descriptor(), second.blob.descriptor()];
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": honest.config.descriptor(),
        "layers": layers,
    });
    let blobs = [&honest.config.digest, &busybox.blob.digest, &second.blob.digest];
    images.publish_manifest("liar/fewer:v1", &manifest, &blobs.map(String::as_str)).unwrap();
    "liar/fewer:v1"
}

/// A small file system of its own at `place`; goes with the lab.
fn small_disk(place: &Path, mib: u32) {
    fs::create_dir_all(place).unwrap();
    let size = format!("size={mib}m");
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", &size, "lab"]).arg(place).status().unwrap();
    assert!(mounted.success());
}

fn a_full_store_leaves_the_pull_to_containerd(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    small_disk(&lab.dir().join("n1/flotilla/data"), 2);
    let node = lab.node(&containerd).alone().start().unwrap();
    node.pull(&lab.name("demo/small:v1")).unwrap();
    assert!(layers_counted(&node, "declined") > 0.0);
    let log = log(&node);
    assert!(log.contains("outcome=\"declined\"") && log.contains("reason=\"no_space\""), "{log}");
    Pulled::new(lab, &node, &image).is_complete().runs(&["/bin/cat", "/etc/lab"]);
}

/// As a kernel makes a disk with errors: from one moment to the next.
fn a_store_that_turns_read_only_leaves_the_pull_to_containerd(lab: &Lab, containerd: Programs) {
    let before = samples::large_layer(lab.images(), "large/before:v1", 300_000).unwrap();
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let node = lab.node(&containerd).alone().start().unwrap();
    node.pull(&lab.name(&before.name)).unwrap();
    for folder in ["arriving", "staging"] {
        let place = lab.dir().join("n1/flotilla/data").join(folder);
        let over =
            Command::new("mount").args(["-t", "tmpfs", "-o", "ro", "lab"]).arg(place).status().unwrap();
        assert!(over.success());
    }
    node.pull(&lab.name(&image.name)).unwrap();
    let log = log(&node);
    // The lowest layer is there, and of those above containerd fetches all once it must fetch one.
    let of_first = |line: &&str| line.contains(&image.layers[1].blob.digest) && line.contains("outcome=");
    let line = log.lines().find(of_first).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("outcome=\"declined\"") && line.contains("reason=\"store\""), "{line}");
    assert!(log.contains("Read-only file system"), "{log}");
    Pulled::new(lab, &node, &image).is_complete().runs(&["/bin/cat", "/etc/lab"]);
    Pulled::new(lab, &node, &before).is_complete().runs(&["/bin/stat", "/noise/7"]);
}

/// A disk on which the entries of directories have no type, or, where none can be made, any other one.
fn plain_disk(place: &Path) {
    let image = place.with_extension("image");
    fs::create_dir_all(place).unwrap();
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-O", "^filetype,^has_journal"]).arg(&image).status();
    let mounted = made.is_ok_and(|made| made.success())
        && Command::new("mount").args(["-o", "loop"]).arg(&image).arg(place).status().unwrap().success();
    if !mounted {
        eprintln!("no file system without d_type can be made here; one in memory takes its place");
        small_disk(place, 64);
    }
}

fn a_disk_of_its_own_is_copied_to_and_that_is_said(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    plain_disk(&lab.dir().join("n1/flotilla/data"));
    let mut node = lab.node(&containerd).alone().setting("store", "keep_free", "\"1MiB\"").start().unwrap();
    node.pull(&lab.name(&image.name)).unwrap();
    let pulled = Pulled::new(lab, &node, &image);
    pulled.left_the_registry_once().is_complete().runs(&["/bin/cat", "/etc/lab"]);
    let links = |path: &Path| fs::metadata(path).unwrap().nlink();
    for layer in &image.layers {
        let digest = &layer.blob.digest;
        let [ours, theirs] = [stored_path(lab, &node, digest), node.content_path(digest)];
        assert_eq!((links(&ours), links(&theirs)), (1, 1), "two copies of {digest}");
        assert!(fs::read(ours).unwrap() == fs::read(theirs).unwrap());
    }
    let log = log(&node);
    let said: Vec<&str> = log.lines().filter(|line| line.contains("node.data_dir")).collect();
    assert!(
        matches!(said[..], [line] if line.contains("twice") && line.contains("put node.data_dir on")),
        "{said:?}"
    );
    // What is there is there after a restart, too.
    node.flotilla().stop().unwrap();
    start_flotilla(&mut node);
    node.cri.remove(&lab.name(&image.name)).unwrap();
    node.pull(&lab.name(&image.name)).unwrap();
    Pulled::new(lab, &node, &image).left_the_registry_once().is_complete();
}

/// Bytes free on the file system of a path.
fn free(place: &Path) -> u64 {
    let space = rustix::fs::statvfs(place).unwrap();
    space.f_bavail * space.f_frsize
}

fn removing_an_image_frees_a_full_disk(lab: &Lab, containerd: Programs) {
    let image = samples::large_layer(lab.images(), "large/full:v1", 20 << 20).unwrap();
    let disk = lab.dir().join("n1");
    small_disk(&disk, 200);
    let plan = lab.node(&containerd).alone().setting("store", "quota", "\"100MiB\"");
    let node = plan.setting("store", "keep_free", "\"50%\"").start().unwrap();
    node.pull(&lab.name("large/full:v1")).unwrap();
    let pulled = Pulled::new(lab, &node, &image);
    pulled.left_the_registry_once().is_complete().runs(&["/bin/stat", "/noise/7"]);
    let ballast = free(&disk) - (2 << 20);
    fs::write(disk.join("ballast"), vec![1; usize::try_from(ballast).unwrap()]).unwrap();
    let full = free(&disk);
    node.cri.remove(&lab.name("large/full:v1")).unwrap();
    // The tree and the one copy of the blob.
    eventually("the disk to have room again", || {
        node.containerd.collect_garbage().unwrap();
        free(&disk) >= full + (40 << 20)
    });
    let ours = stored_path(lab, &node, &image.layers[1].blob.digest);
    eventually("our link to the blob to go", || !ours.exists());
}

fn a_full_disk_fails_the_pull_and_nothing_else(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    samples::large_layer(lab.images(), "large/full:v1", 20 << 20).unwrap();
    let trees = lab.dir().join("n1/containerd/root/io.containerd.snapshotter.v1.flotilla");
    small_disk(&trees, 20);
    let node = lab.node(&containerd).alone().start().unwrap();
    node.pull(&lab.name("demo/small:v1")).unwrap();
    let refused = node.pull(&lab.name("large/full:v1")).unwrap_err().to_string();
    assert!(refused.contains("no space left on device"), "{refused}");
    let log = log(&node);
    assert!(log.contains("layer tree refused") && log.contains("No space left on device"), "{log}");
    let staging = trees.join("staging");
    eventually("the half-built tree to go", || fs::read_dir(&staging).unwrap().count() == 0);
    // What was half made goes although nothing can be written, and the node works again.
    eventually("room for a sandbox", || {
        node.containerd.collect_garbage().unwrap();
        node.run(&lab.name("demo/small:v1"), &["/bin/cat", "/etc/lab"]).is_ok()
    });
    Pulled::new(lab, &node, &image).is_complete().runs(&["/bin/cat", "/etc/lab"]);
}

fn a_place_that_is_taken_is_named(lab: &Lab, containerd: Programs) {
    let node = lab.node(&containerd).alone().start().unwrap();
    let refused = |settings: &[(&str, &str, &Path)]| second_daemon(lab, &node, settings);
    let other = |name: &str| lab.dir().join("other").join(name);
    let (data, run, trees) = (other("data"), other("run"), other("trees"));
    let said = refused(&[("node", "run_dir", &run), ("containerd", "snapshot_root", &trees)]);
    assert!(said.contains("in use by another daemon") && said.contains("n1/flotilla/data"), "{said}");
    let said = refused(&[("node", "run_dir", &run), ("node", "data_dir", &data)]);
    assert!(said.contains("in use by another daemon") && said.contains("snapshotter.v1.flotilla"), "{said}");
    let said = refused(&[("node", "data_dir", &data), ("containerd", "snapshot_root", &trees)]);
    assert!(said.contains("something else listens on") && said.contains("snapshots.sock"), "{said}");
    let read_only = other("read-only");
    small_disk(&read_only, 1);
    let remount = ["-o", "remount,ro"];
    assert!(Command::new("mount").args(remount).arg(&read_only).status().unwrap().success());
    let own = [("node", "run_dir", &*run), ("containerd", "snapshot_root", &*trees)];
    let said = refused(&[own[0], own[1], ("node", "data_dir", &read_only)]);
    assert!(said.contains("read-only") && said.contains("data_dir"), "{said}");
    // The first one has not noticed anything.
    samples::small(lab.images(), "demo/small:v1").unwrap();
    node.pull(&lab.name("demo/small:v1")).unwrap();
    assert_eq!(layers_counted(&node, "intercepted"), 3.0);
}

/// What a daemon says that is started with the node's settings but for these, and refuses.
fn second_daemon(lab: &Lab, node: &Node, changes: &[(&str, &str, &Path)]) -> String {
    let mut settings = node.settings.clone();
    for (section, key, path) in changes {
        settings.path(section, key, path);
    }
    let config = lab.dir().join("second.toml");
    fs::write(&config, settings.to_toml()).unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_flotilla"));
    let ended = serve.args(["serve", "--config"]).arg(&config).output().unwrap();
    assert!(!ended.status.success());
    let said = [ended.stdout, ended.stderr].concat();
    String::from_utf8(said).unwrap()
}
