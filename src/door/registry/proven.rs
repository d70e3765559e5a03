//! A body that names its digest, on its way from a registry that the cluster does not share.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::reply::{BrokenOff, Outgoing};
use crate::oci::{Digest, Hasher};

/// Hands a body on, and keeps its last part back until all of it is what its digest says: one that is not breaks off.
pub(super) struct Proven {
    body: Outgoing,
    digest: Digest,
    /// `None` once it was told.
    hasher: Option<Hasher>,
    kept: Option<Bytes>,
}

impl Proven {
    pub(super) fn new(body: Outgoing, digest: Digest) -> Self {
        let hasher = Some(Hasher::new(digest.algorithm()));
        Self { body, digest, hasher, kept: None }
    }

    /// What comes after the last part of the body.
    fn end(&mut self) -> Option<Result<Frame<Bytes>, BrokenOff>> {
        let is = self.hasher.take()?.finish();
        if is == self.digest {
            return self.kept.take().map(|last| Ok(Frame::data(last)));
        }
        tracing::warn!(digest = %self.digest, %is, "a registry that nobody named serves other bytes: broken off");
        Some(Err(BrokenOff::Other { digest: self.digest.clone() }))
    }
}

impl Body for Proven {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                None => return Poll::Ready(self.end()),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => frame,
            };
            // Trailers are between two neighbours.
            let Ok(bytes) = frame.into_data() else { continue };
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&bytes);
            }
            if bytes.is_empty() {
                continue;
            }
            if let Some(before) = self.kept.replace(bytes) {
                return Poll::Ready(Some(Ok(Frame::data(before))));
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        let (to_come, kept) = (self.body.size_hint(), self.kept.as_ref().map_or(0, Bytes::len) as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(to_come.lower() + kept);
        to_come.upper().into_iter().for_each(|upper| hint.set_upper(upper + kept));
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;
    use crate::oci::Algorithm;

    /// What a client gets, and whether it ends in good order.
    fn got(parts: &'static [&'static str], digest_of: &str) -> (String, bool) {
        let frames = parts.iter().map(|part| Ok(Frame::data(Bytes::from_static(part.as_bytes()))));
        let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
        let mut body = Proven::new(body, Digest::of(Algorithm::Sha256, digest_of.as_bytes()));
        let mut got = String::new();
        loop {
            match body.frame().now_or_never().expect("all of it is here") {
                None => return (got, true),
                Some(Err(_)) => return (got, false),
                Some(Ok(frame)) => got.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap()),
            }
        }
    }

    #[test]
    fn a_body_that_is_not_what_its_digest_says_does_not_end() {
        assert_eq!(got(&["ab", "", "cd", "e"], "abcde"), ("abcde".to_owned(), true));
        assert_eq!(got(&["ab", "cd", "x"], "abcde"), ("abcd".to_owned(), false));
        assert_eq!(got(&["abcde"], "abcdx"), (String::new(), false));
        assert_eq!(got(&[], ""), (String::new(), true));
        assert_eq!(got(&[], "abc"), (String::new(), false));
    }
}
