//! What the stores, leases, snapshots and trees of the oldest containerd show, those of the others show as well: this
//! program runs that part of itself once more on each.

use std::process::Command;

use crate::lab::containerd;

/// Parts that take any containerd: holds, content, leases and catalog, the snapshotter suite behind one, trees beside it.
const PARTS: [&str; 7] = [
    "containerd::catalog::",
    "containerd::content::",
    "containerd::holder::",
    "containerd::holds::",
    "snapshots::containerd::",
    "snapshots::suite::behind_containerd::",
    "unpack_compare::",
];

#[test]
fn on_containerd_1_7() {
    passes_on("1.7");
}

#[test]
fn on_containerd_2_1() {
    passes_on("2.1");
}

#[test]
fn on_containerd_2_4() {
    passes_on("2.4");
}

fn passes_on(series: &str) {
    let Some(programs) = containerd::find(series) else {
        eprintln!("skipped: no containerd {series} here; cargo xtask setup gets it where it can");
        return;
    };
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(PARTS).args(["--show-output", "--test-threads", "2"]);
    let ran = again.env("FLOTILLA_TEST_CONTAINERD", programs.bin).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && !said.contains("skipped: "), "{said}");
    let result = said.lines().find_map(|line| line.strip_prefix("test result: ok. ")).unwrap();
    let passed: u32 = result.split(' ').next().unwrap().parse().unwrap();
    assert!(passed > 50, "{result}");
}
