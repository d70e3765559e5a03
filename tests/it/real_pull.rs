//! containerd pulls real images through Flotilla, one node alone.

use std::{fs, os::unix::fs::MetadataExt as _, thread};

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        image::{Compression, Entry, Published},
        node::Node,
        samples,
        story::on_every_containerd,
    },
    real_image::{
        Pulled, cgroup, chain_ids, discard_unpacked_layers, eventually, layers_counted, snapshots, stored,
        stored_path,
    },
};

on_every_containerd!(
    cri_pulls_through_flotilla,
    annotations_change_nothing,
    ctr_pulls_through_flotilla_or_is_adopted,
    ctr_that_fetches_by_itself_is_adopted,
    a_gigabyte_arrives_whole,
    odd_images_arrive_whole,
    pulls_side_by_side_share_what_they_can,
    an_image_in_two_namespaces_is_fetched_once,
    discarded_layers_are_not_written,
    twins_are_as_complete_as_without_us,
);

/// Whether `ctr` of this version asks the snapshotter before it fetches.
fn ctr_asks_first(containerd: &Programs) -> bool {
    containerd.version.starts_with("2.")
}

fn cri_pulls_through_flotilla(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let name = lab.name("demo/small:v1");
    let node = lab.node(&containerd).alone().start().unwrap();
    node.pull(&name).unwrap();
    assert_eq!(layers_counted(&node, "intercepted"), 3.0, "{}", page(&node));
    let pulled = Pulled::new(lab, &node, &image);
    pulled.was_brought_by_flotilla();
    assert_eq!(pulled.runs(&["/bin/cat", "/etc/lab"]), "a small image\n");
    assert_eq!(pulled.runs(&["/bin/stat", "-c", "%h", "/etc/lab.twin"]), "2\n");
    for chain_id in chain_ids(&image) {
        let info = ["snapshots", "--snapshotter", "flotilla", "info", &chain_id];
        let said = node.containerd.ctr(&info).unwrap();
        assert!(said.contains("containerd.io/snapshot.ref") && said.contains("Committed"), "{said}");
    }
    is_labelled(lab, &node, &image);
    exports_and_pushes(lab, &node, &image);
    removing_frees_it(lab, &node, &image);
    // And again at once: what was removed from containerd is put back without the registry.
    node.pull(&name).unwrap();
    pulled.was_brought_by_flotilla();
}

fn page(node: &Node) -> String {
    node.daemon().unwrap().metrics().unwrap().page().to_owned()
}

/// Each blob says which tar it holds and where it came from: pushing and unpacking again live from that.
fn is_labelled(lab: &Lab, node: &Node, image: &Published) {
    let listed = node.containerd.ctr(&["content", "ls"]).unwrap();
    let host = lab.host().split(':').next().unwrap().to_owned();
    for layer in &image.layers {
        let line = listed.lines().find(|line| line.starts_with(&layer.blob.digest)).unwrap();
        let source = format!("containerd.io/distribution.source.{host}=demo/small");
        let tar = format!("containerd.io/uncompressed={}", layer.diff_id);
        assert!(line.contains(&source) && line.contains(&tar), "{line}");
    }
    // What we wrote under is gone again.
    assert_eq!(node.containerd.ctr(&["content", "active"]).unwrap().lines().count(), 1);
}

fn exports_and_pushes(lab: &Lab, node: &Node, image: &Published) {
    let (name, copy) = (lab.name("demo/small:v1"), lab.name("copy/small:v2"));
    let tar = lab.dir().join("export.tar");
    node.containerd.ctr(&["images", "export", &tar.display().to_string(), &name]).unwrap();
    assert!(fs::metadata(&tar).unwrap().len() > image.bytes(), "an export with all layers");
    node.containerd.ctr(&["images", "push", "--plain-http", &copy, &name]).unwrap();
    let links = lab.dir().join("blobs/docker/registry/v2/repositories/copy/small/_layers/sha256");
    for layer in &image.layers {
        let hex = layer.blob.digest.trim_start_matches("sha256:");
        assert!(links.join(hex).exists(), "{hex} was not pushed");
    }
}

fn removing_frees_it(lab: &Lab, node: &Node, image: &Published) {
    node.cri.remove(&lab.name(&image.name)).unwrap();
    let chain_ids = chain_ids(image);
    eventually("containerd to let the image go", || {
        node.containerd.collect_garbage().unwrap();
        let left = snapshots(node, "k8s.io");
        let content = image.layers.iter().any(|layer| node.content_size(&layer.blob.digest).is_some());
        !content && !chain_ids.iter().any(|id| left.contains(id))
    });
    for layer in &image.layers {
        let kept = fs::metadata(stored_path(lab, node, &layer.blob.digest)).unwrap();
        assert_eq!((kept.len(), kept.nlink()), (layer.blob.size, 1), "the store keeps its link");
    }
    let trees =
        lab.dir().join(&node.name).join("containerd/root/io.containerd.snapshotter.v1.flotilla/snapshots");
    eventually("the trees to be deleted", || fs::read_dir(&trees).unwrap().count() == 1);
}

fn annotations_change_nothing(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let node = lab.node(&containerd).alone().with_annotations().start().unwrap();
    node.pull(&lab.name("demo/small:v1")).unwrap();
    assert_eq!(layers_counted(&node, "intercepted"), 3.0, "{}", page(&node));
    Pulled::new(lab, &node, &image).was_brought_by_flotilla();
    let log = fs::read_to_string(node.daemon().unwrap().log()).unwrap();
    assert!(log.contains(&lab.name("demo/small:v1")), "the log names the image as it was asked for:\n{log}");
}

fn ctr_pulls_through_flotilla_or_is_adopted(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let name = lab.name("demo/small:v1");
    let node = lab.node(&containerd).alone().start().unwrap();
    let hosts = lab.hosts_dir().display().to_string();
    let pull = ["images", "pull", "--hosts-dir", &hosts, "--snapshotter", "flotilla", &name];
    node.containerd.ctr(&pull).unwrap();
    let pulled = Pulled::new(lab, &node, &image);
    if ctr_asks_first(&containerd) {
        assert_eq!(layers_counted(&node, "intercepted"), 3.0, "{}", page(&node));
        pulled.was_brought_by_flotilla();
        return;
    }
    was_bypassed(&node, &pulled);
}

/// containerd had the layers before it asked for the first snapshot.
fn was_bypassed(node: &Node, pulled: &Pulled<'_>) {
    assert_eq!(layers_counted(node, "bypassed"), 3.0, "{}", page(node));
    pulled.containerd_fetched_all().is_complete().is_one_copy();
    pulled.runs(&["/bin/cat", "/etc/lab"]);
    eventually("adoption to be counted", || layers_counted(node, "adopted") >= 3.0);
}

/// 1.6 knows no other way, and 1.7 no other by default.
fn ctr_that_fetches_by_itself_is_adopted(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let node = lab.node(&containerd).alone().start().unwrap();
    let (name, hosts) = (lab.name(&image.name), lab.hosts_dir().display().to_string());
    let mut pull = vec!["images", "pull", "--hosts-dir", &hosts, "--snapshotter", "flotilla"];
    if !containerd.version.starts_with("1.6") {
        pull.push("--local");
    }
    pull.push(&name);
    node.containerd.ctr(&pull).unwrap();
    was_bypassed(&node, &Pulled::new(lab, &node, &image));
}

fn odd_images_arrive_whole(lab: &Lab, containerd: Programs) {
    let images = lab.images();
    let many = samples::many_layers(images, "odd/many:v1", 99).unwrap();
    let empty = samples::empty_layer(images, "odd/empty:v1").unwrap();
    let zstd = compressed(lab, "odd/zstd:v1", Compression::Zstd, 31);
    let plain = compressed(lab, "odd/plain:v1", Compression::Plain, 32);
    let twice = same_layer_twice(lab, "odd/twice:v1");
    let node = lab.node(&containerd).alone().start().unwrap();
    let mut layers = 0;
    for image in [&many, &empty, &zstd, &plain, &twice] {
        node.pull(&lab.name(&image.name)).unwrap();
        layers += image.layers.len();
        Pulled::new(lab, &node, image).left_the_registry_once().is_complete().is_one_copy();
    }
    // The lowest layer of three of them is the same, and so are its snapshot and what containerd says of it.
    assert!(layers_counted(&node, "intercepted") >= (layers - 4) as f64, "{}", page(&node));
    assert_eq!(
        layers_counted(&node, "declined") + layers_counted(&node, "handed_over"),
        0.0,
        "{}",
        page(&node)
    );
    let ls = Pulled::new(lab, &node, &many).runs(&["/bin/ls", "/many"]);
    assert_eq!(ls.lines().count(), 99);
    Pulled::new(lab, &node, &empty).runs(&["/bin/stat", "/noise/9"]);
    Pulled::new(lab, &node, &zstd).runs(&["/bin/stat", "/noise/31"]);
    Pulled::new(lab, &node, &plain).runs(&["/bin/stat", "/noise/32"]);
    Pulled::new(lab, &node, &twice).runs(&["/bin/stat", "/noise/21"]);
}

/// Busybox, and a layer in this compression that no other image has in another.
fn compressed(lab: &Lab, name: &str, compression: Compression, seed: u64) -> Published {
    let images = lab.images();
    let path = format!("noise/{seed}");
    let noise = [Entry::Noise { path: &path, len: 2 << 20, seed }];
    let layers =
        [samples::busybox(images, Compression::Gzip).unwrap(), images.entries(compression, &noise).unwrap()];
    images.publish(name, &layers, &["/bin/stat", &path]).unwrap()
}

fn same_layer_twice(lab: &Lab, name: &str) -> Published {
    let images = lab.images();
    let noise = samples::noise(images, 1 << 20, 21).unwrap();
    let layers = [samples::busybox(images, Compression::Gzip).unwrap(), noise.clone(), noise];
    images.publish(name, &layers, &["/bin/stat", "/noise/21"]).unwrap()
}

fn pulls_side_by_side_share_what_they_can(lab: &Lab, containerd: Programs) {
    let [a, b] = samples::sharing(lab.images(), "demo/sharing").unwrap();
    let node = lab.node(&containerd).alone().start().unwrap();
    // Two images with two layers in common, each pulled by two clients at once.
    let names = [&a, &b, &a, &b].map(|image| lab.name(&image.name));
    thread::scope(|scope| {
        let clients = names.map(|name| {
            let cri = &node.cri;
            scope.spawn(move || cri.pull(&name).map_err(|error| error.to_string()))
        });
        for client in clients {
            client.join().unwrap().unwrap();
        }
    });
    for image in [&a, &b] {
        Pulled::new(lab, &node, image).was_brought_by_flotilla();
    }
}

fn an_image_in_two_namespaces_is_fetched_once(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let name = lab.name("demo/small:v1");
    let node = lab.node(&containerd).alone().start().unwrap();
    node.pull(&name).unwrap();
    let hosts = lab.hosts_dir().display().to_string();
    let pull = ["images", "pull", "--hosts-dir", &hosts, "--snapshotter", "flotilla", &name];
    node.containerd.ctr_in("other", &pull).unwrap();
    let checked = node.containerd.ctr_in("other", &["images", "check"]).unwrap();
    assert!(checked.contains(" complete "), "{checked}");
    assert!(chain_ids(&image).iter().all(|id| snapshots(&node, "other").contains(id)));
    let pulled = Pulled::new(lab, &node, &image);
    if ctr_asks_first(&containerd) {
        pulled.left_the_registry_once();
        assert_eq!(layers_counted(&node, "intercepted"), 6.0, "{}", page(&node));
    }
    pulled.is_complete().is_one_copy().runs(&["/bin/cat", "/etc/lab"]);
    // One tree serves both namespaces.
    node.cri.remove(&name).unwrap();
    node.containerd.collect_garbage().unwrap();
    // runc's list of containers is the whole machine's.
    let cgroup = cgroup(lab);
    let id = cgroup.trim_start_matches('/');
    let run =
        ["run", "--rm", "--snapshotter", "flotilla", "--cgroup", &cgroup, &name, id, "/bin/cat", "/etc/lab"];
    assert_eq!(node.containerd.ctr_in("other", &run).unwrap(), "a small image\n");
}

fn discarded_layers_are_not_written(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let mut node = lab.node(&containerd).alone().start().unwrap();
    discard_unpacked_layers(lab, &mut node);
    node.pull(&lab.name("demo/small:v1")).unwrap();
    assert_eq!(layers_counted(&node, "intercepted"), 3.0, "{}", page(&node));
    let pulled = Pulled::new(lab, &node, &image);
    pulled.left_the_registry_once().runs(&["/bin/cat", "/etc/lab"]);
    for layer in &image.layers {
        assert_eq!(node.content_size(&layer.blob.digest), None, "containerd keeps no layer");
    }
    assert_eq!(stored(lab, &node, &image), 3, "the mesh has them all the same");
}

fn twins_are_as_complete_as_without_us(lab: &Lab, containerd: Programs) {
    let images = lab.images();
    let both = samples::twin_compressions(images, "twins/both:v1").unwrap();
    let gzip = samples::compressed(images, "twins/gzip:v1", Compression::Gzip).unwrap();
    let zstd = samples::compressed(images, "twins/zstd:v1", Compression::Zstd).unwrap();
    let ours = lab.node(&containerd).alone().start().unwrap();
    let stock = lab.node(&containerd).stock().start().unwrap();
    for image in [&both, &gzip, &zstd] {
        let name = lab.name(&image.name);
        for node in [&ours, &stock] {
            node.pull(&name).unwrap();
            Pulled::new(lab, node, image).runs(&["/bin/echo", "twins"]);
        }
        let (here, there) = (ours.is_complete(&name).unwrap(), stock.is_complete(&name).unwrap());
        assert!(here || !there, "{name} is complete with overlayfs and not with us");
    }
    // Each of these two has a blob that only it has.
    assert!(ours.is_complete(&lab.name("twins/both:v1")).unwrap());
    assert!(ours.is_complete(&lab.name("twins/gzip:v1")).unwrap());
}

/// What the daemon may have in memory while a layer of 1 GB goes through it, the program itself among it.
const GIGABYTE_MEMORY_MAX_MIB: u64 = 192;

fn a_gigabyte_arrives_whole(lab: &Lab, containerd: Programs) {
    let image = samples::large_layer(lab.images(), "large/gigabyte:v1", 1 << 30).unwrap();
    let node = lab.node(&containerd).alone().start().unwrap();
    node.pull(&lab.name("large/gigabyte:v1")).unwrap();
    let pulled = Pulled::new(lab, &node, &image);
    pulled.containerd_fetched_none().left_the_registry_once().is_complete().is_one_copy();
    assert_eq!(pulled.runs(&["/bin/stat", "-c", "%s", "/noise/7"]), format!("{}\n", 1u64 << 30));
    let most = node.daemon().unwrap().memory_mib("VmHWM").unwrap();
    eprintln!("a layer of 1 GB, pulled, proven, unpacked and handed on: {most} MiB at most");
    assert!(most <= GIGABYTE_MEMORY_MAX_MIB, "{most} MiB");
}
