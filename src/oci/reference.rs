//! Image references as people type them, normalised as Docker and containerd do.

use std::{fmt, str::FromStr};

use super::Digest;

/// A repository of one registry: `docker.io` and `library/debian`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// Host with its port where one was given: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub host: String,
    /// Path below the host, without slashes at its ends.
    pub path: String,
}

impl Repository {
    /// The host without its port, as containerd writes it into `distribution.source` labels.
    #[must_use]
    pub fn host_name(&self) -> &str {
        split_port(&self.host).0
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

/// A host without its port, as containerd's labels have it; IPv6 without brackets.
#[must_use]
pub fn host_name(host: &str) -> &str {
    split_port(host).0
}

/// Splits `host:port`; IPv6 hosts stand in brackets and lose them.
fn split_port(host: &str) -> (&str, Option<&str>) {
    if let Some(rest) = host.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((name, port)) => (name, port.strip_prefix(':')),
            None => (host, None),
        };
    }
    match host.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    }
}

/// `host/path[:tag][@digest]`, with Docker's defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    pub repository: Repository,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Why a text is no image reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    #[error("image reference is longer than {MAX_LEN} bytes")]
    TooLong,
    #[error(
        "image reference `{0}`: the repository must be lower-case words of letters, digits, `.`, `_`, `-`, separated by `/`"
    )]
    Repository(String),
    #[error("image reference `{0}`: the tag must be at most 128 letters, digits, `.`, `_`, `-`")]
    Tag(String),
    #[error("image reference `{reference}`")]
    Digest { reference: String, source: super::DigestError },
}

/// Longest reference taken: 255 bytes of name (distribution-spec), 128 of tag, 135 of sha512 digest, separators.
const MAX_LEN: usize = 600;

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > MAX_LEN {
            return Err(ReferenceError::TooLong);
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|source| ReferenceError::Digest { reference: text.into(), source })?;
                (name, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
            _ => (name, None),
        };
        if let Some(tag) = &tag {
            let valid = |(i, b): (usize, u8)| {
                b.is_ascii_alphanumeric() || b == b'_' || (i > 0 && matches!(b, b'.' | b'-'))
            };
            if tag.is_empty() || tag.len() > 128 || !tag.bytes().enumerate().all(valid) {
                return Err(ReferenceError::Tag(text.into()));
            }
        }
        let tag = match (&tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            _ => tag,
        };
        Ok(Self { repository: normalise(name, text)?, tag, digest })
    }
}

fn normalise(name: &str, text: &str) -> Result<Repository, ReferenceError> {
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("docker.io", name),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let path =
        if host == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    if !valid_host(host) || !valid_path(&path) {
        return Err(ReferenceError::Repository(text.into()));
    }
    Ok(Repository { host: host.to_owned(), path })
}

/// A DNS name, an IPv4 address or an IPv6 address in brackets, with a port or without.
fn valid_host(host: &str) -> bool {
    let (name, port) = split_port(host);
    let in_brackets = host.starts_with('[');
    let name_ok = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == if in_brackets { b':' } else { b'-' });
    !name.is_empty() && name_ok && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// A repository path of the distribution specification.
fn valid_path(path: &str) -> bool {
    path.len() <= 255
        && path.split('/').all(|word| {
            let bytes = word.as_bytes();
            let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            edge(bytes.first())
                && edge(bytes.last())
                && bytes.iter().all(|b| edge(Some(b)) || matches!(b, b'.' | b'_' | b'-'))
        })
}

impl FromStr for Repository {
    type Err = ReferenceError;

    /// Parses `host/path` as it is written; no Docker defaults.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        match text.split_once('/') {
            Some((host, path)) if !host.is_empty() && valid_path(path) => {
                Ok(Self { host: host.to_owned(), path: path.to_owned() })
            }
            _ => Err(ReferenceError::Repository(text.chars().take(300).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_normalised_as_docker_does() {
        for (text, whole) in [
            ("debian", "docker.io/library/debian:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("team/app", "docker.io/team/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000/a/b:v1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), whole);
        }
    }

    #[test]
    fn the_label_form_of_a_host_has_no_port() {
        let named = |text: &str| text.parse::<Reference>().unwrap().repository.host_name().to_owned();
        assert_eq!(named("127.0.0.1:5000/a"), "127.0.0.1");
        assert_eq!(named("[::1]:5000/a"), "::1");
        assert_eq!(named("debian"), "docker.io");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "UPPER/case", "a//b", "a:b:c/d", "x/../y", "a@sha256:12", "a:-tag", "host.name/"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
