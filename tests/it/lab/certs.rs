//! Certificates from `flotilla certs`, as an operator makes them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{Result, process::output};

/// Makes `<dir>/<node>/{ca,node,node-key}.pem`, and the authority in `dir` with the first node.
pub(crate) fn node(program: &Path, dir: &Path, node: &str) -> Result<PathBuf> {
    let place = dir.join(node);
    let mut certs = Command::new(program);
    certs.args(["certs", "node", node, "--ca-dir"]).arg(dir).arg("--out").arg(&place);
    output(certs)?;
    Ok(place)
}
