//! A client's request handed to a registry as it is, and the registry's answer handed back: pushes, logins, whatever is
//! no pull, and pulls from registries that the cluster does not share. None of the node's credentials go along, nor its
//! client certificate.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use url::Url;

use super::{OriginError, Shared, error::Cause, tls::Outgoing, transport};

/// A registry that has stored a pushed layer of gigabytes answers in minutes. Counted from the last byte that it took:
/// pushing may take as long as it likes.
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
    hand_over(shared, host, request, ANSWER_MAX).await.map(|(answer, _)| answer)
}

/// For a client that does not know whom we ask.
pub(super) async fn forward_from_elsewhere(
    shared: &Shared,
    host: &str,
    request: Request<Outgoing>,
) -> Result<Response<Incoming>, OriginError> {
    let (mut answer, asked) = hand_over(shared, host, request, shared.exchange.patience.answer).await?;
    let location = answer.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
    let absolute = location.and_then(|location| asked.join(location).ok());
    if let Some(absolute) = absolute.and_then(|location| HeaderValue::from_str(location.as_str()).ok()) {
        answer.headers_mut().insert(header::LOCATION, absolute);
    }
    Ok(answer)
}

async fn hand_over(
    shared: &Shared,
    host: &str,
    request: Request<Outgoing>,
    answer_max: Duration,
) -> Result<(Response<Incoming>, Url), OriginError> {
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
    let (body, moved_at) = watched(body);
    let mut sending = registry.clients.abroad.request(Request::from_parts(parts, body));
    loop {
        let until = *moved_at.lock() + answer_max;
        if until <= Instant::now() {
            return Err(OriginError::Stalled { at, after: answer_max });
        }
        if let Ok(answer) = tokio::time::timeout_at(until.into(), &mut sending).await {
            let answer = answer.map_err(|error| OriginError::Broken { at, source: Cause::from(error) });
            return answer.map(|answer| (answer, url));
        }
    }
}

/// The body, and when the last of it was taken.
fn watched(body: Outgoing) -> (Outgoing, Arc<Mutex<Instant>>) {
    let moved_at = Arc::new(Mutex::new(Instant::now()));
    let moved = moved_at.clone();
    let body = body.map_frame(move |frame| {
        *moved.lock() = Instant::now();
        frame
    });
    (body.boxed_unsync(), moved_at)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::{StreamExt as _, stream};
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::origin::{Origin, Settings};

    const PATIENCE: Duration = Duration::from_millis(600);

    /// What becomes of a push whose body takes three times as long as a registry may take to answer, before one that
    /// answers when it has all of it, or never.
    async fn push(answers: bool) -> Result<Response<Incoming>, OriginError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut got = Vec::new();
            while !got.ends_with(b"0\r\n\r\n") {
                got.push(stream.read_u8().await.unwrap());
            }
            if answers {
                stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let settings =
            Settings { hosts_dir: vec![], plain_http: vec!["127.0.0.1".into()], ..Settings::default() };
        let origin = Origin::new(settings).unwrap();
        let slow = stream::iter(0..6).then(|_| async {
            tokio::time::sleep(PATIENCE / 2).await;
            Ok::<_, hyper::Error>(Frame::data(Bytes::from_static(b"bytes")))
        });
        let body: Outgoing = StreamBody::new(slow).boxed_unsync();
        let request = Request::put("/v2/a/blobs/uploads/1").body(body).unwrap();
        tokio::select! {
            answer = hand_over(&origin.shared, &host, request, PATIENCE) => answer.map(|(answer, _)| answer),
            () = serving => unreachable!(),
        }
    }

    #[tokio::test]
    async fn a_push_may_take_as_long_as_it_moves() {
        assert_eq!(push(true).await.unwrap().status(), 201);
        assert!(matches!(push(false).await.unwrap_err(), OriginError::Stalled { .. }));
    }
}
