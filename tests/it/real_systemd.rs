//! Flotilla installed on a machine as README says, under a real systemd.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    process::Command,
};

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        cri::Cri,
        image::Published,
        machine::Machine,
        process::output,
        registry, samples,
        story::{SANDBOX, example, flotilla_program, on_every_containerd},
    },
    real_compare::torture,
    real_image::eventually,
    real_layers::came_by_flotilla,
};

on_every_containerd!(a_real_systemd_runs_the_units);

const SOCKET: &str = "/run/flotilla/snapshots.sock";

const CONTAINERD_SETTINGS: &str = "/etc/containerd/config.toml";

/// containerd's own unit, but for the path of the program and the modules that it loads.
const CONTAINERD_UNIT: &str = "[Unit]
After=network.target
[Service]
ExecStart=/usr/local/bin/containerd
Type=notify
Delegate=yes
KillMode=process
Restart=always
[Install]
WantedBy=multi-user.target
";

fn a_real_systemd_runs_the_units(lab: &Lab, containerd: Programs) {
    if let Some(why) = Machine::missing() {
        eprintln!("skipped: {why}");
        return;
    }
    let machine = Machine::boot(lab, &containerd).unwrap();
    let original = has_containerd(&machine, lab);
    install(&machine);
    starts_when_it_is_called(&machine);
    is_hardened_in_the_machines_own_mounts(&machine);
    machine.call("flotilla", &["install", "--containerd", "--restart"]).unwrap();

    let cri = Cri::new(&example("cri"), machine.at("/run/containerd/containerd.sock"), lab.dir());
    let small = samples::small(lab.images(), "demo/small:v1").unwrap();
    // Devices, capabilities, set-user-ID, trusted attributes: what the capabilities are left for.
    let odd = torture(lab);
    for image in [&small, &odd] {
        brings(&machine, lab, &cri, image);
    }
    mounts(&machine, &lab.name(&small.name));

    comes_back_after_kill_9(&machine);
    let again = samples::large_layer(lab.images(), "demo/again:v1", 2 << 20).unwrap();
    brings(&machine, lab, &cri, &again);
    stops_cleanly(&machine);
    starts_before_containerd(&machine);
    brings(&machine, lab, &cri, &samples::empty_layer(lab.images(), "demo/empty:v1").unwrap());

    machine.call("flotilla", &["uninstall", "--containerd", "--restart"]).unwrap();
    assert_eq!(fs::read_to_string(machine.at(CONTAINERD_SETTINGS)).unwrap(), original);
    assert!(!machine.at("/etc/containerd/conf.d/flotilla.toml").exists());
    assert_eq!(machine.property("containerd", "ActiveState").unwrap(), "active");
}

/// A node before Flotilla: containerd runs on its default settings, but for what this lab needs. Returns those.
fn has_containerd(machine: &Machine, lab: &Lab) -> String {
    let sandbox = format!("{:?}", lab.name(SANDBOX));
    let line = |line: &str| {
        let (key, _) = line.split_once(" = ")?;
        let value = match key.trim() {
            "sandbox_image" | "sandbox" => &sandbox,
            "config_path" => "\"/etc/containerd/certs.d\"",
            "restrict_oom_score_adj" => "true",
            _ => return None,
        };
        Some(format!("{key} = {value}\n"))
    };
    let default = machine.call("containerd", &["config", "default"]).unwrap();
    let settings: String =
        default.lines().map(|text| line(text).unwrap_or_else(|| format!("{text}\n"))).collect();
    fs::write(machine.at(CONTAINERD_SETTINGS), &settings).unwrap();
    registry::trust_plain_http(&machine.at("/etc/containerd/certs.d"), &lab.host()).unwrap();
    fs::write(machine.at("/etc/systemd/system/containerd.service"), CONTAINERD_UNIT).unwrap();
    machine.call("systemctl", &["enable", "--now", "containerd"]).unwrap();
    settings
}

/// README's commands, but that the network is not the machine's own: the admin door takes a free port.
fn install(machine: &Machine) {
    let place = |mode: &str, file: &str, folder: &str| {
        let mut install = Command::new("install");
        install.args(["-m", mode, file]).arg(machine.at(folder));
        output(install).unwrap();
    };
    place("0755", &flotilla_program().display().to_string(), "/usr/bin/");
    for unit in ["systemd/flotilla.service", "systemd/flotilla.socket"] {
        place("0644", unit, "/etc/systemd/system/");
    }
    fs::write(
        machine.at("/etc/flotilla/config.toml"),
        "[admin]\nlisten = \"127.0.0.1:0\"\n[mirror]\nlisten = \"127.0.0.1:0\"\n",
    )
    .unwrap();
}

fn starts_when_it_is_called(machine: &Machine) {
    machine.call("systemctl", &["enable", "--now", "flotilla.socket"]).unwrap();
    assert_eq!(machine.property("flotilla", "ActiveState").unwrap(), "inactive");
    let socket = fs::metadata(machine.at(SOCKET)).unwrap();
    assert!(socket.file_type().is_socket() && socket.permissions().mode() & 0o777 == 0o600);
    let _caller = UnixStream::connect(machine.at(SOCKET)).unwrap();
    // A job of a service of the type `notify` ends when the daemon has said READY=1.
    machine.call("systemctl", &["enable", "--now", "flotilla.service"]).unwrap();
    let state = ["Type", "ActiveState", "SubState", "NRestarts"];
    assert_eq!(
        state.map(|name| machine.property("flotilla", name).unwrap()),
        ["notify", "active", "running", "0"]
    );
    let said = machine.journal("flotilla").unwrap();
    assert!(said.contains(&format!("door=\"snapshots\" addr={SOCKET}")), "{said}");
}

fn is_hardened_in_the_machines_own_mounts(machine: &Machine) {
    let main = machine.property("flotilla", "MainPID").unwrap();
    let mounts = |id: &str| fs::read_link(machine.at(&format!("/proc/{id}/ns/mnt"))).unwrap();
    assert_eq!(mounts(&main), mounts("1"), "systemd gave the daemon mounts of its own");
    let status = fs::read_to_string(machine.at(&format!("/proc/{main}/status"))).unwrap();
    let of_status = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SYS_ADMIN, MKNOD, SETFCAP by their numbers.
    let allowed = [0, 1, 2, 3, 4, 21, 27, 31].iter().fold(0u64, |mask, bit| mask | 1 << bit);
    for set in ["CapBnd", "CapPrm", "CapEff"] {
        assert_eq!(u64::from_str_radix(&of_status(set), 16).unwrap(), allowed, "{set}");
    }
    assert_eq!(["NoNewPrivs", "Seccomp", "Umask"].map(of_status), ["1", "2", "0022"]);
}

/// Pulls an image, and finds each layer once on the disk, once at the registry.
fn brings(machine: &Machine, lab: &Lab, cri: &Cri, image: &Published) {
    cri.pull(&lab.name(&image.name)).unwrap();
    came_by_flotilla(lab, image);
    let said = machine.journal("flotilla").unwrap();
    for layer in &image.layers {
        let digest = &layer.blob.digest;
        let ended = said.lines().find(|line| line.contains(digest.as_str()) && line.contains("outcome="));
        assert!(
            ended.is_some_and(|line| line.contains("outcome=\"intercepted\"")),
            "{digest}: {ended:?}\n{said}"
        );
        let hex = digest.trim_start_matches("sha256:");
        let theirs = format!("/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256/{hex}");
        let ours = format!("/var/lib/flotilla/blobs/sha256/{}/{hex}/data", &hex[..2]);
        let [theirs, ours] = [theirs, ours].map(|path| fs::metadata(machine.at(&path)).unwrap());
        assert_eq!((ours.ino(), ours.nlink()), (theirs.ino(), 2), "one copy of {digest}");
    }
}

/// What a container would run on. No container runs here: where cgroups of version 1 have the controllers, version 2
/// has none for a pod.
fn mounts(machine: &Machine, image: &str) {
    let place = "/mnt";
    let ctr = |arguments: &[&str]| {
        machine.call("ctr", &[&["--namespace", "k8s.io", "images"][..], arguments].concat()).unwrap()
    };
    ctr(&["mount", "--snapshotter", "flotilla", image, place]);
    assert_eq!(fs::read_to_string(machine.at("/mnt/etc/lab")).unwrap(), "a small image\n");
    assert_eq!(fs::metadata(machine.at("/mnt/etc/lab.twin")).unwrap().nlink(), 2);
    ctr(&["unmount", "--rm", "--snapshotter", "flotilla", place]);
}

fn comes_back_after_kill_9(machine: &Machine) {
    let before = machine.property("flotilla", "MainPID").unwrap();
    machine.call("systemctl", &["kill", "--kill-who=main", "--signal=KILL", "flotilla"]).unwrap();
    eventually("systemd to start it again", || {
        let state = ["NRestarts", "SubState"].map(|name| machine.property("flotilla", name).unwrap());
        state == ["1", "running"]
    });
    assert_ne!(machine.property("flotilla", "MainPID").unwrap(), before);
    assert_eq!(machine.property("containerd", "NRestarts").unwrap(), "0");
    // A start that took more than the second that containerd gives a connection made it back off.
    eventually("containerd to find Flotilla again", || {
        machine.call("ctr", &["snapshots", "--snapshotter", "flotilla", "ls"]).is_ok()
    });
}

/// With its socket, which would start it again at containerd's next call.
fn stops_cleanly(machine: &Machine) {
    machine.call("systemctl", &["stop", "flotilla.socket", "flotilla.service"]).unwrap();
    let ended = ["ActiveState", "Result", "ExecMainStatus"];
    assert_eq!(ended.map(|name| machine.property("flotilla", name).unwrap()), ["inactive", "success", "0"]);
    assert_eq!(machine.property("containerd", "ActiveState").unwrap(), "active");
}

/// As at a boot: containerd alone is asked for, and finds Flotilla ready.
fn starts_before_containerd(machine: &Machine) {
    machine.call("systemctl", &["stop", "containerd.service"]).unwrap();
    machine.call("systemctl", &["start", "containerd.service"]).unwrap();
    let at = |unit: &str, name: &str| -> u64 { machine.property(unit, name).unwrap().parse().unwrap() };
    let ready = at("flotilla", "ActiveEnterTimestampMonotonic");
    let containerd = at("containerd", "ExecMainStartTimestampMonotonic");
    assert!(
        0 < ready && ready <= containerd,
        "Flotilla was ready at {ready}, containerd started at {containerd}"
    );
}
