//! One flight: what is known of it from outside, and how it begins and ends.

use std::{io, sync::Arc, time::Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::{
    BySource, PullError, PullState, PullStatus, Shared, Want, arrival::Arrival, leads::Leads, metrics,
    offered::Pulling, proof, read::chain_of, session::Session, track::Line,
};
use crate::{
    mesh::Member,
    origin::OriginError,
    piece::{BLOB_LEN_MAX, Chain, PieceLayout, Statement},
    store::{ArriveError, Arriving, Blob, CommitError},
    swarm::{
        exchange::Fetched,
        message::{Event, Failure, Run, Verdict},
    },
};

/// News that wait for the flight: more than all its tasks together have to say at once.
const NEWS_MAX: usize = 256;

/// Something happened.
pub(super) enum News {
    LineOpen(Box<Line>),
    LineLost {
        number: u64,
        tracker: String,
    },
    Told {
        number: u64,
        events: Vec<Event>,
    },
    /// A member that begins to track this digest asked for us.
    CalledBy(String),
    Fetched {
        peer: String,
        index: u32,
        outcome: Fetched,
        len: usize,
    },
    /// A peer that is full has just fed the piece to these.
    Referred {
        index: u32,
        to: Vec<String>,
    },
    Slow {
        peer: String,
        index: u32,
    },
    /// Bytes of the piece still come.
    Fetching {
        peer: String,
        index: u32,
    },
    Chain {
        sponsor: String,
        chain: Option<Arc<Chain>>,
        unfit: Option<Vec<u32>>,
    },
    ChainFailed {
        sponsor: Member,
        why: Fetched,
    },
    Read {
        index: u32,
        statement: Statement,
        len: usize,
    },
    ReadWrong,
    Reading(u32),
    /// A lease waits for its turn at the registry.
    AwaitsTurn(u32),
    ReadEnded {
        run: Run,
        failure: Option<(Failure, String)>,
    },
    Origin(Arc<OriginError>),
    Audited(Option<Verdict>),
    /// All of a small blob that is proven.
    Small(Bytes),
    /// What a suspect says that it stated of the pieces that it read, and who it is; `None` if it says nothing.
    Statements {
        voucher: String,
        said: Option<(Member, Vec<Statement>)>,
    },
    Rotten(u32),
    /// The in-order chain stands before this piece.
    Front(u32),
    Unclosed,
    Committed(Box<Result<Blob, CommitError>>),
    Disk(io::Error),
}

pub(super) type End = Option<Result<Blob, Arc<PullError>>>;

/// A flight as its handles see it.
pub(super) struct Flight {
    pub(super) want: Arc<Want>,
    /// Where those who want the blob have it from, each in his own name.
    pub(super) leads: Leads,
    pub(super) arrival: Arc<Arrival>,
    pub(super) status: watch::Sender<PullStatus>,
    pub(super) end: watch::Sender<End>,
    pub(super) handles: watch::Sender<usize>,
    pub(super) news: mpsc::Sender<News>,
    inbox: Mutex<Option<mpsc::Receiver<News>>>,
    /// Until the end is known, the node is not idle.
    pub(super) pulling: Mutex<Option<Pulling>>,
    began: Instant,
}

impl Flight {
    pub(super) fn new(want: Want) -> Self {
        let (news, inbox) = mpsc::channel(NEWS_MAX);
        let status = PullStatus {
            digest: want.digest.clone(),
            image: want.image.clone(),
            len: want.len,
            bytes: BySource::default(),
            arrived: 0,
            state: PullState::Waiting,
            last_piece_at: None,
        };
        Self {
            arrival: Arc::new(Arrival::new(PieceLayout::of(want.len.min(BLOB_LEN_MAX)), news.clone())),
            leads: Leads::of(&want),
            want: Arc::new(want),
            status: watch::Sender::new(status),
            end: watch::Sender::new(None),
            handles: watch::Sender::new(0),
            news,
            inbox: Mutex::new(Some(inbox)),
            pulling: Mutex::new(None),
            began: Instant::now(),
        }
    }

    pub(super) fn status(&self) -> PullStatus {
        self.status.borrow().clone()
    }

    /// Whether a caller who wants `len` bytes can join: it is the same blob, and has not ended.
    pub(super) fn takes(&self, len: u64) -> bool {
        self.want.len == len && self.end.borrow().is_none()
    }

    pub(super) fn called_by(&self, tracker: &str) {
        // A flight with a full queue is alive; it moves when the mesh tells it as well.
        let _busy = self.news.try_send(News::CalledBy(tracker.to_owned()));
    }

    /// A blob that cannot be: `false`, and it has ended.
    pub(super) fn can_be(&self, shared: &Shared) -> bool {
        let (digest, len) = (self.want.digest.clone(), self.want.len);
        let possible = len <= BLOB_LEN_MAX;
        if !possible {
            let source = ArriveError::TooLong { digest: digest.clone(), len };
            self.finish(shared, Err(PullError::Arrive { digest, source }));
        }
        possible
    }

    /// The blob was here all along.
    pub(super) fn finish_local(&self, shared: &Shared, blob: Blob) {
        self.status.send_modify(|status| {
            status.bytes.local = status.len;
            status.arrived = status.len;
        });
        self.finish(shared, Ok(blob));
    }

    /// Tells everybody how it ended, once.
    pub(super) fn finish(&self, shared: &Shared, end: Result<Blob, PullError>) {
        if self.end.borrow().is_some() {
            return;
        }
        self.pulling.lock().take();
        let end = end.map_err(Arc::new);
        let (outcome, reason) = match &end {
            Ok(_) => ("proven", ""),
            Err(error) => ("failed", error.reason()),
        };
        shared.metrics.pulls.get_or_create(&metrics::Outcome { outcome, reason }).inc();
        self.status.send_modify(|status| {
            status.state = if end.is_ok() { PullState::Proven } else { PullState::Failed(reason) };
        });
        self.log(&end);
        self.arrival.end(end.clone());
        self.end.send_replace(Some(end));
    }

    /// Proven, and nobody holds a handle any more: what is served from now on is served by the store. A file kept
    /// open would keep its bytes on disk after the store and containerd have let go of them.
    pub(super) fn release(&self) {
        let end = Arc::new(PullError::Forgotten { digest: self.want.digest.clone() });
        self.arrival.release(Arc::clone(&end));
        self.end.send_replace(Some(Err(end)));
    }

    fn log(&self, end: &Result<Blob, Arc<PullError>>) {
        let BySource { local, peer, origin } = self.status.borrow().bytes;
        let seconds = self.began.elapsed().as_secs_f64();
        let digest = &self.want.digest;
        match end {
            Ok(_) => tracing::info!(
                %digest, bytes = self.want.len, bytes_local = local, bytes_peer = peer, bytes_origin = origin, seconds,
                "blob proven"
            ),
            Err(error) => tracing::warn!(
                %digest, bytes = self.want.len, bytes_local = local, bytes_peer = peer, bytes_origin = origin, seconds,
                reason = error.reason(), "blob not pulled: {}", chain_of(error.as_ref())
            ),
        }
    }
}

/// Flies: to the end, and then on as a seed while the swarm lives.
pub(super) async fn run(flight: Arc<Flight>, shared: Arc<Shared>) {
    let inbox = flight.inbox.lock().take().expect("a flight runs once");
    let arriving = tokio::select! {
        () = shared.stop.cancelled() => Err(PullError::Stopped { digest: flight.want.digest.clone() }),
        arriving = arrive(&flight, &shared) => arriving,
    };
    match arriving {
        Ok(Some(arriving)) => {
            begin(&flight, &shared, &arriving);
            let session = Session::new(flight.clone(), shared.clone(), &arriving);
            drop(arriving);
            session.run(inbox).await;
        }
        Ok(None) => {}
        Err(error) => flight.finish(&shared, Err(error)),
    }
    let mut flights = shared.flights.lock();
    if flights.get(&flight.want.digest).is_some_and(|current| Arc::ptr_eq(current, &flight)) {
        flights.remove(&flight.want.digest);
    }
}

/// Room in the store; `None` if the blob was committed meanwhile.
async fn arrive(flight: &Flight, shared: &Arc<Shared>) -> Result<Option<Arriving>, PullError> {
    shared.read_own(&flight.want.digest).await;
    let (store, want) = (shared.store.clone(), flight.want.clone());
    let arriving = shared.tasks.spawn_blocking(move || store.arrive(&want.digest, want.len)).await;
    let digest = flight.want.digest.clone();
    match arriving {
        Ok(Ok(arriving)) => Ok(Some(arriving)),
        Ok(Err(source @ ArriveError::Proven { .. })) => match shared.store.get(&digest) {
            Some(blob) if blob.len() == flight.want.len => {
                flight.finish_local(shared, blob);
                Ok(None)
            }
            _ => Err(PullError::Arrive { digest, source }),
        },
        Ok(Err(source)) => Err(PullError::Arrive { digest, source }),
        Err(_) => Err(PullError::Stopped { digest }),
    }
}

/// The bytes can come: readers and the chain follow them.
fn begin(flight: &Arc<Flight>, shared: &Shared, arriving: &Arriving) {
    let layout = arriving.layout();
    let local: u64 = arriving.have().iter().map(|index| layout.len_of(index) as u64).sum();
    flight.status.send_modify(|status| {
        status.state = PullState::Arriving;
        status.bytes.local = local;
        status.arrived = local;
    });
    flight.arrival.begin(arriving.clone());
    let flight = flight.clone();
    shared.tasks.spawn_blocking(move || proof::follow(&flight.arrival, &flight.want.digest, &flight.news));
}
