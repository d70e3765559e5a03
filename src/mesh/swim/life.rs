//! One life of one member: what foca calls an identity.

use std::{fmt, sync::Arc};

use xxhash_rust::xxh3::xxh3_64;

use crate::mesh::{Member, MemberError, Role, is_name};
use crate::wire::mesh as wire;

/// A member, and which life of it. Who has been declared dead in error, or has moved, goes on as the next
/// revision; a restart is a new generation. Cheap to clone: ten thousand of them are scanned for each frame.
#[derive(Clone)]
pub(in crate::mesh) struct Life {
    key: u64,
    who: Arc<Who>,
}

struct Who {
    member: Member,
    revision: u32,
}

impl Life {
    pub(in crate::mesh) fn new(member: Member, revision: u32) -> Self {
        Self { key: key_of(&member.name), who: Arc::new(Who { member, revision }) }
    }

    /// Stands for the member's name. Two names with one key are two names: see `Swim::admits`.
    pub(super) fn key(&self) -> u64 {
        self.key
    }

    pub(in crate::mesh) fn member(&self) -> &Member {
        &self.who.member
    }

    pub(in crate::mesh) fn name(&self) -> &str {
        &self.who.member.name
    }

    pub(in crate::mesh) fn revision(&self) -> u32 {
        self.who.revision
    }

    /// Of two lives under one name the greater counts.
    pub(super) fn age(&self) -> (u64, u32) {
        (self.who.member.generation, self.who.revision)
    }

    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        self.age() > other.age()
    }

    /// What stands for this life where views are compared.
    pub(super) fn fingerprint(&self) -> u64 {
        let (generation, revision) = self.age();
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.key.to_le_bytes());
        bytes[8..16].copy_from_slice(&generation.to_le_bytes());
        bytes[16..].copy_from_slice(&revision.to_le_bytes());
        xxh3_64(&bytes)
    }

    /// The same daemon, after its death was told in error.
    pub(super) fn next(&self) -> Self {
        Self::new(self.member().clone(), self.revision().saturating_add(1))
    }

    pub(in crate::mesh) fn to_wire(&self) -> wire::Life {
        wire::Life { member: Some(self.member().to_wire()), revision: self.revision() }
    }

    pub(super) fn from_wire(message: Option<wire::Life>) -> Result<Self, MemberError> {
        let wire::Life { member, revision } = message.ok_or(MemberError::Absent)?;
        Ok(Self::new(Member::from_wire(member)?, revision))
    }

    /// The name and the age alone: enough for who knows it.
    pub(super) fn to_reference(&self) -> wire::Life {
        let Member { name, generation, .. } = self.member();
        let member = wire::Member { name: name.clone(), generation: *generation, ..wire::Member::default() };
        wire::Life { member: Some(member), revision: self.revision() }
    }

    pub(super) fn from_reference(message: Option<wire::Life>) -> Result<Self, MemberError> {
        let wire::Life { member, revision } = message.ok_or(MemberError::Absent)?;
        let wire::Member { name, generation, .. } = member.ok_or(MemberError::Absent)?;
        if !is_name(&name) {
            return Err(MemberError::Name);
        }
        let member = Member { name, address: String::new(), zone: None, generation, role: Role::Peer };
        Ok(Self::new(member, revision))
    }

    /// Whether this is a reference, which says no address.
    pub(super) fn is_reference(&self) -> bool {
        self.member().address.is_empty()
    }
}

/// BLAKE3 and not a faster hash, since a name is what somebody asks a certificate authority for.
pub(in crate::mesh) fn key_of(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    let (first, _) = hash.as_bytes().split_first_chunk::<8>().expect("a BLAKE3 hash has 32 bytes");
    u64::from_le_bytes(*first)
}

impl PartialEq for Life {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
            && (Arc::ptr_eq(&self.who, &other.who)
                || (self.age() == other.age() && self.name() == other.name()))
    }
}

impl Eq for Life {}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (generation, revision) = self.age();
        write!(f, "{}#{generation}.{revision}", self.name())
    }
}

impl foca::Identity for Life {
    type Addr = u64;

    /// Never by itself: [`super::Swim`] renews it, no faster than two nodes of one name may quarrel.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> u64 {
        self.key
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.is_newer_than(adversary)
    }
}
