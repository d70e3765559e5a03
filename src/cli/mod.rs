//! One file a subcommand.

mod bars;
pub mod certs;
mod config;
pub mod install;
mod preheat;
mod pull;
mod rates;
mod serve;
mod socket;
mod status;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{daemon::Settings, pull::chain_of};

/// Pulls container images through the nodes of a cluster instead of through the registry.
#[derive(Debug, Parser)]
#[command(name = "flotilla", version, disable_help_subcommand = true)]
pub struct Cli {
    /// Settings file; all keys are optional, and so is the file.
    #[arg(long, global = true, env = "FLOTILLA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon of this node.
    Serve,
    /// Show members, pulls in progress and the store.
    Status(status::Args),
    /// Pull an image's layers into this node's store, before anybody asks for them.
    Pull(pull::Args),
    /// Have nodes of the mesh pull an image, before anybody asks for it there.
    Preheat(preheat::Args),
    /// Show how fast bytes may flow, or say it until the daemon ends.
    Rates(rates::Args),
    /// Print the settings in force and where each came from.
    Config,
    /// Make a certificate authority and node certificates.
    Certs(certs::Args),
    /// Enter Flotilla into the settings of containerd, nerdctl, Docker, Podman or CRI-O.
    Install(install::InstallArgs),
    /// Take Flotilla out of their settings again.
    Uninstall(install::UninstallArgs),
    /// Print the version.
    Version,
}

/// A word of the command line. clap prints an error without its causes, which say what is wrong.
fn word<T>(text: &str) -> Result<T, String>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + 'static,
{
    text.parse().map_err(|error: T::Err| chain_of(&error))
}

/// Runs the command line; errors are printed with their causes, one line.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("flotilla: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let settings = || Settings::load(cli.config.as_deref());
    match cli.command {
        Command::Serve => serve::run(settings()?)?,
        Command::Status(args) => status::run(&args, &settings()?, &mut out)?,
        Command::Pull(args) => return pull::run(&args, &settings()?, &mut out),
        Command::Preheat(args) => return preheat::run(&args, &settings()?, &mut out),
        Command::Rates(args) => rates::run(&args, &settings()?, &mut out)?,
        Command::Config => config::run(&settings()?, &mut out)?,
        Command::Certs(args) => certs::run(&args, std::time::SystemTime::now(), &mut out)?,
        Command::Install(args) => install::install(&args, &settings()?, &mut out)?,
        Command::Uninstall(args) => install::uninstall(&args, &settings()?, &mut out)?,
        Command::Version => {
            use std::io::Write as _;
            let mesh = crate::wire::mesh::VERSION;
            writeln!(out, "flotilla {}, mesh protocol {mesh}", env!("CARGO_PKG_VERSION"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
