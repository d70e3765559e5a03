//! A program under test: its output goes to a file and wakes whoever waits for a line of it.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{Failure, Result};

/// Longest wait for a line. A containerd starts in under a second; ten of them beside a compiler on two
/// cores have been seen to take 20.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Names the lab in the environment of all that it starts, and so of all that those start: shims too are
/// found again by it.
pub(crate) const MARK: &str = "FLOTILLA_LAB";

/// A running program. Killed when dropped.
///
/// It writes to its log file itself and `tail` follows that for us: a pipe to this process would kill a
/// program that outlives it, as the demo's nodes do with `--keep`.
pub(crate) struct Process {
    name: String,
    child: Child,
    follower: Child,
    log: Arc<Log>,
    path: PathBuf,
}

/// Lines so far, and whether there will be more.
#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, (Vec<String>, bool)> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, from: impl io::Read) {
        for line in BufReader::new(from).split(b'\n').map_while(io::Result::ok) {
            self.lock().0.push(String::from_utf8_lossy(&line).into_owned());
            self.more.notify_all();
        }
        self.lock().1 = true;
        self.more.notify_all();
    }
}

impl Process {
    /// Starts `command` with its output appended to `log`, marked as part of the lab in `lab`.
    pub(crate) fn start(name: &str, mut command: Command, log: &Path, lab: &Path) -> Result<Process> {
        let failed = |error: io::Error| Failure::from(format!("starting {name}: {error}"));
        let file = File::options().create(true).append(true).open(log).map_err(failed)?;
        let start = file.metadata().map_err(failed)?.len();
        command.env(MARK, lab).stdin(Stdio::null()).stderr(file.try_clone().map_err(failed)?).stdout(file);
        let child = command.spawn().map_err(failed)?;
        let mut tail = Command::new("tail");
        tail.arg("--follow").arg(format!("--bytes=+{}", start + 1)).arg("--sleep-interval=0.1");
        // It ends with the program, and so do the lines.
        tail.arg(format!("--pid={}", child.id())).arg(log);
        tail.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut follower = tail.spawn().map_err(failed)?;
        let lines = Arc::new(Log::default());
        let filled = lines.clone();
        let output = follower.stdout.take();
        thread::spawn(move || output.into_iter().for_each(|output| filled.fill(output)));
        Ok(Process { name: name.to_owned(), child, follower, log: lines, path: log.to_owned() })
    }

    /// Leaves it running when this value goes.
    pub(crate) fn leave(mut self) {
        let _it_follows_for_us_alone = self.follower.kill();
        std::mem::forget(self);
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed since it was started.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.log.lock().0.clone()
    }

    /// Waits for the first line that contains `words`.
    pub(crate) fn wait_for(&self, words: &str) -> Result<String> {
        self.wait_until(words, |lines| lines.iter().find(|line| line.contains(words)).cloned())
    }

    /// Waits until its lines are what `look` looks for; `what` names that in the error.
    pub(crate) fn wait_until<T>(&self, what: &str, look: impl Fn(&[String]) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut guard = self.log.lock();
        loop {
            if let Some(found) = look(&guard.0) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if guard.1 || left.is_zero() {
                let why = if guard.1 { "ended" } else { "went on" };
                let tail = tail(&guard.0);
                return Err(format!("{} {why} without {what:?}; its last lines:\n{tail}", self.name).into());
            }
            let waited = self.log.more.wait_timeout(guard, left);
            guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<ExitStatus> {
        let failed = |error: io::Error| Failure::from(format!("killing {}: {error}", self.name));
        self.child.kill().map_err(failed)?;
        self.child.wait().map_err(failed)
    }

    /// SIGTERM, and waits for its end.
    pub(crate) fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.end()
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> Result<ExitStatus> {
        self.child.wait().map_err(|error| format!("waiting for the end of {}: {error}", self.name).into())
    }

    /// Sends a signal by its name without `SIG`.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let id = self.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &id]).output();
        match sent {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                Err(format!("sending {signal} to {}: {said}", self.name).into())
            }
            Err(error) => Err(format!("sending {signal} to {}: {error}", self.name).into()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _it_may_have_ended = self.kill();
        let _it_ends_with_the_program = self.follower.kill();
        let _of_a_child_that_was_killed = self.follower.wait();
        if thread::panicking() {
            let tail = tail(&self.log.lock().0);
            eprintln!("--- last lines of {} ({}):\n{tail}", self.name, self.path.display());
        }
    }
}

fn tail(lines: &[String]) -> String {
    let start = lines.len().saturating_sub(25);
    lines.get(start..).unwrap_or_default().join("\n")
}

/// Runs a command to its end; its standard output, or an error that says what it said.
pub(crate) fn output(mut command: Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::from(format!("starting {command:?}: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&said).trim_end()).into())
}
