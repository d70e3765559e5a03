//! What goes wrong in `cargo xtask bench crowd`, and whom it strikes.
//!
//! ```text
//! lab_faults rank DIGEST NAME…                                      the members in the order in which they track a digest
//! lab_faults lie --name n8 --tls DIR --listen ADDR --daemon ADDR    a member that serves wrong bytes
//! lab_faults mislead --listen ADDR --registry ADDR                  a registry's proxy that serves wrong bytes
//! ```
//! `lie` and `mislead` print `listening on ADDR` and go on until they are killed.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use flotilla::mesh::{Member, Role, hrw_rank};

#[path = "../tests/it/liar.rs"]
#[allow(clippy::unwrap_used, reason = "a lab says what went wrong by panicking")]
#[allow(dead_code, reason = "a story asks it what it was told, a bench does not")]
mod liar;
#[path = "lab_faults/mislead.rs"]
mod mislead;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    fault: Fault,
}

#[derive(Subcommand)]
enum Fault {
    /// Prints members in the order in which they track a digest, one a line.
    Rank { digest: String, names: Vec<String> },
    /// Stands in front of a member's daemon and spoils the pieces that it serves.
    Lie {
        /// The member.
        #[arg(long)]
        name: String,
        /// A folder of certificates with one folder a member.
        #[arg(long)]
        tls: PathBuf,
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        daemon: SocketAddr,
    },
    /// Passes requests on to a registry and spoils the blobs that it answers with.
    Mislead {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        registry: SocketAddr,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().fault {
        Fault::Rank { digest, names } => rank(&digest, &names),
        Fault::Lie { name, tls, listen, daemon } => {
            let _liar = liar::Liar::start(&name, &tls, listen, daemon);
            say(&format!("listening on {listen}"))?;
            loop {
                std::thread::park();
            }
        }
        Fault::Mislead { listen, registry } => mislead::run(listen, registry),
    }
}

fn rank(digest: &str, names: &[String]) -> Result<()> {
    let digest = digest.parse().context("the digest")?;
    let member = |name: &String| Member {
        name: name.clone(),
        address: String::new(),
        zone: None,
        generation: 0,
        role: Role::Peer,
    };
    let members: Vec<Member> = names.iter().map(member).collect();
    hrw_rank(&digest, &members).into_iter().try_for_each(|member| say(&member.name))
}

fn say(line: &str) -> Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{line}").context("printing")
}
