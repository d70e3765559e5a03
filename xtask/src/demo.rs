//! `cargo xtask demo`: a crowd of nodes pulls one image, with Flotilla and without.
//!
//! ```text
//!  registry [10.77.0.250:5000]──┐
//!  n1 containerd + flotilla ────┤ bridge    every link 100 Mbit/s both ways, the registry's too
//!  n2 containerd + flotilla ────┤
//!  n3 …                     ────┘
//! ```
//! The same crowd without Flotilla is a second lab, with a network, a registry and empty nodes of its own.
//! A process of ours in a group of its own waits for this one's end and cleans up then, whatever ended it.

mod crowd;
mod report;

use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Instant,
};

use crate::{
    demo_image,
    lab::{
        Result,
        containerd::{self, Programs},
        sweep,
    },
    parts,
};
use crowd::{Crowd, Way};

/// Addresses are bytes, and the registry has one of them.
const NODES_MAX: u8 = 100;

/// What the command line says.
struct Arguments {
    nodes: u8,
    containerd: Option<PathBuf>,
    keep: bool,
}

pub fn run(arguments: &[String]) -> Result<bool> {
    let arguments = parse(arguments)?;
    let building = parts::Building::start()?;
    parts::for_demo()?;
    let programs = find_containerd(arguments.containerd)?;
    let image = demo_image::get_while(|| building.wait())?;
    sweep::leftovers(true);
    let sweeper = Sweeper::start()?;

    println!(
        "demo: {} nodes with containerd {}, links of 100 Mbit/s, {} layers, {:.1} MB",
        arguments.nodes,
        programs.version,
        image.layers.len(),
        report::megabytes(image.bytes)
    );
    let start = |way| Crowd::start(way, arguments.nodes, &programs, &image);
    let with =
        stage("nodes with Flotilla", || start(Way::Flotilla).and_then(|crowd| crowd.meet().map(|()| crowd)))?;
    let flotilla = stage("pull", || with.pull())?;
    let ran = stage("a container on each", || Ok(with.run()))?;
    let counts = with.counts(&image)?;
    let without = stage("nodes without Flotilla", || start(Way::Direct))?;
    let direct = (stage("pull", || without.pull())?, without.counts(&image)?);

    report::table(&counts, &flotilla);
    let verdict = report::Verdict { image: &image, counts: &counts, pulled: &flotilla, ran, direct: &direct };
    let good = verdict.judge();
    stage("cleaning up", || {
        drop(without);
        if arguments.keep {
            return with.keep();
        }
        drop(with);
        Ok(())
    })?;
    drop(sweeper);
    verdict.last_line();
    Ok(good)
}

/// Does one part of the demo and prints how long it took.
fn stage<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = work()?;
    println!("demo: {name} ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(done)
}

fn parse(arguments: &[String]) -> Result<Arguments> {
    let mut parsed = Arguments { nodes: 3, containerd: None, keep: false };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--keep" => parsed.keep = true,
            "--containerd" => {
                parsed.containerd =
                    Some(rest.next().ok_or("--containerd wants the path of a containerd")?.into());
            }
            "--nodes" => {
                let count = rest.next().and_then(|count| count.parse().ok());
                let fits = count.filter(|count| (2..=NODES_MAX).contains(count));
                parsed.nodes = fits.ok_or_else(|| format!("--nodes wants a number from 2 to {NODES_MAX}"))?;
            }
            other => {
                return Err(
                    format!("demo knows no {other}; it takes --nodes, --containerd and --keep").into()
                );
            }
        }
    }
    Ok(parsed)
}

/// Debian's 1.6 unless another is asked for: the oldest that Flotilla works with.
fn find_containerd(chosen: Option<PathBuf>) -> Result<Programs> {
    match chosen {
        Some(path) => containerd::at(&path)
            .ok_or_else(|| format!("{} is no containerd that tells its version", path.display()).into()),
        None => containerd::find("1.6").ok_or_else(|| "no containerd 1.6 could be got".into()),
    }
}

/// A process that cleans up when this one has ended, by Ctrl-C too.
pub struct Sweeper {
    child: Child,
}

impl Sweeper {
    pub fn start() -> Result<Sweeper> {
        let program = std::env::current_exe().map_err(|error| format!("finding xtask itself: {error}"))?;
        let mut command = Command::new(program);
        command.arg("sweep-when-closed").arg(std::process::id().to_string());
        // Ctrl-C goes to the terminal's foreground group, which is ours.
        command.stdin(Stdio::piped()).process_group(0);
        let child = command.spawn().map_err(|error| format!("starting the sweeper: {error}"))?;
        Ok(Sweeper { child })
    }
}

impl Drop for Sweeper {
    /// Ends in order: everything is down already, or is to be kept, which the sweeper sees.
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _it_has_no_result = self.child.wait();
    }
}

/// The sweeper: waits for the end of the demo, then removes its labs.
pub fn sweep_when_closed(arguments: &[String]) -> Result<bool> {
    let owner =
        arguments.first().and_then(|id| id.parse().ok()).ok_or("sweep-when-closed wants a process id")?;
    let _end = std::io::stdin().read(&mut [0]);
    sweep::of_process(owner);
    Ok(true)
}

/// Removes labs that were kept, and those that were left behind.
pub fn sweep() -> Result<bool> {
    sweep::leftovers(true);
    std::io::stdout().flush().map_err(|error| error.to_string())?;
    Ok(true)
}
