//! A run of a blob's bytes, read from its registry and resumed where a connection broke.

use std::{error::Error as _, io, ops::Range, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};

use super::{
    Leave, Located, OriginError, Shared,
    endpoint::Endpoint,
    error::Actual,
    exchange::Question,
    framing::{Framing, FramingError, framing},
    rounds::{Rounds, Step},
    transport::Answer,
};

/// A connection that carried this much before it broke was a good one: the count of failures starts again.
/// One piece of a small blob; a registry that gives less each time is given up after the usual rounds.
const GOOD_CONNECTION: u64 = 1 << 20;

/// Bytes of a blob, in order. Never yields a byte beyond the range (or, where the registry ignores ranges,
/// beyond the blob). `next` may be dropped at any await and called again.
pub struct Body {
    shared: Arc<Shared>,
    at: Located,
    /// What is still to be yielded.
    left: Range<u64>,
    start: u64,
    ranged: bool,
    rounds: Rounds<Arc<Endpoint>>,
    leave: Option<Arc<dyn Leave>>,
    stream: Option<Stream>,
    /// Bytes since the last failure.
    delivered: u64,
    /// Nothing more is read before this moment (`origin_rate`).
    paid_at: Option<Instant>,
    over: bool,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("at", &self.at).field("left", &self.left).finish_non_exhaustive()
    }
}

/// One answer that is being read.
struct Stream {
    incoming: Incoming,
    at: String,
    /// Bytes before the first wanted one: a registry that ignores ranges begins at 0 when resumed.
    skip: u64,
    /// Bytes that the answer still has, `skip` included.
    len: u64,
    /// Bytes that it had in all.
    whole: u64,
    _permit: Option<OwnedSemaphorePermit>,
    _leave: Option<Box<dyn Send + Sync>>,
}

impl Body {
    /// Opens the first connection.
    pub(super) async fn open(
        shared: Arc<Shared>,
        at: Located,
        range: Range<u64>,
        leave: Option<Arc<dyn Leave>>,
    ) -> Result<Self, OriginError> {
        let range = range.start..range.end.min(at.len);
        let rounds = Rounds::new(at.endpoints.to_vec(), shared.exchange.patience.clone());
        let mut body = Self {
            shared,
            at,
            start: range.start,
            left: range,
            ranged: true,
            rounds,
            leave,
            stream: None,
            delivered: 0,
            paid_at: None,
            over: false,
        };
        if body.left.is_empty() {
            body.over = true;
            return Ok(body);
        }
        let (stream, ranged) = body.connect().await?;
        if !ranged {
            body.ranged = false;
            body.start = 0;
            body.left = 0..body.at.len;
        }
        // Whoever ignores the range begins at 0, and so does the caller.
        body.stream = Some(Stream { skip: 0, ..stream });
        Ok(body)
    }

    /// Where the first byte stands in the blob: 0 where the registry ignores ranges.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Whether the registry kept to the range.
    #[must_use]
    pub fn ranged(&self) -> bool {
        self.ranged
    }

    /// The next bytes; `None` once everything has come. After an error there is nothing more.
    pub async fn next(&mut self) -> Option<Result<Bytes, OriginError>> {
        while !self.over {
            if let Some(paid_at) = self.paid_at {
                self.shared.rate.paid(paid_at).await;
                self.paid_at = None;
            }
            let read = match &mut self.stream {
                Some(stream) => stream.read(&self.left, self.shared.exchange.patience.stall).await,
                None => match Box::pin(self.connect()).await {
                    Ok((stream, _)) => {
                        self.stream = Some(stream);
                        continue;
                    }
                    Err(error) => Read::Failed(error),
                },
            };
            match read {
                Read::Bytes(bytes) => return Some(Ok(self.deliver(bytes))),
                Read::Skipped(len) => self.paid_at = self.shared.take(len),
                Read::End => self.over = true,
                Read::Broken(error) => {
                    self.stream = None;
                    self.delivered = 0;
                    tracing::debug!(%error, next = self.left.start, "a read from the registry is resumed");
                    self.rounds.failed(error);
                }
                Read::Failed(error) => {
                    self.stream = None;
                    self.over = true;
                    return Some(Err(error));
                }
            }
        }
        self.stream = None;
        None
    }

    fn deliver(&mut self, bytes: Bytes) -> Bytes {
        let len = bytes.len() as u64;
        self.left.start += len;
        self.delivered += len;
        if self.delivered >= GOOD_CONNECTION {
            self.rounds.progressed();
        }
        self.paid_at = self.shared.take(bytes.len());
        bytes
    }

    /// Asks one endpoint after the other for what is left.
    async fn connect(&mut self) -> Result<(Stream, bool), OriginError> {
        loop {
            match self.rounds.next(rand::random()) {
                Some(Step::Ask(endpoint)) => {
                    let leave = self.leave.as_deref().filter(|_| endpoint.is_registry);
                    match connect(&self.shared, &endpoint, &self.at, &self.left, leave).await {
                        Ok(connected) => {
                            self.rounds.answered();
                            return Ok(connected);
                        }
                        Err(error) => self.rounds.failed(error),
                    }
                }
                Some(Step::Wait(wait)) => sleep(wait).await,
                Some(Step::Over(error)) => return Err(error),
                None => return Err(self.at.nobody()),
            }
        }
    }
}

async fn connect(
    shared: &Shared,
    endpoint: &Endpoint,
    at: &Located,
    wanted: &Range<u64>,
    leave: Option<&dyn Leave>,
) -> Result<(Stream, bool), OriginError> {
    let host = &at.repository.host;
    // Whoever needs no leave does not wait behind those who do.
    let (permit, held) = match leave {
        Some(leave) => (shared.gates.body(endpoint).await, Some(leave.wait(host).await)),
        None => (shared.gates.question(endpoint).await, None),
    };
    let answer = answered(shared, endpoint, at, wanted).await;
    match (answer, held, leave) {
        (Ok((stream, ranged)), held, _) => {
            Ok((Stream { _permit: Some(permit), _leave: held, ..stream }, ranged))
        }
        (Err(error), Some(held), Some(leave)) if error.is_throttled() => {
            leave.throttled(host, error.retry_after(), held);
            Err(error)
        }
        (Err(error), ..) => Err(error),
    }
}

async fn answered(
    shared: &Shared,
    endpoint: &Endpoint,
    at: &Located,
    wanted: &Range<u64>,
) -> Result<(Stream, bool), OriginError> {
    let range = format!("bytes={}-{}", wanted.start, wanted.end - 1);
    let mut answer = ask(shared, endpoint, at, Some(&range)).await?;
    if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE
        && framing(answer.status(), answer.headers(), wanted, at.len) == Err(FramingError::NoRanges)
    {
        answer = ask(shared, endpoint, at, None).await?;
    }
    let framing = match framing(answer.status(), answer.headers(), wanted, at.len) {
        Ok(framing) => framing,
        Err(error) => return Err(misframed(error, answer.at, at.len)),
    };
    let Framing { start, len, ranged } = framing;
    let skip = wanted.start - start;
    let incoming = answer.response.into_body();
    let stream = Stream { incoming, at: answer.at, skip, len, whole: len, _permit: None, _leave: None };
    Ok((stream, ranged))
}

async fn ask(
    shared: &Shared,
    endpoint: &Endpoint,
    at: &Located,
    range: Option<&str>,
) -> Result<Answer, OriginError> {
    let (path, accept) = (at.kind.path(&at.digest), at.kind.accept());
    let question = Question {
        method: Method::GET,
        repository: &at.repository.path,
        path: &path,
        accept: &accept,
        range,
        query: None,
        asker: &at.lead.asker,
    };
    let answer = shared.exchange.ask(endpoint, &question).await?;
    if answer.status().is_success() {
        answer.is_registrys()?;
        return Ok(answer);
    }
    if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE && range.is_some() {
        return Ok(answer);
    }
    Err(answer.refused(&shared.exchange.patience).await)
}

fn misframed(error: FramingError, at: String, expected: u64) -> OriginError {
    match error {
        FramingError::Length(actual) => {
            OriginError::WrongLength { at, expected, actual: Actual::Stated(actual) }
        }
        FramingError::NoRanges => {
            OriginError::Answer { at, what: "answered 416 to a request without a range" }
        }
        FramingError::Nonsense(what) => OriginError::Answer { at, what },
    }
}

enum Read {
    Bytes(Bytes),
    /// Bytes that were yielded before the connection broke.
    Skipped(usize),
    End,
    /// Another connection may do better.
    Broken(OriginError),
    /// What was yielded already is in doubt.
    Failed(OriginError),
}

/// Whether the connection was closed in good order before the body's end.
fn is_cut_off(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    error.is_incomplete_message() || cause.is_some_and(|cause| cause.kind() == io::ErrorKind::UnexpectedEof)
}

impl Stream {
    async fn read(&mut self, wanted: &Range<u64>, stall: std::time::Duration) -> Read {
        // All is here. Where the answer goes on after the wanted range, nobody reads to its end.
        if wanted.is_empty() && (self.len > 0 || self.incoming.is_end_stream()) {
            return Read::End;
        }
        let at = || self.at.clone();
        let frame = match timeout(stall, self.incoming.frame()).await {
            // Everything came, only the end of the framing did not.
            Err(_) | Ok(Some(Err(_))) if wanted.is_empty() => return Read::End,
            Err(_) => return Read::Broken(OriginError::Stalled { at: at(), after: stall }),
            Ok(Some(Err(error))) if is_cut_off(&error) => return Read::Broken(self.truncated()),
            Ok(Some(Err(error))) => {
                return Read::Broken(OriginError::Broken { at: at(), source: error.into() });
            }
            Ok(Some(Ok(frame))) => frame,
            Ok(None) if wanted.is_empty() => return Read::End,
            Ok(None) => return Read::Broken(self.truncated()),
        };
        let mut bytes = frame.into_data().unwrap_or_default();
        if bytes.len() as u64 > self.len {
            let (expected, actual) = (self.whole, Actual::More);
            return Read::Failed(OriginError::WrongLength { at: at(), expected, actual });
        }
        self.len -= bytes.len() as u64;
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= skipped as u64;
        let mut bytes = bytes.split_off(skipped);
        let left = usize::try_from(wanted.end - wanted.start).unwrap_or(usize::MAX);
        bytes.truncate(left);
        if bytes.is_empty() { Read::Skipped(skipped) } else { Read::Bytes(bytes) }
    }

    fn truncated(&self) -> OriginError {
        OriginError::Truncated { at: self.at.clone(), expected: self.whole, got: self.whole - self.len }
    }
}
