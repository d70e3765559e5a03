//! What the figures were measured on, and with.

use std::{fs, path::Path, process::Command};

use super::figure::{Row, Value};
use crate::{
    lab::Result,
    shell::{command, quiet},
};

/// Ticks of a processor's time in a second, as /proc counts it: fixed for programs on every architecture that Linux
/// shares with us (`USER_HZ`).
const TICKS_A_SECOND: f64 = 100.0;

/// Cores, kernel and model, where state lies, and the versions of what took part.
pub fn facts(flotilla: &Path, state: &str, others: &[(&'static str, String)]) -> Result<Row> {
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get() as u64);
    let mut machine = Row::default();
    machine
        .set("cores", cores)
        .set("model", model())
        .set("kernel", read("/proc/sys/kernel/osrelease"))
        .set("state", state);
    let mut versions = Row::default();
    versions
        .set("flotilla", quiet(Command::new(flotilla).arg("version"))?.trim().to_owned())
        .set("commit", quiet(command("git").args(["describe", "--always", "--dirty"]))?.trim().to_owned());
    for (name, version) in others {
        versions.set(name, version.clone());
    }
    let mut row = Row::default();
    row.set("machine", Value::Object(machine)).set("versions", Value::Object(versions));
    Ok(row)
}

/// x86 names its model, arm64 numbers it.
fn model() -> String {
    let table = read("/proc/cpuinfo");
    let line = |name: &str| table.lines().find(|line| line.starts_with(name));
    let model = line("model name").or_else(|| line("CPU part"));
    model.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned()
}

/// Processes that could run, on the mean of the last minute: more than the cores, and a figure is worth little.
pub fn load() -> f64 {
    read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

/// The processors' time so far.
#[derive(Clone, Copy)]
pub struct Processors {
    busy: f64,
    all: f64,
}

impl Processors {
    pub fn now() -> Processors {
        Processors::parse(&read("/proc/stat"))
    }

    /// `cpu user nice system idle iowait irq softirq steal …`; guests are in user already.
    fn parse(stat: &str) -> Processors {
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<f64> =
            line.split_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect();
        let all: f64 = ticks.iter().sum();
        let idle: f64 = ticks.iter().skip(3).take(2).sum();
        Processors { busy: all - idle, all }
    }

    /// The share of all processors' time that was used since `before`.
    pub fn busy_since(self, before: Processors) -> f64 {
        (self.busy - before.busy) / (self.all - before.all)
    }
}

/// Seconds of processor time that a process has used.
pub fn cpu_s(process: u32) -> f64 {
    cpu_of(&read(&format!("/proc/{process}/stat")))
}

/// Behind the name in parentheses come the state and, eleven and twelve further, user and system time.
fn cpu_of(stat: &str) -> f64 {
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
    let ticks = fields.split(' ').skip(11).take(2).filter_map(|word| word.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_A_SECOND
}

/// The most memory that a process had resident, in MiB; the page cache of the files that it reads is not in it.
pub fn rss_mib(process: u32) -> f64 {
    let status = read(&format!("/proc/{process}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).map_or(0.0, |kib| kib / 1024.0)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Processors, cpu_of};

    #[test]
    fn the_kernels_tables_are_read() {
        let before = Processors::parse("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3\n");
        let after = Processors::parse("cpu  160 0 80 900 60 0 10 0 0 0\n");
        assert!((after.busy_since(before) - 100.0 / 210.0).abs() < 1e-9);
        let stat = "12 (a) name) S 1 1 1 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 1 1 1";
        assert!((cpu_of(stat) - 3.0).abs() < 1e-9);
    }
}
