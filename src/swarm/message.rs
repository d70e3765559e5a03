//! What pullers and trackers say to each other, checked: a message over its limits ends its stream.

use std::{ops::Range, time::Duration};

use crate::{
    mesh::Member,
    oci::Digest,
    piece::{BLOB_LEN_MAX, PieceLayout, Statement},
    wire::mesh as wire,
};
use bytes::Bytes;

/// The tracker's number for a member of one swarm. Numbers are not used again.
pub type Handle = u32;
/// A member by the name in its certificate.
pub type Name = String;
/// A run of pieces.
pub type Run = Range<u32>;

/// Blobs of at most so many bytes come inside the answer to the join: manifests and configs, and small layers.
pub const SMALL_MAX: u64 = 128 << 10;
/// Announcements of a swarm are at most so far apart.
const PACE_MS_MAX: u32 = 1000;
/// Entries in one message: 1024 announcements are under 320 KiB, far below the 4 MiB that gRPC takes.
pub const ENTRIES_MAX: usize = 1024;
/// Leases that a joining puller may bring along: more than the tracker that died can have given it.
const READING_MAX: usize = 64;
/// A reason is one word.
/// The header of an answer in which a member that is full names those, separated by commas.
pub const FED_HEADER: &str = "flotilla-fed";
/// Members that an answer names: one that is full, of those that it has just fed the piece.
pub const REFERRED_MAX: usize = 4;
const REASON_LEN_MAX: usize = 64;
/// The longest pause that an origin's `Retry-After` can impose on a swarm: beyond, a pull had better fail.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// A puller enters a swarm.
#[derive(Clone, Debug, PartialEq)]
pub struct Join {
    pub digest: Digest,
    pub blob_len: u64,
    pub from: Member,
    /// How many pieces it will announce before it takes part in leases.
    pub held: u32,
    /// What it reads from the origin already, under leases of a tracker that died.
    pub reading: Vec<Run>,
    pub reads_origin: bool,
    pub whole: bool,
}

/// A piece that is here, what its bytes are said to be, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub index: u32,
    pub statement: Statement,
    pub voucher: Name,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// This reader need not try again.
    Final,
    Later {
        retry_after: Duration,
    },
    /// The origin sends the whole blob whatever range is asked for.
    NoRanges,
}

/// What an auditor found at the origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything is as stated: the origin itself serves other bytes than the digest names.
    Clean,
    Differs {
        index: u32,
        statement: Statement,
    },
}

/// From a puller to the tracker, after its [`Join`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    Held(Held),
    Reading {
        start: u32,
    },
    Returned {
        run: Run,
        failure: Failure,
        reason: String,
    },
    Unclosed,
    Verdict(Verdict),
    Whole,
    Lost {
        index: u32,
    },
    /// A member gave wrong bytes.
    Refused {
        handle: Handle,
    },
    /// The reader of a lease waits for its turn at the registry.
    Waiting {
        start: u32,
    },
    /// A member gives nothing, or has nothing any more.
    Silent {
        handle: Handle,
    },
    /// All of a small blob, for whoever comes next.
    Content(Bytes),
}

/// From the tracker to a puller.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Joined {
        handle: Handle,
        member: Member,
    },
    Gone {
        handle: Handle,
    },
    Stated(Held),
    Arrived {
        handle: Handle,
        pieces: Vec<u32>,
    },
    Whole {
        handle: Handle,
    },
    PieceLost {
        handle: Handle,
        index: u32,
    },
    Lease(Run),
    Revoke(Run),
    /// All of a small blob.
    Content(Bytes),
    /// The swarm is large: announcements are to come in batches, so far apart.
    Pace(Duration),
    /// Bring this into the zone: from members of other zones, too.
    Import(Run),
    ImportOver(Run),
    /// Read again, at most so many pieces of each voucher.
    Audit {
        each: u32,
    },
    /// Read this piece again: an auditor says that the origin has other bytes.
    Recheck {
        index: u32,
    },
    Dropped {
        voucher: Name,
    },
    OriginFailed {
        reason: String,
    },
    /// This tracker does not listen to the member any more: it takes what others have, wherever they are.
    Discredited,
}

/// Why a message is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MessageError {
    #[error("the first message must hold a join and no later one may")]
    NoJoin,
    #[error("speaks version {theirs} of the mesh protocol, this member speaks {}", wire::VERSION)]
    Version { theirs: u32 },
    #[error("the digest is not valid")]
    Digest(#[from] crate::oci::DigestError),
    #[error("the member is not valid")]
    Member(#[from] crate::mesh::MemberError),
    #[error("`{field}` is missing")]
    Missing { field: &'static str },
    #[error("`{field}` is over its limit of {limit}")]
    Limit { field: &'static str, limit: u64 },
    #[error("a statement has 32 bytes, this one {0}")]
    Statement(usize),
}

fn at_most(field: &'static str, value: u64, limit: u64) -> Result<(), MessageError> {
    if value > limit { Err(MessageError::Limit { field, limit }) } else { Ok(()) }
}

fn index_below(count: u32, index: u32) -> Result<u32, MessageError> {
    at_most("index", index.into(), u64::from(count) - 1).map(|()| index)
}

fn run_within(count: u32, run: Option<wire::Run>) -> Result<Run, MessageError> {
    let run = run.ok_or(MessageError::Missing { field: "run" })?;
    at_most("run.end", run.end.into(), count.into())?;
    at_most("run.start", run.start.into(), u64::from(run.end.saturating_sub(1)))?;
    Ok(run.start..run.end)
}

fn statement(bytes: &[u8]) -> Result<Statement, MessageError> {
    let bytes: [u8; 32] = bytes.try_into().map_err(|_| MessageError::Statement(bytes.len()))?;
    Ok(Statement::from_bytes(bytes))
}

fn content(bytes: Vec<u8>) -> Result<Bytes, MessageError> {
    at_most("content", bytes.len() as u64, SMALL_MAX).map(|()| bytes.into())
}

fn reason(text: String) -> Result<String, MessageError> {
    at_most("reason", text.len() as u64, REASON_LEN_MAX as u64).map(|()| text)
}

fn name(text: String) -> Result<Name, MessageError> {
    if crate::mesh::is_name(&text) { Ok(text) } else { Err(MessageError::Missing { field: "name" }) }
}

fn wire_run(run: &Run) -> wire::Run {
    wire::Run { start: run.start, end: run.end }
}

impl Join {
    /// The first message of a stream.
    ///
    /// # Errors
    /// A field is missing or over its limit.
    pub fn from_wire(message: wire::PullerMessage) -> Result<Self, MessageError> {
        let join = message.join.ok_or(MessageError::NoJoin)?;
        if join.version != wire::VERSION {
            return Err(MessageError::Version { theirs: join.version });
        }
        at_most("blob_len", join.blob_len, BLOB_LEN_MAX)?;
        at_most("reading", join.reading.len() as u64, READING_MAX as u64)?;
        let count = PieceLayout::of(join.blob_len).count();
        at_most("held", join.held.into(), count.into())?;
        let reading = join.reading.into_iter().map(|run| run_within(count, Some(run)));
        Ok(Self {
            digest: join.digest.parse()?,
            blob_len: join.blob_len,
            from: Member::from_wire(join.from)?,
            held: join.held,
            reading: reading.collect::<Result<_, _>>()?,
            reads_origin: join.reads_origin,
            whole: join.whole,
        })
    }

    #[must_use]
    pub fn to_wire(&self) -> wire::PullerMessage {
        let join = wire::Join {
            version: wire::VERSION,
            digest: self.digest.to_string(),
            blob_len: self.blob_len,
            from: Some(self.from.to_wire()),
            held: self.held,
            reading: self.reading.iter().take(READING_MAX).map(wire_run).collect(),
            reads_origin: self.reads_origin,
            whole: self.whole,
        };
        wire::PullerMessage { join: Some(join), reports: Vec::new() }
    }
}

/// The reports of one message from `sender` about a blob of `count` pieces.
///
/// # Errors
/// A field is missing or over its limit.
pub fn reports_from_wire(
    message: wire::PullerMessage,
    sender: &str,
    count: u32,
) -> Result<Vec<Report>, MessageError> {
    if message.join.is_some() {
        return Err(MessageError::NoJoin);
    }
    at_most("reports", message.reports.len() as u64, ENTRIES_MAX as u64)?;
    message.reports.into_iter().map(|report| report_from_wire(report, sender, count)).collect()
}

fn report_from_wire(report: wire::Report, sender: &str, count: u32) -> Result<Report, MessageError> {
    use wire::report::Report as Wire;
    Ok(match report.report.ok_or(MessageError::Missing { field: "report" })? {
        Wire::Held(held) => Report::Held(Held {
            index: index_below(count, held.index)?,
            statement: statement(&held.statement)?,
            voucher: if held.voucher.is_empty() { sender.to_owned() } else { name(held.voucher)? },
        }),
        Wire::Reading(start) => Report::Reading { start: index_below(count, start)? },
        Wire::Returned(returned) => Report::Returned {
            run: run_within(count, returned.run)?,
            failure: match returned.failure() {
                wire::Failure::Final => Failure::Final,
                wire::Failure::NoRanges => Failure::NoRanges,
                wire::Failure::Later => {
                    let asked = Duration::from_millis(returned.retry_after_ms.into());
                    Failure::Later { retry_after: asked.min(RETRY_AFTER_MAX) }
                }
            },
            reason: reason(returned.reason)?,
        },
        Wire::Unclosed(_) => Report::Unclosed,
        Wire::Verdict(verdict) if verdict.clean => Report::Verdict(Verdict::Clean),
        Wire::Verdict(verdict) => Report::Verdict(Verdict::Differs {
            index: index_below(count, verdict.index)?,
            statement: statement(&verdict.statement)?,
        }),
        Wire::Whole(_) => Report::Whole,
        Wire::Lost(index) => Report::Lost { index: index_below(count, index)? },
        Wire::Refused(handle) => Report::Refused { handle },
        Wire::Waiting(start) => Report::Waiting { start: index_below(count, start)? },
        Wire::Silent(handle) => Report::Silent { handle },
        Wire::Content(bytes) => Report::Content(content(bytes)?),
    })
}

/// `reports` as messages within their limits.
#[must_use]
pub fn reports_to_wire(reports: &[Report], sender: &str) -> Vec<wire::PullerMessage> {
    let message = |chunk: &[Report]| wire::PullerMessage {
        join: None,
        reports: chunk.iter().map(|report| report_to_wire(report, sender)).collect(),
    };
    reports.chunks(ENTRIES_MAX).map(message).collect()
}

fn report_to_wire(report: &Report, sender: &str) -> wire::Report {
    use wire::report::Report as Wire;
    let report = match report {
        Report::Held(held) => Wire::Held(wire::Held {
            index: held.index,
            statement: held.statement.as_bytes().to_vec(),
            voucher: if held.voucher == sender { String::new() } else { held.voucher.clone() },
        }),
        Report::Reading { start } => Wire::Reading(*start),
        Report::Returned { run, failure, reason } => {
            let (failure, retry_after) = match failure {
                Failure::Final => (wire::Failure::Final, Duration::ZERO),
                Failure::NoRanges => (wire::Failure::NoRanges, Duration::ZERO),
                Failure::Later { retry_after } => (wire::Failure::Later, *retry_after),
            };
            Wire::Returned(wire::Returned {
                run: Some(wire_run(run)),
                failure: failure.into(),
                reason: reason.chars().take(REASON_LEN_MAX / 4).collect(),
                retry_after_ms: u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX),
            })
        }
        Report::Unclosed => Wire::Unclosed(wire::Unclosed {}),
        Report::Verdict(Verdict::Clean) => {
            Wire::Verdict(wire::Verdict { clean: true, ..wire::Verdict::default() })
        }
        Report::Verdict(Verdict::Differs { index, statement }) => Wire::Verdict(wire::Verdict {
            clean: false,
            index: *index,
            statement: statement.as_bytes().to_vec(),
        }),
        Report::Whole => Wire::Whole(wire::Whole {}),
        Report::Lost { index } => Wire::Lost(*index),
        Report::Refused { handle } => Wire::Refused(*handle),
        Report::Waiting { start } => Wire::Waiting(*start),
        Report::Silent { handle } => Wire::Silent(*handle),
        Report::Content(bytes) => Wire::Content(bytes.to_vec()),
    };
    wire::Report { report: Some(report) }
}

/// The events of one message about a blob of `count` pieces.
///
/// # Errors
/// A field is missing or over its limit.
pub fn events_from_wire(message: wire::TrackerMessage, count: u32) -> Result<Vec<Event>, MessageError> {
    at_most("events", message.events.len() as u64, ENTRIES_MAX as u64)?;
    message.events.into_iter().map(|event| event_from_wire(event, count)).collect()
}

fn event_from_wire(event: wire::Event, count: u32) -> Result<Event, MessageError> {
    use wire::event::Event as Wire;
    Ok(match event.event.ok_or(MessageError::Missing { field: "event" })? {
        Wire::Joined(joined) => {
            Event::Joined { handle: joined.handle, member: Member::from_wire(joined.member)? }
        }
        Wire::Gone(handle) => Event::Gone { handle },
        Wire::Stated(stated) => Event::Stated(Held {
            index: index_below(count, stated.index)?,
            statement: statement(&stated.statement)?,
            voucher: name(stated.voucher)?,
        }),
        Wire::Arrived(arrived) => {
            at_most("pieces", arrived.pieces.len() as u64, ENTRIES_MAX as u64)?;
            let pieces = arrived.pieces.into_iter().map(|index| index_below(count, index));
            Event::Arrived { handle: arrived.handle, pieces: pieces.collect::<Result<_, _>>()? }
        }
        Wire::Whole(handle) => Event::Whole { handle },
        Wire::Lease(run) => Event::Lease(run_within(count, Some(run))?),
        Wire::Revoke(run) => Event::Revoke(run_within(count, Some(run))?),
        Wire::Content(bytes) => Event::Content(content(bytes)?),
        Wire::PaceMs(millis) => Event::Pace(Duration::from_millis(millis.min(PACE_MS_MAX).into())),
        Wire::Import(run) => Event::Import(run_within(count, Some(run))?),
        Wire::ImportOver(run) => Event::ImportOver(run_within(count, Some(run))?),
        Wire::Audit(audit) => Event::Audit { each: audit.each },
        Wire::Recheck(index) => Event::Recheck { index: index_below(count, index)? },
        Wire::Dropped(voucher) => Event::Dropped { voucher: name(voucher)? },
        Wire::OriginFailed(failed) => Event::OriginFailed { reason: reason(failed.reason)? },
        Wire::Discredited(_) => Event::Discredited,
        Wire::Lost(lost) => Event::PieceLost { handle: lost.handle, index: index_below(count, lost.index)? },
    })
}

/// `events` as messages within their limits.
#[must_use]
pub fn events_to_wire(events: &[Event]) -> Vec<wire::TrackerMessage> {
    let mut all = Vec::new();
    for event in events {
        if let Event::Arrived { handle, pieces } = event {
            let parts = pieces.chunks(ENTRIES_MAX);
            all.extend(parts.map(|part| Event::Arrived { handle: *handle, pieces: part.to_vec() }));
        } else {
            all.push(event.clone());
        }
    }
    let message =
        |chunk: &[Event]| wire::TrackerMessage { events: chunk.iter().map(event_to_wire).collect() };
    all.chunks(ENTRIES_MAX).map(message).collect()
}

fn event_to_wire(event: &Event) -> wire::Event {
    use wire::event::Event as Wire;
    let event = match event {
        Event::Joined { handle, member } => {
            Wire::Joined(wire::Joined { handle: *handle, member: Some(member.to_wire()) })
        }
        Event::Gone { handle } => Wire::Gone(*handle),
        Event::Stated(held) => Wire::Stated(wire::Stated {
            index: held.index,
            statement: held.statement.as_bytes().to_vec(),
            voucher: held.voucher.clone(),
        }),
        Event::Arrived { handle, pieces } => {
            Wire::Arrived(wire::Arrived { handle: *handle, pieces: pieces.clone() })
        }
        Event::Whole { handle } => Wire::Whole(*handle),
        Event::PieceLost { handle, index } => Wire::Lost(wire::PieceLost { handle: *handle, index: *index }),
        Event::Lease(run) => Wire::Lease(wire_run(run)),
        Event::Revoke(run) => Wire::Revoke(wire_run(run)),
        Event::Content(bytes) => Wire::Content(bytes.to_vec()),
        Event::Pace(pace) => Wire::PaceMs(u32::try_from(pace.as_millis()).unwrap_or(PACE_MS_MAX)),
        Event::Import(run) => Wire::Import(wire_run(run)),
        Event::ImportOver(run) => Wire::ImportOver(wire_run(run)),
        Event::Audit { each } => Wire::Audit(wire::Audit { each: *each }),
        Event::Recheck { index } => Wire::Recheck(*index),
        Event::Dropped { voucher } => Wire::Dropped(voucher.clone()),
        Event::OriginFailed { reason } => Wire::OriginFailed(wire::OriginFailed { reason: reason.clone() }),
        Event::Discredited => Wire::Discredited(wire::Discredited {}),
    };
    wire::Event { event: Some(event) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: u32 = 10;

    fn held(index: u32, voucher: &str) -> Held {
        Held { index, statement: blake3::hash(b"piece"), voucher: voucher.into() }
    }

    #[test]
    fn reports_survive_the_wire_and_a_silent_voucher_is_the_sender() {
        let later = Failure::Later { retry_after: Duration::from_millis(1500) };
        let reports = vec![
            Report::Held(held(3, "node-1")),
            Report::Held(held(9, "node-2")),
            Report::Reading { start: 4 },
            Report::Returned { run: 4..8, failure: later, reason: "origin".into() },
            Report::Unclosed,
            Report::Verdict(Verdict::Clean),
            Report::Verdict(Verdict::Differs { index: 1, statement: blake3::hash(b"true") }),
            Report::Whole,
            Report::Lost { index: 0 },
            Report::Refused { handle: 7 },
            Report::Silent { handle: 8 },
            Report::Waiting { start: 2 },
            Report::Content(Bytes::from_static(b"small")),
        ];
        let messages = reports_to_wire(&reports, "node-1");
        assert_eq!(messages.len(), 1);
        assert_eq!(reports_from_wire(messages[0].clone(), "node-1", COUNT), Ok(reports));
    }

    #[test]
    fn events_survive_the_wire_in_messages_within_their_limits() {
        let events = vec![
            Event::Gone { handle: 1 },
            Event::Stated(held(2, "node-2")),
            Event::Arrived { handle: 2, pieces: (0..1500).collect() },
            Event::Whole { handle: 3 },
            Event::Lease(0..5),
            Event::Revoke(5..10),
            Event::Pace(Duration::from_millis(20)),
            Event::Content(Bytes::from_static(b"small")),
            Event::Import(3..4),
            Event::ImportOver(3..4),
            Event::Audit { each: 2 },
            Event::Recheck { index: 4 },
            Event::Dropped { voucher: "node-3".into() },
            Event::OriginFailed { reason: "no_origin".into() },
            Event::Discredited,
        ];
        let mut back = Vec::new();
        for message in events_to_wire(&events) {
            back.extend(events_from_wire(message, 2000).unwrap());
        }
        assert_eq!(back.len(), events.len() + 1, "1500 pieces go in two parts");
        assert_eq!(back[2], Event::Arrived { handle: 2, pieces: (0..1024).collect() });
        assert_eq!(back[4..], events[3..]);
    }

    #[test]
    fn a_message_over_its_limits_is_refused() {
        let refused = |report: wire::report::Report| {
            let reports = vec![wire::Report { report: Some(report) }];
            reports_from_wire(wire::PullerMessage { join: None, reports }, "node-1", COUNT).is_err()
        };
        assert!(refused(wire::report::Report::Lost(COUNT)));
        let run = |start, end| wire::Returned { run: Some(wire::Run { start, end }), ..Default::default() };
        assert!(refused(wire::report::Report::Returned(run(0, COUNT + 1))));
        assert!(refused(wire::report::Report::Returned(run(5, 5))));
        let short = wire::Held { index: 0, statement: vec![0; 31], voucher: String::new() };
        assert!(refused(wire::report::Report::Held(short)));
        let many = vec![wire::Report { report: Some(wire::report::Report::Lost(0)) }; ENTRIES_MAX + 1];
        let many = wire::PullerMessage { join: None, reports: many };
        assert!(reports_from_wire(many, "node-1", COUNT).is_err());
        let huge = wire::Join { version: wire::VERSION, blob_len: BLOB_LEN_MAX + 1, ..Default::default() };
        let huge = wire::PullerMessage { join: Some(huge), reports: Vec::new() };
        assert_eq!(
            Join::from_wire(huge),
            Err(MessageError::Limit { field: "blob_len", limit: BLOB_LEN_MAX })
        );
        assert_eq!(Join::from_wire(wire::PullerMessage::default()), Err(MessageError::NoJoin));
    }
}
