//! The commands of a developer: what they need is installed, built or fetched by themselves.
//!
//! `cargo xtask setup` gets the parts, `cargo xtask test` runs every test, `cargo xtask demo` shows a
//! crowd of nodes pulling one image. Only the standard library, so that it starts at once.

mod bench;
mod demo;
mod demo_image;
mod gate;
mod lab;
mod parts;
mod shell;
mod test;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND
  setup                        install, fetch and build what tests and demo need (cached)
  setup kubelet                build a kubelet with Go, a quarter of an hour, for the tests with a static pod
  test [FILTER]                setup, fmt, clippy, then every test
  demo [--nodes N] [--containerd PATH] [--keep]
                               nodes in network namespaces pull one image, with Flotilla and without
  bench crowd [--nodes N] [--rounds R] [--mbit M] [--scenario NAME[,NAME]] [--json FILE]
                               crowds in every scenario, measured beside the same crowd without Flotilla
  bench mirror [--rounds R] [--json FILE]
                               the mirror beside nginx with sendfile, serving the same blobs to the same client
  sweep                        remove what demo --keep left up, and what killed tests left behind
  deb                          build the Debian package into target/debian/
environment: FLOTILLA_CACHE (default ~/.cache/flotilla), FLOTILLA_GO=0 (build nothing with Go)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rest = arguments.get(1..).unwrap_or_default();
    let outcome = match arguments.first().map(String::as_str) {
        Some("setup") => match rest.first() {
            Some(part) => parts::setup_of(part).map(|()| true),
            None => parts::setup().map(|()| true),
        },
        Some("test") => test::run(rest),
        Some("demo") => demo::run(rest),
        Some("bench") => bench::run(rest),
        Some("deb") => shell::run("packaging/build-deb", &[]).map(|()| true),
        Some("sweep") => demo::sweep(),
        // Started by the demo itself: cleans up when the demo has died without doing so.
        Some("sweep-when-closed") => demo::sweep_when_closed(rest),
        _ => Err(USAGE.to_owned().into()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}
