//! Registries that the cluster does not share: the client's question goes there, and the answer to the client, as they are.

use http::{Method, Request, StatusCode, Uri, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::{
    Door,
    proven::Proven,
    proxy::handed_on,
    reply::{self, Reply, Sort},
    route::{Asked, What},
};
use crate::oci::Digest;

impl Door {
    /// Whether somebody has named this registry: in our settings, by a folder of hosts.toml, or by a pull of the node's
    /// own.
    pub(super) async fn is_shared(&self, host: &str) -> bool {
        let (settings, parts) = (&self.settings, &self.parts);
        settings.default_upstream == host
            || settings.registries.include(host)
            || parts.pulls.has_used(host)
            || parts.origin.is_named(host).await
    }

    /// Nothing of it is kept here, and nothing that is here is given for it.
    pub(super) async fn pass(&self, asked: &Asked, request: Request<Incoming>) -> Reply {
        let (mut parts, body) = request.into_parts();
        // A part of the bytes, or bytes in a coding, could not be checked: only the first is asked for by clients that go on.
        let is_whole = parts.method == Method::GET && !parts.headers.contains_key(header::RANGE);
        let digest = digest(&asked.what).filter(|_| is_whole);
        if digest.is_some() {
            parts.headers.remove(header::ACCEPT_ENCODING);
        }
        let headers = parts.headers.clone();
        let reply = match target(asked) {
            Some(uri) => {
                parts.uri = uri;
                let request = Request::from_parts(parts, body.boxed_unsync());
                match self.parts.origin.forward_from_elsewhere(&asked.repository.host, request).await {
                    Ok(answer) => proven(handed_on(answer), digest),
                    Err(error) => reply::refused(sort(&asked.what), &error),
                }
            }
            None => reply::error(StatusCode::BAD_REQUEST, "NAME_INVALID", "this is no address"),
        };
        self.note(asked, &headers, &reply);
        reply
    }
}

fn digest(what: &What) -> Option<&Digest> {
    match what {
        What::Blob(digest) | What::Manifest(digest) => Some(digest),
        What::Tag(_) | What::Referrers(_) | What::Tags => None,
    }
}

/// A whole body that was asked for by its digest is checked on its way.
fn proven(reply: Reply, digest: Option<&Digest>) -> Reply {
    let Some(digest) = digest.filter(|_| reply.status().is_success()) else { return reply };
    let coding = reply.headers().get(header::CONTENT_ENCODING);
    let refused = |why| reply::error(StatusCode::BAD_GATEWAY, "UNSUPPORTED", why);
    if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return refused("the registry sends the bytes in a coding that nobody asked for");
    }
    // Nothing of an empty body would ever be asked for.
    if reply.body().size_hint().exact() == Some(0) && *digest != Digest::of(digest.algorithm(), b"") {
        return refused("the registry sends nothing where the digest is that of something");
    }
    reply.map(|body| Proven::new(body, digest.clone()).boxed_unsync())
}

fn sort(what: &What) -> Sort {
    match what {
        What::Blob(_) => Sort::Blob,
        What::Tag(_) | What::Manifest(_) | What::Referrers(_) | What::Tags => Sort::Manifest,
    }
}

/// What is asked, as the registry itself names it.
fn target(asked: &Asked) -> Option<Uri> {
    let what = match &asked.what {
        What::Tag(tag) => format!("manifests/{tag}"),
        What::Manifest(digest) => format!("manifests/{digest}"),
        What::Blob(digest) => format!("blobs/{digest}"),
        What::Referrers(digest) => format!("referrers/{digest}"),
        What::Tags => "tags/list".to_owned(),
    };
    let query = asked.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
    format!("/v2/{}/{what}{query}", asked.repository.path).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        door::registry::route::{Route, route},
        oci::Algorithm,
    };

    #[test]
    fn a_registry_is_asked_by_its_own_names() {
        let target = |path: &str, query| match route(path, query, "docker.io") {
            Ok(Route::Of(asked)) => target(&asked).unwrap().to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(target("/v2/r.local/a/b/manifests/v1", None), "/v2/a/b/manifests/v1");
        assert_eq!(target("/v2/a/tags/list", Some("ns=r.local&n=2")), "/v2/a/tags/list?n=2");
    }

    #[test]
    fn what_could_not_be_checked_is_refused() {
        let (of_nothing, of_some) =
            (Digest::of(Algorithm::Sha256, b""), Digest::of(Algorithm::Sha256, b"some"));
        let came = |bytes: &'static str, coding: Option<&str>, digest: &Digest| {
            let mut reply = reply::document(bytes, "a/b");
            coding.into_iter().for_each(|coding| reply::set(&mut reply, header::CONTENT_ENCODING, coding));
            proven(reply, Some(digest)).status()
        };
        assert_eq!(came("some", None, &of_some), StatusCode::OK);
        assert_eq!(came("some", Some("Identity"), &of_some), StatusCode::OK);
        assert_eq!(came("some", Some("gzip"), &of_some), StatusCode::BAD_GATEWAY);
        assert_eq!(came("", None, &of_nothing), StatusCode::OK);
        assert_eq!(came("", None, &of_some), StatusCode::BAD_GATEWAY);
    }
}
