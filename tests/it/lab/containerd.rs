//! containerd 1.6 to 2.4, each with a root, a state folder and a socket of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Result,
    net::Namespace,
    place::{is_of, versions_of},
    process::{Process, output},
};

/// What each version's `bin` folder holds.
pub(crate) const BINARIES: [&str; 3] = ["containerd", "ctr", "containerd-shim-runc-v2"];

/// The series that Flotilla works with, and the stories run on.
pub(crate) const SERIES: [&str; 4] = ["1.6", "1.7", "2.1", "2.4"];

/// The programs of one version.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// For example `1.6.20`.
    pub(crate) version: String,
    /// The folder with `BINARIES`.
    pub(crate) bin: PathBuf,
}

/// Finds a series, `2.1`, in the cache that `cargo xtask setup` fills, else as the machine's own.
pub(crate) fn find(series: &str) -> Option<Programs> {
    let in_cache = versions_of("containerd").filter_map(|(version, bin)| {
        (is_of(&version, series) && bin.join("containerd").is_file()).then_some(Programs { version, bin })
    });
    in_cache.last().or_else(|| at(Path::new("/usr/bin/containerd")).filter(|own| is_of(&own.version, series)))
}

/// One version for what any of them shows: the one in the folder that $FLOTILLA_TEST_CONTAINERD names, else the oldest
/// that is here.
pub(crate) fn any() -> Option<Programs> {
    match std::env::var_os("FLOTILLA_TEST_CONTAINERD") {
        Some(bin) => at(&Path::new(&bin).join("containerd")),
        None => SERIES.into_iter().find_map(find),
    }
}

/// The version that lies at a path, which must have `ctr` and the shim beside it.
pub(crate) fn at(containerd: &Path) -> Option<Programs> {
    let mut version = Command::new(containerd);
    version.arg("--version");
    let said = output(version).ok()?;
    // `containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3`
    let version = said.split(' ').nth(2)?.trim_start_matches('v').split(['~', '+']).next()?.to_owned();
    Some(Programs { version, bin: containerd.parent()?.to_owned() })
}

/// Who unpacks what CRI pulls.
#[derive(Clone, Debug, Default)]
pub(crate) enum Snapshotter {
    /// containerd's own: the pull as it is without Flotilla.
    #[default]
    Overlayfs,
    /// The proxy plugin behind a socket.
    Flotilla {
        socket: PathBuf,
        /// Where the plugin keeps its snapshots: `exports.root`.
        root: PathBuf,
        /// The layers' labels on Prepare; without them Flotilla reads the content store.
        annotations: bool,
    },
}

/// How a containerd is set up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) snapshotter: Snapshotter,
    /// What CRI runs a sandbox from.
    pub(crate) sandbox_image: String,
    /// A folder of `<host>/hosts.toml`.
    pub(crate) hosts_dir: PathBuf,
    /// More of the settings file, for one story; goes to its end.
    pub(crate) more: String,
}

/// A containerd that can be stopped and started again on the same state.
pub(crate) struct Containerd {
    programs: Programs,
    dir: PathBuf,
    namespace: Option<Namespace>,
    process: Option<Process>,
}

impl Containerd {
    /// Starts in `dir`, a folder of the lab, and waits until it serves.
    pub(crate) fn start(
        programs: Programs,
        dir: PathBuf,
        settings: &Settings,
        namespace: Option<Namespace>,
    ) -> Result<Containerd> {
        let config = config(&programs, &dir, settings);
        Containerd::start_on(&config, programs, dir, namespace)
    }

    /// Starts on settings of the story's own, which place root, state and socket as `root` and `socket` say.
    pub(crate) fn start_on(
        config: &str,
        programs: Programs,
        dir: PathBuf,
        namespace: Option<Namespace>,
    ) -> Result<Containerd> {
        fs::create_dir_all(dir.join("cni"))
            .and_then(|()| fs::write(dir.join("config.toml"), config))
            .map_err(|error| format!("setting up containerd in {}: {error}", dir.display()))?;
        let mut containerd = Containerd { programs, dir, namespace, process: None };
        containerd.start_again()?;
        Ok(containerd)
    }

    /// Starts after `kill` or `terminate`.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        let program = self.programs.bin.join("containerd");
        let program = program.to_str().ok_or("a folder whose name is not UTF-8")?;
        let mut command = match &self.namespace {
            Some(namespace) => namespace.command(program),
            None => Command::new(program),
        };
        let path = std::env::var("PATH").unwrap_or_default();
        // Its own shim before any other's.
        command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", self.programs.bin.display()));
        command.arg("--config").arg(self.dir.join("config.toml"));
        let name = format!("containerd {}", self.programs.version);
        let process = Process::start(&name, command, &self.log(), super::lab_of(&self.dir))?;
        process.wait_for("containerd successfully booted")?;
        self.process = Some(process);
        Ok(())
    }

    pub(crate) fn version(&self) -> &str {
        &self.programs.version
    }

    pub(crate) fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// containerd's root: content store, snapshots of its own, metadata.
    pub(crate) fn root(&self) -> PathBuf {
        root(&self.dir)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("containerd.log")
    }

    pub(crate) fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().ok_or_else(|| "this containerd is stopped".into())
    }

    /// Ends it as systemd does; containers go on.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().ok_or("this containerd is stopped")?;
        process.terminate().map(|_| ())
    }

    /// Leaves it running when this value goes.
    pub(crate) fn leave(mut self) {
        self.process.take().into_iter().for_each(Process::leave);
    }

    /// SIGKILL; containers go on.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().ok_or("this containerd is stopped")?;
        process.kill().map(|_| ())
    }

    /// Runs this version's `ctr` on CRI's namespace.
    pub(crate) fn ctr(&self, arguments: &[&str]) -> Result<String> {
        self.ctr_in("k8s.io", arguments)
    }

    /// Has it collect its garbage, and returns when that is over.
    pub(crate) fn collect_garbage(&self) -> Result<()> {
        // `images rm --sync` of an image that does not exist collects nothing: the end of a lease does.
        self.ctr(&["leases", "create", "--id", "garbage"])?;
        self.ctr(&["leases", "delete", "--sync", "garbage"]).map(drop)
    }

    /// Runs this version's `ctr` on a namespace.
    pub(crate) fn ctr_in(&self, namespace: &str, arguments: &[&str]) -> Result<String> {
        let mut ctr = Command::new(self.programs.bin.join("ctr"));
        ctr.arg("--address").arg(self.socket()).args(["--namespace", namespace]).args(arguments);
        output(ctr)
    }
}

fn root(dir: &Path) -> PathBuf {
    dir.join("root")
}

fn config(programs: &Programs, dir: &Path, settings: &Settings) -> String {
    let text =
        if programs.version.starts_with("1.") { config_1(dir, settings) } else { config_2(dir, settings) };
    format!("{text}{}{}", proxy_plugin(&settings.snapshotter), settings.more)
}

fn name(snapshotter: &Snapshotter) -> &'static str {
    match snapshotter {
        Snapshotter::Overlayfs => "overlayfs",
        Snapshotter::Flotilla { .. } => "flotilla",
    }
}

/// 1.6 ignores `exports` without a word.
fn proxy_plugin(snapshotter: &Snapshotter) -> String {
    let Snapshotter::Flotilla { socket, root, annotations } = snapshotter else { return String::new() };
    format!(
        "[proxy_plugins.flotilla]\n  type = \"snapshot\"\n  address = {socket:?}\n\
         [proxy_plugins.flotilla.exports]\n  root = {root:?}\n  enable_remote_snapshot_annotations = \"{annotations}\"\n"
    )
}

fn head(dir: &Path, version: u8) -> String {
    let (root, state, socket) = (root(dir), dir.join("state"), dir.join("c.sock"));
    format!(
        "version = {version}\nroot = {root:?}\nstate = {state:?}\n[grpc]\n  address = {socket:?}\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\n  path = {:?}\n",
        dir.join("opt")
    )
}

/// containerd 1.6 and 1.7. `restrict_oom_score_adj`: root in a virtual machine without
/// CAP_SYS_RESOURCE may not lower it, and every sandbox would fail.
fn config_1(dir: &Path, settings: &Settings) -> String {
    let Settings { snapshotter, sandbox_image, hosts_dir, .. } = settings;
    let unannotated = !matches!(snapshotter, Snapshotter::Flotilla { annotations: true, .. });
    let cni = dir.join("cni");
    format!(
        "{}[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = {sandbox_image:?}\n  restrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"{}\"\n  disable_snapshot_annotations = {unannotated}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  conf_dir = {cni:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = {hosts_dir:?}\n",
        head(dir, 2),
        name(snapshotter),
    )
}

/// containerd 2.x. NRI's socket has one place for the whole machine; two containerds would fight for it.
fn config_2(dir: &Path, settings: &Settings) -> String {
    let Settings { snapshotter, sandbox_image, hosts_dir, .. } = settings;
    let cni = dir.join("cni");
    let mut text = format!(
        "{}[plugins.'io.containerd.cri.v1.images']\n  snapshotter = \"{}\"\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\n  sandbox = {sandbox_image:?}\n\
         [plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = {hosts_dir:?}\n\
         [plugins.'io.containerd.cri.v1.runtime']\n  restrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\n  conf_dir = {cni:?}\n\
         [plugins.'io.containerd.nri.v1.nri']\n  disable = true\n",
        head(dir, 3),
        name(snapshotter),
    );
    if let Snapshotter::Flotilla { .. } = snapshotter {
        // The list replaces the default one, so overlayfs is repeated.
        for (snapshotter, differ) in [("overlayfs", ""), ("flotilla", "  differ = \"walking\"\n")] {
            text.push_str(&format!(
                "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  platform = \"{}\"\n  snapshotter = \"{snapshotter}\"\n{differ}",
                platform()
            ));
        }
    }
    text
}

/// The node's platform in OCI's words.
pub(crate) fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "linux/arm64",
        _ => "linux/amd64",
    }
}
