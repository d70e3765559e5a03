//! Real clients before the mirror: what they pull is whole, and leaves the registry once.

use std::{fs, path::Path, process::Command};

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
    real_image::Pulled,
};

on_every_containerd!(ctr_with_a_hosts_dir, cri_without_the_snapshotter);

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
    let dir = node.daemon().unwrap().log().parent().unwrap().to_owned();
    let mut settings = node.settings.clone();
    settings.text("mirror", "listen", &mirror(node));
    let config = dir.join("install.toml");
    fs::write(&config, settings.to_toml()).unwrap();
    let mut command = Command::new(flotilla_program());
    command.arg("install").args(arguments).arg("--config").arg(&config);
    output(command).unwrap();
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
