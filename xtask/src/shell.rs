//! Running other programs, with an error that shows what they said.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::lab::{Failure, Result};

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

/// Where parts that took long to make are kept.
pub fn cache() -> Result<PathBuf> {
    crate::lab::cache().ok_or_else(|| "neither FLOTILLA_CACHE nor HOME is set: no place for the cache".into())
}

/// Whether `program` is on the PATH or in an sbin folder, which the PATH of a plain root shell lacks.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

/// A program run in the workspace's folder.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace());
    command
}

/// Runs a program in the workspace's folder, its output on ours.
pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = command(program)
        .args(arguments)
        .status()
        .map_err(|error| Failure::from(format!("starting {program}: {error}")))?;
    if status.success() { Ok(()) } else { Err(format!("{program} {}: {status}", arguments.join(" ")).into()) }
}

/// Runs a command, silent unless it fails; what it printed on success.
pub fn quiet(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|error| Failure::from(format!("starting {shown}: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let tail: Vec<&str> = said.lines().rev().take(15).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    Err(format!("{shown}: {}\n{}", output.status, tail.join("\n")).into())
}
