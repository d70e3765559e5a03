//! Endpoints: the hosts that are asked for a registry, built from `hosts_dir` and kept while it is unchanged.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use url::{Host, Url};

use super::{
    OriginError,
    hosts::{self, Capabilities, Hosts, Spec},
    name::{Authority, PlainHttp},
    tls::{Clients, Tls},
};

/// An edited hosts.toml counts after at most this long; reading it costs a few system calls.
const RELOAD_AFTER: Duration = Duration::from_secs(10);

/// Registries remembered: a node's images come from a handful. Beyond it all are read again.
const MAX_REGISTRIES: usize = 1024;

/// One host to ask.
pub(super) struct Endpoint {
    /// Root of the API, without a slash at its end.
    pub(super) base: Url,
    /// `?ns=` for hosts that are not the registry itself.
    pub(super) namespace: Option<String>,
    pub(super) capabilities: Capabilities,
    /// The registry that this host is or stands for, as repositories name it.
    pub(super) registry: String,
    /// The registry itself, for which clients have their credentials.
    pub(super) is_registry: bool,
    /// From hosts.toml; may hold credentials, so they go to this endpoint only.
    pub(super) headers: HeaderMap,
    pub(super) clients: Clients,
    plain: PlainHttp,
}

impl Endpoint {
    /// `host` or `host:port`, for credentials and limits.
    pub(super) fn authority(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        self.base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// The address of something below the API's root.
    pub(super) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{path}", self.base.path().trim_end_matches('/')));
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Whether plain HTTP may lead from here to `url`: the settings name that host, or it is this host, which
    /// somebody named with `http://`.
    pub(super) fn plain_allowed(&self, url: &Url) -> bool {
        let same_host = self.base.scheme() == "http" && self.base.host_str() == url.host_str();
        let host = url.host_str().and_then(Authority::parse);
        same_host || host.is_some_and(|host| self.plain.names(&Authority { port: url.port(), ..host }))
    }

    /// Whether `url` is this endpoint: same scheme, host and port.
    pub(super) fn owns(&self, url: &Url) -> bool {
        self.base.origin() == url.origin()
    }
}

/// The endpoints of one registry, in the order of asking.
pub(super) type Endpoints = Arc<[Arc<Endpoint>]>;

struct Known {
    hosts: Hosts,
    endpoints: Endpoints,
    read_at: Instant,
}

/// Finds the endpoints of registries.
pub(super) struct Book {
    dirs: Vec<PathBuf>,
    plain: PlainHttp,
    own_doors: Vec<SocketAddr>,
    tls: Tls,
    known: Mutex<HashMap<Authority, Known>>,
}

impl Book {
    pub(super) fn new(dirs: Vec<PathBuf>, plain: PlainHttp, own_doors: Vec<SocketAddr>, tls: Tls) -> Self {
        Self { dirs, plain, own_doors, tls, known: Mutex::default() }
    }

    /// The endpoints for `host`, as a repository names it.
    ///
    /// # Errors
    /// No host, or one that has no endpoint that could be asked.
    pub(super) async fn endpoints(self: &Arc<Self>, host: &str) -> Result<Endpoints, OriginError> {
        let no_endpoint = |why: &str| OriginError::NoEndpoint {
            host: host.chars().take(260).collect(),
            why: why.to_owned(),
        };
        let authority = Authority::parse(host).ok_or_else(|| no_endpoint("it is no host name"))?;
        let fresh = |known: &&Known| known.read_at.elapsed() < RELOAD_AFTER;
        if let Some(known) = self.known.lock().get(&authority).filter(fresh) {
            return Ok(known.endpoints.clone());
        }
        let book = self.clone();
        let loading = tokio::task::spawn_blocking(move || book.reload(&authority));
        let endpoints = loading.await.map_err(|_| no_endpoint("reading its hosts.toml failed"))?;
        if endpoints.is_empty() {
            return Err(no_endpoint("every host in its hosts.toml is unusable or is this node's own door"));
        }
        Ok(endpoints)
    }

    /// Whether there is a folder about this very host.
    pub(super) async fn has_folder(self: &Arc<Self>, host: &str) -> bool {
        let Some(host) = Authority::parse(host) else { return false };
        let book = self.clone();
        tokio::task::spawn_blocking(move || hosts::has_folder(&book.dirs, &host)).await.unwrap_or_default()
    }

    /// Whether the settings name this host as one to be asked without TLS.
    pub(super) fn is_plain(&self, host: &str) -> bool {
        Authority::parse(host).is_some_and(|host| self.plain.names(&host))
    }

    /// Whether the settings name this very host, with this port, as one to be asked without TLS.
    pub(super) fn lists_plain(&self, host: &str) -> bool {
        Authority::parse(host).is_some_and(|host| self.plain.lists(&host))
    }

    /// Hosts of this name that have a port, from `hosts_dir` and `plain_http`.
    pub(super) async fn with_ports(self: &Arc<Self>, name: &str) -> Vec<Authority> {
        let (book, name) = (self.clone(), name.to_owned());
        let searching = tokio::task::spawn_blocking(move || {
            let mut found = hosts::ports_of(&book.dirs, &name);
            let plain: Vec<_> =
                book.plain.with_name(&name).filter(|host| !found.contains(host)).cloned().collect();
            found.extend(plain);
            found
        });
        searching.await.unwrap_or_default()
    }

    /// Blocking. Endpoints whose hosts.toml did not change keep their connections.
    fn reload(&self, host: &Authority) -> Endpoints {
        let hosts = hosts::load(&self.dirs, host, &self.plain);
        let mut known = self.known.lock();
        if let Some(known) = known.get_mut(host).filter(|known| known.hosts == hosts) {
            known.read_at = Instant::now();
            return known.endpoints.clone();
        }
        for warning in &hosts.warnings {
            tracing::warn!("{warning}");
        }
        let registry = hosts.registry.as_ref();
        let endpoint = |spec: &Spec| self.endpoint(host, spec, registry == Some(&spec.base));
        let endpoints: Endpoints = hosts.specs.iter().filter_map(endpoint).collect();
        if known.len() >= MAX_REGISTRIES {
            known.clear();
        }
        known.insert(host.clone(), Known { hosts, endpoints: endpoints.clone(), read_at: Instant::now() });
        endpoints
    }

    fn endpoint(&self, host: &Authority, spec: &Spec, is_registry: bool) -> Option<Arc<Endpoint>> {
        if self.own_doors.iter().any(|door| is_door(&spec.base, *door)) {
            tracing::debug!(endpoint = %spec.base, "skipped: it is this node's own door");
            return None;
        }
        let clients = self.tls.clients(spec);
        let clients = clients.inspect_err(|why| tracing::warn!("{} is left out: {why}", spec.base)).ok()?;
        let mut headers = HeaderMap::new();
        for (name, value) in &spec.headers {
            match (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                (Ok(name), Ok(mut value)) => {
                    value.set_sensitive(true);
                    headers.append(name, value);
                }
                _ => tracing::warn!("{}: header `{name}` in its hosts.toml cannot be sent", spec.base),
            }
        }
        let registry = host.in_url();
        let itself = is_host(&spec.base, host);
        Some(Arc::new(Endpoint {
            base: spec.base.clone(),
            namespace: (!itself).then(|| registry.clone()),
            registry,
            capabilities: spec.capabilities,
            is_registry,
            headers,
            clients,
            plain: self.plain.clone(),
        }))
    }
}

/// Whether `url` is the registry `host` itself and not a mirror of it.
fn is_host(url: &Url, host: &Authority) -> bool {
    let name = Authority { port: None, ..host.clone() }.in_url();
    let called = url.host_str().unwrap_or_default();
    let docker_hub = name == "docker.io" && called == "registry-1.docker.io";
    let default_port = if url.scheme() == "http" { 80 } else { 443 };
    docker_hub || (called == name && url.port_or_known_default() == host.port.or(Some(default_port)))
}

/// Whether `url` reaches `door` on this machine. Names other than `localhost` are not looked up.
fn is_door(url: &Url, door: SocketAddr) -> bool {
    if url.port_or_known_default() != Some(door.port()) {
        return false;
    }
    let ip = match url.host() {
        Some(Host::Ipv4(ip)) => ip.into(),
        Some(Host::Ipv6(ip)) => std::net::IpAddr::from(ip).to_canonical(),
        Some(Host::Domain(name)) => {
            return name == "localhost" && (door.ip().is_loopback() || door.ip().is_unspecified());
        }
        None => return false,
    };
    ip == door.ip() || ip.is_unspecified() || (door.ip().is_unspecified() && ip.is_loopback())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn our_own_door_is_known_by_every_name() {
        let door = |url: &str, door: &str| is_door(&url.parse().unwrap(), door.parse().unwrap());
        assert!(door("http://127.0.0.1:7441/v2", "127.0.0.1:7441"));
        assert!(door("http://localhost:7441/v2", "127.0.0.1:7441"));
        assert!(door("http://[::1]:7441/v2", "[::]:7441"));
        assert!(door("http://[::ffff:127.0.0.1]:7441/v2", "127.0.0.1:7441"));
        assert!(door("https://10.0.0.7/v2", "10.0.0.7:443"));
        assert!(!door("http://127.0.0.1:5000/v2", "127.0.0.1:7441"));
        assert!(!door("http://10.0.0.7:7441/v2", "127.0.0.1:7441"));
        assert!(!door("http://mirror.local:7441/v2", "127.0.0.1:7441"));
    }

    pub(in crate::origin) fn book(dirs: Vec<PathBuf>) -> Arc<Book> {
        let tls = Tls::new(Duration::from_secs(1)).unwrap();
        Arc::new(Book::new(dirs, PlainHttp::default(), vec!["127.0.0.1:7441".parse().unwrap()], tls))
    }

    #[tokio::test]
    async fn mirrors_learn_which_registry_is_meant() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("docker.io");
        std::fs::create_dir(&folder).unwrap();
        let text = "[host.\"http://127.0.0.1:7441\"]\n[host.\"https://m.local/hub\"]\n";
        std::fs::write(folder.join("hosts.toml"), text).unwrap();
        let endpoints = book(vec![dir.path().to_owned()]).endpoints("docker.io").await.unwrap();
        let urls: Vec<_> = endpoints.iter().map(|e| e.url("library/a/manifests/b").to_string()).collect();
        assert_eq!(
            urls,
            [
                "https://m.local/hub/v2/library/a/manifests/b?ns=docker.io",
                "https://registry-1.docker.io/v2/library/a/manifests/b"
            ]
        );
    }

    #[tokio::test]
    async fn unchanged_hosts_keep_their_endpoints() {
        let book = book(vec![]);
        let first = book.endpoints("[::1]:5000").await.unwrap();
        let again = book.reload(&Authority::parse("[::1]:5000").unwrap());
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!(first[0].namespace, None);
        assert_eq!(first[0].authority(), "[::1]:5000");
        assert!(matches!(book.endpoints("../etc").await, Err(OriginError::NoEndpoint { .. })));
    }
}
