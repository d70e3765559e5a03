//! The clients that people use: crictl, nerdctl, and critest, the suite of those who made CRI.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    lab::{
        Lab,
        containerd::{Programs, platform},
        image::{Compression, Entry, Layer, Published},
        node::Node,
        process::output,
        samples,
        story::{Plan, on_every_containerd},
        tool,
    },
    real_handover::{handed_over, slow_plan, stack},
    real_image::{Pulled, Pulling, chain_ids, snapshots},
    real_layers::{came_by_flotilla, containerd_was_left_nothing, counted, nobody_else_fetched},
};

on_every_containerd!(
    crictl_pulls_lists_and_removes,
    nerdctl_lives_on_flotilla,
    kubelets_image_and_nerdctls_are_one_pull,
    kubelets_image_and_nerdctls_are_handed_over_as_one,
    critests_image_manager_passes,
);

/// A client of the cache, or the reason why its story is skipped.
fn client(name: &str) -> Option<PathBuf> {
    let found = tool(name);
    if found.is_none() {
        eprintln!("skipped: no {name} here; cargo xtask setup builds it where Go is");
    }
    found
}

fn crictl_pulls_lists_and_removes(lab: &Lab, containerd: Programs) {
    let Some(program) = client("crictl") else { return };
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let name = lab.name(&image.name);
    let node = lab.node(&containerd).alone().start().unwrap();
    let endpoint = format!("unix://{}", node.containerd.socket().display());
    let crictl = |arguments: &[&str]| {
        let mut crictl = Command::new(&program);
        // Elsewhere a settings file of the machine could name another endpoint.
        crictl.args([
            "--config",
            "/dev/null",
            "--runtime-endpoint",
            &endpoint,
            "--image-endpoint",
            &endpoint,
        ]);
        crictl.args(arguments);
        output(crictl).unwrap()
    };
    let tags = |listed: String| -> Vec<Value> {
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let images = listed["images"].as_array().cloned().unwrap_or_default();
        images.iter().flat_map(|image| image["repoTags"].as_array().cloned().unwrap_or_default()).collect()
    };

    assert!(crictl(&["pull", &name]).contains("Image is up to date"));
    assert_eq!(counted(node.daemon().unwrap(), "intercepted"), 3.0);
    assert!(tags(crictl(&["images", "--output", "json"])).contains(&json!(name)));
    assert!(crictl(&["inspecti", &name]).contains(&image.config.digest));
    crictl(&["rmi", &name]);
    assert!(!tags(crictl(&["images", "--output", "json"])).contains(&json!(name)));
    // What containerd has let go comes back without the registry.
    crictl(&["pull", &name]);
    came_by_flotilla(lab, &image);
    containerd_was_left_nothing(node.daemon().unwrap());
}

/// nerdctl with nothing of the machine's.
struct Nerdctl {
    program: PathBuf,
    options: Vec<String>,
}

impl Nerdctl {
    fn new(program: PathBuf, lab: &Lab, node: &Node) -> Self {
        let folder = |name: &str| lab.dir().join(name).display().to_string();
        let options = [
            ("--address", node.containerd.socket().display().to_string()),
            ("--namespace", "other".to_owned()),
            ("--snapshotter", "flotilla".to_owned()),
            ("--hosts-dir", lab.hosts_dir().display().to_string()),
            ("--data-root", folder("nerdctl")),
            ("--cni-netconfpath", folder("nerdctl-cni")),
            ("--cgroup-manager", "cgroupfs".to_owned()),
        ];
        let options = options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect();
        Self { program, options }
    }

    fn call(&self, arguments: &[&str]) -> String {
        let mut nerdctl = Command::new(&self.program);
        nerdctl.env("NERDCTL_TOML", "/dev/null").args(&self.options).args(arguments);
        output(nerdctl).unwrap()
    }

    /// Runs the image's own command.
    fn run(&self, lab: &Lab, image: &str) -> String {
        let cgroup = format!("/{}", lab.dir().file_name().unwrap().to_str().unwrap());
        self.call(&["run", "--rm", "--net", "none", "--cgroup-parent", &cgroup, image])
    }
}

fn nerdctl_lives_on_flotilla(lab: &Lab, containerd: Programs) {
    let Some(program) = client("nerdctl") else { return };
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let name = lab.name(&image.name);
    let plan = with_nerdctl(lab.node(&containerd).alone(), &containerd);
    let node = plan.start().unwrap();
    let nerdctl = Nerdctl::new(program, lab, &node);

    assert_eq!(nerdctl.run(lab, &name), "a small image\n");
    assert_eq!(counted(node.daemon().unwrap(), "intercepted"), 3.0);
    came_by_flotilla(lab, &image);

    let copy = lab.name("copy/small:v2");
    if containerd.version.starts_with("1.6") {
        // nerdctl 2 tags, saves and loads by the transfer service, which 1.6 has not.
        node.containerd.ctr_in("other", &["images", "tag", &name, &copy]).unwrap();
        nerdctl_pushes(lab, &nerdctl, &image, &copy);
        nerdctl.call(&["rmi", &name, &copy]);
        assert_eq!(nerdctl.call(&["images", "--quiet"]), "");
        assert_eq!(nerdctl.run(lab, &name), "a small image\n");
    } else {
        nerdctl.call(&["tag", &name, &copy]);
        nerdctl_pushes(lab, &nerdctl, &image, &copy);
        nerdctl_saves_and_loads(lab, &nerdctl, &image, &copy);
    }

    nerdctl.call(&["system", "prune", "--all", "--force"]);
    assert_eq!(nerdctl.call(&["images", "--quiet"]), "");
    assert_eq!(nerdctl.run(lab, &name), "a small image\n", "pulled again");
    came_by_flotilla(lab, &image);
    assert_eq!(counted(node.daemon().unwrap(), "declined"), 0.0);
}

/// As `flotilla install` writes it; the lab has it for 2.x.
fn with_nerdctl<'a>(plan: Plan<'a>, containerd: &Programs) -> Plan<'a> {
    if !containerd.version.starts_with("1.7") {
        return plan;
    }
    plan.containerd_setting(&format!(
        "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  platform = \"{}\"\n  snapshotter = \"flotilla\"\n  differ = \"walking\"\n",
        platform()
    ))
}

/// CRI pulls into a namespace of its own.
fn kubelets_image_and_nerdctls_are_one_pull(lab: &Lab, containerd: Programs) {
    let Some(program) = client("nerdctl") else { return };
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let name = lab.name(&image.name);
    let node = with_nerdctl(lab.node(&containerd).alone(), &containerd).start().unwrap();
    node.pull(&name).unwrap();
    let nerdctl = Nerdctl::new(program, lab, &node);
    assert_eq!(nerdctl.run(lab, &name), "a small image\n");
    assert_eq!(counted(node.daemon().unwrap(), "intercepted"), 6.0);
    both_have_it(lab, &node, &image);
}

fn kubelets_image_and_nerdctls_are_handed_over_as_one(lab: &Lab, containerd: Programs) {
    let Some(program) = client("nerdctl") else { return };
    let image = stack(lab, "slow/stack:v1");
    let name = lab.name(&image.name);
    let node = with_nerdctl(slow_plan(lab, &containerd), &containerd).start().unwrap();
    let pulling = Pulling::start(&node, &name);
    handed_over(&node);
    Nerdctl::new(program, lab, &node).call(&["pull", "--quiet", &name]);
    pulling.end().unwrap();
    both_have_it(lab, &node, &image);
}

fn both_have_it(lab: &Lab, node: &Node, image: &Published) {
    containerd_was_left_nothing(node.daemon().unwrap());
    let checked = node.containerd.ctr_in("other", &["images", "check"]).unwrap();
    assert!(checked.contains(" complete "), "{checked}");
    assert!(chain_ids(image).iter().all(|id| snapshots(node, "other").contains(id)));
    Pulled::new(lab, node, image).was_brought_by_flotilla();
}

fn nerdctl_pushes(lab: &Lab, nerdctl: &Nerdctl, image: &Published, copy: &str) {
    nerdctl.call(&["push", "--quiet", copy]);
    let pushed = lab.dir().join("blobs/docker/registry/v2/repositories/copy/small/_layers/sha256");
    for layer in &image.layers {
        assert!(pushed.join(layer.blob.digest.trim_start_matches("sha256:")).exists(), "{layer:?}");
    }
}

fn nerdctl_saves_and_loads(lab: &Lab, nerdctl: &Nerdctl, image: &Published, copy: &str) {
    let name = lab.name(&image.name);
    let archive = lab.dir().join("saved.tar").display().to_string();
    nerdctl.call(&["save", "--output", &archive, &name]);
    assert!(fs::metadata(&archive).unwrap().len() > image.bytes(), "an archive with all layers");
    nerdctl.call(&["rmi", &name, copy]);
    assert_eq!(nerdctl.call(&["images", "--quiet"]), "");
    nerdctl.call(&["load", "--input", &archive]);
    assert_eq!(nerdctl.run(lab, &name), "a small image\n");
}

/// Where critest's images are at home.
const CRITEST_HOSTS: [&str; 3] = ["gcr.io", "k8s.gcr.io", "registry.k8s.io"];

/// Its images and the users that it expects of them (`pkg/validate/consts.go` of cri-tools 1.36.0).
const CRITEST_IMAGES: [(&str, &str); 14] = [
    ("k8s-staging-cri-tools/test-image-latest:latest", ""),
    ("k8s-staging-cri-tools/test-image-tag:test", ""),
    ("k8s-staging-cri-tools/test-image-tag:all", ""),
    ("k8s-staging-cri-tools/test-image-1:latest", ""),
    ("k8s-staging-cri-tools/test-image-2:latest", ""),
    ("k8s-staging-cri-tools/test-image-3:latest", ""),
    ("k8s-staging-cri-tools/test-image-tags:1", ""),
    ("k8s-staging-cri-tools/test-image-tags:2", ""),
    ("k8s-staging-cri-tools/test-image-tags:3", ""),
    ("k8s-staging-cri-tools/test-image-user-uid:latest", "1002"),
    ("k8s-staging-cri-tools/test-image-user-username:latest", "www-data"),
    ("k8s-staging-cri-tools/test-image-user-uid-group:latest", "1003:users"),
    ("k8s-staging-cri-tools/test-image-user-username-group:latest", "www-data:100"),
    ("pause:3.9", ""),
];

/// The one test left out pulls an image by a digest that only the real one has.
const CRITEST_SKIP: &str = "public image with digest";

fn critests_image_manager_passes(lab: &Lab, containerd: Programs) {
    let node = lab.node(&containerd).alone().start().unwrap();
    critests_image_manager(lab, &node, &[]);
}

/// Runs that part of critest on a node, with more arguments.
pub(crate) fn critests_image_manager(lab: &Lab, node: &Node, arguments: &[&str]) {
    let Some(program) = client("critest") else { return };
    let layers: Vec<Layer> = CRITEST_IMAGES.iter().map(|(name, user)| look_alike(lab, name, user)).collect();
    for host in CRITEST_HOSTS {
        serve_instead_of(lab, host);
    }
    let mut critest = Command::new(program);
    critest.arg(format!("-runtime-endpoint=unix://{}", node.containerd.socket().display()));
    critest.args(arguments);
    critest.args(["-ginkgo.focus=Image Manager", "-ginkgo.no-color"]);
    critest.arg(format!("-ginkgo.skip={CRITEST_SKIP}")).arg(format!("-report-dir={}", lab.dir().display()));
    let said = output(critest).unwrap();
    let summary = said.lines().find(|line| line.contains(" Passed")).unwrap_or(&said);
    let passed: u32 = summary.split(" Passed").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(passed >= 9 && summary.contains(" 0 Failed"), "{said}");

    assert!(counted(node.daemon().unwrap(), "intercepted") >= 9.0);
    containerd_was_left_nothing(node.daemon().unwrap());
    for layer in &layers {
        nobody_else_fetched(lab, &layer.blob.digest);
    }
}

/// Publishes an image of one small layer; two tags of one repository are one image.
fn look_alike(lab: &Lab, name: &str, user: &str) -> Layer {
    let images = lab.images();
    let repository = name.split(':').next().unwrap();
    let entries = [Entry::File { path: "which", mode: 0o644, bytes: repository.as_bytes() }];
    let layer = images.entries(Compression::Gzip, &entries).unwrap();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "User": user, "Cmd": ["/which"] },
        "rootfs": { "type": "layers", "diff_ids": [layer.diff_id] },
    });
    let config =
        images.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes()).unwrap();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor(),
        "layers": [layer.blob.descriptor()],
    });
    images.publish_manifest(name, &manifest, &[&layer.blob.digest, &config.digest]).unwrap();
    layer
}

/// The lab's registry answers for a host of the world.
fn serve_instead_of(lab: &Lab, host: &str) {
    let folder: &Path = &lab.hosts_dir().join(host);
    let registry = lab.host();
    let text = format!(
        "server = \"http://{registry}\"\n\n[host.\"http://{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("hosts.toml"), text).unwrap();
}
