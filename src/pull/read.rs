//! Reading runs of pieces from the origin, and auditing what others read there.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;

use super::{flight::News, hands::Hands};
use crate::{
    origin::{Asker, Kind, Leave, Located, OriginError},
    piece::{Chain, Statement},
    swarm::message::{Failure, Name, Run, SMALL_MAX, Verdict},
};

/// How often the tracker hears that bytes come: a quarter of what makes a lease stall.
const BEAT: Duration = Duration::from_millis(500);

/// A registry that has not sent a piece by then is slower than another may be; a piece has 4 MiB at most.
const TURN_AFTER: Duration = Duration::from_secs(4);

enum Ended {
    Done,
    NoRanges,
    Origin(Arc<OriginError>),
    /// What ended it has been told already.
    Told,
}

/// The turns of one read.
struct TurnOf {
    hands: Hands,
    /// In the lease that is read.
    index: u32,
    asker: Asker,
}

impl Leave for TurnOf {
    fn wait<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Box<dyn Send + Sync>> {
        Box::pin(async move {
            let Self { hands, index, .. } = self;
            // What is small is over before there is a turn, and an image's pull waits for it.
            if hands.want.kind == Kind::Manifest || hands.want.len <= SMALL_MAX {
                return Box::new(()) as Box<dyn Send + Sync>;
            }
            let mut taking = std::pin::pin!(hands.parts.turns.take(host));
            loop {
                match tokio::time::timeout(BEAT, &mut taking).await {
                    Ok(turn) => return Box::new(turn),
                    Err(_) => hands.tell(News::AwaitsTurn(*index)).await,
                }
            }
        })
    }

    fn throttled(&self, host: &str, retry_after: Option<Duration>) {
        // What a client has used up is no matter of the others'.
        if self.asker == Asker::Node {
            let (turns, host) = (self.hands.parts.turns.clone(), host.to_owned());
            let told = async move { turns.throttled(&host, retry_after.unwrap_or_default()).await };
            self.hands.parts.tasks.spawn(told);
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
        let leave =
            Arc::new(TurnOf { hands: self.clone(), index: run.start, asker: at.lead().asker.clone() });
        let reading = self.parts.origin.read_with(at, range.clone(), leave);
        let opening = self.patiently(at, tokio::time::Instant::now(), reading);
        let mut body = match opening.await.and_then(|body| body) {
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
            let fits = chain.is_none_or(|chain| chain.proves(index, &bytes));
            fits.then(|| hands.store(index, &bytes, blake3::hash(&bytes)))
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
                self.judge(&voucher, index, stated).await;
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
