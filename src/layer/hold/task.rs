//! The life of one hold: one task, one stream.

use std::{error::Error, future::pending};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{End, Ended, Held, Inner, table::RefKey};
use crate::containerd::{CallError, HeldRef, Hold, HoldOutcome};

impl Inner {
    /// Opens the ref, says through `answer` what came of it, and holds until something ends it.
    pub(super) async fn run(&self, ref_key: RefKey, hold: Hold, answer: oneshot::Sender<Held>) {
        let namespace = self.client.namespace(&ref_key.namespace);
        let outcome = tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            outcome = namespace.hold(&hold) => Some(outcome),
        };
        let held = match outcome {
            Some(Ok(HoldOutcome::Held(held))) => held,
            other => {
                self.state.lock().table.forget(&ref_key);
                self.changed.send_replace(());
                // The caller may be gone; then nobody wants to know.
                let _ = answer.send(not_held(&ref_key, other));
                return;
            }
        };
        let since = Instant::now();
        let (ender, told) = oneshot::channel();
        {
            let mut state = self.state.lock();
            match state.table.opened(&ref_key, since) {
                None => drop(state.enders.insert(ref_key.clone(), ender)),
                // What came while the ref was being opened ends it at once.
                Some(over) => drop(ender.send(over)),
            }
        }
        self.changed.send_replace(());
        let _ = answer.send(Held::Holding);
        tracing::debug!(namespace = ref_key.namespace, r#ref = ref_key.r#ref, "holding");
        let end = self.keep(&ref_key, held, told).await;
        if end == End::BlobCommitted
            && let Err(error) = namespace.abort(&hold.r#ref).await
        {
            tracing::debug!(
                r#ref = hold.r#ref,
                error = &error as &dyn Error,
                "an empty ingest stays behind in containerd"
            );
        }
        self.finish(
            ref_key,
            Ended {
                namespace: namespace.name().to_owned(),
                r#ref: hold.r#ref,
                digest: hold.digest,
                end,
                held_for: since.elapsed(),
            },
        )
        .await;
    }

    /// Holds until something ends it, and gives the ref up.
    async fn keep(&self, ref_key: &RefKey, mut held: HeldRef, mut told: oneshot::Receiver<End>) -> End {
        let end = loop {
            let deadline = self.state.lock().table.deadline(ref_key);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break End::Shutdown,
                end = &mut told => break end.unwrap_or(End::Shutdown),
                error = held.lost() => {
                    tracing::warn!(r#ref = ref_key.r#ref, error = &error as &dyn Error, "containerd ended a hold");
                    break End::Lost;
                }
                () = due(deadline) => {
                    if let Some(end) = self.state.lock().table.expired(ref_key, Instant::now()) {
                        break end;
                    }
                }
            }
        };
        self.state.lock().table.ending(ref_key);
        match end {
            // Dropping the stream is enough: there is nothing to wait for, or nobody.
            End::Lost | End::Shutdown => drop(held),
            End::BlobCommitted
            | End::PullFailed
            | End::KeyRemoved
            | End::PrepareCancelled
            | End::IdleMax
            | End::TotalMax => {
                held.release().await;
            }
        }
        end
    }

    async fn finish(&self, ref_key: RefKey, ended: Ended) {
        {
            let mut state = self.state.lock();
            state.enders.remove(&ref_key);
            state.table.ended(&ref_key, ended.end, Instant::now());
        }
        self.changed.send_replace(());
        tracing::info!(
            namespace = ended.namespace,
            r#ref = ended.r#ref,
            digest = %ended.digest,
            reason = ended.end.reason(),
            held_ms = ended.held_for.as_millis(),
            "hold is over"
        );
        tokio::select! {
            biased;
            // An error means that the reader is gone, and so is the daemon.
            _ = self.ended.send(ended) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// Never, if there is no deadline.
async fn due(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

fn not_held(ref_key: &RefKey, outcome: Option<Result<HoldOutcome, CallError>>) -> Held {
    match outcome {
        None => Held::Refused(End::Shutdown.reason()),
        Some(Ok(HoldOutcome::Exists | HoldOutcome::Shared)) => Held::Present,
        Some(Ok(HoldOutcome::FetchedByContainerd | HoldOutcome::Held(_))) => Held::FetchedByContainerd,
        Some(Err(error)) => {
            tracing::warn!(
                namespace = ref_key.namespace,
                r#ref = ref_key.r#ref,
                error = &error as &dyn Error,
                "could not hold a layer's ref"
            );
            Held::Refused(error.reason())
        }
    }
}
