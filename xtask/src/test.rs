//! `cargo xtask test`: everything that must hold before a change is merged.

use std::{
    io::{BufRead, BufReader, IsTerminal},
    process::Stdio,
    time::Instant,
};

use crate::{
    lab::{Result, sweep},
    parts,
    shell::command,
};

/// What became of the tests and checks.
#[derive(Default)]
struct Tally {
    /// By libtest's word, for which a test that skips itself has passed.
    ok: u32,
    failed: u32,
    ignored: u32,
    skipped_themselves: u32,
    /// Names of failed tests and checks, for the end.
    failures: Vec<String>,
    /// What failed tests printed, for the end too: of a long run only that may have been kept.
    causes: Vec<String>,
    /// Within the output of tests that failed, lines that may still be kept of this one.
    cause_lines_left: Option<usize>,
    /// Reasons, each once.
    reasons: Vec<String>,
}

/// Sets up, checks form and lints, runs every test whose name contains the filter if there is one.
pub fn run(arguments: &[String]) -> Result<bool> {
    if let [_, unknown, ..] = arguments {
        return Err(format!("test takes one filter, not {unknown} too").into());
    }
    parts::setup()?;
    let mut tally = Tally::default();
    tally.check("cargo fmt", &["fmt", "--all", "--check"])?;
    tally.check(
        "cargo clippy",
        &["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"],
    )?;
    tally.tests(arguments)?;
    sweep::leftovers(false);
    for reason in &tally.reasons {
        println!("{reason}");
    }
    for cause in &tally.causes {
        println!("{cause}");
    }
    for failure in &tally.failures {
        println!("failed: {failure}");
    }
    println!("{} passed, {} failed, {} skipped", tally.passed(), tally.failed, tally.skipped());
    Ok(tally.failed == 0)
}

/// Lines kept of what one failed test printed: a panic with its values, not what its daemons said.
const CAUSE_LINES: usize = 15;

impl Tally {
    fn passed(&self) -> u32 {
        self.ok.saturating_sub(self.skipped_themselves)
    }

    fn skipped(&self) -> u32 {
        self.ignored + self.skipped_themselves
    }

    /// A check passes or fails as one.
    fn check(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        let start = Instant::now();
        let status =
            command("cargo").args(arguments).status().map_err(|error| format!("starting cargo: {error}"))?;
        println!("test: {name}: {status} ({:.1} s)", start.elapsed().as_secs_f64());
        if status.success() {
            self.ok += 1;
        } else {
            self.failed += 1;
            self.failures.push(name.to_owned());
        }
        Ok(())
    }

    fn tests(&mut self, filter: &[String]) -> Result<()> {
        let mut cargo = command("cargo");
        cargo.args(["test", "--workspace", "--no-fail-fast"]).args(filter);
        // The output of tests that pass says what they skipped. Colours would hide the words below.
        cargo.args(["--", "--show-output", "--color=never"]).stdout(Stdio::piped());
        let mut child = cargo.spawn().map_err(|error| format!("starting cargo test: {error}"))?;
        let stdout = child.stdout.take().ok_or("cargo test without output")?;
        let quiet = !std::io::stdout().is_terminal();
        for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
            self.read(&line);
            if !(quiet && line.starts_with("time=")) {
                println!("{line}");
            }
        }
        let status = child.wait().map_err(|error| format!("waiting for cargo test: {error}"))?;
        // It did not compile, or a test program died without a word.
        if !status.success() && self.failed == 0 {
            self.failed += 1;
            self.failures.push(format!("cargo test: {status}"));
        }
        Ok(())
    }

    /// One line of libtest's output.
    fn read(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
        }
        if line.starts_with("skipped: ") {
            self.skipped_themselves += 1;
            if !self.reasons.iter().any(|reason| reason == line) {
                self.reasons.push(line.to_owned());
            }
        }
        self.read_cause(line);
        // `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s`
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let words: Vec<&str> = result.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let (Some(Ok(count)), Some(what)) = (pair.first().map(|word| word.parse::<u32>()), pair.get(1))
            else {
                continue;
            };
            match *what {
                "passed" => self.ok += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }

    /// Keeps the beginning of each failed test's panic. `failures:` stands before their output, and again before their names.
    fn read_cause(&mut self, line: &str) {
        if line == "failures:" || line == "successes:" || line.starts_with("test result: ") {
            self.cause_lines_left = (line == "failures:").then_some(0);
        } else if let Some(left) = &mut self.cause_lines_left {
            if line.starts_with("thread '") {
                *left = CAUSE_LINES;
            }
            if *left > 0 && !line.is_empty() {
                *left -= 1;
                self.causes.push(line.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn skipped_tests_do_not_count_as_passed() {
        let mut tally = Tally::default();
        for line in [
            "test a ... ok",
            "test b ... FAILED",
            "skipped: no containerd 2.4 here",
            "failures:",
            "",
            "---- b stdout ----",
            "time=2026 level=info",
            "thread 'b' (7) panicked at tests/it/b.rs:1:2:",
            "assertion `left == right` failed",
            "failures:",
            "    b",
            "test result: FAILED. 5 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 1.00s",
            "skipped: no containerd 2.4 here",
            "test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            tally.read(line);
        }
        assert_eq!((tally.passed(), tally.failed, tally.skipped()), (10, 1, 4));
        assert_eq!(tally.failures, ["b"]);
        assert_eq!(tally.causes.len(), 2, "{:?}", tally.causes);
        assert_eq!(tally.reasons, ["skipped: no containerd 2.4 here"]);
    }
}
