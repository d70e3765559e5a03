//! The listener, and the routes of distribution-spec that pulling uses.

use std::{
    convert::Infallible,
    ops::Range,
    sync::{Arc, atomic::AtomicU64},
};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Fault, Inner, Kind,
    body::{self, Body, Plan},
    content::Source,
    faults::Refusal,
};

/// Longest form taken at `/token`.
const MAX_FORM_LEN: usize = 64 << 10;

pub(super) async fn run(listener: TcpListener, tls: Option<TlsAcceptor>, inner: Arc<Inner>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = inner.stop.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else { return };
        let (tls, shared) = (tls.clone(), inner.clone());
        inner.tasks.spawn(async move {
            let stop = shared.stop.clone();
            tokio::select! {
                () = connection(stream, tls, shared) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, inner: Arc<Inner>) {
    match tls {
        None => speak(stream, inner).await,
        // A client that refuses our certificate, or shows none of its own: its test looks at its own error.
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                speak(stream, inner).await;
            }
        }
    }
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, inner: Arc<Inner>) {
    let service = service_fn(move |request| {
        let inner = inner.clone();
        async move { Ok::<_, Infallible>(answer(&inner, request).await) }
    });
    // An error here is a body that was cut, or a client that went away: both are what tests do.
    let _ended =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(inner: &Inner, request: Request<Incoming>) -> Response<Body> {
    let (kind, counter) = inner.record.note(&request);
    let credentials = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if kind == Kind::Token {
        let credentials = credentials.map(str::to_owned);
        return token(inner, credentials, request.into_body(), &counter).await;
    }
    let path = request.uri().path();
    let target = Target::parse(path);
    let repository = target.as_ref().map_or("", |target| target.repository);
    let refusal = inner.faults.lock().refusal();
    if let Some(refusal) = refusal {
        return refused(refusal, &counter);
    }
    let base = format!("{}://{}", inner.scheme, inner.address);
    let challenge = inner.faults.lock().challenge(credentials, &base, repository);
    if let Some(challenge) = challenge {
        let response = Response::builder().status(401).header(header::WWW_AUTHENTICATE, challenge);
        return finished(response, error("UNAUTHORIZED", "authentication required"), &counter);
    }
    if inner.faults.lock().any(|fault| matches!(fault, Fault::Html)) {
        let response = Response::builder().header(header::CONTENT_TYPE, "text/html; charset=utf-8");
        return finished(response, "<html>Welcome to the hotel's network</html>".into(), &counter);
    }
    match target {
        Some(target) if target.kind == Kind::Manifest => manifest(inner, &request, &target, &counter),
        Some(target) => blob(inner, &request, &target, counter),
        None if path == "/v2/" => finished(Response::builder(), "{}".into(), &counter),
        None => referrers(inner, path).or_else(|| tags(inner, path)).map_or_else(
            || not_found(&counter),
            |(media_type, list)| {
                let response = Response::builder().header(header::CONTENT_TYPE, media_type);
                finished(response, list, &counter)
            },
        ),
    }
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// `/v2/<repository>/referrers/<digest>`: an index of the manifests that have it as their subject.
fn referrers(inner: &Inner, path: &str) -> Option<(&'static str, String)> {
    let (repository, digest) = path.strip_prefix("/v2/")?.split_once("/referrers/")?;
    let referring = inner.content.lock().referring(repository, digest);
    let descriptors: Vec<String> = referring
        .iter()
        .map(|manifest| {
            let (media_type, digest, len) = (&manifest.media_type, &manifest.digest, manifest.bytes.len());
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{len}}}"#)
        })
        .collect();
    let manifests = descriptors.join(",");
    Some((INDEX, format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{manifests}]}}"#)))
}

/// `/v2/<repository>/tags/list`.
fn tags(inner: &Inner, path: &str) -> Option<(&'static str, String)> {
    let repository = path.strip_prefix("/v2/")?.strip_suffix("/tags/list")?;
    let content = inner.content.lock();
    let list = serde_json::json!({ "name": repository, "tags": content.tags(repository) });
    Some(("application/json", list.to_string()))
}

/// `/v2/<repository>/manifests|blobs/<name>`.
struct Target<'a> {
    kind: Kind,
    repository: &'a str,
    name: &'a str,
}

impl<'a> Target<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        let (rest, name) = path.strip_prefix("/v2/")?.rsplit_once('/')?;
        let (repository, kind) = rest.rsplit_once('/')?;
        let kind = match kind {
            "manifests" => Kind::Manifest,
            "blobs" => Kind::Blob,
            _ => return None,
        };
        Some(Self { kind, repository, name })
    }
}

fn manifest(
    inner: &Inner,
    request: &Request<Incoming>,
    target: &Target<'_>,
    counter: &AtomicU64,
) -> Response<Body> {
    let Some(manifest) = inner.content.lock().manifest(target.repository, target.name) else {
        return not_found(counter);
    };
    let response = Response::builder()
        .header(header::CONTENT_TYPE, manifest.media_type)
        .header(header::CONTENT_LENGTH, manifest.bytes.len())
        .header("docker-content-digest", manifest.digest.to_string());
    if request.method() == Method::HEAD {
        return finished(response, String::new(), counter);
    }
    let wrong = inner.faults.lock().any(|fault| matches!(fault, Fault::WrongBytes));
    let bytes = if wrong { body::spoiled(&manifest.bytes) } else { manifest.bytes };
    response.body(body::full(bytes, counter)).expect("the media type was put in by a test")
}

fn blob(
    inner: &Inner,
    request: &Request<Incoming>,
    target: &Target<'_>,
    counter: Arc<AtomicU64>,
) -> Response<Body> {
    let faults = inner.faults.lock();
    if let Some(to) = redirect(&faults, request) {
        return finished(
            Response::builder().status(307).header(header::LOCATION, to),
            String::new(),
            &counter,
        );
    }
    let head = request.method() == Method::HEAD;
    if head && faults.any(|fault| matches!(fault, Fault::RefuseHead)) {
        return finished(Response::builder().status(405), String::new(), &counter);
    }
    drop(faults);
    let Some(source) = inner.content.lock().blob(target.repository, target.name) else {
        return not_found(&counter);
    };
    if head {
        let longer = longer(inner);
        let response = Response::builder()
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, source.len().saturating_add(longer));
        return finished(response, String::new(), &counter);
    }
    get_blob(inner, request, source, counter)
}

fn redirect(faults: &super::Faults, request: &Request<Incoming>) -> Option<String> {
    let path = request.uri().path();
    faults.find(|fault| match fault {
        Fault::RedirectBlobs { to } => Some(format!("{to}{path}?signature=secret")),
        Fault::RedirectLoop => Some(path.to_owned()),
        _ => None,
    })
}

/// Bytes that HEAD and a body without an end of its own add to the blob's length.
fn longer(inner: &Inner) -> u64 {
    let longer = |fault: &Fault| match fault {
        Fault::Longer { by } => Some(*by),
        _ => None,
    };
    inner.faults.lock().find(longer).unwrap_or(0)
}

fn get_blob(
    inner: &Inner,
    request: &Request<Incoming>,
    source: Source,
    counter: Arc<AtomicU64>,
) -> Response<Body> {
    let (longer, mut faults) = (longer(inner), inner.faults.lock());
    let len = source.len();
    let ignored =
        faults.any(|fault| matches!(fault, Fault::IgnoreRange | Fault::Longer { .. } | Fault::Endless));
    let asked = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = asked.filter(|_| !ignored).and_then(|text| range(text, len));
    let refused = range.is_some() && faults.any(|fault| matches!(fault, Fault::RefuseRange));
    let mut response = Response::builder().header(header::CONTENT_TYPE, "application/octet-stream");
    let range = match range {
        Some(Ok(range)) if !refused => {
            let content_range = format!("bytes {}-{}/{len}", range.start, range.end - 1);
            response = response.status(206).header(header::CONTENT_RANGE, content_range);
            range
        }
        Some(_) => {
            let response = response.status(416).header(header::CONTENT_RANGE, format!("bytes */{len}"));
            return finished(response, String::new(), &counter);
        }
        None => 0..len,
    };
    let body_len = range.end - range.start;
    let endless = faults.any(|fault| matches!(fault, Fault::Endless));
    let more = if endless { u64::MAX } else { longer };
    if more == 0 {
        response = response.header(header::CONTENT_LENGTH, body_len);
    }
    let plan = Plan {
        source,
        range,
        cut: faults.cut(body_len),
        wrong_bytes: faults.any(|fault| matches!(fault, Fault::WrongBytes)),
        more,
        pace: faults.pace(),
        counter,
    };
    response.body(body::streamed(plan)).expect("these headers are valid")
}

/// `bytes=a-b` or `bytes=a-`, cut to the blob; `Err` for one that begins beyond it.
fn range(text: &str, len: u64) -> Option<Result<Range<u64>, ()>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let end = if last.is_empty() { len } else { last.parse::<u64>().ok()?.saturating_add(1).min(len) };
    Some(if first < end { Ok(first..end) } else { Err(()) })
}

async fn token(
    inner: &Inner,
    credentials: Option<String>,
    form: Incoming,
    counter: &AtomicU64,
) -> Response<Body> {
    let form = Limited::new(form, MAX_FORM_LEN).collect().await;
    let form = form.map(|form| form.to_bytes()).unwrap_or_default();
    let given = inner.faults.lock().token(credentials.as_deref(), &String::from_utf8_lossy(&form));
    match given {
        Some((token, life)) => {
            let text = format!(r#"{{"token":"{token}","expires_in":{}}}"#, life.as_secs());
            finished(Response::builder(), text, counter)
        }
        None => finished(Response::builder().status(401), error("DENIED", "wrong password"), counter),
    }
}

fn refused(refusal: Refusal, counter: &AtomicU64) -> Response<Body> {
    match refusal {
        Refusal::TooManyRequests { retry_after } => {
            let response = Response::builder().status(429).header(header::RETRY_AFTER, retry_after);
            finished(response, error("TOOMANYREQUESTS", "slow down"), counter)
        }
        Refusal::ServerError => {
            finished(Response::builder().status(503), error("UNAVAILABLE", "restarting"), counter)
        }
    }
}

fn not_found(counter: &AtomicU64) -> Response<Body> {
    finished(Response::builder().status(StatusCode::NOT_FOUND), error("NOT_FOUND", "no such thing"), counter)
}

fn error(code: &str, message: &str) -> String {
    format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#)
}

fn finished(response: http::response::Builder, text: String, counter: &AtomicU64) -> Response<Body> {
    let is_json = text.starts_with('{');
    let response = if is_json { response.header(header::CONTENT_TYPE, "application/json") } else { response };
    response.body(body::full(text, counter)).expect("these headers are valid")
}
