//! `cargo xtask bench NAME`: measurements on real parts, as a table and as JSON rows.

mod crowd;
mod figure;
mod image;
mod machine;
mod mirror;

use crate::lab::Result;

pub fn run(arguments: &[String]) -> Result<bool> {
    let rest = arguments.get(1..).unwrap_or_default();
    match arguments.first().map(String::as_str) {
        Some("crowd") => crowd::run(rest),
        Some("mirror") => mirror::run(rest),
        Some(other) => Err(format!("no benchmark {other}; there are crowd and mirror").into()),
        None => Err("bench wants a name; there are crowd and mirror".into()),
    }
}
