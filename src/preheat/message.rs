//! Orders and progress on the wire, with their limits.

use super::{Errand, Place, Progress, Root, State};
use crate::{
    oci::{DigestError, MAX_DOCUMENT_LEN, PlatformError, ReferenceError},
    pull::BySource,
    wire::mesh as wire,
};

/// Longest reason, in bytes: a chain of a few causes, each with an address.
const REASON_LEN_MAX: usize = 1000;

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error("it speaks version {theirs} of the mesh protocol and this member speaks {}", wire::VERSION)]
    Version { theirs: u32 },
    #[error("the image of the order")]
    Image(#[source] ReferenceError),
    #[error("the digest of the order")]
    Digest(#[source] DigestError),
    #[error("the platform of the order")]
    Platform(#[source] PlatformError),
    #[error("a manifest of {0} bytes is larger than any should be")]
    Len(u64),
    #[error("the order says to pull to where this version knows no way")]
    Place,
    #[error("a progress with a state that this version does not know")]
    State,
}

impl Errand {
    /// # Errors
    /// A field is missing or beyond its limit.
    pub fn from_wire(message: wire::PreheatRequest) -> Result<Self, MessageError> {
        let wire::PreheatRequest { version, image, digest, document_len, is_index, platform, place } =
            message;
        if version != wire::VERSION {
            return Err(MessageError::Version { theirs: version });
        }
        if document_len > MAX_DOCUMENT_LEN as u64 {
            return Err(MessageError::Len(document_len));
        }
        let platform = match platform.as_str() {
            "" => None,
            text => Some(text.parse().map_err(MessageError::Platform)?),
        };
        let place = match wire::PreheatPlace::try_from(place) {
            Ok(wire::PreheatPlace::Store) => Place::Store,
            Ok(wire::PreheatPlace::Containerd) => Place::Containerd,
            Err(_) => return Err(MessageError::Place),
        };
        let digest = digest.parse().map_err(MessageError::Digest)?;
        let root = Root { digest, len: document_len, is_index };
        Ok(Self { image: image.parse().map_err(MessageError::Image)?, root, platform, place })
    }

    pub(super) fn to_wire(&self) -> wire::PreheatRequest {
        let place = match self.place {
            Place::Store => wire::PreheatPlace::Store,
            Place::Containerd => wire::PreheatPlace::Containerd,
        };
        wire::PreheatRequest {
            version: wire::VERSION,
            image: self.image.to_string(),
            digest: self.root.digest.to_string(),
            document_len: self.root.len,
            is_index: self.root.is_index,
            platform: self.platform.as_ref().map(ToString::to_string).unwrap_or_default(),
            place: place.into(),
        }
    }
}

impl Progress {
    pub(super) fn from_wire(message: wire::PreheatProgress) -> Result<Self, MessageError> {
        let wire::PreheatProgress { total, local, peer, origin, state, reason } = message;
        let state = match wire::PreheatState::try_from(state) {
            Ok(wire::PreheatState::Waiting) => State::Waiting,
            Ok(wire::PreheatState::Pulling) => State::Pulling,
            Ok(wire::PreheatState::Unpacking) => State::Unpacking,
            Ok(wire::PreheatState::Done) => State::Done,
            Ok(wire::PreheatState::Failed) => State::Failed(cut(&reason)),
            Err(_) => return Err(MessageError::State),
        };
        Ok(Self { total, bytes: BySource { local, peer, origin }, state })
    }

    #[must_use]
    pub fn to_wire(&self) -> wire::PreheatProgress {
        let (state, reason) = match &self.state {
            State::Waiting => (wire::PreheatState::Waiting, String::new()),
            State::Pulling => (wire::PreheatState::Pulling, String::new()),
            State::Unpacking => (wire::PreheatState::Unpacking, String::new()),
            State::Done => (wire::PreheatState::Done, String::new()),
            State::Failed(reason) => (wire::PreheatState::Failed, cut(reason)),
        };
        let BySource { local, peer, origin } = self.bytes;
        wire::PreheatProgress { total: self.total, local, peer, origin, state: state.into(), reason }
    }
}

/// The beginning of a reason, in one line that no terminal acts upon.
fn cut(reason: &str) -> String {
    let plain = reason.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut cut = String::new();
    for c in plain {
        if cut.len() + c.len_utf8() > REASON_LEN_MAX {
            break;
        }
        cut.push(c);
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errand() -> Errand {
        let digest = crate::oci::Digest::of(crate::oci::Algorithm::Sha256, b"x");
        Errand {
            image: "r.local:5000/a/b:v1".parse().unwrap(),
            root: Root { digest, len: 7, is_index: true },
            platform: Some("linux/arm64".parse().unwrap()),
            place: Place::Containerd,
        }
    }

    #[test]
    fn an_order_survives_the_wire_and_back() {
        assert_eq!(Errand::from_wire(errand().to_wire()).unwrap(), errand());
        let own = Errand { platform: None, place: Place::Store, ..errand() };
        assert_eq!(Errand::from_wire(own.to_wire()).unwrap(), own);
    }

    #[test]
    fn every_field_has_its_limit() {
        type Spoil = fn(&mut wire::PreheatRequest);
        let cases: [(Spoil, &str); 6] = [
            (|m| m.version = 9, "version 9"),
            (|m| m.image = "a//b".into(), "the image"),
            (|m| m.digest = "sha256:12".into(), "the digest"),
            (|m| m.document_len = 9 << 20, "larger"),
            (|m| m.platform = "amd64".into(), "the platform"),
            (|m| m.place = 7, "knows no way"),
        ];
        for (spoil, says) in cases {
            let mut message = errand().to_wire();
            spoil(&mut message);
            let error = Errand::from_wire(message).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_reason_is_one_line_of_bounded_length() {
        let bytes = BySource { local: 1, peer: 2, origin: 3 };
        let failed =
            Progress { total: 6, bytes, state: State::Failed(format!("a\nb\u{1b}{}", "é".repeat(900))) };
        let back = Progress::from_wire(failed.to_wire()).unwrap();
        let State::Failed(reason) = back.state else { panic!("{back:?}") };
        assert!(reason.starts_with("a b é") && reason.len() <= REASON_LEN_MAX, "{}", reason.len());
        assert!(Progress::from_wire(wire::PreheatProgress { state: 9, ..failed.to_wire() }).is_err());
    }
}
