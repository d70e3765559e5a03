//! Certificates from `flotilla certs`, as an operator makes them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{Result, process::output};

/// Makes `<dir>/<node>/{ca,node,node-key}.pem` for a node that others dial at `address`; the authority
/// is made in `dir` with the first node.
pub(crate) fn node(program: &Path, dir: &Path, node: &str, address: &str) -> Result<PathBuf> {
    if !dir.join("ca.pem").exists() {
        authority(program, dir)?;
    }
    let place = dir.join(node);
    let mut certs = Command::new(program);
    certs
        .args(["certs", "node", "--name", node, "--san", address, "--ca-dir"])
        .arg(dir)
        .arg("--out")
        .arg(&place);
    output(certs)?;
    Ok(place)
}

/// Makes an authority, `ca.pem` and `ca-key.pem`.
pub(crate) fn authority(program: &Path, dir: &Path) -> Result<()> {
    let mut certs = Command::new(program);
    certs.args(["certs", "ca", "--out"]).arg(dir);
    output(certs).map(|_| ())
}
