//! Removes a lab: its processes, mounts, network namespaces, cgroups and files.
//!
//! It asks the kernel what is there instead of a list kept by the lab, so that it also cleans up after
//! a lab that was killed.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use super::process::MARK;

/// Labs lie here, under a short name: a unix socket's path may have 107 bytes.
pub(crate) const PLACE: &str = "/tmp";

/// `fl<process id>x<counter>`: the name of a lab's folder, and the beginning of its namespaces' names.
pub(crate) const PREFIX: &str = "fl";

/// A lab with this file in it stays when its process is gone, until somebody asks for `kept` too.
pub(crate) const KEEP: &str = "keep";

/// Removes every lab whose process is gone; those that were kept only if `kept`.
pub(crate) fn leftovers(kept: bool) {
    for (dir, owner) in labs() {
        if !Path::new("/proc").join(owner.to_string()).exists() && (kept || !dir.join(KEEP).exists()) {
            lab(&dir);
        }
    }
}

/// Removes every lab of one process.
pub(crate) fn of_process(id: u32) {
    for (dir, _) in labs().into_iter().filter(|(dir, owner)| *owner == id && !dir.join(KEEP).exists()) {
        lab(&dir);
    }
}

/// All labs of this machine, each with its process.
fn labs() -> Vec<(PathBuf, u32)> {
    let owner = |name: &str| name.strip_prefix(PREFIX)?.split_once('x')?.0.parse().ok();
    names_in(PLACE).filter_map(|name| Some((Path::new(PLACE).join(&name), owner(&name)?))).collect()
}

/// Removes the lab in `dir`.
pub(crate) fn lab(dir: &Path) {
    kill(dir);
    for mount in mounts_below(dir) {
        // Lazily: a container's process may hold it for another moment.
        let _gone_with_its_parent = Command::new("umount").arg("-l").arg(&mount).output();
    }
    let id = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    for name in names_in("/run/netns").filter(|name| name.starts_with(&format!("{id}-"))) {
        let _gone = Command::new("ip").args(["netns", "del", &name]).output();
    }
    for hierarchy in names_in("/sys/fs/cgroup") {
        remove_cgroup(&Path::new("/sys/fs/cgroup").join(hierarchy).join(id));
    }
    remove_cgroup(&Path::new("/sys/fs/cgroup").join(id));
    let _gone = fs::remove_dir_all(dir);
}

/// Kills what carries the lab's mark, and what descends from it: a container's process has an
/// environment of its own, but its parent is the shim.
fn kill(dir: &Path) {
    // What is being started while we look is found by the next round.
    for _ in 0..100 {
        let found = members(dir);
        if found.is_empty() {
            return;
        }
        let ids = found.iter().map(u32::to_string);
        let _some_may_have_ended = Command::new("kill").args(["-s", "KILL"]).args(ids).output();
        // There is no event for the end of another one's child.
        thread::park_timeout(Duration::from_millis(20));
    }
}

fn members(dir: &Path) -> Vec<u32> {
    let mark = format!("{MARK}={}", dir.display());
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut found: Vec<u32> = Vec::new();
    for id in names_in("/proc").filter_map(|name| name.parse::<u32>().ok()) {
        let Some(parent) = parent_unless_dead(id) else { continue };
        children.entry(parent).or_default().push(id);
        let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            found.push(id);
        }
    }
    let mut next = 0;
    while let Some(id) = found.get(next).copied() {
        next += 1;
        for child in children.get(&id).into_iter().flatten() {
            if !found.contains(child) {
                found.push(*child);
            }
        }
    }
    found.retain(|id| *id != std::process::id());
    found
}

/// The parent's id, from the fields behind the name in parentheses: state, then parent.
fn parent_unless_dead(id: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != "Z" && state != "X").then_some(parent)
}

/// Mount points below a folder, the last made first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    below.reverse();
    below
}

fn remove_cgroup(dir: &Path) {
    for name in names_in(dir) {
        let child = dir.join(name);
        if child.is_dir() {
            remove_cgroup(&child);
        }
    }
    let _not_there = fs::remove_dir(dir);
}

fn names_in(dir: impl AsRef<Path>) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}
