//! Holding a ref of containerd's content store, so that containerd waits for a blob instead of fetching it.

use std::collections::BTreeMap;

use super::{
    CallError, Namespace,
    write::{Committed, Opened, Session, Target},
};
use crate::oci::Digest;

/// A ref that is to be held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// containerd's own name for its download of the blob.
    pub r#ref: String,
    pub digest: Digest,
    /// Bytes of the blob.
    pub len: u64,
    /// Labels of the blob, should another namespace have it already.
    pub labels: BTreeMap<String, String>,
    pub lease: Option<String>,
}

/// What became of the wish to hold a ref.
#[derive(Debug)]
pub enum HoldOutcome {
    /// Held until the value is released or dropped.
    Held(HeldRef),
    /// containerd is fetching the blob, or somebody left a part of it.
    FetchedByContainerd,
    /// The namespace has the blob.
    Exists,
    /// Another namespace had the blob; now this one has it as well.
    Shared,
}

/// The lock on one of containerd's refs. Dropping it gives the ref up as well, without waiting for it.
#[derive(Debug)]
pub struct HeldRef {
    session: Session,
}

impl HeldRef {
    /// Waits until the hold is lost, and says why: containerd was restarted, or ended the stream.
    pub async fn lost(&mut self) -> CallError {
        self.session.broken().await
    }

    /// Gives the ref up, and waits until it is free. The empty ingest stays, for containerd to go on with.
    pub async fn release(self) {
        self.session.close().await;
    }
}

impl Namespace {
    /// Holds a ref unless there is no need or no right to. Sends no byte of content.
    ///
    /// # Errors
    /// A call failed; nothing is held.
    pub async fn hold(&self, hold: &Hold) -> Result<HoldOutcome, CallError> {
        // An ingest with bytes in it is containerd's download, under way or left by a crash. Opening it would hash
        // those bytes inside containerd's write transaction, so look first. (A blob of another namespace has no
        // ingest to look at: it shows itself when the ref is opened.)
        if let Some(ingest) = self.status(&hold.r#ref).await?
            && ingest.offset > 0
        {
            return Ok(HoldOutcome::FetchedByContainerd);
        }
        let target =
            Target { r#ref: &hold.r#ref, digest: &hold.digest, len: hold.len, lease: hold.lease.as_deref() };
        match Session::open(self, target).await? {
            Opened::Exists => Ok(HoldOutcome::Exists),
            Opened::Locked => Ok(HoldOutcome::FetchedByContainerd),
            Opened::Ours { session, offset: 0 } => Ok(HoldOutcome::Held(HeldRef { session })),
            Opened::Ours { session, offset } if offset == hold.len => self.commit_shared(session, hold).await,
            Opened::Ours { session, .. } => {
                session.close().await;
                Ok(HoldOutcome::FetchedByContainerd)
            }
        }
    }

    /// Another namespace has the blob: committing it here costs no byte.
    async fn commit_shared(&self, session: Session, hold: &Hold) -> Result<HoldOutcome, CallError> {
        match session.commit(&hold.labels).await? {
            Committed::Now => Ok(HoldOutcome::Shared),
            Committed::Before => Ok(HoldOutcome::Exists),
        }
    }
}
