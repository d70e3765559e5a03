//! `flotilla install` and `flotilla uninstall`: our entries in other programs' settings.
//!
//! Every file is planned first, shown as a diff, backed up beside itself as `NAME.before-flotilla`, then replaced by
//! rename. Uninstalling a file that nobody has touched since gives back the backup, byte for byte; of one that was
//! touched, only our entries are taken out.

mod containerd;
mod containers;
mod docker;
mod files;
mod hosts;
mod imports;
mod nerdctl;

use std::{
    io::{BufRead as _, IsTerminal as _, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use toml_edit::{DocumentMut, TomlError};

use self::{containerd::HostsDir, files::Change};
use crate::{containerd::Version, daemon::Settings};

const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";
const NERDCTL_CONFIG: &str = "/etc/nerdctl/nerdctl.toml";
const DOCKER_CONFIG: &str = "/etc/docker/daemon.json";
const REGISTRIES_DIR: &str = "/etc/containers/registries.conf.d";

/// Whose settings.
#[derive(Debug, clap::Args)]
struct Targets {
    /// containerd's: the snapshotter, and the mirror in its hosts.toml folders.
    #[arg(long)]
    containerd: bool,
    /// containerd's: the mirror in its hosts.toml folders alone.
    #[arg(long)]
    containerd_mirror: bool,
    /// nerdctl's.
    #[arg(long)]
    nerdctl: bool,
    /// Docker's: the mirror for its hub.
    #[arg(long)]
    docker: bool,
    /// Podman's, Buildah's and Skopeo's: the mirror for the registries named.
    #[arg(long)]
    podman: bool,
    /// CRI-O's, which are Podman's.
    #[arg(long)]
    crio: bool,
    /// containerd's settings file.
    #[arg(long, default_value = CONTAINERD_CONFIG, value_name = "FILE")]
    containerd_config: PathBuf,
    /// nerdctl's settings file.
    #[arg(long, default_value = NERDCTL_CONFIG, value_name = "FILE")]
    nerdctl_config: PathBuf,
    /// Docker's settings file.
    #[arg(long, default_value = DOCKER_CONFIG, value_name = "FILE")]
    docker_config: PathBuf,
    /// Where Podman and CRI-O read settings of registries.
    #[arg(long, default_value = REGISTRIES_DIR, value_name = "DIR")]
    registries_dir: PathBuf,
    /// Registries that Podman and CRI-O pull by the mirror: all of them, for a list replaces that of before. What is
    /// uninstalled is uninstalled for all.
    #[arg(long, default_value = "docker.io", value_delimiter = ',', value_name = "HOST", value_parser = registry)]
    registries: Vec<String>,
    /// Show what would change, change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Restart containerd without asking.
    #[arg(long, conflicts_with = "no_restart")]
    restart: bool,
    /// Do not restart containerd, do not ask.
    #[arg(long)]
    no_restart: bool,
}

/// A registry as Podman and the mirror both take it: Podman refuses every pull when it finds a name that cannot be in one
/// of its files, and the mirror takes a first word without a dot for a part of Docker Hub.
fn registry(text: &str) -> Result<String, String> {
    let (host, path) = text.split_once('/').map_or((text, None), |(host, path)| (host, Some(path)));
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let of = |part: &str, more: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(c))
    };
    let is_host = of(name, "-.") && (name.contains('.') || name == "localhost");
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok());
    let is_path = path.is_none_or(|path| path.split('/').all(|part| of(part, "-._")));
    match is_host && is_port && is_path {
        true => Ok(text.to_owned()),
        false => Err(
            "name it as its images' names begin: a host with a dot in it, in lower case, and its port if it has one"
                .to_owned(),
        ),
    }
}

impl Targets {
    fn of_containerd(&self) -> bool {
        self.containerd || self.containerd_mirror
    }

    fn of_containers(&self) -> bool {
        self.podman || self.crio
    }

    fn are_none(&self) -> bool {
        !(self.of_containerd() || self.of_containers() || self.nerdctl || self.docker)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct InstallArgs {
    #[command(flatten)]
    targets: Targets,
    /// containerd's version, where `containerd --version` cannot be run.
    #[arg(long, value_name = "VERSION")]
    containerd_version: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct UninstallArgs {
    #[command(flatten)]
    targets: Targets,
    /// Taken, so that the words of `install` can be given again; what is taken out is the same for all versions.
    #[arg(long, value_name = "VERSION", hide = true)]
    containerd_version: Option<String>,
}

pub(super) fn install(args: &InstallArgs, settings: &Settings, out: &mut impl Write) -> anyhow::Result<()> {
    let mut changes = Vec::new();
    if args.targets.of_containerd() {
        let version: Version = match &args.containerd_version {
            Some(version) => version.parse()?,
            None => installed_version()?,
        };
        version.check()?;
        let config = &args.targets.containerd_config;
        let has_folder = config.parent().is_some_and(Path::is_dir);
        anyhow::ensure!(
            has_folder || config == Path::new(CONTAINERD_CONFIG),
            "{}: there is no such folder, so no containerd reads this file",
            config.display()
        );
        let node = containerd::Node {
            version,
            socket: snapshots_socket(settings),
            root: settings.path("containerd.snapshot_root").unwrap_or_default(),
            snapshotter: args.targets.containerd,
        };
        say_if_cri_is_off(config, out)?;
        changes.extend(enter_mirror((config, &node.version), settings, out)?);
        changes.extend(containerd::install(&args.targets.containerd_config, &node)?);
    }
    if args.targets.nerdctl {
        changes.push(nerdctl::install(&args.targets.nerdctl_config)?);
    }
    if args.targets.docker {
        changes.push(docker::install(&args.targets.docker_config, &fixed_mirror_url(settings)?)?);
    }
    if args.targets.of_containers() {
        let mirror = fixed_mirror_url(settings)?;
        let wanted = containers::Wanted {
            registries: &args.targets.registries,
            mirror: &mirror,
            plain: &settings.texts("registry.plain_http"),
        };
        let (change, notes) = containers::install(&args.targets.registries_dir, &wanted)?;
        for note in notes {
            writeln!(out, "{note}")?;
        }
        changes.push(change);
    }
    if (args.targets.of_containerd() || args.targets.of_containers()) && changes.iter().any(Change::is_needed)
    {
        writeln!(
            out,
            "by the mirror the cluster shares the registries that Flotilla's settings name (mirror.registries, \
             mirror.default_upstream, registry.plain_http) or hosts.toml has a folder for; what others say is passed on as it is"
        )?;
    }
    let config = &args.targets.containerd_config;
    let needs =
        args.targets.containerd || (args.targets.containerd_mirror && containerd::has_snapshotter(config)?);
    let restart = Restart {
        needs: needs.then(|| snapshots_socket(settings)),
        undo: "; `flotilla uninstall --containerd` takes the change back",
    };
    apply(&args.targets, changes, &restart, out)
}

fn say_if_cri_is_off(config: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    if containerd::disables_cri(config)? {
        writeln!(
            out,
            "{}: disabled_plugins has CRI, so kubelet and crictl cannot use this containerd; nerdctl, ctr and Docker can",
            config.display()
        )?;
    }
    Ok(())
}

/// Our mirror in containerd's hosts.toml folders. What is left as it is, is said.
fn enter_mirror(
    (config, version): (&Path, &Version),
    settings: &Settings,
    out: &mut impl Write,
) -> anyhow::Result<Vec<Change>> {
    let dir = match containerd::hosts_dir(config)? {
        HostsDir::Said(dir) | HostsDir::Unsaid(dir) | HostsDir::Default(dir) => dir,
        HostsDir::List(dir) if !version.takes_one_hosts_dir() => dir,
        HostsDir::List(dir) => {
            writeln!(
                out,
                "{}: config_path names several folders, which containerd from 2.1 on takes for one; only {} is read from now on",
                config.display(),
                dir.display()
            )?;
            dir
        }
        HostsDir::Refused => {
            writeln!(
                out,
                "{}: registry.mirrors or registry.configs are set, beside which containerd refuses config_path; the \
                 mirror is not entered",
                config.display()
            )?;
            return Ok(Vec::new());
        }
    };
    let Some(mirror) = mirror_url(settings) else {
        writeln!(
            out,
            "mirror.listen has no port of its own; the mirror is not entered into {}",
            dir.display()
        )?;
        return Ok(Vec::new());
    };
    let hosts::Plan { changes, notes } = hosts::install(&dir, &mirror)?;
    for note in notes {
        writeln!(out, "{note}")?;
    }
    Ok(changes)
}

/// Where clients on this node reach the mirror; `None` where each start picks another port.
fn mirror_url(settings: &Settings) -> Option<String> {
    let mut address = settings.listen("mirror.listen").filter(|address| address.port() != 0)?;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Some(format!("http://{address}"))
}

fn fixed_mirror_url(settings: &Settings) -> anyhow::Result<String> {
    mirror_url(settings)
        .context("mirror.listen has no port of its own, so that nobody can be told of the mirror")
}

pub(super) fn uninstall(
    args: &UninstallArgs,
    settings: &Settings,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut changes = Vec::new();
    if args.targets.of_containerd() {
        let config = &args.targets.containerd_config;
        match containerd::hosts_dir(config)? {
            HostsDir::Said(dir) | HostsDir::Unsaid(dir) | HostsDir::Default(dir) | HostsDir::List(dir) => {
                changes.extend(hosts::uninstall(&dir, mirror_url(settings).as_deref())?);
            }
            HostsDir::Refused => {}
        }
        changes.extend(match args.targets.containerd {
            true => containerd::uninstall(config)?,
            false => containerd::uninstall_mirror(config)?,
        });
    }
    if args.targets.nerdctl {
        changes.push(nerdctl::uninstall(&args.targets.nerdctl_config)?);
    }
    if args.targets.docker {
        changes.push(docker::uninstall(&args.targets.docker_config, mirror_url(settings).as_deref())?);
    }
    if args.targets.of_containers() {
        changes.push(containers::uninstall(&args.targets.registries_dir)?);
    }
    apply(&args.targets, changes, &Restart { needs: None, undo: "" }, out)
}

/// What is minded when containerd is to start again.
struct Restart {
    /// The daemon's socket, where containerd is to have our snapshotter: without an answer there it loses sight of its
    /// images until its next start.
    needs: Option<PathBuf>,
    /// What to say if it does not start.
    undo: &'static str,
}

fn snapshots_socket(settings: &Settings) -> PathBuf {
    settings.path("node.run_dir").unwrap_or_default().join("snapshots.sock")
}

fn apply(
    targets: &Targets,
    changes: Vec<Change>,
    restart: &Restart,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    if targets.are_none() {
        bail!(
            "say whose settings: --containerd, --containerd-mirror, --nerdctl, --docker, --podman or --crio"
        );
    }
    let changes: Vec<Change> = changes.into_iter().filter(Change::is_needed).collect();
    if changes.is_empty() {
        writeln!(out, "nothing to change")?;
        return Ok(());
    }
    for change in &changes {
        write!(out, "{}", change.diff())?;
    }
    if targets.dry_run {
        return Ok(());
    }
    let needed = restart.needs.as_ref().filter(|socket| UnixStream::connect(socket).is_err());
    let first = needed.map(|socket| {
        format!(
            "no daemon listens on {}: start it (`systemctl enable --now flotilla.socket flotilla.service`) before containerd \
             restarts, which would lose sight of its images until its next start; then `systemctl restart containerd`",
            socket.display()
        )
    });
    if let (Some(first), true) = (&first, targets.restart) {
        bail!("nothing was changed: {first}");
    }
    for change in &changes {
        change.apply()?;
        writeln!(out, "{}", change.done())?;
    }
    if targets.docker {
        writeln!(out, "Docker reads its mirrors when it is told to: `systemctl reload docker`")?;
    }
    if targets.crio {
        writeln!(out, "CRI-O reads its registries when it is told to: `systemctl reload crio`")?;
    }
    match first {
        Some(first) => Ok(writeln!(out, "{first}")?),
        None if targets.of_containerd() => offer_restart(targets, restart.undo, out),
        None => Ok(()),
    }
}

fn offer_restart(targets: &Targets, undo: &str, out: &mut impl Write) -> anyhow::Result<()> {
    let ask = std::io::stdin().is_terminal() && !targets.no_restart;
    let restart = targets.restart || (ask && confirmed(out)?);
    if !restart {
        writeln!(
            out,
            "containerd reads its settings at start: `systemctl restart containerd` when it suits you"
        )?;
        return Ok(());
    }
    let status = Command::new("systemctl").args(["restart", "containerd"]).status();
    let status = status.context("cannot run `systemctl restart containerd`")?;
    if !status.success() {
        bail!("`systemctl restart containerd` failed ({status}), `journalctl -u containerd` says why{undo}");
    }
    writeln!(out, "containerd restarted")?;
    Ok(())
}

fn confirmed(out: &mut impl Write) -> anyhow::Result<bool> {
    write!(out, "Restart containerd now? Running containers go on. [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// What `containerd --version` says.
fn installed_version() -> anyhow::Result<Version> {
    let output = Command::new("containerd").arg("--version").output();
    let output = output.context("cannot run `containerd --version`; give --containerd-version")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1
    let word = text.split_whitespace().nth(2).unwrap_or_default();
    word.parse().with_context(|| format!("`containerd --version` printed `{}`", text.trim()))
}

/// The settings at `path`, or nothing.
fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The settings `text` of the file at `path`.
fn parse(path: &Path, text: &str) -> anyhow::Result<DocumentMut> {
    text.parse().map_err(|error: TomlError| {
        let until = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
        let line = until.matches('\n').count() + 1;
        // The error's own text draws the place over several lines.
        let why = error.message().lines().collect::<Vec<_>>().join(": ");
        anyhow::anyhow!("{} is not TOML: line {line}: {why}", path.display())
    })
}
