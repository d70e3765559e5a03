//! A member as it describes itself, and the limits of that description on the wire.

use std::{fmt, net::IpAddr, str::FromStr};

use rustls::pki_types::ServerName;

use super::seed::{join, split};
use crate::wire::mesh as wire;

/// The longest DNS name (RFC 1035, 2.3.4), which a member's name is.
const NAME_LEN_MAX: usize = 253;
/// A DNS name, a colon and a port; an IPv6 address in brackets is shorter.
const ADDRESS_LEN_MAX: usize = 260;
/// The longest label value of Kubernetes, where zones usually come from.
const ZONE_LEN_MAX: usize = 63;

/// What a node does in the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    #[default]
    Peer,
    /// Keeps blobs for the others even if it runs no containers itself.
    Seed,
    /// Takes pieces, is never a tracker and gives none.
    Leech,
}

/// A text that is no role.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("role `{0}` is none of peer, seed, leech")]
pub struct RoleError(String);

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        match text {
            "peer" => Ok(Self::Peer),
            "seed" => Ok(Self::Seed),
            "leech" => Ok(Self::Leech),
            other => Err(RoleError(other.chars().take(40).collect())),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "peer",
            Self::Seed => "seed",
            Self::Leech => "leech",
        })
    }
}

/// A node of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// The first DNS name of its certificate.
    pub name: String,
    /// `host:port` of its mesh door.
    pub address: String,
    pub zone: Option<String>,
    /// Milliseconds since 1970 at which its daemon started.
    pub generation: u64,
    pub role: Role,
}

/// Why a message does not describe a member.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MemberError {
    #[error("the message has no member in it")]
    Absent,
    #[error("the member's name is no DNS name in lower case of at most {NAME_LEN_MAX} bytes")]
    Name,
    #[error("the address of member `{0}` is no `host:port` of at most {ADDRESS_LEN_MAX} bytes")]
    Address(String),
    #[error("member `{0}` does not say at which address it can be reached: set `mesh.advertise` there")]
    Unspecified(String),
    #[error(
        "the zone of member `{0}` is longer than {ZONE_LEN_MAX} bytes or not of letters, digits, `-`, `_` and `.`"
    )]
    Zone(String),
    #[error("member `{0}` has no generation")]
    Generation(String),
    #[error("member `{0}` has a role that this version does not know")]
    Role(String),
}

impl Member {
    /// The member that `message` describes, unless a field is beyond its limit.
    pub fn from_wire(message: Option<wire::Member>) -> Result<Self, MemberError> {
        let wire::Member { name, address, zone, generation, role } = message.ok_or(MemberError::Absent)?;
        if !is_name(&name) {
            return Err(MemberError::Name);
        }
        let Ok((host, port)) = split(&address) else { return Err(MemberError::Address(name)) };
        if address.len() > ADDRESS_LEN_MAX {
            return Err(MemberError::Address(name));
        }
        if !zone.is_empty() && !is_zone(&zone) {
            return Err(MemberError::Zone(name));
        }
        if generation == 0 {
            return Err(MemberError::Generation(name));
        }
        let role = match wire::Role::try_from(role) {
            Ok(wire::Role::Peer) => Role::Peer,
            Ok(wire::Role::Seed) => Role::Seed,
            Ok(wire::Role::Leech) => Role::Leech,
            Err(_) => return Err(MemberError::Role(name)),
        };
        let zone = (!zone.is_empty()).then_some(zone);
        Ok(Self { name, address: join(&host, port), zone, generation, role })
    }

    #[must_use]
    pub fn to_wire(&self) -> wire::Member {
        let role = match self.role {
            Role::Peer => wire::Role::Peer,
            Role::Seed => wire::Role::Seed,
            Role::Leech => wire::Role::Leech,
        };
        wire::Member {
            name: self.name.clone(),
            address: self.address.clone(),
            zone: self.zone.clone().unwrap_or_default(),
            generation: self.generation,
            role: role.into(),
        }
    }

    /// The address with `host` in place of `0.0.0.0` or `[::]`, which say nothing to others.
    pub(super) fn reached_at(&mut self, host: &str) {
        if let (true, Ok((_, port))) = (self.is_unspecified(), split(&self.address)) {
            self.address = join(host, port);
        }
    }

    pub(super) fn is_unspecified(&self) -> bool {
        split(&self.address).is_ok_and(|(host, _)| host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()))
    }
}

/// Whether `text` can be the name of a member.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.len() <= NAME_LEN_MAX
        && !text.bytes().any(|byte| byte.is_ascii_uppercase())
        && matches!(ServerName::try_from(text), Ok(ServerName::DnsName(_)))
}

/// Whether `text` can be a zone.
#[must_use]
pub fn is_zone(text: &str) -> bool {
    (1..=ZONE_LEN_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> wire::Member {
        wire::Member {
            name: "node5".into(),
            address: "10.0.0.5:7442".into(),
            zone: "rack-2".into(),
            generation: 7,
            role: wire::Role::Seed.into(),
        }
    }

    #[test]
    fn a_member_survives_the_wire_and_back() {
        let member = Member::from_wire(Some(message())).unwrap();
        assert_eq!(member.role, Role::Seed);
        assert_eq!(member.to_wire(), message());
    }

    #[test]
    fn every_field_has_its_limit() {
        type Spoil = fn(&mut wire::Member);
        let n = || "node5".to_owned();
        let cases: [(Spoil, MemberError); 9] = [
            (|m| m.name = "a.".repeat(127) + "aa", MemberError::Name),
            (|m| m.name = "node 5\n".into(), MemberError::Name),
            (|m| m.name = "10.0.0.5".into(), MemberError::Name),
            (|m| m.address = "10.0.0.5".into(), MemberError::Address(n())),
            (|m| m.address = "http://x:1".into(), MemberError::Address(n())),
            (|m| m.zone = "z".repeat(64), MemberError::Zone(n())),
            (|m| m.zone = "a\"b".into(), MemberError::Zone(n())),
            (|m| m.generation = 0, MemberError::Generation(n())),
            (|m| m.role = 9, MemberError::Role(n())),
        ];
        for (spoil, error) in cases {
            let mut message = message();
            spoil(&mut message);
            assert_eq!(Member::from_wire(Some(message)), Err(error));
        }
        assert_eq!(Member::from_wire(None), Err(MemberError::Absent));
    }
}
