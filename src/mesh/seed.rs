//! Where to look for the first members.

use std::{fmt, net::IpAddr, str::FromStr};

use rustls::pki_types::ServerName;

/// One entry of `[mesh] members`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Seed {
    /// `host:port`: one member, whose certificate names `host`.
    Host { host: String, port: u16 },
    /// `dns:name:port`: every address that `name` has, asked again and again. Each certificate names either
    /// `name` or the address.
    Dns { name: String, port: u16 },
}

/// Why an entry of `[mesh] members` says nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SeedError {
    #[error("member `{0}` has no port: write `host:port` or `dns:name:port`")]
    NoPort(String),
    #[error("member `{0}` has no port between 1 and 65535")]
    BadPort(String),
    #[error("member `{0}` names no host: write a DNS name or an IP address, IPv6 in brackets")]
    BadHost(String),
}

impl FromStr for Seed {
    type Err = SeedError;

    fn from_str(text: &str) -> Result<Self, SeedError> {
        let (dns, rest) = match text.strip_prefix("dns:") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (host, port) = split(rest).map_err(|fault| match fault {
            AddressFault::NoPort => SeedError::NoPort(text.to_owned()),
            AddressFault::BadPort => SeedError::BadPort(text.to_owned()),
            AddressFault::BadHost => SeedError::BadHost(text.to_owned()),
        })?;
        if dns && host.parse::<IpAddr>().is_ok() {
            return Err(SeedError::BadHost(text.to_owned()));
        }
        Ok(if dns { Self::Dns { name: host, port } } else { Self::Host { host, port } })
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host, port } => f.write_str(&join(host, *port)),
            Self::Dns { name, port } => write!(f, "dns:{name}:{port}"),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum AddressFault {
    NoPort,
    BadPort,
    BadHost,
}

/// Host, without brackets and in lower case, and port of `host:port`.
pub(super) fn split(text: &str) -> Result<(String, u16), AddressFault> {
    let (host, port) = text.rsplit_once(':').ok_or(AddressFault::NoPort)?;
    let port = port.parse().ok().filter(|&port| port != 0).ok_or(AddressFault::BadPort)?;
    let bare = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(bare) if bare.contains(':') => bare,
        Some(_) => return Err(AddressFault::BadHost),
        None if host.contains(':') => return Err(AddressFault::BadHost),
        None => host,
    };
    ServerName::try_from(bare).map_err(|_| AddressFault::BadHost)?;
    Ok((bare.to_ascii_lowercase(), port))
}

/// `host:port`, with brackets around IPv6.
pub(super) fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_text_and_back() {
        for text in ["node1:7442", "10.0.0.1:7442", "[fd00::1]:7442", "dns:flotilla.kube-system.svc:7442"] {
            assert_eq!(text.parse::<Seed>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_entry_that_says_nothing_is_refused_by_name() {
        for (text, error) in [
            ("node1", SeedError::NoPort("node1".into())),
            ("node1:0", SeedError::BadPort("node1:0".into())),
            ("node1:99999", SeedError::BadPort("node1:99999".into())),
            (":7442", SeedError::BadHost(":7442".into())),
            ("fd00::1:7442", SeedError::BadHost("fd00::1:7442".into())),
            ("https://node1:7442", SeedError::BadHost("https://node1:7442".into())),
            ("dns:10.0.0.1:7442", SeedError::BadHost("dns:10.0.0.1:7442".into())),
        ] {
            assert_eq!(text.parse::<Seed>(), Err(error));
        }
    }
}
