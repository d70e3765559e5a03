//! A throw-away machine with a real systemd as its first process, to install on as an operator does.
//!
//! ```text
//! /                     this machine's own root as it is, changes in memory
//! /var/lib              <lab>/machine/var-lib: one mount, on the lab's disk
//! /usr/local/bin        one containerd's programs
//! /etc/systemd/system   the few units that a boot takes, and what the story installs
//! ```
//! Namespaces of its own for mounts, processes, cgroups, hostname and IPC; the network is this machine's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::{
    Lab, Result,
    containerd::Programs,
    process::{PATIENCE, Process, output},
};

const SYSTEMD: &str = "/lib/systemd/systemd";

/// How often we look whether it has booted: until it has, there is nobody to ask.
const LOOK_AFTER: Duration = Duration::from_millis(100);

/// Enters the cgroup `$0`, so that it is the root of those that systemd makes, then the namespaces.
const ENTER: &str = "echo $$ >\"$0/cgroup.procs\" && exec unshare --fork --kill-child --pid --mount-proc \
                     --mount --uts --ipc --cgroup sh \"$@\"";

/// Ends with all that runs on it when dropped.
pub(crate) struct Machine {
    process: Process,
    /// systemd's id among this machine's processes.
    init: u32,
}

impl Machine {
    /// What this machine lacks for one.
    pub(crate) fn missing() -> Option<&'static str> {
        if !Path::new(SYSTEMD).exists() {
            return Some("no systemd here; cargo xtask setup installs it");
        }
        cgroups().is_none().then_some("no cgroups of version 2 are mounted here")
    }

    /// Boots, and waits until systemd says that the machine runs.
    pub(crate) fn boot(lab: &Lab, containerd: &Programs) -> Result<Machine> {
        let dir = lab.dir().join("machine");
        let name = lab.dir().file_name().unwrap_or_default();
        // Named after the lab, as `sweep` expects.
        let cgroup = cgroups().ok_or("no cgroups of version 2")?.join(name);
        fs::create_dir_all(&dir)
            .and_then(|()| fs::create_dir_all(&cgroup))
            .map_err(|error| format!("making {} and {}: {error}", dir.display(), cgroup.display()))?;
        let mut command = Command::new("sh");
        command
            .args(["-c", ENTER])
            .arg(cgroup)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/lab/boot"));
        command.arg(&dir).arg(&containerd.bin);
        let mut process = Process::start("systemd", command, &dir.join("boot.log"), lab.dir())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let booted =
                child(process.id()).map(|init| (init, call(init, "systemctl", &["is-system-running"])));
            match booted {
                Some((init, Ok(_))) => return Ok(Machine { process, init }),
                Some((_, Err(why))) if Instant::now() > deadline => return Err(why),
                Some(_) | None if process.runs() => thread::park_timeout(LOOK_AFTER),
                Some(_) | None => return Err(process.lines().join("\n").into()),
            }
        }
    }

    /// Runs a program on it; what it prints.
    pub(crate) fn call(&self, program: &str, arguments: &[&str]) -> Result<String> {
        call(self.init, program, arguments)
    }

    /// A property of a unit, as `systemctl show` has it.
    pub(crate) fn property(&self, unit: &str, name: &str) -> Result<String> {
        self.call("systemctl", &["show", "--value", "-p", name, unit]).map(|value| value.trim().to_owned())
    }

    /// What a unit has logged so far.
    pub(crate) fn journal(&self, unit: &str) -> Result<String> {
        self.call("journalctl", &["--no-pager", "--quiet", "--output=cat", "--unit", unit])
    }

    /// A file of it, as seen from outside.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking()
            && let Ok(journal) = self.call("journalctl", &["--no-pager", "--quiet", "--lines=60"])
        {
            eprintln!("--- last lines of the machine's journal:\n{journal}");
        }
        // Its first process takes all others with it, and `unshare` waits for that: nothing holds the lab's
        // cgroup any more.
        let killed = Command::new("kill").args(["-s", "KILL", &self.init.to_string()]).status();
        if killed.is_ok_and(|status| status.success()) {
            let _ended = self.process.end();
        }
    }
}

fn call(init: u32, program: &str, arguments: &[&str]) -> Result<String> {
    let mut enter = Command::new("nsenter");
    enter.args(["--target", &init.to_string(), "--pid", "--mount", "--uts", "--ipc", "--cgroup", program]);
    enter.args(arguments);
    output(enter)
}

/// The process that a process has started last.
fn child(id: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
    children.split_whitespace().last()?.parse().ok()
}

/// Where cgroups of version 2 are mounted: alone, or beside those of version 1.
fn cgroups() -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = table.lines().find(|line| line.contains(" - cgroup2 "))?;
    mount.split(' ').nth(4).map(PathBuf::from)
}
