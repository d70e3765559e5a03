//! One image pulled by a containerd as it is and by one with Flotilla: a container sees the same of every inode.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use flotilla::oci::{Digest, chain_ids};
use serde_json::Value;

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        image::{Compression, Layer, Published},
        node::Node,
        process::output,
        samples,
        story::tell,
    },
    real_layers::{containerd_was_left_nothing, nobody_else_fetched},
    tree::{Facts, differences, facts},
    unpack_layers::{everything, top, upper},
};

#[test]
fn trees_are_the_same_on_containerd_1_6() {
    tell("1.6", containers_see_the_same);
}

#[test]
fn trees_are_the_same_on_containerd_2_1() {
    tell("2.1", containers_see_the_same);
}

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
    }
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
        torture(lab),
    ]
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
    let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id.parse().unwrap()).collect();
    let top = chain_ids(&diff_ids).last().unwrap().to_string();
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
