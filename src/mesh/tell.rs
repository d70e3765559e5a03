//! What the log says of members.

use std::collections::BTreeMap;

use super::swim::{Change, MEMBERS_MAX};

/// One line for each change.
pub(super) fn tell(change: &Change) {
    match change {
        Change::Joined(member) => tracing::info!(
            member = member.name, address = member.address, zone = member.zone, role = %member.role,
            "member `{}` is here", member.name
        ),
        Change::Replaced { old, new } if old.generation == new.generation => tracing::info!(
            member = new.name,
            "member `{}` is now at {} instead of {}",
            new.name,
            new.address,
            old.address
        ),
        Change::Replaced { old: _, new } => {
            tracing::info!(member = new.name, "member `{}` was restarted and is at {}", new.name, new.address)
        }
        Change::Unreachable { member, reason } => tracing::warn!(
            member = member.name,
            "member `{}` at {} is unreachable: {reason}",
            member.name,
            member.address
        ),
        Change::Left(member) => tracing::info!(member = member.name, "member `{}` has left", member.name),
        Change::Forgotten(member) => {
            tracing::info!(member = member.name, "member `{}` is forgotten", member.name);
        }
        Change::Silent { contact, reason } => {
            tracing::warn!("no member at {} yet: {reason}", contact.address);
        }
        Change::Conflict { name, stays, ignored } => tracing::error!(
            "two nodes are called `{name}`: {stays} started last and stays, {ignored} is ignored; give each node a certificate of its own name"
        ),
        Change::Full => tracing::error!(
            "this mesh has reached its limit of {MEMBERS_MAX} members: further ones are ignored"
        ),
    }
}

/// What has been told about whom, so that a caller that comes every second makes one line.
#[derive(Default)]
pub(super) struct Complaints {
    told: BTreeMap<String, String>,
}

impl Complaints {
    /// Whether `reason` is not the last that was told about `name`.
    pub(super) fn is_news(&mut self, name: &str, reason: &str) -> bool {
        // Forgotten all at once, so that a churn of names cannot fill memory.
        if self.told.len() >= MEMBERS_MAX {
            self.told.clear();
        }
        self.told.insert(name.to_owned(), reason.to_owned()).as_deref() != Some(reason)
    }
}
