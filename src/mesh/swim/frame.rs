//! Frames of SWIM on the wire, and their limits.

use bytes::{Buf, BufMut};
use foca::{Header, Message};
use prost::Message as _;

use super::life::Life;
use crate::mesh::MemberError;
use crate::wire::mesh::{self as wire, FrameKind};

/// The longest frame: some 500 updates of 60 bytes. A rack of 40 that goes fits ten times over, and what does
/// not fit goes with the next frame, 200 ms later.
pub(in crate::mesh) const FRAME_LEN_MAX: usize = 32 * 1024;

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("a frame of {len} bytes is longer than {FRAME_LEN_MAX}")]
    TooLong { len: usize },
    #[error("a frame that is cut off or damaged")]
    Damaged,
    #[error("a frame has no room for more")]
    Full,
    #[error("a frame names no valid member: {0}")]
    Member(#[from] MemberError),
    #[error("a frame of a kind that this version does not know")]
    Kind,
    #[error("a frame with a number beyond its limit")]
    Number,
    #[error("a frame comes from `{claimed}` and the certificate names `{certified}` first")]
    Name { claimed: String, certified: String },
}

/// A frame that has been read to its end.
pub(super) struct Frame {
    pub(super) head: Header<Life>,
    /// Bytes of the head, which make a frame without updates.
    pub(super) head_len: usize,
    pub(super) updates: Vec<foca::Member<Life>>,
}

impl Frame {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() > FRAME_LEN_MAX {
            return Err(FrameError::TooLong { len: bytes.len() });
        }
        let mut rest = bytes;
        let head = Codec.decode(&mut rest)?;
        let head_len = bytes.len() - rest.len();
        let mut updates = Vec::new();
        if !rest.is_empty() {
            let count = rest.try_get_u16().map_err(|_| FrameError::Damaged)?;
            for _ in 0..count {
                updates.push(decode_update(&mut rest)?);
            }
        }
        if rest.is_empty() { Ok(Self { head, head_len, updates }) } else { Err(FrameError::Damaged) }
    }
}

pub(super) fn update_from_wire(update: wire::Update) -> Result<foca::Member<Life>, FrameError> {
    let life = Life::from_wire(update.life)?;
    let incarnation = u16::try_from(update.incarnation).map_err(|_| FrameError::Number)?;
    let state = match wire::State::try_from(update.state) {
        Ok(wire::State::Alive) => foca::State::Alive,
        Ok(wire::State::Suspect) => foca::State::Suspect,
        Ok(wire::State::Down) => foca::State::Down,
        Err(_) => return Err(FrameError::Number),
    };
    Ok(foca::Member::new(life, incarnation, state))
}

pub(super) fn update_to_wire(update: &foca::Member<Life>) -> wire::Update {
    let state = match update.state() {
        foca::State::Alive => wire::State::Alive,
        foca::State::Suspect => wire::State::Suspect,
        foca::State::Down => wire::State::Down,
    };
    wire::Update {
        life: Some(update.id().to_wire()),
        incarnation: update.incarnation().into(),
        state: state.into(),
    }
}

fn decode_update(buf: impl Buf) -> Result<foca::Member<Life>, FrameError> {
    update_from_wire(wire::Update::decode_length_delimited(buf).map_err(|_| FrameError::Damaged)?)
}

/// How foca's frames become bytes.
pub(super) struct Codec;

impl Codec {
    fn decode(&self, buf: impl Buf) -> Result<Header<Life>, FrameError> {
        let head = wire::FrameHead::decode_length_delimited(buf).map_err(|_| FrameError::Damaged)?;
        let kind = FrameKind::try_from(head.kind).map_err(|_| FrameError::Kind)?;
        let probe_number = u8::try_from(head.probe).map_err(|_| FrameError::Number)?;
        let about = head.about;
        let third = || Life::from_reference(about);
        let message = match kind {
            FrameKind::Gossip => Message::Gossip,
            FrameKind::Ping => Message::Ping(probe_number),
            FrameKind::Ack => Message::Ack(probe_number),
            FrameKind::PingRequest => Message::PingReq { target: third()?, probe_number },
            FrameKind::IndirectPing => Message::IndirectPing { origin: third()?, probe_number },
            FrameKind::IndirectAck => Message::IndirectAck { target: third()?, probe_number },
            FrameKind::ForwardedAck => Message::ForwardedAck { origin: third()?, probe_number },
            FrameKind::Announce => Message::Announce,
            FrameKind::Feed => Message::Feed,
            FrameKind::Broadcast => Message::Broadcast,
            FrameKind::TurnUndead => Message::TurnUndead,
        };
        Ok(Header {
            src: Life::from_wire(head.from)?,
            src_incarnation: u16::try_from(head.incarnation).map_err(|_| FrameError::Number)?,
            dst: Life::from_reference(head.to)?,
            message,
        })
    }
}

impl foca::Codec<Life> for Codec {
    type Error = FrameError;

    fn encode_header(&mut self, header: &Header<Life>, mut buf: impl BufMut) -> Result<(), FrameError> {
        let (kind, probe, about) = match &header.message {
            Message::Gossip => (FrameKind::Gossip, 0, None),
            Message::Ping(number) => (FrameKind::Ping, *number, None),
            Message::Ack(number) => (FrameKind::Ack, *number, None),
            Message::PingReq { target, probe_number } => {
                (FrameKind::PingRequest, *probe_number, Some(target))
            }
            Message::IndirectPing { origin, probe_number } => {
                (FrameKind::IndirectPing, *probe_number, Some(origin))
            }
            Message::IndirectAck { target, probe_number } => {
                (FrameKind::IndirectAck, *probe_number, Some(target))
            }
            Message::ForwardedAck { origin, probe_number } => {
                (FrameKind::ForwardedAck, *probe_number, Some(origin))
            }
            Message::Announce => (FrameKind::Announce, 0, None),
            Message::Feed => (FrameKind::Feed, 0, None),
            Message::Broadcast => (FrameKind::Broadcast, 0, None),
            Message::TurnUndead => (FrameKind::TurnUndead, 0, None),
        };
        let head = wire::FrameHead {
            from: Some(header.src.to_wire()),
            incarnation: header.src_incarnation.into(),
            to: Some(header.dst.to_reference()),
            kind: kind.into(),
            probe: probe.into(),
            about: about.map(Life::to_reference),
        };
        head.encode_length_delimited(&mut buf).map_err(|_| FrameError::Full)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Life>, FrameError> {
        self.decode(buf)
    }

    fn encode_member(&mut self, member: &foca::Member<Life>, mut buf: impl BufMut) -> Result<(), FrameError> {
        update_to_wire(member).encode_length_delimited(&mut buf).map_err(|_| FrameError::Full)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<foca::Member<Life>, FrameError> {
        decode_update(buf)
    }
}
