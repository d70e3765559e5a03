//! Members, Swarm and Preheat over gRPC, for one caller whose name is proven.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming, service::Routes};

use super::Door;
use crate::{
    mesh::{FrameError, MESSAGE_LEN_MAX, is_name},
    oci::Digest,
    origin::Asker,
    piece::PieceLayout,
    preheat::Errand,
    swarm::{
        HOPS_MAX, Seat,
        message::{Event, Join, events_to_wire, reports_from_wire},
        tracker::Answer,
    },
    wire::mesh::{
        self as wire,
        holds_response::Answer as WireAnswer,
        members_server::{Members, MembersServer},
        preheat_server::{Preheat, PreheatServer},
        swarm_server::{Swarm, SwarmServer},
        turns_server::{Turns, TurnsServer},
    },
};

/// A stream says who it is within this, or is closed.
const JOIN_MAX: Duration = Duration::from_secs(5);
/// A puller that does not take a message for so long is not there.
const SEND_MAX: Duration = Duration::from_secs(5);
/// A name of DNS, a colon and a port.
const HOST_LEN_MAX: usize = 253 + 1 + 5;
/// Messages between the swarm and the connection; the swarm's own outbox is the real queue.
const MESSAGES_MAX: usize = 8;

#[derive(Clone)]
struct Caller {
    door: Door,
    name: String,
}

pub(super) fn routes(door: Door, peer_name: String) -> Routes {
    let caller = Caller { door, name: peer_name };
    let members = MembersServer::new(caller.clone()).max_decoding_message_size(MESSAGE_LEN_MAX);
    Routes::new(members)
        .add_service(SwarmServer::new(caller.clone()))
        .add_service(TurnsServer::new(caller.clone()))
        .add_service(PreheatServer::new(caller))
}

#[tonic::async_trait]
impl Members for Caller {
    async fn hello(
        &self,
        request: Request<wire::HelloRequest>,
    ) -> Result<Response<wire::HelloResponse>, Status> {
        let answer = self.door.parts.mesh.answer(request.into_inner(), &self.name);
        answer.map(Response::new).map_err(|error| Status::failed_precondition(error.to_string()))
    }

    async fn swim(&self, request: Request<wire::SwimFrames>) -> Result<Response<wire::SwimFrames>, Status> {
        let answer = self.door.parts.mesh.frames(request.into_inner(), &self.name);
        answer.map(Response::new).map_err(|error| match matches!(error, FrameError::Name { .. }) {
            true => Status::permission_denied(error.to_string()),
            false => Status::invalid_argument(error.to_string()),
        })
    }

    async fn compare(
        &self,
        request: Request<wire::CompareRequest>,
    ) -> Result<Response<wire::CompareResponse>, Status> {
        let answer = self.door.parts.mesh.compare(request.get_ref());
        answer.map(Response::new).map_err(|error| self.invalid(&error))
    }

    async fn exchange(
        &self,
        request: Request<wire::ExchangeRequest>,
    ) -> Result<Response<wire::ExchangeResponse>, Status> {
        let answer = self.door.parts.mesh.exchange(request.into_inner(), &self.name);
        answer.map(Response::new).map_err(|error| self.invalid(&error))
    }
}

#[tonic::async_trait]
impl Swarm for Caller {
    type JoinStream = ReceiverStream<Result<wire::TrackerMessage, Status>>;

    async fn join(
        &self,
        request: Request<Streaming<wire::PullerMessage>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let mut reports = request.into_inner();
        let first = tokio::time::timeout(JOIN_MAX, reports.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no join came"))?;
        let first = first.inspect_err(|status| self.unreadable(status))?;
        let first = first.ok_or_else(|| Status::invalid_argument("the stream ended before its join"))?;
        let join = Join::from_wire(first).map_err(|error| self.invalid(&error))?;
        if join.from.name != self.name {
            let claimed = &join.from.name;
            let why = format!("calls itself `{claimed}`, its certificate says `{}`", self.name);
            return Err(Status::permission_denied(why));
        }
        let joined = self.door.parts.pulls.trackers().join(&join);
        let (seat, inbox) =
            joined.map_err(|error| Status::failed_precondition(crate::pull::chain_of(&error)))?;
        let (messages, stream) = mpsc::channel(MESSAGES_MAX);
        let count = PieceLayout::of(join.blob_len).count();
        let (caller, stop) = (self.clone(), self.door.stop.clone());
        self.door.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = caller.carry(seat, (reports, count), inbox, messages) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn holds(
        &self,
        request: Request<wire::HoldsRequest>,
    ) -> Result<Response<wire::HoldsResponse>, Status> {
        let wire::HoldsRequest { digest, until, hops, passed_on } = request.into_inner();
        let digest: Digest =
            digest.parse().map_err(|error| Status::invalid_argument(crate::pull::chain_of(&error)))?;
        let hops = usize::try_from(hops).unwrap_or(usize::MAX);
        if hops > HOPS_MAX {
            return Err(Status::invalid_argument(format!("hops is {hops}: at most {HOPS_MAX}")));
        }
        if hops > 0 && !is_name(&until) {
            return Err(Status::invalid_argument("until is no member's name"));
        }
        let pulls = &self.door.parts.pulls;
        let answer = match pulls.answer(&digest, (!passed_on).then_some(&*self.name)) {
            Answer::Nothing => WireAnswer::Nothing,
            Answer::Whole => WireAnswer::Whole,
            Answer::Pulling => WireAnswer::Pulling,
        };
        let others = pulls.trackers().others(&digest, &until, hops).await;
        Ok(Response::new(wire::HoldsResponse { answer: answer.into(), others }))
    }
}

#[tonic::async_trait]
impl Turns for Caller {
    type TakeStream = ReceiverStream<Result<wire::TurnWord, Status>>;

    async fn take(&self, request: Request<wire::TakeRequest>) -> Result<Response<Self::TakeStream>, Status> {
        let host = self.host(request.get_ref().host.as_str())?;
        let placed = self.door.parts.pulls.turns().queue(host, &self.name);
        let mut place = placed.map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let (words, stream) = mpsc::channel(1);
        let stop = self.door.stop.clone();
        self.door.tasks.spawn(async move {
            loop {
                let word = tokio::select! {
                    () = stop.cancelled() => return,
                    () = words.closed() => return,
                    word = place.word() => word,
                };
                if word.is_none() || words.send(Ok(wire::TurnWord {})).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn throttled(
        &self,
        request: Request<wire::ThrottledRequest>,
    ) -> Result<Response<wire::ThrottledResponse>, Status> {
        let wire::ThrottledRequest { host, retry_after_ms } = request.get_ref();
        let retry_after = Duration::from_millis((*retry_after_ms).into());
        self.door.parts.pulls.turns().heard_throttled(self.host(host)?, &self.name, retry_after);
        Ok(Response::new(wire::ThrottledResponse {}))
    }
}

#[tonic::async_trait]
impl Preheat for Caller {
    type PullStream = BoxStream<'static, Result<wire::PreheatProgress, Status>>;

    async fn pull(
        &self,
        request: Request<wire::PreheatRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let errand = Errand::from_wire(request.into_inner()).map_err(|error| self.invalid(&error))?;
        tracing::info!(peer = %self.name, image = %errand.image, into = ?errand.place, "preheats for a member");
        let followed = self.door.parts.preheats.here(errand, Asker::Node);
        Ok(Response::new(followed.map(|progress| Ok(progress.to_wire())).boxed()))
    }
}

impl Caller {
    /// Between the wire and the seat, until either ends.
    async fn carry(
        self,
        seat: Seat,
        (mut reports, count): (Streaming<wire::PullerMessage>, u32),
        mut inbox: mpsc::Receiver<Vec<Event>>,
        messages: mpsc::Sender<Result<wire::TrackerMessage, Status>>,
    ) {
        loop {
            tokio::select! {
                message = reports.message() => {
                    let message = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return,
                        Err(status) => return self.unreadable(&status),
                    };
                    match reports_from_wire(message, &self.name, count) {
                        Ok(reports) => seat.report(reports),
                        Err(error) => {
                            let _gone = messages.try_send(Err(self.invalid(&error)));
                            return;
                        }
                    }
                }
                events = inbox.recv() => {
                    let Some(events) = events else { return };
                    let mut batch = events_to_wire(&events);
                    if batch.is_empty() {
                        batch.push(wire::TrackerMessage::default());
                    }
                    for message in batch {
                        let sent = tokio::time::timeout(SEND_MAX, messages.send(Ok(message))).await;
                        if !matches!(sent, Ok(Ok(()))) {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// A registry's name, of a length that one has.
    fn host<'a>(&self, host: &'a str) -> Result<&'a str, Status> {
        match host.len() {
            1..=HOST_LEN_MAX => Ok(host),
            len => {
                Err(Status::invalid_argument(format!("{len} bytes are no registry's name: `{}`", self.name)))
            }
        }
    }

    /// A message that is too long or none at all; connections that end are nobody's fault.
    fn unreadable(&self, status: &Status) {
        if matches!(status.code(), Code::OutOfRange | Code::Internal) {
            tracing::warn!(peer = %self.name, "refused a message of a member: {}", status.message());
        }
    }

    fn invalid(&self, error: &(dyn std::error::Error + 'static)) -> Status {
        let why = crate::pull::chain_of(error);
        tracing::warn!(peer = %self.name, "refused a message of a member: {why}");
        Status::invalid_argument(why)
    }
}
