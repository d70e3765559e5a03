//! The units: each line explained, nothing that would part the mounts, and systemd understands them.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
};

/// Settings that give a service a mount namespace of its own (systemd.exec(5)): hard links between its
/// folders would fail with EXDEV, and its mounts would not reach containerd.
const PARTING: [&str; 24] = [
    "PrivateTmp",
    "PrivateMounts",
    "PrivateDevices",
    "PrivateUsers",
    "ProtectSystem",
    "ProtectHome",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectControlGroups",
    "ProtectProc",
    "ProcSubset",
    "ProtectHostname",
    "ReadWritePaths",
    "ReadOnlyPaths",
    "InaccessiblePaths",
    "ExecPaths",
    "NoExecPaths",
    "BindPaths",
    "BindReadOnlyPaths",
    "TemporaryFileSystem",
    "StateDirectory",
    "RootDirectory",
    "MountFlags",
];

fn unit(name: &str) -> String {
    fs::read_to_string(Path::new("systemd").join(name)).unwrap()
}

/// The value of a setting that stands once.
fn setting<'unit>(unit: &'unit str, name: &str) -> &'unit str {
    let values: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix(&format!("{name}="))).collect();
    assert_eq!(values.len(), 1, "{name} stands {} times", values.len());
    values[0]
}

#[test]
fn the_service_has_the_mounts_of_the_machine() {
    let service = unit("flotilla.service");
    for name in
        service.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split('=').next())
    {
        assert!(!PARTING.contains(&name), "{name} makes a mount namespace");
    }
}

#[test]
fn each_line_of_the_service_is_explained() {
    let service = unit("flotilla.service");
    let lines: Vec<&str> = service.lines().collect();
    // What a unit is called and where it is described explains itself, and so does the program.
    let plain = ["Description", "Documentation", "ExecStart", "NotifyAccess", "Requires", "Also"];
    for (above, line) in lines.iter().zip(lines.iter().skip(1)) {
        let Some((name, _)) = line.split_once('=').filter(|_| !line.starts_with('#')) else { continue };
        assert!(above.starts_with('#') || plain.contains(&name), "no reason above {line}");
    }
}

#[test]
fn the_service_starts_before_containerd_and_always_again() {
    let service = unit("flotilla.service");
    assert_eq!(setting(&service, "Type"), "notify");
    assert_eq!(setting(&service, "Before"), "containerd.service");
    assert_eq!(setting(&service, "WantedBy"), "containerd.service multi-user.target");
    assert_eq!(setting(&service, "Restart"), "always");
    let socket = unit("flotilla.socket");
    assert_eq!(setting(&socket, "ListenStream"), "/run/flotilla/snapshots.sock");
    assert_eq!(setting(&socket, "SocketMode"), "0600");
    assert_eq!(setting(&socket, "Before"), "containerd.service");
}

#[test]
fn systemd_understands_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: no systemd-analyze here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Verified as installed, but for the program, which need not lie in /usr/bin yet.
    fs::write(dir.path().join("flotilla.socket"), unit("flotilla.socket")).unwrap();
    let service = unit("flotilla.service").replace("/usr/bin/flotilla", env!("CARGO_BIN_EXE_flotilla"));
    fs::write(dir.path().join("flotilla.service"), service).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.env("SYSTEMD_UNIT_PATH", format!("{}:/lib/systemd/system", dir.path().display()));
    let verified =
        verify.args(["verify", "flotilla.service", "flotilla.socket"]).current_dir(&dir).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("flotilla")).collect();
    assert!(verified.status.success() && ours.is_empty(), "{said}");
}

/// The daemon takes the snapshots socket that systemd opened, instead of opening its own.
#[test]
fn a_given_socket_is_taken() {
    let activate = Path::new("/usr/bin/systemd-socket-activate");
    if !activate.exists() {
        eprintln!("skipped: no systemd-socket-activate here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let settings = format!(
        "[node]\ndata_dir = {:?}\nrun_dir = {:?}\n[containerd]\naddress = {:?}\nsnapshot_root = {:?}\n\
         [mesh]\nca = {:?}\ncert = {:?}\nkey = {:?}\n[admin]\nlisten = \"127.0.0.1:0\"\n[mirror]\nlisten = \"127.0.0.1:0\"\n",
        at("data"),
        at("run"),
        at("containerd.sock"),
        at("root"),
        at("ca.pem"),
        at("node.pem"),
        at("key.pem"),
    );
    fs::write(at("config.toml"), settings).unwrap();
    let mut activated = Command::new(activate)
        .arg("-l")
        .arg(at("given.sock"))
        .args([env!("CARGO_BIN_EXE_flotilla"), "serve", "--config"])
        .arg(at("config.toml"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(activated.stderr.take().unwrap()).lines().map_while(Result::ok);
    lines.by_ref().find(|line| line.starts_with("Listening on")).expect("systemd-socket-activate listens");
    let _caller = UnixStream::connect(at("given.sock")).unwrap();
    let listening = lines.by_ref().find(|line| line.contains("snapshots")).expect("the daemon says where");
    assert!(listening.contains("given.sock"), "{listening}");
    lines.by_ref().find(|line| line.contains("ready")).expect("the daemon gets ready");
    assert!(!at("run/snapshots.sock").exists(), "no socket of its own");
    activated.kill().unwrap();
    activated.wait().unwrap();
}
