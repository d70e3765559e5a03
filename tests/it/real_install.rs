//! `flotilla install` on settings files as they are found on nodes, and what the real programs make of them.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::{
    lab::{
        Lab,
        containerd::{Containerd, Programs},
        cri::Cri,
        flotilla::Flotilla,
        node::NodePlan,
        process::{Process, output},
        samples,
        story::{example, flotilla_program, missing, on_every_containerd, tell},
        tool,
    },
    real_layers::{came_by_flotilla, containerd_was_left_nothing, counted},
};

on_every_containerd!(installs_and_uninstalls);

#[test]
fn nerdctl_is_told_of_the_snapshotter() {
    tell("1.7", nerdctl_uses_what_is_installed);
}

/// What an operator has before Flotilla comes.
#[derive(Clone, Copy, Debug)]
enum Before {
    /// What `containerd config default` prints, in this version's form.
    Everything,
    /// A few lines in the form of this number.
    Little(u8),
    Absent,
}

fn installs_and_uninstalls(lab: &Lab, containerd: Programs) {
    let little: &[u8] = if containerd.version.starts_with("1.") { &[2] } else { &[2, 3] };
    let mut cases = vec![Before::Everything, Before::Absent];
    cases.extend(little.iter().map(|form| Before::Little(*form)));
    for (number, before) in cases.into_iter().enumerate() {
        // Each has an image of its own, so that the registry's log tells of one node.
        let image = samples::small(lab.images(), &format!("install/{number}:v1")).unwrap();
        let machine = Machine::new(lab, &containerd, &format!("n{number}"), before);
        let daemon = machine.start_flotilla();
        machine.install_twice(&daemon);

        let started = machine.start_containerd(&containerd);
        let plugins = started.ctr(&["plugins", "ls"]).unwrap();
        let ours = plugins.lines().find(|line| line.split_whitespace().nth(1) == Some("flotilla"));
        assert!(ours.is_some_and(|line| line.trim_end().ends_with(" ok")), "{before:?}:\n{plugins}");
        let transfer = plugins.lines().find(|line| line.contains("transfer.v1") && line.contains(" local "));
        assert!(transfer.is_none_or(|line| line.trim_end().ends_with(" ok")), "{before:?}:\n{plugins}");

        let name = lab.name(&image.name);
        Cri::new(&example("cri"), started.socket(), lab.dir()).pull(&name).unwrap();
        assert_eq!(counted(&daemon, "intercepted"), 3.0, "{before:?}");
        // A containerd whose own file names the imports knows of no registry settings but those.
        let asked = daemon.metrics().unwrap().sum("flotilla_mirror_requests_total", &["status=\"200\""]);
        assert!(asked > 0.0, "{before:?}: containerd asked the mirror for manifest and config");
        containerd_was_left_nothing(&daemon);
        let unpacked = started.ctr(&["snapshots", "--snapshotter", "flotilla", "ls"]).unwrap();
        assert_eq!(unpacked.matches("Committed").count(), 3, "{before:?}:\n{unpacked}");
        if number == 0 {
            came_by_flotilla(lab, &image);
        }
        machine.uninstall(&daemon);
    }
}

/// A node's folder: `etc/config.toml` is containerd's settings file.
struct Machine {
    lab: PathBuf,
    dir: PathBuf,
    name: String,
    /// The folder of the `containerd` that `flotilla install` shall find.
    bin: PathBuf,
    hosts_dir: PathBuf,
    before: Before,
    original: Option<String>,
}

impl Machine {
    fn new(lab: &Lab, programs: &Programs, name: &str, before: Before) -> Self {
        let dir = lab.dir().join(name);
        fs::create_dir_all(dir.join("etc")).unwrap();
        let original = match before {
            Before::Everything => Some(moved(&dir.join("containerd"), programs)),
            Before::Little(form) => Some(little(&dir.join("containerd"), form, "")),
            Before::Absent => None,
        };
        let machine = Machine {
            lab: lab.dir().to_owned(),
            dir,
            name: name.to_owned(),
            bin: programs.bin.clone(),
            hosts_dir: lab.hosts_dir(),
            before,
            original,
        };
        if let Some(text) = &machine.original {
            fs::write(machine.config(), text).unwrap();
            // Not everybody may read it, and that shall stay so.
            fs::set_permissions(machine.config(), fs::Permissions::from_mode(0o640)).unwrap();
        }
        machine
    }

    fn config(&self) -> PathBuf {
        self.dir.join("etc/config.toml")
    }

    fn start_flotilla(&self) -> Flotilla {
        let mut settings = NodePlan::settings(&self.name, &self.dir, "127.0.0.1", &self.hosts_dir);
        // What is written into others' settings has a port of its own; this one was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        settings.text("mirror", "listen", &port.to_string());
        Flotilla::start(flotilla_program(), self.dir.join("flotilla"), &settings, None).unwrap()
    }

    /// `flotilla install` or `uninstall`; what it prints.
    fn call(&self, daemon: &Flotilla, verb: &str, arguments: &[&str]) -> String {
        let config = self.config().display().to_string();
        let mut command =
            daemon.command(&[verb, "--containerd", "--no-restart", "--containerd-config", &config]);
        let path = std::env::var("PATH").unwrap();
        command.args(arguments).env("PATH", format!("{}:{path}", self.bin.display()));
        output(command).unwrap()
    }

    fn install_twice(&self, daemon: &Flotilla) {
        let diff = self.call(daemon, "install", &["--dry-run"]);
        assert!(diff.contains("+[proxy_plugins.flotilla]"), "{diff}");
        assert_eq!(fs::read_to_string(self.config()).ok(), self.original, "a dry run changes nothing");
        self.call(daemon, "install", &[]);
        let installed = self.files();
        assert_eq!(self.call(daemon, "install", &[]), "nothing to change\n");
        assert_eq!(self.files(), installed);
        // An older Flotilla's drop-in is brought up to date, and so that it is seen.
        let drop_in = self.dir.join("etc/conf.d/flotilla.toml");
        let older = fs::read_to_string(&drop_in).unwrap().replace("snapshots.sock", "before.sock");
        fs::write(&drop_in, older).unwrap();
        let diff = self.call(daemon, "install", &[]);
        assert!(diff.contains("before.sock") && diff.contains("snapshots.sock"), "{diff}");
        assert_eq!(self.files(), installed);
        if self.original.is_some() {
            let mode = fs::metadata(self.config()).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, 0o640);
        }
    }

    fn uninstall(&self, daemon: &Flotilla) {
        self.call(daemon, "uninstall", &[]);
        let left: Vec<_> = self.original.iter().map(|text| (self.config(), text.clone())).collect();
        assert_eq!(self.files(), left, "{:?}", self.before);
        assert_eq!(self.call(daemon, "uninstall", &[]), "nothing to change\n");
    }

    /// Every file of `etc`.
    fn files(&self) -> Vec<(PathBuf, String)> {
        let folders = ["etc", "etc/conf.d", "etc/certs.d/_default"].map(|folder| self.dir.join(folder));
        let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        let paths = entries.map(|entry| entry.path()).filter(|path| path.is_file());
        let mut files: Vec<_> = paths.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect();
        files.sort();
        files
    }

    fn start_containerd(&self, programs: &Programs) -> Containerd {
        let dir = self.dir.join("containerd");
        let text = match self.before {
            Before::Everything | Before::Little(_) => fs::read_to_string(self.config()).unwrap(),
            // The file that Flotilla has made is for a machine of its own; ours gives the places around it.
            Before::Absent => {
                let form = if programs.version.starts_with("1.") { 2 } else { 3 };
                little(&dir, form, &format!("imports = [{:?}]\n", self.config()))
            }
        };
        assert!(dir.starts_with(&self.lab));
        Containerd::start_on(&text, programs.clone(), dir, None).unwrap()
    }
}

/// The settings that containerd prints, with places in `dir` instead of the machine's.
fn moved(dir: &Path, programs: &Programs) -> String {
    let mut config = Command::new(programs.bin.join("containerd"));
    config.args(["config", "default"]);
    let place = |name: &str| dir.join(name).display().to_string();
    // Longest first: the socket's path begins with the state's.
    output(config)
        .unwrap()
        .replace("/run/containerd/containerd.sock", &place("c.sock"))
        .replace("/run/containerd", &place("state"))
        .replace("/var/lib/containerd", &place("root"))
        .replace("/opt/containerd", &place("opt"))
        .replace("/var/run/nri/nri.sock", &place("nri.sock"))
        .replace("/etc/cni/net.d", &place("cni"))
        .replace("/etc/containerd/certs.d:/etc/docker/certs.d", &place("../etc/certs.d"))
}

/// The fewest settings that keep to `dir`, with a comment to be kept.
fn little(dir: &Path, form: u8, more: &str) -> String {
    let place = |name: &str| dir.join(name).display().to_string();
    let cri = if form == 2 { "io.containerd.grpc.v1.cri" } else { "io.containerd.cri.v1.runtime" };
    format!(
        "# written by hand\nversion = {form}\n{more}root = {:?}\nstate = {:?}\n[grpc]\n  address = {:?} # ours\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\n  path = {:?}\n\
         [plugins.\"io.containerd.nri.v1.nri\"]\n  disable = true\n\
         [plugins.\"{cri}\".cni]\n  conf_dir = {:?}\n",
        place("root"),
        place("state"),
        place("c.sock"),
        place("opt"),
        place("cni"),
    )
}

fn nerdctl_uses_what_is_installed(lab: &Lab, containerd: Programs) {
    let Some(nerdctl) = tool("nerdctl") else {
        eprintln!("skipped: no nerdctl here; cargo xtask setup builds it where Go is");
        return;
    };
    let node = lab.node(&containerd).alone().start().unwrap();
    let config = lab.dir().join("nerdctl.toml");
    let original = "# ours\ndebug = false\nsnapshotter = \"overlayfs\" # for now\n";
    fs::write(&config, original).unwrap();
    let call = |verb: &str| {
        let file = config.display().to_string();
        output(node.daemon().unwrap().command(&[verb, "--nerdctl", "--nerdctl-config", &file])).unwrap()
    };
    let driver = || {
        let mut info = Command::new(&nerdctl);
        info.env("NERDCTL_TOML", &config).arg("--address").arg(node.containerd.socket());
        info.arg("--data-root").arg(lab.dir().join("nerdctl")).args(["info", "--format", "{{.Driver}}"]);
        output(info).unwrap().trim().to_owned()
    };
    assert_eq!(driver(), "overlayfs");
    assert!(call("install").contains("snapshotter"));
    assert_eq!(driver(), "flotilla");
    assert_eq!(call("install"), "nothing to change\n");
    call("uninstall");
    assert_eq!(fs::read_to_string(&config).unwrap(), original);
    assert_eq!(driver(), "overlayfs");
}

/// On a terminal, with a `systemctl` of ours that writes down what it is asked for.
#[test]
fn containerd_is_restarted_after_a_yes_only() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let asked = at("asked");
    fs::write(at("systemctl"), format!("#!/bin/sh\necho \"$@\" >>{}\n", asked.display())).unwrap();
    fs::set_permissions(at("systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(at("flotilla.toml"), format!("[node]\nrun_dir = {:?}\n", dir.path())).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let mut daemon = None;
    for (answer, restarted) in [("x", false), ("n", false), ("", false), ("y", true)] {
        let config = at(&format!("{answer}.d/config.toml"));
        fs::create_dir_all(config.parent().unwrap()).unwrap();
        let install = format!(
            "{} install --containerd --containerd-version 2.1.4 --containerd-config {} --config {}",
            flotilla_program().display(),
            config.display(),
            at("flotilla.toml").display()
        );
        let said = on_a_terminal(&install, answer, &path);
        // containerd that starts without its snapshotter loses its images.
        let says = if daemon.is_some() { "Restart containerd now? " } else { "no daemon listens on " };
        assert!(said.contains(says), "{said}");
        daemon.get_or_insert_with(|| UnixListener::bind(at("snapshots.sock")).unwrap());
        assert!(config.exists(), "{said}");
        let called = fs::read_to_string(&asked).ok();
        assert_eq!(called.as_deref(), restarted.then_some("restart containerd\n"), "{answer:?}: {said}");
    }
}

/// What a command that succeeds writes to a terminal, on which `answer` is typed.
fn on_a_terminal(command: &str, answer: &str, path: &str) -> String {
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", command, "/dev/null"]);
    terminal.env("PATH", path).env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::piped());
    let terminal = terminal.spawn().unwrap();
    writeln!(terminal.stdin.as_ref().unwrap(), "{answer}").unwrap();
    let ended = terminal.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{said}");
    said
}

#[test]
fn a_pull_draws_bars_on_a_terminal() {
    tell("1.6", draws_bars);
}

fn draws_bars(lab: &Lab, containerd: Programs) {
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let node = lab.node(&containerd).alone().setting("registry", "origin_rate", "\"1MiB\"").start().unwrap();
    let pull = node.daemon().unwrap().command(&["pull", &lab.name(&image.name)]);
    let words = [pull.get_program()].into_iter().chain(pull.get_args());
    let words: Vec<String> = words.map(|word| word.display().to_string()).collect();
    let said = on_a_terminal(&words.join(" "), "", &std::env::var("PATH").unwrap());
    for layer in &image.layers {
        let bar = format!("{} [", &layer.blob.digest[..19]);
        let drawn = said.split(['\r', '\n']).any(|line| line.contains(&bar) && line.contains(" of "));
        assert!(drawn, "no bar {bar} in {said:?}");
    }
    assert!(said.contains("registry "), "where the bytes came from: {said:?}");
}

/// `flotilla` with a settings file of its own.
fn flotilla(dir: &Path, settings: &str, arguments: &[&str]) -> Output {
    let config = dir.join("flotilla.toml");
    fs::write(&config, settings).unwrap();
    Command::new(flotilla_program()).args(arguments).arg("--config").arg(&config).output().unwrap()
}

/// It failed with one line on standard error, which has all of `words`.
fn fails_with(failed: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&failed.stderr);
    assert_eq!((failed.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(words.iter().all(|word| said.contains(word)) && failed.stdout.is_empty(), "{said}");
}

#[test]
fn config_prints_what_is_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let printed = flotilla(dir.path(), "[store]\nquota = \"3GiB\"\n", &["config"]);
    let text = String::from_utf8_lossy(&printed.stdout);
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    assert!(text.contains("quota = \"3GiB\"") && text.contains("flotilla.toml"), "{text}");
    // What it prints is a settings file.
    let again = flotilla(dir.path(), &text, &["config"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
}

/// In folders and a network of its own: the defaults are the machine's.
#[test]
fn without_any_settings_it_runs() {
    if let Some(why) = missing() {
        eprintln!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bare = "set -e; mkdir -p /etc/flotilla; ip link set lo up; \
                for place in /var/lib /run /etc/flotilla; do mount -t tmpfs bare $place; done; exec \"$0\" serve";
    let mut serve = Command::new("unshare");
    serve.args(["--net", "--mount", "sh", "-c", bare]).arg(flotilla_program()).env_remove("FLOTILLA_CONFIG");
    let mut daemon = Process::start("flotilla", serve, &dir.path().join("log"), dir.path()).unwrap();
    daemon.wait_for("flotilla::daemon::run: ready").unwrap();
    let lines = daemon.lines();
    for (door, place) in [
        ("snapshots", "/run/flotilla/snapshots.sock"),
        ("admin", "127.0.0.1:7440"),
        ("mirror", "127.0.0.1:7441"),
    ] {
        let listens = format!("listening door=\"{door}\" addr={place}");
        assert!(lines.iter().any(|line| line.contains(&listens)), "{listens}: {lines:?}");
    }
    let closed = lines.iter().filter(|line| line.contains("the mesh port stays closed"));
    assert_eq!(closed.count(), 1, "{lines:?}");
    daemon.terminate().unwrap();
}

#[test]
fn a_misspelt_setting_is_named_with_its_mend() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["config", "serve", "status"] {
        let failed = flotilla(dir.path(), "[store]\nqouta = \"3GiB\"\n", &[command]);
        fails_with(&failed, &["flotilla.toml", "qouta", "quota"]);
        let failed = flotilla(dir.path(), "[store]\nquota = \"much\"\n", &[command]);
        fails_with(&failed, &["flotilla.toml", "quota", "much", "10GiB"]);
    }
}

#[test]
fn without_a_daemon_the_socket_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let settings = format!("[node]\nrun_dir = {run_dir:?}\n");
    let socket = run_dir.join("admin.sock").display().to_string();
    for arguments in [&["status"][..], &["status", "--json"], &["pull", "127.0.0.1:1/a:b"]] {
        fails_with(&flotilla(dir.path(), &settings, arguments), &[&socket, "flotilla serve"]);
    }
}

#[test]
fn install_says_what_it_misses() {
    let dir = tempfile::tempdir().unwrap();
    fails_with(&flotilla(dir.path(), "", &["install"]), &["--containerd", "--nerdctl"]);
    let config = dir.path().join("config.toml").display().to_string();
    let install = ["install", "--containerd", "--containerd-config", &config];
    let of_version = |version| [&install[..], &["--containerd-version", version]].concat();
    fails_with(&flotilla(dir.path(), "", &of_version("1.5.9")), &["1.5.9", "1.6"]);
    let nowhere =
        ["install", "--containerd", "--containerd-version", "2.1.4", "--containerd-config", "/no/where.toml"];
    fails_with(&flotilla(dir.path(), "", &nowhere), &["/no/where.toml", "no such folder"]);
    fs::write(&config, "version = 2\n[broken").unwrap();
    fails_with(&flotilla(dir.path(), "", &of_version("2.1.4")), &[&config]);
    assert_eq!(fs::read_to_string(&config).unwrap(), "version = 2\n[broken");
}
