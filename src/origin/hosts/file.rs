//! The text of a `hosts.toml`, as containerd reads it (`core/remotes/docker/config/hosts.go`, 2.1).
//!
//! The order of the `[host."…"]` tables is the order in which they are asked, so the file is read with
//! toml_edit, which keeps it.

use std::{path::PathBuf, time::Duration};

use toml_edit::{DocumentMut, Item, TableLike, Value};

/// What one `hosts.toml` says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HostsFile {
    /// Mirrors, in the order of the file.
    pub(super) mirrors: Vec<Entry>,
    /// The registry itself; without a `url` it is the host that the file is about.
    pub(super) server: Entry,
}

/// One host: its address and how to speak to it. Paths are as written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) url: Option<String>,
    pub(super) capabilities: Capabilities,
    pub(super) ca: Vec<PathBuf>,
    /// Certificate, and key where it is another file.
    pub(super) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) override_path: bool,
    pub(super) skip_verify: bool,
    /// A connection is waited for so long.
    pub(super) dial_timeout: Option<Duration>,
}

/// What a host may be asked for. Pushing is nothing we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::origin) struct Capabilities {
    pub(in crate::origin) pull: bool,
    pub(in crate::origin) resolve: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self { pull: true, resolve: true }
    }
}

/// Why a `hosts.toml` is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// Without the line itself, which may hold a header with a password.
    #[error("line {line} is no TOML: {what}")]
    Toml { line: usize, what: String },
    #[error("`{key}` of `{host}` is not {wanted}")]
    Type { host: String, key: &'static str, wanted: &'static str },
    #[error("capability `{0}` is unknown (pull, resolve, push)")]
    Capability(String),
    #[error("it names more than {MAX_HOSTS} hosts")]
    TooManyHosts,
}

/// Most mirrors for one registry: each may cost a connection timeout.
const MAX_HOSTS: usize = 32;

pub(super) fn parse(text: &str) -> Result<HostsFile, FileError> {
    let document: DocumentMut = text.parse().map_err(|error| no_toml(text, &error))?;
    let root = document.as_table();
    let mut server = entry("server", root)?;
    server.url = root.get("server").map(|item| text_of("server", "server", item)).transpose()?;
    server.url = server.url.filter(|url| !url.is_empty());
    let mut mirrors = Vec::new();
    if let Some(hosts) = root.get("host").and_then(Item::as_table_like) {
        if hosts.len() > MAX_HOSTS {
            return Err(FileError::TooManyHosts);
        }
        for (url, item) in hosts.iter() {
            let wrong = || wrong(url, "host", "a table");
            let mirror = entry(url, item.as_table_like().ok_or_else(wrong)?)?;
            mirrors.push(Entry { url: Some(url.to_owned()), ..mirror });
        }
    }
    Ok(HostsFile { mirrors, server })
}

fn no_toml(text: &str, error: &toml_edit::TomlError) -> FileError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    FileError::Toml { line: before.matches('\n').count() + 1, what: error.message().replace('\n', " ") }
}

fn entry(host: &str, table: &dyn TableLike) -> Result<Entry, FileError> {
    let flag = |key: &'static str| match table.get(key) {
        None => Ok(false),
        Some(item) => item.as_bool().ok_or_else(|| wrong(host, key, "true or false")),
    };
    Ok(Entry {
        url: None,
        capabilities: capabilities(host, table)?,
        ca: texts(host, "ca", table)?.into_iter().map(PathBuf::from).collect(),
        client: client(host, table)?,
        headers: headers(host, table)?,
        override_path: flag("override_path")?,
        skip_verify: flag("skip_verify")?,
        dial_timeout: time(host, "dial_timeout", table)?,
    })
}

fn wrong(host: &str, key: &'static str, wanted: &'static str) -> FileError {
    FileError::Type { host: host.to_owned(), key, wanted }
}

/// Nothing, as no time at all, leaves it as it is.
fn time(host: &str, key: &'static str, table: &dyn TableLike) -> Result<Option<Duration>, FileError> {
    let wrong = || wrong(host, key, "a time such as \"10s\"");
    let text = table.get(key).map(|item| item.as_str().ok_or_else(wrong)).transpose()?.unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let time = humantime::parse_duration(text).map_err(|_| wrong())?;
    Ok(Some(time).filter(|time| !time.is_zero()))
}

fn text_of(host: &str, key: &'static str, item: &Item) -> Result<String, FileError> {
    item.as_str().map(str::to_owned).ok_or_else(|| wrong(host, key, "a text"))
}

/// A text or a list of texts.
fn texts(host: &str, key: &'static str, table: &dyn TableLike) -> Result<Vec<String>, FileError> {
    table.get(key).map_or(Ok(Vec::new()), |item| one_or_many(host, key, item))
}

fn one_or_many(host: &str, key: &'static str, item: &Item) -> Result<Vec<String>, FileError> {
    let wrong = || wrong(host, key, "a text or a list of texts");
    if let Some(text) = item.as_str() {
        return Ok(vec![text.to_owned()]);
    }
    let list = item.as_array().ok_or_else(wrong)?;
    list.iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
}

fn capabilities(host: &str, table: &dyn TableLike) -> Result<Capabilities, FileError> {
    let named = texts(host, "capabilities", table)?;
    if named.is_empty() {
        return Ok(Capabilities::default());
    }
    let mut capabilities = Capabilities { pull: false, resolve: false };
    for name in named {
        match name.to_ascii_lowercase().as_str() {
            "pull" => capabilities.pull = true,
            "resolve" => capabilities.resolve = true,
            "push" => {}
            _ => return Err(FileError::Capability(name.chars().take(40).collect())),
        }
    }
    Ok(capabilities)
}

/// `"both.pem"`, `["both.pem", …]` or `[["cert.pem", "key.pem"], …]`.
fn client(host: &str, table: &dyn TableLike) -> Result<Vec<(PathBuf, Option<PathBuf>)>, FileError> {
    let Some(item) = table.get("client") else {
        return Ok(Vec::new());
    };
    if let Some(both) = item.as_str() {
        return Ok(vec![(both.into(), None)]);
    }
    let wrong = || wrong(host, "client", "a text, a list of texts or a list of pairs");
    item.as_array().ok_or_else(wrong)?.iter().map(|value| pair(value).ok_or_else(wrong)).collect()
}

fn pair(value: &Value) -> Option<(PathBuf, Option<PathBuf>)> {
    if let Some(both) = value.as_str() {
        return Some((both.into(), None));
    }
    let pair = value.as_array().filter(|pair| pair.len() == 2)?;
    let path = |index| pair.get(index).and_then(Value::as_str).map(PathBuf::from);
    let key = path(1)?;
    Some((path(0)?, (!key.as_os_str().is_empty()).then_some(key)))
}

fn headers(host: &str, table: &dyn TableLike) -> Result<Vec<(String, String)>, FileError> {
    let Some(item) = table.get("header") else {
        return Ok(Vec::new());
    };
    let table = item.as_table_like().ok_or_else(|| wrong(host, "header", "a table"))?;
    let mut headers = Vec::new();
    for (name, item) in table.iter() {
        let values = one_or_many(host, "header", item)?;
        headers.extend(values.into_iter().map(|value| (name.to_owned(), value)));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_file_is_the_order_of_asking() {
        let file = parse(
            r#"
            server = "https://registry-1.docker.io"
            [host."https://z.local"]
              capabilities = ["pull"]
            [host."https://z.local".header]
              x-one = "1"
              x-two = ["2", "3"]
            [host."http://a.local:5000"]
              capabilities = ["Pull", "resolve", "push"]
              override_path = true
              dial_timeout = "1s500ms"
            "#,
        )
        .unwrap();
        let urls: Vec<_> = file.mirrors.iter().map(|m| m.url.as_deref().unwrap()).collect();
        assert_eq!(urls, ["https://z.local", "http://a.local:5000"]);
        assert_eq!(file.server.url.as_deref(), Some("https://registry-1.docker.io"));
        assert_eq!(parse("dial_timeout = \"\"").unwrap().server.dial_timeout, None);
        let [z, a] = &file.mirrors[..] else { panic!("two mirrors") };
        assert_eq!(z.capabilities, Capabilities { pull: true, resolve: false });
        assert_eq!(z.headers.len(), 3);
        assert_eq!(a.capabilities, Capabilities::default());
        assert!(a.override_path && !z.override_path);
        assert_eq!((z.dial_timeout, a.dial_timeout), (None, Some(Duration::from_millis(1500))));
    }

    #[test]
    fn certificates_come_in_every_shape_that_containerd_takes() {
        let client = |value: &str| parse(&format!("client = {value}")).unwrap().server.client;
        let both = ("a.pem".into(), None);
        let pair = ("a.pem".into(), Some("a.key".into()));
        assert_eq!(client(r#""a.pem""#), std::slice::from_ref(&both));
        assert_eq!(client(r#"["a.pem"]"#), std::slice::from_ref(&both));
        assert_eq!(client(r#"[["a.pem", "a.key"], ["a.pem", ""]]"#), [pair, both]);
        assert_eq!(parse(r#"ca = "x""#).unwrap().server.ca, [PathBuf::from("x")]);
        assert_eq!(parse(r#"ca = ["x", "y"]"#).unwrap().server.ca.len(), 2);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("# one\nserver = ", "line 2 is no TOML"),
            ("server = 1", "`server` of `server` is not a text"),
            ("capabilities = [\"fly\"]", "`fly`"),
            ("client = [[\"one\"]]", "`client`"),
            ("[host.\"https://m\"]\nca = 7", "`ca` of `https://m`"),
            ("skip_verify = \"yes\"", "`skip_verify`"),
            ("dial_timeout = 3", "`dial_timeout` of `server` is not a time"),
            ("dial_timeout = \"soon\"", "`dial_timeout`"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
        let many: String = (0..33).map(|i| format!("[host.\"https://m{i}\"]\n")).collect();
        assert!(matches!(parse(&many), Err(FileError::TooManyHosts)));
    }
}
