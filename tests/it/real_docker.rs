//! Debian's dockerd before the mirror and behind the proxy: alone, as a crowd, and in a container of another one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use crate::{
    lab::{
        self, Lab,
        containerd::Programs,
        flotilla::Flotilla,
        image::{Compression, Entry, Images, Layer, Published},
        lab_of,
        net::{Namespace, SHAPE_100_MBIT},
        node::{Node, NodePlan},
        process::{Process, output},
        registry::{Registry, lead_to},
        samples,
        story::{flotilla_program, tell},
    },
    mirror::operators_ca,
    real_image::{log, rots, stored_path},
    real_mesh::{crowd_image, meet, metric, with_a_liar},
    real_mirror::{REGISTRY, by_digest, has, install, mirror, told},
    real_mirror_mesh::Client,
};

/// Tells each story with Debian's own dockerd and with those of later series that `cargo xtask setup` has unpacked.
macro_rules! on_every_docker {
    ($($story:ident),+ $(,)?) => {$(
        mod $story {
            #[test]
            fn docker_20_10() { super::with("20.10", super::$story); }
            #[test]
            fn docker_26() { super::with("26", super::$story); }
            #[test]
            fn docker_28() { super::with("28", super::$story); }
        }
    )+};
}
pub(crate) use on_every_docker;

on_every_docker!(
    docker_with_a_registry_mirror,
    docker_through_the_proxy,
    docker_gets_right_bytes_from_liars_and_from_rot,
);

/// This machine's own series.
const OWN: &str = "20.10";

pub(crate) fn with(series: &str, story: fn(&Dockerd)) {
    match Dockerd::of(series) {
        Some(dockerd) => story(&dockerd),
        None => eprintln!("skipped: no dockerd {series} here; cargo xtask setup gets it"),
    }
}

fn docker_with_a_registry_mirror(dockerd: &Dockerd) {
    told(|lab, node, image| {
        let config = lab.dir().join("docker/daemon.json").display().to_string();
        install(node, &["--docker", "--docker-config", &config]);
        let docker = dockerd.start(lab, &[]);
        docker.pulls(&image.name, image);
        docker.pulls_by_digest(&image.name, image);
    });
}

fn docker_through_the_proxy(dockerd: &Dockerd) {
    told(|lab, node, image| {
        let dir = lab.dir().join(format!("{}-alone", node.name));
        let mut settings = NodePlan::settings("alone", &dir, "127.0.0.1", &lab.hosts_dir());
        settings.text("mesh", "listen", "127.0.0.1:0").unset("mesh", "advertise");
        let (tls, ca) = opening(lab);
        for (name, value) in tls {
            settings.set("mirror", name, value);
        }
        let daemon = Flotilla::start(flotilla_program(), dir.join("flotilla"), &settings, None).unwrap();
        let proxy = format!("http://{}", daemon.address_of("mirror").unwrap());
        let docker = dockerd.start(lab, &[("HTTPS_PROXY", &proxy), ("SSL_CERT_FILE", &ca)]);
        let name = format!("{REGISTRY}/{}", image.name);
        docker.pulls(&name, image);
        docker.pulls_by_digest(&name, image);
    });
}

#[test]
fn a_crowd_of_eight_dockers_asks_the_registry_once() {
    if has("dockerd") {
        tell("1.6", crowd);
    } else {
        eprintln!("skipped: no dockerd here; cargo xtask setup installs it");
    }
}

#[test]
fn a_docker_in_a_docker_pulls_through_its_nodes_proxy() {
    if has("dockerd") {
        tell("1.6", in_docker);
    } else {
        eprintln!("skipped: no dockerd here; cargo xtask setup installs it");
    }
}

/// The settings by which the proxy opens the TLS of `REGISTRY`, and the CA that clients must trust.
pub(crate) fn opening(lab: &Lab) -> ([(&'static str, String); 3], String) {
    let (cert, key) = operators_ca(lab.dir());
    let ca = cert.display().to_string();
    let hosts = format!("[{REGISTRY:?}]");
    ([("proxy_hosts", hosts), ("ca_cert", format!("{cert:?}")), ("ca_key", format!("{key:?}"))], ca)
}

/// Eight machines, each with a dockerd and a Flotilla: half of them pull from Docker Hub by `registry-mirrors`, half from
/// another registry through the proxy. Both names lead to one registry, which is cold.
fn crowd(lab: &Lab, containerd: Programs) {
    // A range that is given up costs what the links have on their way, whatever the image has: 64 MB keep that small.
    let noise = |mib: u64, seed| samples::noise(lab.images(), mib << 20, seed).unwrap();
    let busybox = samples::busybox(lab.images(), Compression::Gzip).unwrap();
    let layers = [busybox, noise(10, 61), noise(21, 62), noise(30, 63)];
    let image = lab.images().publish("demo/crowd:v1", &layers, &["/bin/ls", "/noise"]).unwrap();
    let network = lab.network(Some(SHAPE_100_MBIT)).unwrap();
    for host in ["docker.io", REGISTRY] {
        lead_to(&lab.hosts_dir(), host, network.registry.host()).unwrap();
    }
    let (tls, ca) = opening(lab);
    let mut nodes = lab
        .crowd_of(&containerd, 8, |plan| {
            let plan = plan.in_network(&network).unwrap().later();
            tls.iter().fold(plan, |plan, (name, value)| plan.setting("mirror", name, value))
        })
        .unwrap();
    for node in &mut nodes {
        node.install(flotilla_program(), lab.dir().join(&node.name).join("flotilla")).unwrap();
    }
    meet(&mut nodes);
    let crowd: Vec<(Docker, String)> = nodes
        .iter()
        .enumerate()
        .map(|(index, node)| {
            let by_proxy = index % 2 == 1;
            let host = if by_proxy { format!("{REGISTRY}/") } else { String::new() };
            (Dockerd::own().beside(lab, node, by_proxy.then_some(&*ca)), format!("{host}{}", image.name))
        })
        .collect();
    thread::scope(|scope| {
        let (crowd, image) = (&crowd, &image);
        let pulls: Vec<_> =
            crowd.iter().map(|(docker, name)| scope.spawn(move || docker.pulls(name, image))).collect();
        pulls.into_iter().for_each(|pull| pull.join().unwrap());
    });
    let over = sent_over(&network.registry, &image);
    // A machine that gives a daemon no time for half a second makes its swarms look for other trackers, which lease anew
    // what was being read: bytes that are lost to the machine, and no matter of Docker's.
    let starved = nodes.iter().any(|node| log(node).contains("the tracker is silent"));
    eprintln!("the registry sent {over:.4} x the image to eight Dockers; trackers fell silent: {starved}");
    assert!(over <= if starved { 2.0 } else { 1.05 }, "{over}");
    for (docker, name) in &crowd {
        let ran = docker.say(&["run", "--rm", "--network", "none", name, "/bin/ls", "/noise"]);
        assert_eq!(ran.split_whitespace().collect::<Vec<_>>(), ["61", "62", "63"]);
    }
}

/// A Docker whose node has everything from a member that serves wrong bytes, and then on a disk that rots under it: it
/// checks for itself what it is given, and never has to complain.
fn docker_gets_right_bytes_from_liars_and_from_rot(dockerd: &Dockerd) {
    tell("1.6", |lab, containerd| lied_to(lab, &containerd, dockerd));
}

fn lied_to(lab: &Lab, containerd: &Programs, dockerd: &Dockerd) {
    let image = crowd_image(lab.images(), "demo/doubtful:v1");
    lead_to(&lab.hosts_dir(), "docker.io", lab.registry().host()).unwrap();
    let (nodes, _liar) = with_a_liar(lab, containerd);
    Client::of(lab, &nodes[1], &image).pulls_by_digest();
    let docker = dockerd.beside(lab, &nodes[0], None);
    docker.pulls(&image.name, &image);
    assert!(metric(&nodes[0], "flotilla_pieces_refused_total", &["peer=\"n2\""]) > 0, "it lied");

    for layer in &image.layers {
        docker.say(&["rmi", &image.name]);
        let rotting = stored_path(lab, &nodes[0], &layer.blob.digest);
        rots(&rotting, layer.blob.size / 2);
        docker.pulls(&image.name, &image);
        let has_rotted =
            |line: &str| line.contains("has rotted on disk") && line.contains(&layer.blob.digest);
        assert!(log(&nodes[0]).lines().any(has_rotted), "{}", log(&nodes[0]));
    }
    let ran = docker.say(&["run", "--rm", "--network", "none", &image.name, "/bin/ls", "/noise"]);
    assert_eq!(ran.split_whitespace().collect::<Vec<_>>(), ["31", "32", "33"]);
}

/// All bodies that a registry has sent of an image's repository, over the image.
fn sent_over(registry: &Registry, image: &Published) -> f64 {
    registry.settle().unwrap();
    let repository = image.name.split(':').next().unwrap();
    let reads = registry.blob_reads(repository);
    assert!(reads.iter().all(|read| read.user_agent.starts_with("flotilla/")), "a Docker asked by itself");
    registry.body_bytes(repository) as f64 / image.bytes() as f64
}

/// A dockerd in a container of its node's dockerd: own files, processes and network, this machine's programs. From inside,
/// the node is at its bridge's address, whose frames are shorter than those of the machine's network; the registry can be
/// reached by the node alone.
fn in_docker(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/inner:v1").unwrap();
    lab.images().publish("demo/frame:v1", &[frame(lab.images())], &["/bin/bash"]).unwrap();
    let network = lab.network(None).unwrap();
    lead_to(&lab.hosts_dir(), REGISTRY, network.registry.host()).unwrap();
    let (tls, ca) = opening(lab);
    let plan = lab.node(&containerd).in_network(&network).unwrap().later().alone();
    let plan = plan.setting("mirror", "listen", "\"10.78.0.1:0\"");
    let plan = tls.iter().fold(plan, |plan, (name, value)| plan.setting("mirror", name, value));
    let mut node = plan.start().unwrap();
    let ip = |arguments: &str| {
        let mut ip = node.network.as_ref().unwrap().command("ip");
        ip.args(arguments.split(' '));
        output(ip).unwrap();
    };
    ip("link add inside type bridge");
    ip("addr add 10.78.0.1/24 dev inside");
    ip("link set inside up");
    node.install(flotilla_program(), lab.dir().join(&node.name).join("flotilla")).unwrap();

    let proxy = format!("http://{}", mirror(&node));
    let socket = node.containerd.socket().display().to_string();
    let arguments = ["--iptables=false", "--bridge", "inside", "--mtu", "1400", "--containerd", &socket];
    let dir = lab.dir().join(&node.name).join("docker");
    let environment = [("HTTPS_PROXY", &*proxy), ("SSL_CERT_FILE", &*ca)];
    let outer = Dockerd::own().start_in(&dir, node.network.as_ref(), &arguments, &environment);
    let _inner = outer.holds_another(&dir, &format!("{REGISTRY}/demo/frame:v1"), (&proxy, &ca));
    let inner = |arguments: &[&str]| outer.say(&[&["exec", "inner", "docker"][..], arguments].concat());
    let name = format!("{REGISTRY}/{}", image.name);
    let pulled = inner(&["pull", &name]);
    assert!(pulled.contains(&image.manifest.digest), "{pulled}");
    let ran = inner(&["run", "--rm", &name, "/bin/cat", "/sys/class/net/eth0/mtu", "/etc/lab"]);
    assert_eq!(ran, "1400\na small image\n");
    let over = sent_over(&network.registry, &image);
    assert!(over <= 1.05, "{over}");
}

/// A root that has this machine's programs once `/usr` is mounted in it.
fn frame(images: &Images) -> Layer {
    let folders = ["usr", "etc", "tmp", "run", "var/lib"];
    let mut entries = folders.map(|path| Entry::Directory { path, mode: 0o755 }).to_vec();
    let links = [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];
    entries.extend(links.map(|(path, target)| Entry::Symlink { path, target }));
    images.entries(Compression::Gzip, &entries).unwrap()
}

const NO_BRIDGE: [&str; 2] = ["--iptables=false", "--bridge=none"];

/// A program that is a docker daemon.
pub(crate) struct Dockerd {
    program: PathBuf,
    /// Its score for the kernel's killer cannot be lowered here; later ones do not try.
    is_own: bool,
}

impl Dockerd {
    pub(crate) fn own() -> Self {
        Self { program: "dockerd".into(), is_own: true }
    }

    fn of(series: &str) -> Option<Self> {
        match series {
            OWN => has("dockerd").then(Self::own),
            later => lab::dockerd(later).map(|program| Self { program, is_own: false }),
        }
    }

    /// In `<lab>/docker`, on this machine's network.
    pub(crate) fn start(&self, lab: &Lab, environment: &[(&str, &str)]) -> Docker {
        self.start_in(&lab.dir().join("docker"), None, &NO_BRIDGE, environment)
    }

    /// Beside a node's Flotilla, which it asks as Docker Hub's mirror, or through the proxy if it trusts `ca`.
    pub(crate) fn beside(&self, lab: &Lab, node: &Node, ca: Option<&str>) -> Docker {
        let dir = lab.dir().join(&node.name).join("docker");
        let containerd = node.containerd.socket().display().to_string();
        let arguments = [&NO_BRIDGE[..], &["--containerd", &containerd]].concat();
        let Some(ca) = ca else {
            let config = dir.join("daemon.json").display().to_string();
            install(node, &["--docker", "--docker-config", &config]);
            return self.start_in(&dir, node.network.as_ref(), &arguments, &[]);
        };
        let proxy = format!("http://{}", mirror(node));
        let environment = [("HTTPS_PROXY", &*proxy), ("SSL_CERT_FILE", ca)];
        self.start_in(&dir, node.network.as_ref(), &arguments, &environment)
    }

    /// With the settings of `<dir>/daemon.json`, if there are any.
    fn start_in(
        &self,
        dir: &Path,
        place: Option<&Namespace>,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Docker {
        fs::create_dir_all(dir).unwrap();
        let socket = dir.join("d.sock");
        let program = self.program.display().to_string();
        let mut command = place.map_or_else(|| Command::new(&program), |place| place.command(&program));
        if self.is_own {
            command.args(["--oom-score-adjust", "0"]);
        }
        command.args(["--storage-driver", "overlay2"]);
        command.arg("--data-root").arg(dir.join("data")).arg("--exec-root").arg(dir.join("exec"));
        command.arg("--pidfile").arg(dir.join("pid"));
        if dir.join("daemon.json").exists() {
            command.arg("--config-file").arg(dir.join("daemon.json"));
        }
        command.arg("--host").arg(format!("unix://{}", socket.display())).args(arguments);
        command.envs(environment.iter().copied());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        let daemon = Process::start("dockerd", command, &dir.join("dockerd.log"), lab_of(dir)).unwrap();
        daemon.wait_for("API listen on").unwrap();
        Docker { socket, _daemon: daemon }
    }
}

/// A docker daemon of its own.
pub(crate) struct Docker {
    pub(crate) socket: PathBuf,
    _daemon: Process,
}

impl Docker {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut docker = Command::new("docker");
        docker.arg("--config").arg(self.socket.with_file_name("config"));
        docker.arg("--host").arg(format!("unix://{}", self.socket.display())).args(arguments);
        docker
    }

    pub(crate) fn say(&self, arguments: &[&str]) -> String {
        output(self.command(arguments)).unwrap()
    }

    /// Pulls an image, and has it under its own digest.
    pub(crate) fn pulls(&self, name: &str, image: &Published) {
        let pulled = self.say(&["pull", name]);
        assert!(pulled.contains(&image.manifest.digest), "{pulled}");
        let images = self.say(&["images", "--digests", "--no-trunc"]);
        assert!(images.contains(&image.manifest.digest), "{images}");
    }

    /// Removes what it has by tag, and pulls the same by digest.
    fn pulls_by_digest(&self, name: &str, image: &Published) {
        self.say(&["rmi", name]);
        let pulled = self.say(&["pull", &by_digest(name, image)]);
        assert!(pulled.contains("Downloaded newer image"), "{pulled}");
    }

    /// A dockerd in the container `inner` of this one, with its node's proxy and the CA that it trusts. Its image and
    /// `--privileged` apart it is docker-in-docker as it is everywhere: this root has not all capabilities to give.
    fn holds_another(&self, dir: &Path, frame: &str, (proxy, ca): (&str, &str)) -> Process {
        self.say(&["pull", frame]);
        let volumes = [
            "/usr:/usr:ro".to_owned(),
            "/sys/fs/cgroup:/sys/fs/cgroup:rw".to_owned(),
            // overlay2 does not lie upon another overlay.
            format!("{}:/var/lib/docker", dir.join("inner").display()),
            format!("{ca}:/etc/proxy-ca.pem:ro"),
        ];
        let variables =
            [&format!("HTTPS_PROXY={proxy}"), "SSL_CERT_FILE=/etc/proxy-ca.pem", "PATH=/usr/sbin:/usr/bin"];
        let mut run = self.command(&["run", "--name", "inner"]);
        run.args(volumes.iter().flat_map(|volume| ["--volume", volume]));
        run.args(variables.iter().flat_map(|variable| ["--env", variable]));
        run.args(["seccomp=unconfined", "systempaths=unconfined"].iter().flat_map(|o| ["--security-opt", o]));
        run.args(["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE"].iter().flat_map(|name| ["--cap-add", name]));
        run.args([frame, "/usr/sbin/dockerd", "--iptables=false", "--mtu", "1400"]);
        run.args(["--oom-score-adjust", "0", "--storage-driver", "overlay2"]);
        let inner = Process::start("inner dockerd", run, &dir.join("inner.log"), lab_of(dir)).unwrap();
        inner.wait_for("API listen on").unwrap();
        inner
    }
}
