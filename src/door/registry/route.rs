//! What a path of the distribution specification asks, and of which registry. Pure.

use percent_encoding::percent_decode_str;
use url::form_urlencoded;

use crate::oci::{Digest, Repository};

/// Longest path and query taken: a name of 255, a digest of 135, a host of 255, with room for a list's cursor.
const TARGET_LEN_MAX: usize = 4096;

/// One request, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v2/`: is this a registry?
    Base,
    Of(Asked),
}

/// Something of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) repository: Repository,
    /// The repository as this client names it in its paths.
    pub(super) name: String,
    /// The registry was named in `?ns=`.
    pub(super) by_namespace: bool,
    /// The rest of the query.
    pub(super) query: Option<String>,
    pub(super) what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Tag(String),
    Manifest(Digest),
    Blob(Digest),
    Referrers(Digest),
    Tags,
}

/// Why a path is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Misrouted {
    NotFound,
    Name,
    Digest,
    /// Something that only a registry that is pushed to has.
    Unsupported,
}

/// Understands a path and its query; names without a host are of `default_upstream`.
pub(super) fn route(path: &str, query: Option<&str>, default_upstream: &str) -> Result<Route, Misrouted> {
    if path.len() + query.map_or(0, str::len) > TARGET_LEN_MAX {
        return Err(Misrouted::NotFound);
    }
    let path = percent_decode_str(path).decode_utf8().map_err(|_| Misrouted::Name)?;
    let rest = path.strip_prefix("/v2").ok_or(Misrouted::NotFound)?;
    if matches!(rest, "" | "/") {
        return Ok(Route::Base);
    }
    let rest = rest.strip_prefix('/').ok_or(Misrouted::NotFound)?;
    if rest.contains("/blobs/uploads/") {
        return Err(Misrouted::Unsupported);
    }
    let (rest, last) = rest.rsplit_once('/').ok_or(Misrouted::NotFound)?;
    let (name, folder) = rest.rsplit_once('/').ok_or(Misrouted::NotFound)?;
    let digest = || last.parse::<Digest>().map_err(|_| Misrouted::Digest);
    let what = match folder {
        "manifests" if last.contains(':') => What::Manifest(digest()?),
        "manifests" if is_tag(last) => What::Tag(last.to_owned()),
        "manifests" => return Err(Misrouted::Name),
        "blobs" => What::Blob(digest()?),
        "referrers" => What::Referrers(digest()?),
        "tags" if last == "list" => What::Tags,
        _ => return Err(Misrouted::NotFound),
    };
    let (namespace, query) = split_namespace(query.unwrap_or_default());
    let by_namespace = namespace.is_some();
    let repository = repository(name, namespace, default_upstream).ok_or(Misrouted::Name)?;
    Ok(Route::Of(Asked { repository, name: name.to_owned(), by_namespace, query, what }))
}

/// A tag of the distribution specification.
fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let first = text.as_bytes().first().is_some_and(|&b| word(b));
    first && text.len() <= 128 && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

/// `ns`, and the query without it.
fn split_namespace(query: &str) -> (Option<String>, Option<String>) {
    let (mut namespace, mut others) = (None, form_urlencoded::Serializer::new(String::new()));
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "ns" => namespace = Some(value.into_owned()),
            _ => drop(others.append_pair(&key, &value)),
        }
    }
    let others = others.finish();
    (namespace.filter(|namespace| !namespace.is_empty()), (!others.is_empty()).then_some(others))
}

/// The registry and the path there: as `ns` says, else as the name's first word says if it looks like a host.
fn repository(name: &str, namespace: Option<String>, default_upstream: &str) -> Option<Repository> {
    let prefixed = name.split_once('/').filter(|(first, _)| looks_like_a_host(first));
    let (host, path) = match (namespace, prefixed) {
        (Some(host), _) => (host, name),
        (None, Some((host, path))) => (with_port(host), path),
        (None, None) => (default_upstream.to_owned(), name),
    };
    let host = match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => host,
    };
    let official = host == "docker.io" && !path.contains('/');
    let path = if official { format!("library/{path}") } else { path.to_owned() };
    format!("{host}/{path}").parse().ok().filter(|repository: &Repository| repository.host == host)
}

/// `host_port` is how a host with a port stands in the path of an image's name, where no colon may be.
fn with_port(word: &str) -> String {
    match word.rsplit_once('_') {
        Some((host, port)) if port.parse::<u16>().is_ok() => format!("{host}:{port}"),
        _ => word.to_owned(),
    }
}

/// As Docker tells a host from the first word of a path.
fn looks_like_a_host(word: &str) -> bool {
    word.contains(['.', ':']) || word == "localhost" || with_port(word).starts_with("localhost:")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn asked(path: &str, query: Option<&str>) -> Asked {
        match route(path, query, "docker.io") {
            Ok(Route::Of(asked)) => asked,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn a_registry_is_named_in_three_ways() {
        for (path, query, repository, by_namespace) in [
            ("/v2/a/b/manifests/v1", Some("ns=r.local%3A5000"), "r.local:5000/a/b", true),
            (
                "/v2/library/debian/manifests/v1",
                Some("ns=registry-1.docker.io"),
                "docker.io/library/debian",
                true,
            ),
            ("/v2/r.local/a/b/manifests/v1", None, "r.local/a/b", false),
            ("/v2/localhost:5000/a/manifests/v1", None, "localhost:5000/a", false),
            ("/v2/localhost_5000/a/manifests/v1", None, "localhost:5000/a", false),
            ("/v2/10.0.0.9_5000/a/manifests/v1", None, "10.0.0.9:5000/a", false),
            ("/v2/team_5000/a/manifests/v1", None, "docker.io/team_5000/a", false),
            ("/v2/team/app/manifests/v1", None, "docker.io/team/app", false),
            ("/v2/debian/manifests/v1", None, "docker.io/library/debian", false),
            ("/v2/registry.example/a/manifests/v1", Some("ns=r.local"), "r.local/registry.example/a", true),
        ] {
            let asked = asked(path, query);
            assert_eq!(
                (asked.repository.to_string().as_str(), asked.by_namespace),
                (repository, by_namespace)
            );
            assert_eq!(asked.what, What::Tag("v1".into()));
        }
    }

    #[test]
    fn every_resource_of_a_pull_is_understood() {
        let digest: Digest = DIGEST.parse().unwrap();
        let what = |rest: &str| asked(&format!("/v2/a/b/{rest}"), None).what;
        assert_eq!(what(&format!("manifests/{DIGEST}")), What::Manifest(digest.clone()));
        assert_eq!(what(&format!("blobs/{}", DIGEST.replace(':', "%3A"))), What::Blob(digest.clone()));
        assert_eq!(what(&format!("referrers/{DIGEST}")), What::Referrers(digest));
        assert_eq!(what("tags/list"), What::Tags);
        assert_eq!(route("/v2/", None, "docker.io"), Ok(Route::Base));
        let list = asked("/v2/a/b/tags/list", Some("n=5&ns=r.local&last=x%2Fy"));
        assert_eq!(list.query.as_deref(), Some("n=5&last=x%2Fy"));
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |path: &str| route(path, None, "docker.io").unwrap_err();
        assert_eq!(refused("/v1/a"), Misrouted::NotFound);
        assert_eq!(refused("/v2/a/b/blobs/sha256:1"), Misrouted::Digest);
        assert_eq!(refused("/v2/a/../../b/manifests/v1"), Misrouted::Name);
        assert_eq!(refused("/v2/A/manifests/v1"), Misrouted::Name);
        assert_eq!(refused("/v2/a/manifests/.tag"), Misrouted::Name);
        assert_eq!(refused("/v2/a/blobs/uploads/1"), Misrouted::Unsupported);
        assert_eq!(refused("/v2/_catalog"), Misrouted::NotFound);
        assert_eq!(refused(&format!("/v2/{}/manifests/v1", "a".repeat(5000))), Misrouted::NotFound);
        let hostless = route("/v2/a/manifests/v1", Some("ns=a%2Fb"), "docker.io");
        assert_eq!(hostless, Err(Misrouted::Name));
    }
}
