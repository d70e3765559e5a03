//! `cargo xtask bench crowd`: crowds of real nodes, with Flotilla and straight from the registry.
//!
//! Each round starts everything anew: namespaces, registry, daemons, containerds, empty stores. The same crowd straight
//! from the registry is measured once for each image and number of nodes, and stands beside every scenario of them.

mod fault;
mod node;
mod nodes;
mod report;
mod round;
mod scenario;
mod verdict;

use std::path::PathBuf;

use super::{
    figure::{Row, array},
    image::{Image, Shape},
    machine,
};
use crate::{
    demo::Sweeper,
    lab::{Result, containerd::Programs, sweep},
    parts, shell,
};
pub use node::flotilla_program;
use nodes::{Plan, Way};
use round::Round;
pub use scenario::Rate;
use scenario::{ALL, Links, RATE, Scenario};

/// Addresses are bytes, and the registry has one of them.
const NODES_MAX: u8 = 100;

/// Below it ten seconds are an image of no size, above it one that the demo's files cannot fill.
const MBIT_MIN: u32 = 10;
const MBIT_MAX: u32 = 100;

/// What the command line says.
struct Arguments {
    nodes: u8,
    rounds: u32,
    rate: Rate,
    scenarios: Vec<Scenario>,
    json: Option<PathBuf>,
}

/// The same crowd without Flotilla.
struct Direct {
    shape: Shape,
    shaped: bool,
    nodes: u8,
    rounds: Vec<Round>,
}

/// Everything that rounds share.
struct Bench {
    programs: Programs,
    facts: Row,
    rounds: u32,
    rate: Rate,
    direct: Vec<Direct>,
}

pub fn run(arguments: &[String]) -> Result<bool> {
    let arguments = parse(arguments)?;
    parts::for_demo()?;
    parts::step("flotilla", parts::build)?;
    parts::step("flotilla, optimised", || {
        shell::run("cargo", &["build", "--quiet", "--release", "--bins"]).map(|()| parts::Outcome::Done)
    })?;
    let programs = nodes::newest_containerd()?;
    let registry = shell::quiet(shell::command("docker-registry").arg("--version"))?;
    let registry = registry.split_whitespace().last().unwrap_or_default().to_owned();
    let versions = [("containerd", programs.version.clone()), ("registry", registry)];
    let facts = machine::facts(&flotilla_program(), "tmpfs", &versions)?;
    sweep::leftovers(false);
    let sweeper = Sweeper::start()?;
    let Arguments { rounds, rate, .. } = arguments;
    let mut bench = Bench { programs, facts, rounds, rate, direct: Vec::new() };
    let mut rows = Vec::new();
    let mut good = true;
    println!("{}", report::HEAD);
    for scenario in &arguments.scenarios {
        let nodes = scenario.nodes.unwrap_or(arguments.nodes);
        let (row, failed) = bench.scenario(scenario, nodes)?;
        good &= !failed;
        rows.push(row);
        if let Some(path) = &arguments.json {
            // Written anew after each scenario: a run that is cut short keeps what it has.
            std::fs::write(path, array(&rows))
                .map_err(|error| format!("writing {}: {error}", path.display()))?;
        }
    }
    drop(sweeper);
    Ok(good)
}

impl Bench {
    /// The row of a scenario, and whether anything failed in it.
    fn scenario(&mut self, scenario: &Scenario, nodes: u8) -> Result<(Row, bool)> {
        let image = Image::get(scenario.shape, self.rate)?;
        let plan = |way| Plan { way, scenario, image: &image, nodes, programs: &self.programs };
        let rounds =
            (0..self.rounds).map(|_| round::run(&plan(Way::Flotilla))).collect::<Result<Vec<Round>>>()?;
        let direct = self.direct(scenario, &image, scenario.pulling(nodes))?;
        let about = report::About { scenario, image: &image, nodes, rounds: &rounds, direct };
        println!("{}", about.line());
        let mut row = about.row();
        row.extend(&self.facts);
        Ok((row, rounds.iter().any(|round| !round.failures.is_empty())))
    }

    /// The same crowd straight from the registry; measured when it is first asked for.
    fn direct(&mut self, scenario: &Scenario, image: &Image, nodes: u8) -> Result<&[Round]> {
        let shaped = scenario.links != Links::Unshaped;
        let same =
            |direct: &Direct| direct.shape == image.shape && direct.shaped == shaped && direct.nodes == nodes;
        let at = match self.direct.iter().position(same) {
            Some(at) => at,
            None => {
                let links = if shaped { Links::Equal } else { Links::Unshaped };
                let scenario = Scenario { links, nodes: scenario.nodes, shape: image.shape, ..ALL[0] };
                let plan =
                    Plan { way: Way::Direct, scenario: &scenario, image, nodes, programs: &self.programs };
                // A crowd that shares one link for minutes is steady; one that is over in moments is not.
                let count = if nodes > 1 { 1 } else { self.rounds };
                let rounds = (0..count).map(|_| round::run(&plan)).collect::<Result<Vec<Round>>>()?;
                self.direct.push(Direct { shape: image.shape, shaped, nodes, rounds });
                self.direct.len() - 1
            }
        };
        Ok(self.direct.get(at).map(|direct| direct.rounds.as_slice()).unwrap_or_default())
    }
}

fn parse(arguments: &[String]) -> Result<Arguments> {
    let mut parsed = Arguments { nodes: 8, rounds: 3, rate: RATE, scenarios: ALL.to_vec(), json: None };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{argument} wants a value"))?;
        match argument.as_str() {
            "--nodes" => {
                let fits = value.parse().ok().filter(|count| (2..=NODES_MAX).contains(count));
                parsed.nodes = fits.ok_or_else(|| format!("--nodes wants a number from 2 to {NODES_MAX}"))?;
            }
            "--rounds" => {
                let fits = value.parse().ok().filter(|count| *count > 0);
                parsed.rounds = fits.ok_or("--rounds wants a number from 1 on")?;
            }
            "--mbit" => {
                let fits = value.parse().ok().filter(|mbit| (MBIT_MIN..=MBIT_MAX).contains(mbit));
                let wants = || format!("--mbit wants a link's rate from {MBIT_MIN} to {MBIT_MAX}");
                parsed.rate = Rate::of_mbit(fits.ok_or_else(wants)?);
            }
            "--scenario" => {
                parsed.scenarios = value.split(',').map(by_name).collect::<Result<_>>()?;
            }
            "--json" => parsed.json = Some(value.into()),
            other => {
                let known = "--nodes, --rounds, --mbit, --scenario and --json";
                return Err(format!("bench crowd knows no {other}; it takes {known}").into());
            }
        }
    }
    Ok(parsed)
}

fn by_name(name: &str) -> Result<Scenario> {
    let found = ALL.iter().find(|scenario| scenario.name == name);
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
        format!("no scenario {name}; there are {}", names.join(", ")).into()
    })
}
