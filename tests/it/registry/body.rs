//! Bodies: pieces of a blob, cut, slowed and counted on their way out.

use std::{
    io::{self, Read as _, Seek as _, SeekFrom},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use parking_lot::Mutex;
use tokio::{
    task::yield_now,
    time::{Instant, sleep_until},
};

use super::{content::Source, faults::Cut};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Bytes handed to the network at once.
const CHUNK_LEN: u64 = 64 << 10;

/// One body to send.
pub(super) struct Plan {
    pub(super) source: Source,
    pub(super) range: Range<u64>,
    pub(super) cut: Option<Cut>,
    pub(super) wrong_bytes: bool,
    /// Zeros after the blob's own bytes; `u64::MAX` never ends.
    pub(super) more: u64,
    pub(super) pace: Option<Arc<Pace>>,
    pub(super) counter: Arc<AtomicU64>,
}

/// A rate that bodies share.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    paid_until: Mutex<Option<Instant>>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64) -> Arc<Self> {
        Arc::new(Self { bytes_per_second, paid_until: Mutex::default() })
    }

    async fn pay(&self, bytes: u64) {
        let cost = Duration::from_micros(bytes * 1_000_000 / self.bytes_per_second.max(1));
        let until = {
            let mut paid_until = self.paid_until.lock();
            let now = Instant::now();
            let until = paid_until.map_or(now, |until| until.max(now)) + cost;
            *paid_until = Some(until);
            until
        };
        sleep_until(until).await;
    }
}

/// A short text.
pub(super) fn full(bytes: impl Into<Bytes>, counter: &AtomicU64) -> Body {
    let bytes = bytes.into();
    counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Streams what `plan` says.
pub(super) fn streamed(plan: Plan) -> Body {
    let state = (plan, 0_u64);
    let frames = stream::unfold(state, |(plan, sent)| async move {
        let chunk = next(&plan, sent).await?;
        let sent = sent + chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        Some((chunk.map(Frame::data), (plan, sent)))
    });
    StreamBody::new(frames).boxed_unsync()
}

async fn next(plan: &Plan, sent: u64) -> Option<io::Result<Bytes>> {
    let own = plan.range.end - plan.range.start;
    let mut left = own.saturating_add(plan.more).saturating_sub(sent);
    match plan.cut {
        Some(Cut::Truncate(after)) if sent >= after => {
            // hyper hands over what it has when a body has nothing for the moment, and drops it on an error.
            yield_now().await;
            return Some(Err(io::Error::other("cut, as ordered")));
        }
        Some(Cut::Stall(after)) if sent >= after => std::future::pending().await,
        Some(Cut::Truncate(after) | Cut::Stall(after)) => left = left.min(after - sent),
        None => {}
    }
    let len = left.min(CHUNK_LEN);
    if len == 0 {
        return None;
    }
    if let Some(pace) = &plan.pace {
        pace.pay(len).await;
    }
    let chunk = if sent < own {
        let start = plan.range.start + sent;
        read(&plan.source, start..start + len.min(own - sent))
    } else {
        Ok(Bytes::from(vec![0; usize::try_from(len).expect("a chunk fits")]))
    };
    let spoil = plan.wrong_bytes && sent == 0;
    let chunk = chunk.map(|chunk| if spoil { spoiled(&chunk) } else { chunk });
    plan.counter.fetch_add(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64), Ordering::Relaxed);
    Some(chunk)
}

pub(super) fn spoiled(bytes: &[u8]) -> Bytes {
    let mut bytes = bytes.to_vec();
    if let Some(first) = bytes.first_mut() {
        *first ^= 0xff;
    }
    bytes.into()
}

fn read(source: &Source, range: Range<u64>) -> io::Result<Bytes> {
    match source {
        Source::Memory(bytes) => {
            let at = |offset| usize::try_from(offset).expect("what is in memory can be indexed");
            Ok(bytes.slice(at(range.start)..at(range.end)))
        }
        Source::File { path, .. } => {
            let mut file = std::fs::File::open(path)?;
            file.seek(SeekFrom::Start(range.start))?;
            let mut chunk = vec![0; usize::try_from(range.end - range.start).expect("a chunk fits")];
            file.read_exact(&mut chunk)?;
            Ok(chunk.into())
        }
    }
}
