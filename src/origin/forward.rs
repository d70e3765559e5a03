//! A client's request handed to a registry as it is, and the registry's answer handed back: pushes, logins, whatever is
//! no pull. None of the node's credentials go along, nor its client certificate.

use std::time::Duration;

use http::{HeaderMap, HeaderName, Request, Response, header};
use hyper::body::Incoming;

use super::{OriginError, Shared, error::Cause, tls::Outgoing, transport};

/// A registry that has stored a pushed layer of gigabytes answers in minutes.
const ANSWER_MAX: Duration = Duration::from_secs(600);

/// What is between two neighbours, and not the registry's (RFC 9110, 7.6.1).
const OF_THE_CONNECTION: [HeaderName; 9] = [
    header::CONNECTION,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Takes out of `headers` what ends here.
pub fn strip_connection(headers: &mut HeaderMap) {
    for name in OF_THE_CONNECTION {
        headers.remove(name);
    }
    headers.remove("proxy-connection");
}

pub(super) async fn forward(
    shared: &Shared,
    host: &str,
    request: Request<Outgoing>,
) -> Result<Response<Incoming>, OriginError> {
    let endpoints = shared.book.endpoints(host).await?;
    let registry = endpoints.iter().find(|endpoint| endpoint.is_registry);
    let no_endpoint =
        || OriginError::NoEndpoint { host: host.to_owned(), why: "it has no server".to_owned() };
    let registry = registry.ok_or_else(no_endpoint)?;
    let (mut parts, body) = request.into_parts();
    let mut url = registry.base.clone();
    match parts.uri.path().strip_prefix("/v2") {
        Some(below) => url.set_path(&format!("{}{below}", registry.base.path())),
        None => url.set_path(parts.uri.path()),
    }
    url.set_query(parts.uri.query());
    let at = transport::shown(&url);
    parts.uri = url
        .as_str()
        .parse()
        .map_err(|_| OriginError::Answer { at: at.clone(), what: "no address to ask" })?;
    strip_connection(&mut parts.headers);
    let sending = registry.clients.abroad.request(Request::from_parts(parts, body));
    match tokio::time::timeout(ANSWER_MAX, sending).await {
        Ok(answer) => answer.map_err(|error| OriginError::Broken { at, source: Cause::from(error) }),
        Err(_) => Err(OriginError::Stalled { at, after: ANSWER_MAX }),
    }
}
