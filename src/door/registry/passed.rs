//! Registries that the cluster does not share: the client's question goes there, and the answer to the client, as they are.

use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::{
    Door,
    proven::Proven,
    proxy::handed_on,
    reply::{self, Reply, Sort},
    route::{Asked, What},
};

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
        let is_get = parts.method == Method::GET;
        let headers = parts.headers.clone();
        let reply = match target(asked) {
            Some(uri) => {
                parts.uri = uri;
                let request = Request::from_parts(parts, body.boxed_unsync());
                match self.parts.origin.forward_from_elsewhere(&asked.repository.host, request).await {
                    Ok(answer) => proven(handed_on(answer), &asked.what, is_get),
                    Err(error) => reply::refused(sort(&asked.what), &error),
                }
            }
            None => reply::error(StatusCode::BAD_REQUEST, "NAME_INVALID", "this is no address"),
        };
        self.note(asked, &headers, &reply);
        reply
    }
}

/// A whole body that was asked for by its digest is checked on its way, unless it is in a coding that the client takes:
/// then these are not the bytes that the digest means.
fn proven(reply: Reply, what: &What, is_get: bool) -> Reply {
    let (What::Blob(digest) | What::Manifest(digest)) = what else { return reply };
    let is_plain = !reply.headers().contains_key(header::CONTENT_ENCODING);
    match reply.status() {
        StatusCode::OK if is_get && is_plain => reply.map(|body| Proven::new(body, digest.clone()).boxed_unsync()),
        _ => reply,
    }
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
    use crate::door::registry::route::{Route, route};

    #[test]
    fn a_registry_is_asked_by_its_own_names() {
        let target = |path: &str, query| match route(path, query, "docker.io") {
            Ok(Route::Of(asked)) => target(&asked).unwrap().to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(target("/v2/r.local/a/b/manifests/v1", None), "/v2/a/b/manifests/v1");
        assert_eq!(target("/v2/a/tags/list", Some("ns=r.local&n=2")), "/v2/a/tags/list?n=2");
    }
}
