//! What tests and demo are made of: Debian packages, containerds of several versions, Go clients.
//!
//! ```text
//! ~/.cache/flotilla/              or FLOTILLA_CACHE
//!   containerd-1.6.20/bin/        containerd, ctr, containerd-shim-runc-v2: unpacked from Debian's packages
//!   containerd-1.7.24/bin/
//!   containerd-2.1.9/bin/
//!   containerd-2.4.2/bin/         built with Go, like what follows
//!   crictl-1.36.0/                crictl, and critest, nerdctl, crane, oras and regctl in folders like it
//!   kubelet-1.37.2/               only after `cargo xtask setup kubelet`
//!   demo/                         the demo's image as a registry's folder
//! ```
//! Nothing is ever half there: each part is made beside its place and renamed.

pub mod debian;
mod golang;

use std::{
    process::{Child, Stdio},
    time::Instant,
};

use crate::{
    lab::{Result, containerd, dockerd},
    shell::{self, cache, command, has},
};

/// What the demo needs installed, by the program that shows that it is.
const DEMO_PACKAGES: [(&str, &str); 9] = [
    ("runc", "runc"),
    ("docker-registry", "docker-registry"),
    ("debootstrap", "debootstrap"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("busybox", "busybox-static"),
    ("pip3", "python3-pip"),
    ("dpkg-deb", "dpkg"),
];

/// What the tests need beside it.
const TEST_PACKAGES: [(&str, &str); 5] = [
    ("systemd-analyze", "systemd"),
    ("skopeo", "skopeo"),
    ("podman", "podman"),
    ("buildah", "buildah"),
    ("dockerd", "docker.io"),
];

/// How one step of the setup ended.
pub enum Outcome {
    Done,
    /// It was there already.
    Kept,
    /// It cannot be had here; the tests that need it say so too.
    Skipped(String),
}

/// Gets everything; what cannot be had is skipped with the reason, unless nothing works without it.
pub fn setup() -> Result<()> {
    std::fs::create_dir_all(cache()?).map_err(|error| format!("making the cache folder: {error}"))?;
    step("packages", || install(&[&DEMO_PACKAGES[..], &TEST_PACKAGES].concat()))?;
    for series in debian::CONTAINERDS {
        let is_here = containerd::find(series.0).is_some();
        optional(&format!("containerd {}", series.0), || debian::CONTAINERD.keep(series, is_here));
    }
    for series in debian::DOCKERS {
        let is_here = dockerd(series.0).is_some();
        optional(&format!("dockerd {}", series.0), || debian::DOCKER.keep(series, is_here));
    }
    for tool in golang::TOOLS {
        optional(tool.name, || golang::build(tool));
    }
    step("flotilla", build)
}

/// Gets one part that is not among everything; asked for by name, it is not skipped.
pub fn setup_of(part: &str) -> Result<()> {
    if part != golang::KUBELET.name {
        return Err(format!("setup takes nothing, or kubelet, not {part}").into());
    }
    std::fs::create_dir_all(cache()?).map_err(|error| format!("making the cache folder: {error}"))?;
    step(golang::KUBELET.name, || match golang::build(&golang::KUBELET)? {
        Outcome::Skipped(why) => Err(why.into()),
        outcome => Ok(outcome),
    })
}

/// What the demo needs of it, without what takes Go and without Flotilla itself.
pub fn for_demo() -> Result<()> {
    std::fs::create_dir_all(cache()?).map_err(|error| format!("making the cache folder: {error}"))?;
    step("packages", || install(&DEMO_PACKAGES))?;
    let oldest = debian::CONTAINERDS[0];
    step("containerd", || debian::CONTAINERD.keep(oldest, containerd::find(oldest.0).is_some()))
}

/// Builds the daemon and the examples that tests and benchmarks call.
pub fn build() -> Result<Outcome> {
    shell::run("cargo", &["build", "--quiet", "--bins", "--examples"])?;
    Ok(Outcome::Done)
}

/// The daemon and what the demo calls beside it, being built.
pub struct Building {
    cargo: Child,
    since: Instant,
}

impl Building {
    /// The compiler takes minutes, in which packages and the image's files can be fetched.
    pub fn start() -> Result<Self> {
        let mut cargo = command("cargo");
        cargo.args(["build", "--quiet", "--bin=flotilla", "--example=cri", "--example=lab_image"]);
        let cargo = cargo.stdin(Stdio::null()).spawn().map_err(|error| format!("starting cargo: {error}"))?;
        Ok(Self { cargo, since: Instant::now() })
    }

    pub fn wait(mut self) -> Result<()> {
        let status = self.cargo.wait().map_err(|error| format!("waiting for cargo: {error}"))?;
        if !status.success() {
            return Err(format!("cargo build: {status}").into());
        }
        report("flotilla", &Outcome::Done, self.since);
        Ok(())
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        let _has_ended = self.cargo.kill();
        let _nobody_asks = self.cargo.wait();
    }
}

/// Runs one step and prints its line.
pub fn step(name: &str, work: impl FnOnce() -> Result<Outcome>) -> Result<()> {
    let start = Instant::now();
    let outcome = work()?;
    report(name, &outcome, start);
    Ok(())
}

fn report(name: &str, outcome: &Outcome, since: Instant) {
    let word = match outcome {
        Outcome::Done => "done".to_owned(),
        Outcome::Kept => "kept".to_owned(),
        Outcome::Skipped(why) => format!("skipped: {why}"),
    };
    println!("setup: {name}: {word} ({:.1} s)", since.elapsed().as_secs_f64());
}

fn optional(name: &str, work: impl FnOnce() -> Result<Outcome>) {
    let skipped = |failure: crate::lab::Failure| Ok(Outcome::Skipped(failure.to_string()));
    // The closure turns every failure into a reason, so there is none left.
    let _none = step(name, || work().or_else(skipped));
}

/// What the mirror's benchmark needs.
pub fn for_bench_mirror() -> Result<()> {
    step("packages", || install(&[("nginx", "nginx")]))
}

/// Installs what is not there, by the program that shows it.
fn install(packages: &[(&str, &str)]) -> Result<Outcome> {
    let missing: Vec<&str> =
        packages.iter().filter(|(program, _)| !has(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(Outcome::Kept);
    }
    let mut apt = command("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    shell::quiet(command("apt-get").args(["-q", "update"]))?;
    shell::quiet(apt.args(["-q", "-y", "--no-install-recommends", "install"]).args(&missing))?;
    // Debian starts what it installs; the tests start their own.
    let started = [
        ("docker-registry", "docker-registry.service"),
        ("docker.io", "docker.socket"),
        ("docker.io", "docker.service"),
        ("docker.io", "containerd.service"),
        ("podman", "podman.socket"),
        ("nginx", "nginx.service"),
    ];
    for (_, unit) in started.iter().filter(|(package, _)| missing.contains(package) && has("systemctl")) {
        let _without_systemd_there_is_nothing_to_stop =
            command("systemctl").args(["disable", "--now", "--quiet", unit]).output();
    }
    Ok(Outcome::Done)
}
