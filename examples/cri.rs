//! A small client of the container runtime interface: what kubelet does to pull an image and run it.
//!
//! ```text
//! cri --socket /run/containerd/containerd.sock pull registry:5000/demo/app:v1
//! cri --socket … run registry:5000/demo/app:v1 -- /bin/sh -c 'echo hello'
//! ```
//! `run` prints what the container printed and ends with its exit code; 125 where no container ran.

use std::{
    io::{BufRead, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use flotilla::wire::cri::{
    self, ContainerConfig, ContainerMetadata, ContainerState, CreateContainerRequest, Done, ImageSpec,
    LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use tonic::transport::{Channel, Endpoint};

/// CRI of containerd 1.6 has no event for a container's end, so kubelet polls, and so do we.
const STATUS_EVERY: Duration = Duration::from_millis(50);

/// The exit code for "no container ran", as with `docker run`.
const DID_NOT_RUN: u8 = 125;

/// Pulls and runs images through the container runtime interface.
#[derive(Parser)]
struct Arguments {
    /// containerd's socket.
    #[arg(long)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pulls an image; prints its reference and the milliseconds it took.
    Pull {
        /// Connects, prints `ready`, and pulls when a line comes in: for crowds that start together.
        #[arg(long)]
        gate: bool,
        /// `user:password` for the registry.
        #[arg(long)]
        creds: Option<String>,
        image: String,
    },
    /// Runs a command in a container of an image, in the node's network, and waits for its end.
    Run {
        /// The cgroup below which the pod's lie.
        #[arg(long, default_value = "")]
        cgroup_parent: String,
        image: String,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Lists images: id, size, then names and digests.
    Images,
    /// Removes an image.
    Rmi { image: String },
    /// What images take on disk: path, bytes, inodes.
    Fsinfo,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("cri: {error:#}");
            ExitCode::from(DID_NOT_RUN)
        }
    }
}

async fn run(arguments: Arguments) -> Result<u8> {
    let socket = arguments.socket;
    let uri = format!("unix:{}", socket.display());
    let channel = Endpoint::from_shared(uri)?
        .connect()
        .await
        .with_context(|| format!("connecting to containerd at {}", socket.display()))?;
    let mut images = ImageServiceClient::new(channel.clone());
    until_initialized(&mut images).await?;
    let mut out = std::io::stdout().lock();
    match arguments.command {
        Command::Pull { gate, creds, image } => {
            if gate {
                wait_at_gate(&mut out)?;
            }
            let start = Instant::now();
            let auth = creds.as_deref().and_then(|creds| creds.split_once(':')).map(|(user, password)| {
                let (username, password) = (user.to_owned(), password.to_owned());
                cri::AuthConfig { username, password, ..Default::default() }
            });
            let request = cri::PullImageRequest { image: Some(spec(&image)), auth, ..Default::default() };
            let pulled =
                images.pull_image(request).await.map_err(said).with_context(|| format!("pulling {image}"))?;
            writeln!(out, "{} {}", pulled.into_inner().image_ref, start.elapsed().as_millis())?;
        }
        Command::Run { cgroup_parent, image, command } => {
            return Pod::run(channel, cgroup_parent, &image, command).await;
        }
        Command::Images => {
            let listed = images
                .list_images(cri::ListImagesRequest {})
                .await
                .map_err(said)
                .context("listing images")?;
            for image in listed.into_inner().images {
                let names = [image.repo_tags, image.repo_digests].concat().join(" ");
                writeln!(out, "{} {} {names}", image.id, image.size)?;
            }
        }
        Command::Rmi { image } => {
            let request = cri::RemoveImageRequest { image: Some(spec(&image)) };
            images.remove_image(request).await.map_err(said).with_context(|| format!("removing {image}"))?;
        }
        Command::Fsinfo => {
            let info = images.image_fs_info(Done {}).await.map_err(said).context("asking for disk use")?;
            for usage in info.into_inner().image_filesystems {
                let path = usage.fs_id.unwrap_or_default().mountpoint;
                let bytes = usage.used_bytes.unwrap_or_default().value;
                writeln!(out, "{path} {bytes} {}", usage.inodes_used.unwrap_or_default().value)?;
            }
        }
    }
    Ok(0)
}

/// containerd opens its socket before CRI has found its old containers; it has no event for that either.
async fn until_initialized(images: &mut ImageServiceClient<Channel>) -> Result<()> {
    loop {
        match images.list_images(cri::ListImagesRequest {}).await {
            Err(status) if status.message().contains("server is not initialized yet") => {
                tokio::time::sleep(STATUS_EVERY).await;
            }
            Err(status) => return Err(said(status)).context("asking containerd whether CRI is ready"),
            Ok(_) => return Ok(()),
        }
    }
}

/// A status without its type's name and metadata.
fn said(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{:?}: {}", status.code(), status.message())
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..Default::default() }
}

fn wait_at_gate(out: &mut impl Write) -> Result<()> {
    writeln!(out, "ready").and_then(|()| out.flush()).context("saying ready")?;
    std::io::stdin().lock().read_line(&mut String::new()).context("waiting at the gate")?;
    Ok(())
}

/// A pod with one container. Its logs lie in a folder of ours that goes when it is dropped.
struct Pod {
    runtime: RuntimeServiceClient<Channel>,
    config: PodSandboxConfig,
    id: String,
    logs: tempfile::TempDir,
}

impl Pod {
    /// Runs the command in a pod made for it, prints its output, gives its exit code.
    async fn run(channel: Channel, cgroup_parent: String, image: &str, command: Vec<String>) -> Result<u8> {
        let mut pod = Pod::start(channel, cgroup_parent).await?;
        let ended = pod.run_container(image, command).await;
        let removed = pod.remove().await;
        let code = ended?;
        removed?;
        Ok(code)
    }

    async fn start(channel: Channel, cgroup_parent: String) -> Result<Pod> {
        let logs = tempfile::tempdir().context("making a folder for logs")?;
        // Unique on this node, which CRI asks of a pod's name.
        let uid = format!("{:016x}", rand::random::<u64>());
        let metadata = PodSandboxMetadata { name: "cri".into(), uid, namespace: "lab".into(), attempt: 0 };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            log_directory: logs.path().display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent,
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(node_network()),
                }),
            }),
            ..Default::default()
        };
        let mut runtime = RuntimeServiceClient::new(channel);
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let started =
            runtime.run_pod_sandbox(request).await.map_err(said).context("starting a pod sandbox")?;
        Ok(Pod { runtime, config, id: started.into_inner().pod_sandbox_id, logs })
    }

    async fn run_container(&mut self, image: &str, command: Vec<String>) -> Result<u8> {
        let security_context = LinuxContainerSecurityContext { namespace_options: Some(node_network()) };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
            image: Some(spec(image)),
            command,
            log_path: "main.log".into(),
            linux: Some(LinuxContainerConfig { security_context: Some(security_context) }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let created = self.runtime.create_container(request).await.map_err(said);
        let created = created.with_context(|| format!("creating a container from {image}"))?.into_inner();
        self.runtime
            .start_container(created.clone())
            .await
            .map_err(said)
            .context("starting the container")?;
        let status = self.ended(created).await?;
        self.print_log().context("reading the container's output")?;
        if status.reason != "Completed" && !status.message.is_empty() {
            eprintln!("cri: the container ended: {}: {}", status.reason, status.message);
        }
        u8::try_from(status.exit_code).with_context(|| format!("an odd exit code: {}", status.exit_code))
    }

    async fn ended(&mut self, container: cri::ContainerId) -> Result<cri::ContainerStatus> {
        loop {
            let asked = self.runtime.container_status(container.clone()).await.map_err(said);
            let status = asked.context("asking for the container's state")?.into_inner().status;
            let Some(status) = status else { bail!("containerd knows no state of the container") };
            if status.state() == ContainerState::ContainerExited {
                return Ok(status);
            }
            tokio::time::sleep(STATUS_EVERY).await;
        }
    }

    /// Each line of a CRI log is `time stream tag text`; the tag `P` says that the line goes on.
    fn print_log(&self) -> Result<()> {
        let text = std::fs::read(self.logs.path().join("main.log"))?;
        let mut out = std::io::stdout().lock();
        for line in text.split(|byte| *byte == b'\n') {
            let mut fields = line.splitn(4, |byte| *byte == b' ');
            let tag = fields.nth(2);
            let Some(text) = fields.next() else { continue };
            out.write_all(text)?;
            if tag != Some(b"P") {
                out.write_all(b"\n")?;
            }
        }
        Ok(())
    }

    async fn remove(mut self) -> Result<()> {
        let id = cri::PodSandboxId { pod_sandbox_id: self.id.clone() };
        self.runtime.stop_pod_sandbox(id.clone()).await.map_err(said).context("stopping the pod sandbox")?;
        self.runtime.remove_pod_sandbox(id).await.map_err(said).context("removing the pod sandbox")?;
        Ok(())
    }
}

fn node_network() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
    }
}
