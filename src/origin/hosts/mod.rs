//! `hosts_dir`: which hosts stand for a registry, and how each wants to be spoken to.
//!
//! ```text
//! /etc/containerd/certs.d/              first hosts_dir that has a folder for the host wins
//!   registry.local_5000_/ | registry.local:5000/ | registry.local/ | _default/
//!     hosts.toml                        containerd's form
//!     ca.crt  client.cert  client.key   Docker's form, where there is no hosts.toml
//! ```
//! Everything is read into a [`Spec`] at once, certificates included, so that comparing two of them tells
//! whether anything changed. Blocking: called from a blocking thread.

mod file;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use url::Url;

use super::name::{Authority, PlainHttp};

pub(super) use file::Capabilities;
use file::{Entry, HostsFile};

/// Largest hosts.toml or certificate file read: a bundle of all public roots has 250 KiB.
const MAX_FILE_LEN: u64 = 1 << 20;

/// One host to ask. Holds a private key, hence no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Spec {
    /// Ends with the root of the API (`…/v2`), without a slash.
    pub(super) base: Url,
    pub(super) capabilities: Capabilities,
    pub(super) ca_pem: Vec<Vec<u8>>,
    /// Of which the host gets the first that it can take.
    pub(super) client_pems: Vec<ClientPem>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) dial_timeout: Option<Duration>,
}

/// A client certificate and its key.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct ClientPem {
    pub(super) path: PathBuf,
    pub(super) cert: Vec<u8>,
    pub(super) key: Vec<u8>,
}

/// The hosts that stand for one registry, and what is to be said about them.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Hosts {
    pub(super) specs: Vec<Spec>,
    /// The base of the registry itself, as opposed to its mirrors.
    pub(super) registry: Option<Url>,
    /// One line each, naming the file and the mend.
    pub(super) warnings: Vec<String>,
}

/// Reads what `dirs` say about `host`; the registry itself is always the last to be asked, as containerd
/// does it.
pub(super) fn load(dirs: &[PathBuf], host: &Authority, plain: &PlainHttp) -> Hosts {
    let Some(dir) = find(dirs, host) else {
        return from_file(
            Path::new(""),
            host,
            plain,
            HostsFile { mirrors: vec![], server: Entry::default() },
        );
    };
    let path = dir.join("hosts.toml");
    let mut warnings = Vec::new();
    let parsed = match read(&path) {
        Ok(bytes) if bytes.is_empty() => None,
        Ok(bytes) => match file::parse(&String::from_utf8_lossy(&bytes)) {
            Ok(file) => Some(file),
            Err(error) => {
                warnings.push(format!("{}: ignored: {error}", path.display()));
                None
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warnings.push(format!("{}: ignored: {error}", path.display()));
            None
        }
    };
    let file = parsed.unwrap_or_else(|| docker_files(&dir));
    let mut hosts = from_file(&dir, host, plain, file);
    hosts.warnings.splice(0..0, warnings);
    hosts
}

/// The ports under which folders know a host of this name.
pub(super) fn ports_of(dirs: &[PathBuf], name: &str) -> Vec<Authority> {
    let mut found = Vec::new();
    for entry in dirs.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten() {
        let folder = entry.file_name().to_string_lossy().into_owned();
        let host = match folder.strip_suffix('_').and_then(|rest| rest.rsplit_once('_')) {
            Some((host, port)) => format!("{host}:{port}"),
            None => folder,
        };
        found.extend(Authority::parse(&host).filter(|host| host.name == name && host.port.is_some()));
    }
    found.sort_by_key(|host| host.port);
    found.dedup();
    found
}

/// Whether a folder is about this very host.
pub(super) fn has_folder(dirs: &[PathBuf], host: &Authority) -> bool {
    let folders = folders(host);
    dirs.iter().any(|dir| folders.iter().any(|folder| dir.join(folder).is_dir()))
}

/// What a host's own folder may be called, in the order of looking.
fn folders(host: &Authority) -> Vec<String> {
    let name = Authority { name: host.name.clone(), port: None }.in_url();
    match host.port {
        Some(port) => vec![format!("{name}_{port}_"), format!("{name}:{port}")],
        None => vec![name],
    }
}

fn find(dirs: &[PathBuf], host: &Authority) -> Option<PathBuf> {
    let mut folders = folders(host);
    folders.push("_default".to_owned());
    dirs.iter().flat_map(|dir| folders.iter().map(|folder| dir.join(folder))).find(|path| path.is_dir())
}

fn from_file(dir: &Path, host: &Authority, plain: &PlainHttp, file: HostsFile) -> Hosts {
    let mut hosts = Hosts::default();
    let mirrors = file.mirrors.len();
    for (index, entry) in file.mirrors.into_iter().chain([file.server]).enumerate() {
        match spec(dir, host, plain, entry, &mut hosts.warnings) {
            Ok(spec) => {
                hosts.registry = (index == mirrors).then(|| spec.base.clone());
                hosts.specs.push(spec);
            }
            Err(warning) => hosts.warnings.push(warning),
        }
    }
    hosts
}

/// A host whose certificates cannot be read is left out: it is never asked with less than it was given.
fn spec(
    dir: &Path,
    host: &Authority,
    plain: &PlainHttp,
    entry: Entry,
    warnings: &mut Vec<String>,
) -> Result<Spec, String> {
    let file = dir.join("hosts.toml");
    let url = entry.url.as_deref();
    let base = url.map_or_else(|| own_base(host, plain), |url| base(url, entry.override_path, plain));
    // Without a login that somebody may have written into it.
    let called = || url.and_then(|url| url.rsplit('@').next()).map_or_else(|| host.in_url(), str::to_owned);
    let base = base.ok_or_else(|| format!("{}: `{}` is no address; left out", file.display(), called()))?;
    if entry.skip_verify {
        warnings.push(format!(
            "{}: skip_verify of {} is ignored, its certificate is verified; name its CA in `ca` instead",
            file.display(),
            called()
        ));
    }
    let unreadable = |(path, error): (PathBuf, io::Error)| {
        format!("{}: cannot read it ({error}); {} is left out", path.display(), called())
    };
    let ca_pem = entry.ca.iter().map(|path| read_at(dir, path)).collect::<Result<_, _>>();
    let client_pems = entry.client.iter().map(|pair| client_pem(dir, pair)).collect::<Result<_, _>>();
    Ok(Spec {
        base,
        capabilities: if url.is_some() { entry.capabilities } else { Capabilities::default() },
        ca_pem: ca_pem.map_err(unreadable)?,
        client_pems: client_pems.map_err(unreadable)?,
        headers: entry.headers,
        dial_timeout: entry.dial_timeout,
    })
}

fn client_pem(
    dir: &Path,
    (cert, key): &(PathBuf, Option<PathBuf>),
) -> Result<ClientPem, (PathBuf, io::Error)> {
    let cert_pem = read_at(dir, cert)?;
    let key = key.as_ref().map_or_else(|| Ok(cert_pem.clone()), |key| read_at(dir, key))?;
    Ok(ClientPem { path: dir.join(cert), cert: cert_pem, key })
}

fn read_at(dir: &Path, path: &Path) -> Result<Vec<u8>, (PathBuf, io::Error)> {
    let path = dir.join(path);
    read(&path).map_err(|error| (path, error))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_LEN {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(bytes)
}

/// Docker's layout: `*.crt` are CAs, `x.cert` with `x.key` is a client certificate.
fn docker_files(dir: &Path) -> HostsFile {
    let mut names: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| PathBuf::from(entry.file_name()))
        .collect();
    names.sort();
    let ending = |wanted: &'static str| {
        names.iter().filter(move |name| name.extension().is_some_and(|ending| ending == wanted)).cloned()
    };
    let client = ending("cert").map(|cert| {
        let key = cert.with_extension("key");
        let exists = names.contains(&key);
        (cert, exists.then_some(key))
    });
    let server = Entry { ca: ending("crt").collect(), client: client.collect(), ..Entry::default() };
    HostsFile { mirrors: vec![], server }
}

/// The registry itself, where nothing else is said.
fn own_base(host: &Authority, plain: &PlainHttp) -> Option<Url> {
    let scheme = if plain.names(host) { "http" } else { "https" };
    let host = if host.in_url() == "docker.io" { "registry-1.docker.io".to_owned() } else { host.in_url() };
    Url::parse(&format!("{scheme}://{host}/v2")).ok()
}

fn base(text: &str, override_path: bool, plain: &PlainHttp) -> Option<Url> {
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        let host = text.split('/').next().and_then(Authority::parse)?;
        format!("{}://{text}", if plain.names(&host) { "http" } else { "https" })
    };
    let mut url = Url::parse(&with_scheme).ok()?;
    let carries_login = !url.username().is_empty() || url.password().is_some();
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || carries_login {
        return None;
    }
    url.set_query(None);
    url.set_fragment(None);
    let mut path = url.path().trim_end_matches('/').to_owned();
    if !override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    url.set_path(&path);
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Authority {
        Authority::parse(text).unwrap()
    }

    fn bases(dirs: &[PathBuf], name: &str) -> Vec<String> {
        let hosts = load(dirs, &host(name), &PlainHttp::default());
        hosts.specs.iter().map(|spec| spec.base.to_string()).collect()
    }

    fn write(dir: &Path, folder: &str, file: &str, text: &str) {
        fs::create_dir_all(dir.join(folder)).unwrap();
        fs::write(dir.join(folder).join(file), text).unwrap();
    }

    #[test]
    fn without_a_folder_the_registry_is_asked_over_tls() {
        assert_eq!(bases(&[], "r.local:5000"), ["https://r.local:5000/v2"]);
        assert_eq!(bases(&[], "docker.io"), ["https://registry-1.docker.io/v2"]);
        assert_eq!(bases(&[], "localhost:5000"), ["https://localhost:5000/v2"]);
        let plain = PlainHttp::new(&["r.local".into()]).unwrap();
        let hosts = load(&[], &host("r.local:5000"), &plain);
        assert_eq!(hosts.specs[0].base.as_str(), "http://r.local:5000/v2");
    }

    #[test]
    fn folders_are_tried_in_containerds_order() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        let server = |name: &str| format!("server = \"https://{name}\"");
        for (folder, name) in
            [("_default", "d"), ("r.local:5000", "colon"), ("r.local_5000_", "under"), ("r.local", "bare")]
        {
            write(dir.path(), folder, "hosts.toml", &server(name));
        }
        assert_eq!(bases(&dirs, "r.local:5000"), ["https://under/v2"]);
        fs::remove_dir_all(dir.path().join("r.local_5000_")).unwrap();
        assert_eq!(bases(&dirs, "r.local:5000"), ["https://colon/v2"]);
        fs::remove_dir_all(dir.path().join("r.local:5000")).unwrap();
        assert_eq!(bases(&dirs, "r.local:5000"), ["https://d/v2"]);
        assert_eq!(bases(&dirs, "r.local"), ["https://bare/v2"]);
    }

    #[test]
    fn paths_end_with_the_root_of_the_api() {
        let plain = PlainHttp::default();
        for (text, override_path, wanted) in [
            ("https://m", false, "https://m/v2"),
            ("https://m/v2/", false, "https://m/v2"),
            ("https://m/docker", false, "https://m/docker/v2"),
            ("https://m/docker", true, "https://m/docker"),
            ("m:5000", false, "https://m:5000/v2"),
            ("http://[::1]:5000", false, "http://[::1]:5000/v2"),
        ] {
            assert_eq!(base(text, override_path, &plain).unwrap().as_str(), wanted, "{text}");
        }
        for text in ["ftp://m", "https://user:secret@m", "https://", "a b"] {
            assert_eq!(base(text, false, &plain), None, "{text}");
        }
    }

    #[test]
    fn skip_verify_is_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "r.local", "hosts.toml", "[host.\"https://m\"]\nskip_verify = true");
        let hosts = load(&[dir.path().to_owned()], &host("r.local"), &PlainHttp::default());
        assert_eq!(hosts.specs.len(), 2);
        let [warning] = &hosts.warnings[..] else { panic!("one warning: {:?}", hosts.warnings) };
        assert!(warning.contains("skip_verify of https://m is ignored"), "{warning}");
    }

    #[test]
    fn secrets_of_the_file_are_in_no_warning() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        for text in [
            "[host.\"https://user:secret@m\"]",
            "[host.\"https://m\".header]\nauthorization = \"Basic secret",
            "[host.\"https://m\"]\nca = \"gone\"\n[host.\"https://m\".header]\nx = \"secret\"",
        ] {
            write(dir.path(), "r.local", "hosts.toml", text);
            let warnings = load(&dirs, &host("r.local"), &PlainHttp::default()).warnings;
            assert!(warnings.len() == 1 && !warnings[0].contains("secret"), "{warnings:?}");
        }
    }

    #[test]
    fn a_host_with_an_unreadable_ca_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "r.local", "hosts.toml", "[host.\"https://m\"]\nca = \"gone.pem\"");
        let dirs = [dir.path().to_owned()];
        assert_eq!(bases(&dirs, "r.local"), ["https://r.local/v2"]);
        let hosts = load(&dirs, &host("r.local"), &PlainHttp::default());
        assert!(hosts.warnings[0].contains("gone.pem"), "{:?}", hosts.warnings);
    }

    #[test]
    fn dockers_layout_counts_where_hosts_toml_is_absent_or_broken() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "r.local", "ca.crt", "CA");
        write(dir.path(), "r.local", "client.cert", "CERT");
        write(dir.path(), "r.local", "client.key", "KEY");
        let dirs = [dir.path().to_owned()];
        let check = |hosts: &Hosts| {
            let [spec] = &hosts.specs[..] else { panic!("one host") };
            assert_eq!(spec.ca_pem, [b"CA".to_vec()]);
            let [client] = &spec.client_pems[..] else { panic!("{}", spec.client_pems.len()) };
            assert_eq!((client.cert.as_slice(), client.key.as_slice()), (&b"CERT"[..], &b"KEY"[..]));
        };
        check(&load(&dirs, &host("r.local"), &PlainHttp::default()));
        write(dir.path(), "r.local", "hosts.toml", "server = ");
        let hosts = load(&dirs, &host("r.local"), &PlainHttp::default());
        check(&hosts);
        assert!(hosts.warnings[0].contains("no TOML"), "{:?}", hosts.warnings);
    }

    #[test]
    fn a_lost_port_is_found_again_in_the_folders() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["r.local:7000", "r.local_5000_", "r.local", "other_5000_", "_default"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let ports: Vec<_> =
            ports_of(&[dir.path().to_owned()], "r.local").iter().map(|host| host.port.unwrap()).collect();
        assert_eq!(ports, [5000, 7000]);
    }
}
