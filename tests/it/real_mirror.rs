//! Real clients before the mirror: what they pull is whole, and leaves the registry once.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    lab::{
        Lab,
        containerd::{self, Programs},
        image::{Images, Published},
        node::Node,
        process::output,
        registry::{lead_by_mirror, lead_to},
        samples,
        story::{flotilla_program, on_every_containerd, tell},
        tool,
    },
    real_image::{Pulled, Pulling, eventually},
    real_mesh::{bytes_from, meet, metric},
};

on_every_containerd!(
    ctr_with_a_hosts_dir,
    cri_without_the_snapshotter,
    cri_where_the_mirror_alone_was_installed,
    containerd_that_was_killed_goes_on_by_ranges,
);

/// A registry that only the mirror can find: it stands for the lab's.
pub(crate) const REGISTRY: &str = "registry.lab";

#[test]
fn skopeo_podman_and_buildah() {
    one_of_each("skopeo", |lab, node, image| {
        let copy = format!("dir:{}", lab.dir().join("copy").display());
        for named in [image.name.clone(), by_digest(&image.name, image)] {
            let from = format!("docker://{}/{REGISTRY}/{named}", mirror(node));
            say(Command::new("skopeo").args(["copy", "--src-tls-verify=false", &from, &copy]));
        }
        for layer in &image.layers {
            let file = lab.dir().join("copy").join(layer.blob.digest.trim_start_matches("sha256:"));
            assert_eq!(fs::metadata(file).unwrap().len(), layer.blob.size);
        }
    });
    one_of_each("podman", |lab, node, image| {
        let podman = || with_registries_conf(lab, node, "podman");
        say(podman().args(["pull", "--quiet", &format!("{REGISTRY}/{}", image.name)]));
        let images = say(podman().args(["images", "--no-trunc", "--digests"]));
        assert!(images.contains(&image.manifest.digest), "{images}");
        say(podman().args(["rmi", &format!("{REGISTRY}/{}", image.name)]));
        say(podman().args(["pull", "--quiet", &format!("{REGISTRY}/{}", by_digest(&image.name, image))]));
    });
    one_of_each("buildah", |lab, node, image| {
        let buildah = || with_registries_conf(lab, node, "buildah");
        let name = say(buildah().args(["from", "--quiet", &format!("{REGISTRY}/{}", image.name)]));
        let mount = say(buildah().args(["mount", name.trim()]));
        let text = fs::read_to_string(Path::new(mount.trim()).join("etc/lab")).unwrap();
        assert_eq!(text, "a small image\n");
        say(buildah().args(["umount", name.trim()]));
        say(buildah().args(["rmi", "--all", "--force"]));
        say(buildah().args(["from", "--quiet", &format!("{REGISTRY}/{}", by_digest(&image.name, image))]));
    });
}

/// The image that `name` calls by a tag.
pub(crate) fn by_digest(name: &str, image: &Published) -> String {
    let (repository, _) = name.rsplit_once(':').unwrap();
    format!("{repository}@{}", image.manifest.digest)
}

/// Debian has no CRI-O. It finds its registries where skopeo does, by the same library: in `/etc/containers`, with the
/// folder of drop-ins there.
#[test]
fn what_cri_o_reads() {
    one_of_each("skopeo", |lab, node, image| {
        let folder = lab.dir().join("registries.conf.d");
        let folder = folder.display().to_string();
        install(node, &["--crio", "--registries", REGISTRY, "--registries-dir", &folder]);
        let copy = format!("dir:{}", lab.dir().join("copy").display());
        let from = format!("docker://{REGISTRY}/{}", image.name);
        let within = "mount --bind \"$0\" /etc/containers/registries.conf.d && exec \"$@\"";
        let mut skopeo = Command::new("unshare");
        skopeo.args(["--mount", "sh", "-c", within, &folder, "skopeo", "copy", &from, &copy]);
        say(&mut skopeo);
    });
}

#[test]
fn crane_oras_and_regctl() {
    for name in ["crane", "oras", "regctl"] {
        let Some(program) = tool(name) else {
            eprintln!("skipped: no {name} here; cargo xtask setup builds it where Go is");
            continue;
        };
        told(|lab, node, image| {
            let from = format!("{}/{REGISTRY}/{}", mirror(node), image.name);
            let to = lab.dir().join("copy").display().to_string();
            let mut client = Command::new(&program);
            client.env("HOME", lab.dir());
            match name {
                "crane" => client.args(["validate", "--insecure", "--remote", &from]),
                "oras" => {
                    client.args(["cp", "--from-plain-http", "--to-oci-layout", &from, &format!("{to}:v1")])
                }
                _ => client.args([
                    "image",
                    "copy",
                    "--host",
                    &format!("reg={},tls=disabled", mirror(node)),
                    &from,
                    &format!("ocidir://{to}"),
                ]),
            };
            say(&mut client);
        });
    }
}

#[test]
fn containerd_that_fetches_a_layer_by_several_connections() {
    ["2.1", "2.4"].iter().for_each(|series| tell(series, by_several_connections));
}

fn by_several_connections(lab: &Lab, programs: Programs) {
    let image = samples::large_layer(lab.images(), "demo/large:v1", 40 << 20).unwrap();
    let more = "[plugins.'io.containerd.transfer.v1.local']\n  concurrent_layer_fetch_buffer = 1048576\n  max_concurrent_downloads = 4\n";
    let mut node = lab.node(&programs).later().alone().containerd_setting(more).start().unwrap();
    let dir = lab.dir().join(&node.name).join("flotilla");
    node.install(flotilla_program(), dir).unwrap();
    lead_by_mirror(&lab.hosts_dir(), &lab.host(), &mirror(&node)).unwrap();
    let hosts = lab.hosts_dir().display().to_string();
    node.containerd.ctr(&["images", "pull", "--hosts-dir", &hosts, &lab.name(&image.name)]).unwrap();
    assert!(node.is_complete(&lab.name(&image.name)).unwrap());
    let parts = node.daemon().unwrap().metrics().unwrap();
    let parts = parts.sum("flotilla_mirror_requests_total", &["what=\"blob\"", "status=\"206\""]);
    assert!(parts > 1.0, "{parts} parts");
    Pulled::new(lab, &node, &image).left_the_registry_once();
}

/// `flotilla install` with the port that the node's mirror has got.
pub(crate) fn install(node: &Node, arguments: &[&str]) {
    call(node, "install", arguments);
}

/// `flotilla install` or `uninstall`; what it prints.
fn call(node: &Node, verb: &str, arguments: &[&str]) -> String {
    let dir = node.daemon().unwrap().log().parent().unwrap().to_owned();
    let mut settings = node.settings.clone();
    settings.text("mirror", "listen", &mirror(node));
    let config = dir.join("install.toml");
    fs::write(&config, settings.to_toml()).unwrap();
    let mut command = Command::new(flotilla_program());
    command.arg(verb).args(arguments).arg("--config").arg(&config);
    output(command).unwrap()
}

pub(crate) fn mirror(node: &Node) -> String {
    node.daemon().unwrap().address_of("mirror").unwrap()
}

/// Runs a command, and gives what it said.
pub(crate) fn say(command: &mut Command) -> String {
    let mut owned = Command::new(command.get_program());
    owned.args(command.get_args());
    for (name, value) in command.get_envs() {
        owned.env(name, value.unwrap_or_default());
    }
    output(owned).unwrap()
}

/// A story of one client, if it is here.
pub(crate) fn one_of_each(program: &str, story: fn(&Lab, &Node, &Published)) {
    if !has(program) {
        eprintln!("skipped: no {program} here; cargo xtask setup installs it");
        return;
    }
    told(story);
}

/// Whether this machine has a program.
pub(crate) fn has(program: &str) -> bool {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    path.split(':').any(|folder| Path::new(folder).join(program).is_file())
}

/// A node whose mirror leads docker.io and `REGISTRY` to the lab's registry, and an image there.
pub(crate) fn told(story: impl Fn(&Lab, &Node, &Published)) {
    let image = |images: &Images| samples::small(images, "demo/small:v1").unwrap();
    told_of(image, |lab, node, image| {
        story(lab, node, image);
        Pulled::new(lab, node, image).left_the_registry_once();
    });
}

/// A node whose mirror leads docker.io and `REGISTRY` to the lab's registry, and whatever is made there.
pub(crate) fn told_of<T>(make: impl Fn(&Images) -> T, story: impl Fn(&Lab, &Node, &T)) {
    let Some(programs) = containerd::any().filter(|_| crate::lab::story::missing().is_none()) else {
        eprintln!("skipped: no containerd here, or no lab");
        return;
    };
    let lab = Lab::new().unwrap();
    for host in ["docker.io", REGISTRY] {
        lead_to(&lab.hosts_dir(), host, &lab.host()).unwrap();
    }
    let made = make(lab.images());
    let node = lab.node(&programs).alone().start().unwrap();
    story(&lab, &node, &made);
}

/// `podman` or `buildah` with a place of its own, and `REGISTRY` by the mirror.
fn with_registries_conf(lab: &Lab, node: &Node, program: &str) -> Command {
    let dir = lab.dir().join(program);
    fs::create_dir_all(&dir).unwrap();
    let folder = dir.join("registries.conf.d");
    install(node, &["--podman", "--registries", REGISTRY, "--registries-dir", &folder.display().to_string()]);
    let conf = folder.join("flotilla.conf");
    fs::write(dir.join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    let mut command = Command::new(program);
    command.env("CONTAINERS_REGISTRIES_CONF", conf).env("HOME", &dir).env("XDG_RUNTIME_DIR", &dir);
    command.env("TMPDIR", &dir);
    command.arg("--root").arg(dir.join("root")).arg("--runroot").arg(dir.join("run"));
    command.args(["--storage-driver", "vfs"]);
    command
}

fn ctr_with_a_hosts_dir(lab: &Lab, programs: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let node = lab.node(&programs).alone().start().unwrap();
    lead_by_mirror(&lab.hosts_dir(), &lab.host(), &mirror(&node)).unwrap();
    let hosts = lab.hosts_dir().display().to_string();
    node.containerd.ctr(&["images", "pull", "--hosts-dir", &hosts, &lab.name(&image.name)]).unwrap();
    Pulled::new(lab, &node, &image).left_the_registry_once().is_complete().is_one_copy();
}

fn cri_without_the_snapshotter(lab: &Lab, programs: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let mut node = lab.node(&programs).later().alone().start().unwrap();
    let dir = lab.dir().join(&node.name).join("flotilla");
    node.install(flotilla_program(), dir).unwrap();
    lead_by_mirror(&lab.hosts_dir(), &lab.host(), &mirror(&node)).unwrap();
    node.pull(&lab.name(&image.name)).unwrap();
    let pulled = Pulled::new(lab, &node, &image);
    pulled.left_the_registry_once().is_complete().is_one_copy().runs(&["/bin/cat", "/etc/lab"]);
}

/// Of two nodes the settings of one containerd name a folder of hosts.toml files, those of the other name none.
fn cri_where_the_mirror_alone_was_installed(lab: &Lab, programs: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let named = containerd_dir(lab, "n1").join("certs.d");
    lead_to(&named, &lab.host(), &lab.host()).unwrap();
    let mut nodes = lab
        .crowd_of(&programs, 2, |plan| {
            let dir = if plan.place().0 == "n1" { named.clone() } else { PathBuf::new() };
            plan.later().containerd_hosts_dir(dir)
        })
        .unwrap();
    let before: Vec<_> = nodes.iter().map(|node| settings_of_containerd(lab, node)).collect();
    for node in &mut nodes {
        node.install(flotilla_program(), lab.dir().join(&node.name).join("flotilla")).unwrap();
    }
    meet(&mut nodes);
    for node in &mut nodes {
        let said = enter_mirror_alone(lab, node, "install");
        assert!(said.contains("+[host.") && !said.contains("proxy_plugins"), "{said}");
        assert_eq!(enter_mirror_alone(lab, node, "install"), "nothing to change\n");
        restart_containerd(node);
        node.pull(&lab.name(&image.name)).unwrap();
        Pulled::new(lab, node, &image).left_the_registry_once().is_complete().is_one_copy();
        assert!(metric(node, "flotilla_mirror_requests_total", &["what=\"blob\"", "status=\"200\""]) >= 3);
        let ctr = |arguments: &[&str]| node.containerd.ctr(arguments).unwrap();
        assert!(!ctr(&["plugins", "ls"]).contains("flotilla"));
        assert_eq!(ctr(&["snapshots", "--snapshotter", "overlayfs", "ls"]).matches("Committed").count(), 3);
    }
    assert_eq!((bytes_from(&nodes[1], "peer"), bytes_from(&nodes[1], "origin")), (image.bytes(), 0));
    for (node, before) in nodes.iter_mut().zip(before) {
        let ran = Pulled::new(lab, node, &image).runs(&["/bin/cat", "/etc/lab"]);
        assert_eq!(ran, "a small image\n");
        enter_mirror_alone(lab, node, "uninstall");
        assert_eq!(settings_of_containerd(lab, node), before);
        assert_eq!(enter_mirror_alone(lab, node, "uninstall"), "nothing to change\n");
        restart_containerd(node);
        let name = format!("demo/after-{}:v1", node.name);
        let layer = samples::noise(lab.images(), 100_000, 40 + u64::from(node.name == "n1")).unwrap();
        let later = lab.images().publish(&name, &[layer], &["/noise"]).unwrap();
        node.pull(&lab.name(&name)).unwrap();
        Pulled::new(lab, node, &later).containerd_fetched_all();
        Pulled::new(lab, node, &image).runs(&["/bin/cat", "/etc/lab"]);
    }
}

fn containerd_dir(lab: &Lab, node: &str) -> PathBuf {
    lab.dir().join(node).join("containerd")
}

/// `flotilla install --containerd-mirror`, or `uninstall`; what it prints.
fn enter_mirror_alone(lab: &Lab, node: &Node, verb: &str) -> String {
    let config = containerd_dir(lab, &node.name).join("config.toml").display().to_string();
    let version = node.containerd.version();
    let arguments = ["--containerd-mirror", "--containerd-config", &config, "--containerd-version", version];
    call(node, verb, &arguments)
}

fn restart_containerd(node: &mut Node) {
    node.containerd.stop().unwrap();
    node.containerd.start_again().unwrap();
}

/// The files that `flotilla install --containerd-mirror` may write.
fn settings_of_containerd(lab: &Lab, node: &Node) -> [Option<String>; 4] {
    let dir = containerd_dir(lab, &node.name);
    let host = format!("certs.d/{}/hosts.toml", lab.host());
    ["config.toml", "conf.d/flotilla.toml", "certs.d/_default/hosts.toml", &host]
        .map(|file| fs::read_to_string(dir.join(file)).ok())
}

fn containerd_that_was_killed_goes_on_by_ranges(lab: &Lab, programs: Programs) {
    let image = samples::large_layer(lab.images(), "demo/large:v1", 8 << 20).unwrap();
    let (name, layer) = (lab.name(&image.name), &image.layers[1].blob);
    let plan = lab.node(&programs).later().alone();
    let mut node = plan.setting("registry", "origin_rate", "\"2MiB\"").start().unwrap();
    node.install(flotilla_program(), lab.dir().join(&node.name).join("flotilla")).unwrap();
    lead_by_mirror(&lab.hosts_dir(), &lab.host(), &mirror(&node)).unwrap();
    let pulling = Pulling::start(&node, &name);
    let ingests = node.containerd.root().join("io.containerd.content.v1.content/ingest");
    let is_part = |ingest: &Path| {
        let of_layer = fs::read_to_string(ingest.join("ref")).is_ok_and(|name| name.contains(&layer.digest));
        of_layer && fs::metadata(ingest.join("data")).is_ok_and(|data| data.len() > 0)
    };
    eventually("a part of the layer", || {
        fs::read_dir(&ingests).into_iter().flatten().flatten().any(|ingest| is_part(&ingest.path()))
    });
    node.containerd.kill().unwrap();
    pulling.end().unwrap_err();
    assert_eq!(node.content_size(&layer.digest), None, "it was cut in the middle");
    let parts =
        |node: &Node| metric(node, "flotilla_mirror_requests_total", &["what=\"blob\"", "status=\"206\""]);
    assert_eq!(parts(&node), 0);
    node.containerd.start_again().unwrap();
    node.pull(&name).unwrap();
    assert!(parts(&node) > 0, "it began anew");
    Pulled::new(lab, &node, &image).left_the_registry_once().is_complete().runs(&["/bin/stat", "/noise/7"]);
}
