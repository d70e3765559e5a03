//! The line to the tracker: through the mesh, or within this node.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::flight::News;
use crate::{
    mesh::{Member, Mesh},
    piece::PieceLayout,
    swarm::{
        Seat, Trackers,
        message::{Event, Join, Report, events_from_wire, reports_to_wire},
    },
    wire::mesh::{self as wire, swarm_client::SwarmClient},
};

/// Messages to a tracker that are not sent yet: seconds of announcements at one a piece.
const OUTBOX_MAX: usize = 1024;
/// A tracker that has not taken the join by then is passed over: a connection to a member that lives takes a
/// few milliseconds, and two trackers for a while cost at most the leased runs twice.
const JOIN_MAX: Duration = Duration::from_secs(1);
/// A tracker says something five times a second; two missed and the next in rank takes over.
pub(super) const SILENCE_MAX: Duration = Duration::from_millis(500);
/// But for one that answers otherwise: on a full link one connection of many may stand still for as long as two lost packets
/// of its own take.
pub(super) const SILENCE_OF_ONE_MAX: Duration = Duration::from_secs(3);
/// A third of what makes a tracker give up a puller.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// An open line. `number` tells it from the ones before it.
pub(super) struct Line {
    pub(super) tracker: Member,
    pub(super) number: u64,
    pub(super) heard_at: Instant,
    said_at: Instant,
    end: End,
}

enum End {
    Local(Seat),
    Remote(mpsc::Sender<wire::PullerMessage>),
}

/// What a pull needs to reach its tracker.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) mesh: Mesh,
    pub(super) trackers: Trackers,
    pub(super) news: mpsc::Sender<News>,
}

impl Line {
    /// `false` if the line is dead.
    pub(super) fn say(&mut self, reports: Vec<Report>, me: &str, now: Instant) -> bool {
        self.said_at = now;
        match &self.end {
            End::Local(seat) => {
                seat.report(reports);
                true
            }
            End::Remote(outbox) => {
                let mut messages = reports_to_wire(&reports, me);
                if messages.is_empty() {
                    messages.push(wire::PullerMessage::default());
                }
                messages.into_iter().all(|message| outbox.try_send(message).is_ok())
            }
        }
    }

    /// Nothing was said for long enough that the tracker may wonder.
    pub(super) fn is_quiet(&self, now: Instant) -> bool {
        now.duration_since(self.said_at) >= SAY_EVERY
    }
}

impl Dialer {
    /// Opens line `number` to `tracker` and passes on what it says until the line ends.
    pub(super) async fn run(self, tracker: Member, join: Join, number: u64) {
        let name = tracker.name.clone();
        if tracker.name == self.mesh.me().name {
            match self.trackers.join(&join) {
                Ok((seat, inbox)) => self.listen_here(tracker, End::Local(seat), inbox, number).await,
                Err(error) => tracing::warn!(digest = %join.digest, "cannot track this pull here: {error}"),
            }
        } else if let Err(why) = self.listen_there(tracker, &join, number).await {
            tracing::info!(digest = %join.digest, tracker = %name, "lost the tracker: {why}");
            self.mesh.failed(&name);
        }
        let _flight_ended = self.news.send(News::LineLost { number, tracker: name }).await;
    }

    async fn open(&self, tracker: Member, number: u64, end: End) {
        let now = Instant::now();
        let line = Line { tracker, number, heard_at: now, said_at: now, end };
        let _flight_ended = self.news.send(News::LineOpen(Box::new(line))).await;
    }

    async fn listen_here(&self, me: Member, end: End, mut inbox: mpsc::Receiver<Vec<Event>>, number: u64) {
        self.open(me, number, end).await;
        while let Some(events) = inbox.recv().await {
            if self.news.send(News::Told { number, events }).await.is_err() {
                return;
            }
        }
    }

    async fn listen_there(&self, tracker: Member, join: &Join, number: u64) -> Result<(), String> {
        let count = PieceLayout::of(join.blob_len).count();
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        outbox.try_send(join.to_wire()).expect("the queue is new");
        let joining = async {
            let channel = self.mesh.control(&tracker).await.map_err(|error| error.to_string())?;
            let mut client = SwarmClient::new(channel);
            client.join(ReceiverStream::new(messages)).await.map_err(|status| status.to_string())
        };
        let mut stream = tokio::select! {
            joined = tokio::time::timeout(JOIN_MAX, joining) => {
                joined.map_err(|_| format!("no answer within {JOIN_MAX:?}"))??.into_inner()
            }
            () = self.mesh.gone(&tracker, &join.digest) => return Err("its machine does not answer".to_owned()),
        };
        let name = tracker.name.clone();
        self.open(tracker, number, End::Remote(outbox)).await;
        loop {
            let message = stream.message().await.map_err(|status| status.to_string())?;
            let Some(message) = message else { return Ok(()) };
            self.mesh.heard(&name);
            let events = events_from_wire(message, count).map_err(|error| error.to_string())?;
            if self.news.send(News::Told { number, events }).await.is_err() {
                return Ok(());
            }
        }
    }
}
