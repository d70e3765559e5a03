//! One request, one answer: deadlines, and the other side's failures in our words.

use std::{error::Error, io, time::SystemTime};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::time::timeout;
use url::Url;

use super::{
    OriginError, Patience,
    error::{Demand, Said},
    rounds,
    tls::{HttpClient, Outgoing},
};

/// Most of an error's body that is read: enough for the code and message of distribution-spec's errors.
const MAX_ERROR_LEN: usize = 4 << 10;

/// Longest text of theirs that is quoted in an error of ours.
const MAX_SAID_LEN: usize = 200;

/// An address for people: without its query, which may carry a signature.
pub(super) fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

/// Sends `request` and waits for the head of the answer.
pub(super) async fn send(
    client: &HttpClient,
    request: Request<Outgoing>,
    at: &str,
    patience: &Patience,
) -> Result<Response<Incoming>, OriginError> {
    let at = || at.to_owned();
    match timeout(patience.answer, client.request(request)).await {
        Err(_) => Err(OriginError::Stalled { at: at(), after: patience.answer }),
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) if is_clear(&error) => Err(OriginError::NoTls { at: at(), source: error.into() }),
        Ok(Err(error)) if is_tls(&error) => Err(OriginError::Tls { at: at(), source: error.into() }),
        Ok(Err(error)) if error.is_connect() => Err(OriginError::Connect { at: at(), source: error.into() }),
        Ok(Err(error)) => Err(OriginError::Broken { at: at(), source: error.into() }),
    }
}

/// Whether rustls refused the other side somewhere below.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<rustls::Error>())
}

/// Whether the other side answered a TLS greeting with something else, as a plain HTTP server does.
fn is_clear(error: &(dyn Error + 'static)) -> bool {
    let nonsense = |cause: &(dyn Error + 'static)| {
        let content_type = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        cause.downcast_ref::<rustls::Error>().is_some_and(|error| *error == content_type)
    };
    causes(error).any(nonsense)
}

/// Whether it was a connection that nobody answered, as when packets are dropped on the way.
pub(super) fn nobody_answered(error: &OriginError) -> bool {
    let timed_out = |cause: &(dyn Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
    };
    matches!(error, OriginError::Connect { source, .. } if causes(source.as_ref()).any(timed_out))
}

/// An error and everything below it. An `io::Error`'s own `source` skips the error that it wraps.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map_or_else(|| error.source(), |wrapped| Some(wrapped as &(dyn Error + 'static)))
    })
}

/// The answer to one question.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) at: String,
    /// It came from another host, to which the registry redirected us.
    pub(super) foreign: bool,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Refuses what no registry answers with: web pages, and bodies in a coding that we did not ask for.
    pub(super) fn is_registrys(&self) -> Result<(), OriginError> {
        let says = |name| self.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = says(header::CONTENT_TYPE).trim_start();
        if media_type.get(..9).is_some_and(|start| start.eq_ignore_ascii_case("text/html")) {
            return Err(OriginError::NotARegistry { at: self.at.clone() });
        }
        let coding = says(header::CONTENT_ENCODING);
        if !coding.is_empty() && !coding.eq_ignore_ascii_case("identity") {
            let what = "its body is compressed on the way, which changes the bytes";
            return Err(OriginError::Answer { at: self.at.clone(), what });
        }
        Ok(())
    }

    /// `Content-Length`, where it is stated and means the body.
    pub(super) fn stated_len(&self) -> Option<u64> {
        self.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// The whole body, of at most `limit` bytes.
    pub(super) async fn read(self, limit: usize, patience: &Patience) -> Result<Bytes, OriginError> {
        let at = self.at;
        let too_large = |at| Err(OriginError::TooLarge { at, limit });
        let mut body = self.response.into_body();
        let mut bytes = BytesMut::new();
        loop {
            match timeout(patience.stall, body.frame()).await {
                Err(_) => return Err(OriginError::Stalled { at, after: patience.stall }),
                Ok(None) => return Ok(bytes.freeze()),
                Ok(Some(Err(error))) => return Err(OriginError::Broken { at, source: error.into() }),
                Ok(Some(Ok(frame))) => {
                    let chunk = frame.into_data().unwrap_or_default();
                    if bytes.len() + chunk.len() > limit {
                        return too_large(at);
                    }
                    bytes.extend_from_slice(&chunk);
                }
            }
        }
    }

    /// The error that an answer without success means.
    pub(super) async fn refused(self, patience: &Patience) -> OriginError {
        let (at, status, foreign) = (self.at.clone(), self.status(), self.foreign);
        let retry_after = self.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|value| rounds::retry_after(value, SystemTime::now()));
        let demand = Demand::of(self.headers());
        let said = self.said(patience).await;
        match status.as_u16() {
            // An object store that refuses a signature: it has expired, and the registry makes a new one.
            status @ (401 | 403) if foreign => OriginError::Unavailable { at, status, retry_after, said },
            status @ (401 | 403) => OriginError::Unauthorized { at, status, said, demand },
            404 | 410 => OriginError::NotFound { at },
            429 => OriginError::Throttled { at, retry_after, said },
            status @ (408 | 500..) => OriginError::Unavailable { at, status, retry_after, said },
            status => OriginError::Refused { at, status, said },
        }
    }

    async fn said(self, patience: &Patience) -> Said {
        let patience = Patience { stall: patience.stall.min(SAID_PATIENCE), ..patience.clone() };
        let mut body = http_body_util::Limited::new(self.response.into_body(), MAX_ERROR_LEN);
        let mut bytes = BytesMut::new();
        while let Ok(Some(Ok(frame))) = timeout(patience.stall, body.frame()).await {
            bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
        said(&bytes)
    }
}

/// What an error says is worth a second, no more.
const SAID_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

#[derive(Deserialize)]
struct Errors {
    errors: Vec<RegistryError>,
}

/// One error of distribution-spec ("Error Codes").
#[derive(Deserialize)]
struct RegistryError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The first error of a registry's JSON, in printable characters. Anything else is not quoted.
fn said(body: &[u8]) -> Said {
    let parsed: Option<Errors> = serde_json::from_slice(body).ok();
    let Some(first) = parsed.and_then(|parsed| parsed.errors.into_iter().next()) else {
        return Said::default();
    };
    let text = format!("{} {}", first.code, first.message);
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    Said(text.trim().chars().map(printable).take(MAX_SAID_LEN).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_found_below_io_errors() {
        let refused = rustls::Error::HandshakeNotComplete;
        let wrapped = io::Error::other(io::Error::other(refused));
        assert!(is_tls(&wrapped));
        assert!(!is_tls(&io::Error::other("rustls")));
        let connect = |kind| OriginError::Connect {
            at: "a".into(),
            source: Box::new(io::Error::other(io::Error::from(kind))),
        };
        assert!(nobody_answered(&connect(io::ErrorKind::TimedOut)));
        assert!(!nobody_answered(&connect(io::ErrorKind::ConnectionRefused)));
    }

    #[test]
    fn signatures_are_not_shown() {
        let url = "https://s3.local:9000/b/x?X-Amz-Signature=secret".parse().unwrap();
        assert_eq!(shown(&url), "https://s3.local:9000/b/x");
    }

    #[test]
    fn what_a_registry_says_is_quoted_within_bounds() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\n\u001b[31maccess","detail":{}}]}"#;
        assert_eq!(said(body), Said("DENIED no  [31maccess".into()));
        let long = format!(r#"{{"errors":[{{"code":"X","message":"{}"}}]}}"#, "y".repeat(3000));
        assert_eq!(said(long.as_bytes()).0.len(), MAX_SAID_LEN);
        assert_eq!(said(b"<html>"), Said::default());
        assert_eq!(said(b"{\"errors\":[]}"), Said::default());
    }
}
