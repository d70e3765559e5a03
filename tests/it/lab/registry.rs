//! Debian's docker-registry over a folder, and what its access log says.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{
    Result,
    net::Namespace,
    process::{Process, output},
};

/// A running registry, without TLS.
pub(crate) struct Registry {
    process: Process,
    host: String,
    namespace: Option<Namespace>,
}

/// One answered request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) uri: String,
    pub(crate) status: u16,
    /// Bytes of the body that were sent.
    pub(crate) body_bytes: u64,
    pub(crate) user_agent: String,
    /// The address without the port.
    pub(crate) client: String,
}

impl Registry {
    /// Serves the folder `root`, which `image::Images` fills; its logs and settings go to `dir`. Where a
    /// namespace is given it listens on port 5000 there, else on loopback with any port.
    pub(crate) fn start(root: &str, dir: PathBuf, namespace: Option<&Namespace>) -> Result<Registry> {
        Self::start_with(root, dir, namespace, "")
    }

    /// And one that still takes and gives manifests of schema 1.
    pub(crate) fn start_old(root: &str, dir: PathBuf) -> Result<Registry> {
        Self::start_with(root, dir, None, "compatibility: {schema1: {enabled: true}}\n")
    }

    fn start_with(root: &str, dir: PathBuf, namespace: Option<&Namespace>, more: &str) -> Result<Registry> {
        let listen = namespace.map_or("127.0.0.1:0".to_owned(), |n| format!("{}:5000", n.address()));
        let config = format!(
            "version: 0.1\n\
             log: {{level: info, formatter: text, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {root}, maxthreads: 200}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '{listen}', secret: lab}}\n{more}"
        );
        fs::create_dir_all(&dir)
            .and_then(|()| fs::create_dir_all(root))
            .and_then(|()| fs::write(dir.join("registry.yml"), config))
            .map_err(|error| format!("making the registry's folder {}: {error}", dir.display()))?;
        let mut command = match namespace {
            Some(namespace) => namespace.command("docker-registry"),
            None => Command::new("docker-registry"),
        };
        command.arg("serve").arg(dir.join("registry.yml")).env("OTEL_TRACES_EXPORTER", "none");
        let process = Process::start("registry", command, &dir.join("registry.log"), super::lab_of(&dir))?;
        let line = process.wait_for("listening on ")?;
        let address = line.split("listening on ").nth(1).unwrap_or_default();
        let host = address.split(['"', ' ', ',']).next().unwrap_or_default().to_owned();
        Ok(Registry { process, host, namespace: namespace.cloned() })
    }

    /// `host:port`.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The full name of an image of this registry: `demo/app:v1` becomes `host:port/demo/app:v1`.
    pub(crate) fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.host)
    }

    /// Waits until the log has whatever was asked before: the log comes to us with a delay.
    pub(crate) fn settle(&self) -> Result<()> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let uri = format!("/v2/?settle={}", COUNTER.fetch_add(1, Ordering::Relaxed));
        // bash speaks TCP; a curl is one package more.
        let mut bash = match &self.namespace {
            Some(namespace) => namespace.command("bash"),
            None => Command::new("bash"),
        };
        let (host, port) = self.host.rsplit_once(':').ok_or("a registry without a port")?;
        let request = format!("GET {uri} HTTP/1.0\r\nHost: {host}\r\n\r\n");
        bash.args(["-c", "exec 3<>/dev/tcp/$0/$1 && printf %s \"$2\" >&3 && cat <&3", host, port, &request]);
        output(bash)?;
        let answered = |line: &&String| parse(line).is_some_and(|request| request.uri == uri);
        self.process.wait_until(&uri, |lines| lines.iter().rev().find(answered).map(|_| ()))
    }

    /// Every request that was answered so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.process.lines().iter().filter_map(|line| parse(line)).collect()
    }

    /// Requests for the bytes of one repository's blobs (`demo/app`); HEAD is not one.
    pub(crate) fn blob_reads(&self, repository: &str) -> Vec<Request> {
        let path = format!("/v2/{repository}/blobs/");
        let mut requests = self.requests();
        requests.retain(|request| request.method == "GET" && request.uri.starts_with(&path));
        requests
    }

    /// Bytes of bodies sent for one repository: blobs, manifests, and errors.
    pub(crate) fn body_bytes(&self, repository: &str) -> u64 {
        let path = format!("/v2/{repository}/");
        let requests = self.requests();
        requests
            .iter()
            .filter(|request| request.uri.starts_with(&path))
            .map(|request| request.body_bytes)
            .sum()
    }

    /// Leaves it running when this value goes.
    pub(crate) fn leave(self) {
        self.process.leave();
    }

    /// The process, to stop, continue or kill it.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Writes the `hosts.toml` that lets containerd and Flotilla speak plain HTTP to a host.
pub(crate) fn trust_plain_http(hosts_dir: &Path, host: &str) -> Result<()> {
    lead_to(hosts_dir, host, host)
}

/// Writes the `hosts.toml` by which whoever wants `host` speaks plain HTTP to `other`.
pub(crate) fn lead_to(hosts_dir: &Path, host: &str, other: &str) -> Result<()> {
    let folder = hosts_dir.join(host);
    let text = format!(
        "server = \"http://{other}\"\n\n[host.\"http://{other}\"]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n"
    );
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(folder.join("hosts.toml"), text))
        .map_err(|error| format!("writing hosts.toml in {}: {error}", folder.display()).into())
}

/// Writes the `hosts.toml` by which containerd asks a node's mirror for `host` before it asks `host` itself.
pub(crate) fn lead_by_mirror(hosts_dir: &Path, host: &str, mirror: &str) -> Result<()> {
    let folder = hosts_dir.join(host);
    let text = format!(
        "server = \"http://{host}\"\n\n\
         [host.\"http://{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n\n\
         [host.\"http://{host}\"]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n"
    );
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(folder.join("hosts.toml"), text))
        .map_err(|error| format!("writing hosts.toml in {}: {error}", folder.display()).into())
}

/// One line `… msg="response completed" … http.request.method=GET …` of the registry's log.
fn parse(line: &str) -> Option<Request> {
    // An error answer is logged twice, once with its error; this line is logged for every answer.
    if !line.contains("msg=\"response completed\"") {
        return None;
    }
    let client = field(line, "http.request.remoteaddr")?;
    let method = field(line, "http.request.method")?;
    // For HEAD the log has what the body would have been.
    let written = if method == "HEAD" { 0 } else { field(line, "http.response.written")?.parse().ok()? };
    Some(Request {
        method,
        uri: field(line, "http.request.uri")?,
        status: field(line, "http.response.status")?.parse().ok()?,
        body_bytes: written,
        user_agent: field(line, "http.request.useragent").unwrap_or_default(),
        client: client.rsplit_once(':').map_or(client.clone(), |(address, _)| address.to_owned()),
    })
}

/// The value of `name=value` or `name="quoted value"`.
fn field(line: &str, name: &str) -> Option<String> {
    let rest = line.split_once(&format!(" {name}="))?.1;
    let value = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next()?,
        None => rest.split(' ').next()?,
    };
    Some(value.to_owned())
}
