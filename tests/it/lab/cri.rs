//! Pulls and runs through CRI, as kubelet does, with our own client (`examples/cri.rs`).

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Failure, Result, process::output};

/// CRI of one containerd.
#[derive(Clone, Debug)]
pub(crate) struct Cri {
    program: PathBuf,
    socket: PathBuf,
    cgroup_parent: String,
}

/// A container that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) exit_code: i32,
    /// Standard output and standard error, as they came.
    pub(crate) output: String,
}

impl Cri {
    /// `program` is the built example; `lab` names the cgroup that containers run in.
    pub(crate) fn new(program: &Path, socket: PathBuf, lab: &Path) -> Cri {
        let name = lab.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        Cri { program: program.to_owned(), socket, cgroup_parent: format!("/{name}") }
    }

    /// The client with its socket; a story that does more than the calls below adds arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--socket").arg(&self.socket).args(arguments);
        command
    }

    /// Pulls; the reference that containerd gave the image.
    pub(crate) fn pull(&self, image: &str) -> Result<String> {
        output(self.command(&["pull", image])).map(|said| said.trim().to_owned())
    }

    /// Runs a command in a container of the image, in the node's network, and waits for its end.
    pub(crate) fn run(&self, image: &str, command: &[&str]) -> Result<Ran> {
        let mut run = self.command(&["run", "--cgroup-parent", &self.cgroup_parent, image, "--"]);
        let ran = run.args(command).stdin(Stdio::null()).output();
        let ran =
            ran.map_err(|error| Failure::from(format!("starting {}: {error}", self.program.display())))?;
        // What the client itself cannot do ends in 125, as with docker run.
        let said = String::from_utf8_lossy(&ran.stderr);
        match ran.status.code() {
            Some(125) | None => Err(format!("running {command:?} from {image}: {}", said.trim_end()).into()),
            Some(exit_code) => {
                Ok(Ran { exit_code, output: String::from_utf8_lossy(&ran.stdout).into_owned() })
            }
        }
    }

    /// The names and digests of all images, one a line.
    pub(crate) fn images(&self) -> Result<String> {
        output(self.command(&["images"]))
    }

    pub(crate) fn remove(&self, image: &str) -> Result<()> {
        output(self.command(&["rmi", image])).map(|_| ())
    }

    /// `path used_bytes inodes` of each image file system.
    pub(crate) fn fs_info(&self) -> Result<String> {
        output(self.command(&["fsinfo"]))
    }
}
