//! Clients that wait at a gate and are released together.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::lab::Result;

/// How one client ended: the time from its release, or what it said.
pub type Ended = std::result::Result<Duration, String>;

/// A client that has started and waits for the word.
pub struct Waiting {
    name: String,
    child: Child,
}

/// A client that was released.
pub struct Released {
    waiter: JoinHandle<Ended>,
}

impl Waiting {
    /// Starts a client that prints `ready` and goes on when a line comes in.
    pub fn start(name: &str, mut command: Command) -> Result<Waiting> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("starting the client of {name}: {error}"))?;
        let stdout = child.stdout.as_mut().ok_or("a client without output")?;
        let mut line = String::new();
        match BufReader::new(stdout).read_line(&mut line) {
            Ok(_) if line == "ready\n" => Ok(Waiting { name: name.to_owned(), child }),
            Ok(_) | Err(_) => Err(format!("the client of {name} did not get ready").into()),
        }
    }

    /// Lets it go; a thread waits for its end.
    pub fn release(mut self) -> Result<Released> {
        let stdin = self.child.stdin.as_mut().ok_or("a client without input")?;
        stdin.write_all(b"\n").map_err(|error| format!("releasing the client of {}: {error}", self.name))?;
        let at = Instant::now();
        Ok(Released { waiter: thread::spawn(move || end(self.child, at)) })
    }
}

impl Released {
    /// Waits for its end.
    pub fn end(self) -> Ended {
        self.waiter.join().unwrap_or_else(|_| Err("the thread that waited for it died".into()))
    }
}

fn end(child: Child, start: Instant) -> Ended {
    let output = child.wait_with_output().map_err(|error| format!("waiting for a client: {error}"))?;
    if output.status.success() {
        Ok(start.elapsed())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// The same program, at a gate of the shell's.
pub fn at_gate(program: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo ready; read -r _; exec \"$@\"", "sh"]);
    shell.arg(program.get_program()).args(program.get_args());
    shell
}

#[cfg(test)]
mod tests {
    use super::{Command, Waiting, at_gate};

    #[test]
    fn a_client_goes_on_when_it_is_released() {
        let waiting = Waiting::start("a", at_gate(Command::new("sh").args(["-c", "exit 0"]))).unwrap();
        assert!(waiting.release().unwrap().end().is_ok());
        let failing = at_gate(Command::new("sh").args(["-c", "echo why >&2; exit 1"]));
        let ended = Waiting::start("b", failing).unwrap().release().unwrap().end();
        assert_eq!(ended.unwrap_err(), "why");
    }

    #[test]
    fn a_client_that_cannot_get_ready_is_named() {
        let Err(failure) = Waiting::start("c", Command::new("true")) else { panic!("it was not ready") };
        assert!(failure.to_string().contains("client of c"), "{failure}");
    }
}
