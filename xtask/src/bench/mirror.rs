//! `cargo xtask bench mirror`: the mirror beside nginx with sendfile, giving out the same file to the same client by turns.
//!
//! nginx is the registry as well: the mirror pulls the blob from it once, and serves it from its store after that, every
//! piece checked on its way out.

mod client;
mod nginx;

use std::{fs, path::PathBuf};

use self::{client::Answer, nginx::Nginx};
use super::{
    crowd::flotilla_program,
    figure::{Figure, Row, array},
    machine,
};
use crate::{
    demo::Sweeper,
    lab::{Result, flotilla::Flotilla, new_lab, node::NodePlan, registry, sweep},
    parts, shell,
};

/// Blobs with pieces of 64 KiB, 256 KiB, 1 MiB and 4 MiB, and how often each is read in a turn so that a turn is a
/// quarter of a second or more.
const SIZES_MIB: [(u64, u64); 4] = [(32, 16), (64, 8), (512, 1), (1280, 1)];

/// The mirror has at least this share of nginx's throughput.
const SHARE_MIN: f64 = 0.6;
/// Its first byte comes at most so many milliseconds later.
const LATER_MS_MAX: f64 = 5.0;

const HEAD: &str = "blob MiB  rounds  nginx GB/s (min-max)    mirror GB/s (min-max)   share (min-max)     first byte ms: nginx  mirror  later   CPU-s/GB  load";

struct Arguments {
    rounds: u32,
    json: Option<PathBuf>,
}

/// What one server did in one turn.
#[derive(Clone, Copy)]
struct Turn {
    gigabytes_a_second: f64,
    first_byte_ms: f64,
}

pub fn run(arguments: &[String]) -> Result<bool> {
    let arguments = parse(arguments)?;
    parts::for_bench_mirror()?;
    parts::step("flotilla, optimised", || {
        shell::run("cargo", &["build", "--quiet", "--release", "--bins"]).map(|()| parts::Outcome::Done)
    })?;
    let program = flotilla_program();
    let versions = [("nginx", nginx::version()?)];
    let facts = machine::facts(&program, "page cache", &versions)?;
    sweep::leftovers(false);
    let sweeper = Sweeper::start()?;
    let dir = new_lab()?;
    let nginx = Nginx::start(&dir)?;
    let mut settings = NodePlan::settings("bench", &dir, "127.0.0.1", &dir.join("certs.d"));
    settings.text("mesh", "listen", "127.0.0.1:0").unset("mesh", "advertise");
    registry::trust_plain_http(&dir.join("certs.d"), nginx.host())?;
    let mut daemon = Flotilla::start(&program, dir.join("flotilla"), &settings, None)?;
    println!("{HEAD}");
    let (mut rows, mut good) = (Vec::new(), true);
    for (mib, times) in SIZES_MIB {
        let path = nginx.publish(mib << 20)?;
        let bench = Bench { nginx: &nginx, path, bytes: mib << 20, times };
        let (mut row, fine) = bench.run(&mut daemon, arguments.rounds)?;
        good &= fine;
        row.extend(&facts);
        rows.push(row);
        nginx.withdraw(&bench.path)?;
    }
    if let Some(path) = &arguments.json {
        fs::write(path, array(&rows)).map_err(|error| format!("writing {}: {error}", path.display()))?;
    }
    drop((daemon, nginx));
    sweep::lab(&dir);
    drop(sweeper);
    if !good {
        println!("below {SHARE_MIN} of nginx, or {LATER_MS_MAX} ms later");
    }
    Ok(good)
}

/// One blob.
struct Bench<'a> {
    nginx: &'a Nginx,
    path: String,
    bytes: u64,
    times: u64,
}

impl Bench<'_> {
    fn run(&self, daemon: &mut Flotilla, rounds: u32) -> Result<(Row, bool)> {
        let mirror = daemon.address_of("mirror")?;
        let at_mirror = format!("{}?ns={}", self.path, self.nginx.host());
        let process = daemon.process()?.id();
        // Both have it, and neither has to wait for a disk.
        self.turn(&mirror, &at_mirror)?;
        self.turn(self.nginx.host(), &self.path)?;
        let (mut by_nginx, mut by_mirror, mut cpu_s) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            by_nginx.push(self.turn(self.nginx.host(), &self.path)?);
            let before = machine::cpu_s(process);
            by_mirror.push(self.turn(&mirror, &at_mirror)?);
            cpu_s.push((machine::cpu_s(process) - before) / gigabytes(self.bytes * self.times));
        }
        let share: Vec<f64> =
            pairs(&by_mirror, &by_nginx, |m, n| m.gigabytes_a_second / n.gigabytes_a_second);
        let later: Vec<f64> = pairs(&by_mirror, &by_nginx, |m, n| m.first_byte_ms - n.first_byte_ms);
        let figure = |values: &[f64]| Figure::of(values.iter().copied()).ok_or("no rounds");
        let (share_of, later_of, cpu_of) = (figure(&share)?, figure(&later)?, figure(&cpu_s)?);
        let speed = |turns: &[Turn]| turns.iter().map(|turn| turn.gigabytes_a_second).collect::<Vec<_>>();
        let first = |turns: &[Turn]| turns.iter().map(|turn| turn.first_byte_ms).collect::<Vec<_>>();
        let (nginx, mirrored) = (figure(&speed(&by_nginx))?, figure(&speed(&by_mirror))?);
        println!(
            "{:>8}  {rounds:>6}  {}  {}  {}  {:>20.2}  {:>6.2}  {:>5.2}  {:>9.2}  {:>4.1}",
            self.bytes >> 20,
            spread(nginx),
            spread(mirrored),
            spread(share_of),
            figure(&first(&by_nginx))?.median,
            figure(&first(&by_mirror))?.median,
            later_of.median,
            cpu_of.median,
            machine::load(),
        );
        let mut row = Row::default();
        row.set("bench", "mirror")
            .set("blob_mib", self.bytes >> 20)
            .set("rounds", u64::from(rounds))
            .figure("nginx_gb_s", speed(&by_nginx))
            .figure("mirror_gb_s", speed(&by_mirror))
            .figure("mirror_over_nginx", share)
            .figure("nginx_first_byte_ms", first(&by_nginx))
            .figure("mirror_first_byte_ms", first(&by_mirror))
            .figure("first_byte_later_ms", later)
            .figure("mirror_cpu_s_per_gb", cpu_s)
            .set("mirror_rss_mib", machine::rss_mib(process))
            .set("load", machine::load());
        Ok((row, share_of.median >= SHARE_MIN && later_of.median < LATER_MS_MAX))
    }

    /// The blob from one server, over a new connection each time, as a client without others.
    fn turn(&self, address: &str, path: &str) -> Result<Turn> {
        let answers: Vec<Answer> =
            (0..self.times).map(|_| client::get(address, path, self.bytes)).collect::<Result<_>>()?;
        let seconds: f64 = answers.iter().map(|answer| answer.seconds).sum();
        let first = Figure::of(answers.iter().map(|answer| answer.first_byte_s * 1e3));
        Ok(Turn {
            gigabytes_a_second: gigabytes(self.bytes * self.times) / seconds,
            first_byte_ms: first.map_or(f64::NAN, |first| first.median),
        })
    }
}

fn pairs(a: &[Turn], b: &[Turn], of: impl Fn(&Turn, &Turn) -> f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| of(a, b)).collect()
}

#[allow(clippy::cast_precision_loss, reason = "bytes of a benchmark fit")]
fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn spread(figure: Figure) -> String {
    format!("{:>6.3} ({:.3}-{:.3})   ", figure.median, figure.min, figure.max)
}

fn parse(arguments: &[String]) -> Result<Arguments> {
    let mut parsed = Arguments { rounds: 9, json: None };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{argument} wants a value"))?;
        match argument.as_str() {
            "--rounds" => {
                let fits = value.parse().ok().filter(|count| *count > 0);
                parsed.rounds = fits.ok_or("--rounds wants a number from 1 on")?;
            }
            "--json" => parsed.json = Some(value.into()),
            other => {
                return Err(format!("bench mirror knows no {other}; it takes --rounds and --json").into());
            }
        }
    }
    Ok(parsed)
}
