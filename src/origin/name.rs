//! Names of registries: host and port, and which of them may be asked without TLS.

/// A host with its port where one was given. IPv6 addresses have no brackets here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Authority {
    pub(super) name: String,
    pub(super) port: Option<u16>,
}

impl Authority {
    /// Parses `name`, `name:port`, `[v6]:port`, and the bare `v6` that containerd writes into its labels.
    /// `None` for anything that could not stand in a URL or that would leave a directory as its name.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, port) = split(text)?;
        let v6 = name.contains(':');
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_') || (v6 && b == b':');
        let starts_well = name.as_bytes().first().is_some_and(|&b| b.is_ascii_alphanumeric() || b == b':');
        if !starts_well || !name.bytes().all(known) {
            return None;
        }
        let port = port.map(str::parse).transpose().ok()?;
        Some(Self { name: name.to_ascii_lowercase(), port })
    }

    /// As it stands in a URL.
    pub(super) fn in_url(&self) -> String {
        let name = if self.name.contains(':') { format!("[{}]", self.name) } else { self.name.clone() };
        match self.port {
            Some(port) => format!("{name}:{port}"),
            None => name,
        }
    }
}

fn split(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (name, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((name, Some(port))),
            None => rest.is_empty().then_some((name, None)),
        };
    }
    match text.split_once(':') {
        // More than one colon and no brackets: an IPv6 address without a port.
        Some((_, rest)) if rest.contains(':') => Some((text, None)),
        Some((name, port)) => Some((name, Some(port))),
        None => Some((text, None)),
    }
}

/// The hosts that the settings allow to be asked in the clear.
#[derive(Clone, Debug, Default)]
pub(super) struct PlainHttp(Vec<Authority>);

impl PlainHttp {
    /// # Errors
    /// The first entry that is no host.
    pub(super) fn new(entries: &[String]) -> Result<Self, String> {
        let parse = |entry: &String| Authority::parse(entry).ok_or_else(|| entry.clone());
        entries.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// An entry without a port names every port of its host.
    pub(super) fn names(&self, host: &Authority) -> bool {
        let same = |entry: &Authority| {
            entry.name == host.name
                && (entry.port.is_none() || entry.port.unwrap_or(80) == host.port.unwrap_or(80))
        };
        self.0.iter().any(same)
    }

    pub(super) fn lists(&self, host: &Authority) -> bool {
        self.0.contains(host)
    }

    /// The entries of one host name that carry a port.
    pub(super) fn with_name<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Authority> {
        self.0.iter().filter(move |entry| entry.name == name && entry.port.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_come_in_five_forms() {
        for (text, name, port) in [
            ("docker.io", "docker.io", None),
            ("Registry.local:5000", "registry.local", Some(5000)),
            ("[::1]:5000", "::1", Some(5000)),
            ("[::1]", "::1", None),
            ("fd00::7", "fd00::7", None),
        ] {
            let host = Authority::parse(text).unwrap();
            assert_eq!((host.name.as_str(), host.port), (name, port), "{text}");
        }
        assert_eq!(Authority::parse("fd00::7").unwrap().in_url(), "[fd00::7]");
    }

    #[test]
    fn names_that_would_leave_a_directory_or_a_url_are_no_hosts() {
        for text in ["", "..", ".hidden", "a/b", "a@b", "a:99999", "a?b", "[::1", "[::1]x", "a b", "_default"]
        {
            assert_eq!(Authority::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_entry_without_a_port_names_them_all() {
        let plain = PlainHttp::new(&["a.local".into(), "b.local:5000".into()]).unwrap();
        let named = |text: &str| plain.names(&Authority::parse(text).unwrap());
        assert!(named("a.local:1") && named("a.local") && named("b.local:5000"));
        assert!(!named("b.local") && !named("b.local:5001") && !named("c.a.local"));
        assert_eq!(PlainHttp::new(&["http://x".into()]).unwrap_err(), "http://x");
    }
}
