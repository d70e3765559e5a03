//! Reading runs of pieces from the origin, and auditing what others read there.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use tokio::sync::SemaphorePermit;

use super::{flight::News, hands::Hands};
use crate::{
    origin::{Asker, Body, Kind, Leave, Located, OriginError},
    piece::{Chain, Statement},
    swarm::message::{Failure, Name, Run, SMALL_MAX, Verdict},
};

/// How often the tracker hears that bytes come: a quarter of what makes a lease stall.
const BEAT: Duration = Duration::from_millis(500);

/// Who waits so long for others of its own node says so.
const PLACE_WAIT: Duration = Duration::from_millis(100);

/// A registry that has not sent a piece by then is slower than another may be; a piece has 4 MiB at most.
const TURN_AFTER: Duration = Duration::from_secs(4);

enum Ended {
    Done,
    NoRanges,
    Origin(Arc<OriginError>),
    /// What ended it has been told already.
    Told,
}

/// A wait that is shorter says nothing of the registry's latency that matters.
const WAITED_MIN: Duration = Duration::from_millis(5);

/// The turns of one read.
struct TurnOf {
    hands: Hands,
    /// In the lease that is read.
    index: u32,
    asker: Asker,
    began: tokio::time::Instant,
    has_one: AtomicBool,
}

impl Leave for TurnOf {
    fn wait<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Box<dyn Send + Sync>> {
        Box::pin(async move {
            self.has_one.store(false, Ordering::Relaxed);
            let turn = self.hands.parts.turns.take(host).await;
            self.has_one.store(true, Ordering::Relaxed);
            if self.began.elapsed() >= WAITED_MIN {
                self.hands.tell(News::AwaitsTurn(self.index)).await;
            }
            Box::new(turn) as Box<dyn Send + Sync>
        })
    }

    fn throttled(&self, host: &str, retry_after: Option<Duration>, held: Box<dyn Send + Sync>) {
        // What a client has used up is no matter of the others'.
        if self.asker == Asker::Node {
            let (turns, host) = (self.hands.parts.turns.clone(), host.to_owned());
            self.hands.parts.tasks.spawn(async move {
                turns.throttled(&host, retry_after.unwrap_or_default()).await;
                // The keeper listens to whoever has a turn.
                drop(held);
            });
        }
    }
}

impl Hands {
    /// Reads `run` from the origin, piece by piece into the store.
    pub(super) async fn read(self, run: Run, chain: Option<Arc<Chain>>) {
        let failure = match self.read_run(&run, chain).await {
            Ended::Done | Ended::Told => None,
            Ended::NoRanges => Some((Failure::NoRanges, "no_ranges".to_owned())),
            Ended::Origin(error) => {
                let failure = match error.is_final() {
                    true => Failure::Final,
                    false => Failure::Later { retry_after: error.retry_after().unwrap_or_default() },
                };
                tracing::info!(digest = %self.want.digest, "the origin failed: {}", chain_of(error.as_ref()));
                let reason = error.reason().to_owned();
                self.tell(News::Origin(error)).await;
                Some((failure, reason))
            }
        };
        self.tell(News::ReadEnded { run, failure }).await;
    }

    /// From one lead after the other, each going on where the one before it failed.
    async fn read_run(&self, run: &Run, chain: Option<Arc<Chain>>) -> Ended {
        let _place = self.place(run.start).await;
        let mut left = run.clone();
        let mut tried = 0;
        loop {
            let at = match self.leads.locate(&self.parts.origin).await {
                Ok(at) => at,
                Err(error) => return Ended::Origin(Arc::new(error)),
            };
            let ended = self.read_at(&at, &mut left, chain.clone()).await;
            tried += 1;
            let error = match ended {
                Ended::Origin(error) => error,
                Ended::Done | Ended::NoRanges | Ended::Told => return ended,
            };
            if tried >= self.leads.len() || !self.leads.turn_from(at.lead(), &error).await {
                return Ended::Origin(error);
            }
            tracing::debug!(digest = %self.want.digest, %error, "read elsewhere");
        }
    }

    /// Reads what is `left` of a run.
    async fn read_at(&self, at: &Located, left: &mut Run, chain: Option<Arc<Chain>>) -> Ended {
        let layout = self.arrival.layout();
        let run = left.clone();
        let range = layout.range(run.start).start..layout.range(run.end - 1).end;
        let mut body = match self.open(at, range.clone(), run.start).await {
            Ok(body) => body,
            Err(error) => return Ended::Origin(Arc::new(error)),
        };
        if !body.ranged() && range != (0..layout.blob_len()) {
            return Ended::NoRanges;
        }
        let mut beat_at = tokio::time::Instant::now();
        let mut buffer = BytesMut::new();
        for index in run {
            let len = layout.len_of(index);
            let _room = self.parts.buffer(len).await;
            let began = tokio::time::Instant::now();
            while buffer.len() < len {
                match self.patiently(at, began, body.next()).await {
                    Ok(Some(Ok(bytes))) => buffer.extend_from_slice(&bytes),
                    Ok(Some(Err(error))) | Err(error) => return Ended::Origin(Arc::new(error)),
                    Ok(None) => unreachable!("a body that ends early ends in an error"),
                }
                if beat_at.elapsed() >= BEAT {
                    beat_at = tokio::time::Instant::now();
                    self.tell(News::Reading(index)).await;
                }
            }
            let piece = buffer.split_to(len).freeze();
            if !self.keep_read(index, piece, chain.clone()).await {
                return Ended::Told;
            }
            left.start = index + 1;
        }
        Ended::Done
    }

    /// Opens the read of a lease. While it waits for others, and not for the registry, the tracker hears so.
    async fn open(&self, at: &Located, range: Range<u64>, index: u32) -> Result<Body, OriginError> {
        let began = tokio::time::Instant::now();
        // What is small is over before there is a turn, and an image's pull waits for it.
        if self.want.kind == Kind::Manifest || self.want.len <= SMALL_MAX {
            return self.patiently(at, began, self.parts.origin.read(at, range)).await?;
        }
        let (hands, asker) = (self.clone(), at.lead().asker.clone());
        let turn = Arc::new(TurnOf { hands, index, asker, began, has_one: AtomicBool::new(false) });
        let reading = self.parts.origin.read_with(at, range, turn.clone());
        let mut opening = std::pin::pin!(self.patiently(at, began, reading));
        loop {
            match tokio::time::timeout(BEAT, &mut opening).await {
                Ok(opened) => return opened?,
                Err(_) if turn.has_one.load(Ordering::Relaxed) => {}
                Err(_) => self.tell(News::AwaitsTurn(index)).await,
            }
        }
    }

    /// A place among the small blobs that this node reads at a time. The first of a crowd is asked to read all of an
    /// image's, and while one of them waits the tracker may let somebody else read it.
    async fn place(&self, index: u32) -> Option<SemaphorePermit<'_>> {
        if self.want.kind == Kind::Manifest || self.want.len > SMALL_MAX {
            return None;
        }
        let mut place = std::pin::pin!(self.parts.small_reads.acquire());
        for patience in [PLACE_WAIT, BEAT, BEAT] {
            match tokio::time::timeout(patience, &mut place).await {
                Ok(place) => return Some(place.expect("never closed")),
                Err(_) => self.tell(News::AwaitsTurn(index)).await,
            }
        }
        // Those before it may be of a registry that hangs, and each registry has its own limit.
        None
    }

    /// Waits as long as it takes; but where another registry has been named as well, not for ever on this one.
    async fn patiently<T>(
        &self,
        at: &Located,
        began: tokio::time::Instant,
        coming: impl Future<Output = T>,
    ) -> Result<T, OriginError> {
        let mut coming = std::pin::pin!(coming);
        loop {
            // Another one may be named at any time; and one that trickles comes as far as one that says nothing.
            if began.elapsed() >= TURN_AFTER && self.leads.may_turn_from(at.lead()) {
                return Err(OriginError::Stalled { at: at.repository().to_string(), after: TURN_AFTER });
            }
            if let Ok(come) = tokio::time::timeout(TURN_AFTER / 4, &mut coming).await {
                return Ok(come);
            }
        }
    }

    async fn keep_read(&self, index: u32, bytes: Bytes, chain: Option<Arc<Chain>>) -> bool {
        let len = bytes.len();
        let kept = self.blocking(move |hands| {
            let fits = chain.as_ref().is_none_or(|chain| chain.proves(index, &bytes));
            fits.then(|| {
                let statement = blake3::hash(&bytes);
                hands.arrival.vouch(index, statement);
                hands.store(index, &bytes, statement, chain)
            })
        });
        match kept.await {
            Some(Some(Ok(statement))) => {
                self.tell(News::Read { index, statement, len }).await;
                true
            }
            Some(Some(Err(source))) => {
                self.tell(News::Disk(source)).await;
                false
            }
            Some(None) => {
                self.tell(News::ReadWrong).await;
                false
            }
            None => false,
        }
    }

    /// Reads pieces again until one is not what its voucher stated.
    pub(super) async fn audit(self, order: Vec<(u32, Statement, Name)>) {
        let mut found = Some(Verdict::Clean);
        for (index, stated, voucher) in order {
            let actual = match self.read_one(index).await {
                Ok(actual) => actual,
                Err(error) => {
                    tracing::info!(digest = %self.want.digest, "the audit ends early: {}", chain_of(&error));
                    found = None;
                    break;
                }
            };
            self.tell(News::Reading(index)).await;
            if actual != stated {
                tracing::warn!(
                    digest = %self.want.digest, %voucher, piece = index,
                    "the origin has other bytes than this member stated"
                );
                found = Some(Verdict::Differs { index, statement: actual });
                break;
            }
        }
        self.tell(News::Audited(found)).await;
    }

    async fn read_one(&self, index: u32) -> Result<Statement, OriginError> {
        let range = self.arrival.layout().range(index);
        let at = self.leads.locate(&self.parts.origin).await?;
        let mut body = self.parts.origin.read(&at, range.clone()).await?;
        let mut position = body.start();
        let mut hasher = blake3::Hasher::new();
        while let Some(bytes) = body.next().await {
            let bytes = bytes?;
            // An origin without ranges sends what stands before the piece as well.
            let skip = range.start.saturating_sub(position).min(bytes.len() as u64);
            let end = (range.end.saturating_sub(position)).min(bytes.len() as u64);
            hasher.update(
                &bytes[usize::try_from(skip).expect("in the buffer")..usize::try_from(end).expect("same")],
            );
            position += bytes.len() as u64;
            if position >= range.end {
                break;
            }
        }
        Ok(hasher.finalize())
    }
}

/// An error and what caused it, on one line.
pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
