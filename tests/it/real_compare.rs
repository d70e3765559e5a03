//! One image pulled by a containerd as it is and by one with Flotilla: a container sees the same of every inode.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use flotilla::oci::{Digest, chain_ids};
use serde_json::{Value, json};

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        image::{Blob, Compression, Layer, Published},
        node::Node,
        process::output,
        samples,
        story::on_every_containerd,
    },
    real_layers::{containerd_was_left_nothing, nobody_else_fetched},
    tree::{Facts, differences, facts},
    unpack_layers::{everything, top, upper},
};

on_every_containerd!(containers_see_the_same);

fn containers_see_the_same(lab: &Lab, containerd: Programs) {
    let images = images(lab);
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let ours = lab.node(&containerd).alone().start().unwrap();
    // Flotilla first: afterwards the registry's log has the other one's requests, too.
    for image in &images {
        ours.pull(&lab.name(&image.name)).unwrap();
        for layer in &image.layers {
            nobody_else_fetched(lab, &layer.blob.digest);
        }
    }
    containerd_was_left_nothing(ours.daemon().unwrap());
    let theirs = lab.node(&containerd).stock().start().unwrap();
    for image in &images {
        let name = lab.name(&image.name);
        theirs.pull(&name).unwrap();
        let (here, there) = (seen(lab, &ours, "flotilla", image), seen(lab, &theirs, "overlayfs", image));
        let unstamped = stamped_since(&there, i64::try_from(began).unwrap());
        let differing = differences(&here, &there, &unstamped);
        assert!(differing.is_empty(), "{name}:\n{}", differing.join("\n"));
        assert!(there.len() > 10, "{name} has only {} names", there.len());
        assert_eq!(usages(&ours, "flotilla", image), usages(&theirs, "overlayfs", image), "{name}");
    }
    for (verb, layers) in [("view", 1), ("view", 3), ("prepare", 1), ("prepare", 3)] {
        let asked = |node: &Node, snapshotter| shape(node, snapshotter, verb, &images[0], layers);
        assert_eq!(asked(&ours, "flotilla"), asked(&theirs, "overlayfs"), "{verb} on {layers}");
    }
}

/// Bytes and inodes of each layer, as the snapshotter counts them. Of files with holes containerd writes the holes out,
/// so that there only the inodes are the same.
fn usages(node: &Node, snapshotter: &str, image: &Published) -> Vec<String> {
    let with_holes = image.name.contains("torture");
    let usage = |chain_id: String| {
        let usage = ["snapshots", "--snapshotter", snapshotter, "usage", "-b", &chain_id];
        let said = node.containerd.ctr(&usage).unwrap();
        let words: Vec<&str> = said.lines().last().unwrap().split_whitespace().collect();
        assert_eq!((words[0], words.len()), (chain_id.as_str(), 3), "{said}");
        words[if with_holes { 2 } else { 1 }..].join(" ")
    };
    stack(image).into_iter().map(usage).collect()
}

/// The mounts of a snapshot on the lowest `layers` of the image, with the snapshots numbered as they are met.
fn shape(
    node: &Node,
    snapshotter: &str,
    verb: &str,
    image: &Published,
    layers: usize,
) -> (String, BTreeSet<String>) {
    let key = format!("{verb}-{layers}");
    let parent = &stack(image)[layers - 1];
    let ask = ["snapshots", "--snapshotter", snapshotter, verb, "--mounts", &key, parent];
    let mounts: Value = serde_json::from_str(&node.containerd.ctr(&ask).unwrap()).unwrap();
    assert_eq!(mounts.as_array().unwrap().len(), 1, "{mounts}");
    let mut met = Vec::new();
    let mut numbered = |text: &str| -> String {
        let mut parts = text.split("/snapshots/");
        // The snapshotter's own folder does not count.
        let first = parts.next().unwrap().split(['=', '/']).next().unwrap();
        parts.fold(first.to_owned(), |text, part| {
            let (id, rest) = part.split_once('/').unwrap();
            let number = met.iter().position(|known| known == id).unwrap_or_else(|| {
                met.push(id.to_owned());
                met.len() - 1
            });
            let place = rest.split(':').next().unwrap();
            format!("{text} {number}/{place}")
        })
    };
    let source = numbered(mounts[0]["Source"].as_str().unwrap());
    let options = mounts[0]["Options"].as_array().unwrap().iter().map(|option| option.as_str().unwrap());
    // 1.6 and 1.7 write them in another order.
    let mut options: Vec<&str> = options.collect();
    options.sort_by_key(|option| !option.starts_with("upperdir="));
    let kind = mounts[0]["Type"].as_str().unwrap();
    (format!("{kind} {source}"), options.into_iter().map(numbered).collect())
}

/// Chain IDs, the lowest first.
fn stack(image: &Published) -> Vec<String> {
    let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id.parse().unwrap()).collect();
    chain_ids(&diff_ids).iter().map(ToString::to_string).collect()
}

fn images(lab: &Lab) -> Vec<Published> {
    let images = lab.images();
    let [a, b] = samples::sharing(images, "same/sharing").unwrap();
    vec![
        samples::small(images, "same/small:v1").unwrap(),
        a,
        b,
        samples::compressed(images, "same/zstd:v1", Compression::Zstd).unwrap(),
        samples::compressed(images, "same/plain:v1", Compression::Plain).unwrap(),
        samples::empty_layer(images, "same/empty:v1").unwrap(),
        docker(lab),
        torture(lab),
    ]
}

/// Docker's media types, schema 2.
fn docker(lab: &Lab) -> Published {
    let images = lab.images();
    let small = samples::small(images, "same/small:v1").unwrap();
    let of_docker = |blob: &Blob, kind: &str| {
        let media_type = format!("application/vnd.docker.{kind}");
        Blob { media_type, ..blob.clone() }
    };
    let layer =
        |layer: &Layer| Layer { blob: of_docker(&layer.blob, "image.rootfs.diff.tar.gzip"), ..layer.clone() };
    let layers: Vec<Layer> = small.layers.iter().map(layer).collect();
    let config = of_docker(&small.config, "container.image.v1+json");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": config.descriptor(),
        "layers": layers.iter().map(|layer| layer.blob.descriptor()).collect::<Vec<_>>(),
    });
    let blobs = layers.iter().map(|layer| &layer.blob).chain([&config]);
    let digests: Vec<&str> = blobs.map(|blob| blob.digest.as_str()).collect();
    let name = "same/docker:v1".to_owned();
    let manifest = images.publish_manifest(&name, &manifest, &digests).unwrap();
    Published { name, manifest, config, layers }
}

/// All that a tar can say, in three layers.
pub(crate) fn torture(lab: &Lab) -> Published {
    let images = lab.images();
    let layers: Vec<Layer> = [everything(), upper(), top()]
        .iter()
        .map(|layer| {
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            let blob = images.blob(media_type, &layer.blob).unwrap();
            Layer { blob, diff_id: layer.diff_id.to_string() }
        })
        .collect();
    images.publish("same/torture:v1", &layers, &["/absent"]).unwrap()
}

/// The image's tree, mounted as for a container. Not by `ctr images mount`: 1.6's takes overlayfs whatever it is told.
fn seen(lab: &Lab, node: &Node, snapshotter: &str, image: &Published) -> Vec<Facts> {
    let top = stack(image).pop().unwrap();
    let key = image.name.replace(['/', ':'], "-");
    // Nobody holds the view: it goes with containerd's next collection, the layers that it names stay.
    let view = ["snapshots", "--snapshotter", snapshotter, "view", "--mounts", &key, &top];
    let mounts: Value = serde_json::from_str(&node.containerd.ctr(&view).unwrap()).unwrap();
    let target = lab.dir().join(format!("{}-{key}", node.name));
    fs::create_dir(&target).unwrap();
    mount(&mounts[0], &target);
    let facts = facts(&target);
    let mut umount = Command::new("umount");
    umount.arg(&target);
    output(umount).unwrap();
    facts
}

/// Mounts what containerd says a container's root is.
fn mount(what: &Value, target: &Path) {
    let options = what["Options"].as_array().unwrap();
    let options: Vec<&str> = options.iter().map(|option| option.as_str().unwrap()).collect();
    let mut mount = Command::new("mount");
    mount.args(["-t", what["Type"].as_str().unwrap(), "-o", &options.join(",")]);
    mount.arg(what["Source"].as_str().unwrap()).arg(target);
    output(mount).unwrap();
}

/// The directories with a time of this story's: those that a layer only implies, which containerd stamps with the time
/// of unpacking. What the layers state is older.
fn stamped_since(facts: &[Facts], began: i64) -> BTreeSet<PathBuf> {
    let stamped = facts.iter().filter(|facts| facts.kind == 'd' && facts.modified.0 >= began);
    stamped.map(|facts| facts.path.clone()).collect()
}
