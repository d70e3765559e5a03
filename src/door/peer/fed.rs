//! Whom this member has just sent which piece: whoever comes while it is full is told, and asks there.

use std::collections::VecDeque;

use crate::{oci::Digest, swarm::message::REFERRED_MAX};

/// Uploads remembered: the last second or two of a node at full speed.
const FED_MAX: usize = 512;

#[derive(Default)]
pub(super) struct Fed {
    /// The last one at the end.
    uploads: VecDeque<(Digest, u32, String)>,
}

impl Fed {
    pub(super) fn note(&mut self, digest: Digest, index: u32, to: String) {
        if self.uploads.len() >= FED_MAX {
            self.uploads.pop_front();
        }
        self.uploads.push_back((digest, index, to));
    }

    /// The last ones that were sent this piece, other than the one that asks.
    pub(super) fn of(&self, digest: &Digest, index: u32, asker: &str) -> Vec<&str> {
        let same =
            |upload: &&(Digest, u32, String)| upload.1 == index && upload.0 == *digest && upload.2 != asker;
        let mut names: Vec<&str> = Vec::new();
        for (.., name) in self.uploads.iter().rev().filter(same) {
            if names.len() < REFERRED_MAX && !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn the_last_few_of_a_piece_are_named_and_never_the_asker() {
        let (one, other) = (Digest::of(Algorithm::Sha256, b"1"), Digest::of(Algorithm::Sha256, b"2"));
        let mut fed = Fed::default();
        for name in ["a", "b", "c", "b", "d", "e"] {
            fed.note(one.clone(), 7, name.to_owned());
        }
        fed.note(other.clone(), 7, "x".to_owned());
        assert_eq!(fed.of(&one, 7, "d"), ["e", "b", "c", "a"]);
        assert_eq!(fed.of(&other, 7, ""), ["x"]);
        assert!(fed.of(&one, 8, "").is_empty());
        (0..FED_MAX).for_each(|_| fed.note(other.clone(), 1, "y".to_owned()));
        assert!(fed.of(&one, 7, "").is_empty(), "the oldest are forgotten");
    }
}
