//! Changes to the records, each of them one transaction.

use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use super::{
    Records,
    read::{committed_parent, find_id, identify, info},
    writing,
};
use crate::snapshot::{Info, Kind, Labels, SnapshotError, Usage};

/// A record to be made.
#[derive(Debug)]
pub(in crate::snapshot) struct NewRecord<'a> {
    /// The id that its directory already has.
    pub(in crate::snapshot) id: i64,
    pub(in crate::snapshot) name: &'a str,
    pub(in crate::snapshot) parent: &'a str,
    pub(in crate::snapshot) kind: Kind,
    pub(in crate::snapshot) labels: &'a Labels,
    pub(in crate::snapshot) usage: Usage,
}

impl Records {
    pub(in crate::snapshot) fn insert(&self, new: &NewRecord<'_>) -> Result<Info, SnapshotError> {
        writing(self, "recording a snapshot", |records| {
            let parent = committed_parent(records, new.name, new.parent)?;
            must_be_free(records, new.name)?;
            let now = now_ns();
            records
                .prepare_cached(
                    "INSERT INTO snapshots (id, name, parent, kind, created_ns, updated_ns, size_bytes, inodes)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7)",
                )
                .and_then(|mut statement| {
                    let (size_bytes, inodes) = stored(new.usage);
                    statement.execute((new.id, new.name, parent, new.kind.name(), now, size_bytes, inodes))
                })
                .map_err(SnapshotError::records("recording a snapshot"))?;
            replace_labels(records, new.id, new.labels)?;
            info(records, new.name)
        })
    }

    /// Turns the active `key` into the committed `name`. Labels are replaced, not inherited; a parent can be
    /// given only where there is none yet.
    pub(in crate::snapshot) fn commit(
        &self,
        key: &str,
        usage: Usage,
        as_what: &Commit<'_>,
    ) -> Result<(), SnapshotError> {
        writing(self, "committing a snapshot", |records| {
            must_be_free(records, as_what.name)?;
            let (id, kind) = identify(records, key)?;
            if kind != Kind::Active {
                return Err(SnapshotError::NotActive { name: key.to_owned() });
            }
            let current = info(records, key)?.parent;
            let wanted = as_what.parent.filter(|parent| !parent.is_empty()).unwrap_or(&current);
            if !current.is_empty() && wanted != current {
                return Err(SnapshotError::ParentFixed { name: key.to_owned(), parent: wanted.to_owned() });
            }
            let parent = committed_parent(records, as_what.name, wanted)?;
            records
                .prepare_cached(
                    "UPDATE snapshots SET name = ?2, parent = ?3, kind = 'committed',
                         created_ns = ?4, updated_ns = ?4, size_bytes = ?5, inodes = ?6
                     WHERE id = ?1",
                )
                .and_then(|mut statement| {
                    let (size_bytes, inodes) = stored(usage);
                    statement.execute((id, as_what.name, parent, now_ns(), size_bytes, inodes))
                })
                .map_err(SnapshotError::records("committing a snapshot"))?;
            replace_labels(records, id, as_what.labels)
        })
    }

    /// Forgets `name`; returns the id that its directory still has.
    pub(in crate::snapshot) fn remove(&self, name: &str) -> Result<i64, SnapshotError> {
        let action = "removing a snapshot";
        writing(self, action, |records| {
            let (id, _) = identify(records, name)?;
            let is_parent: bool = records
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM snapshots WHERE parent = ?1)")
                .and_then(|mut statement| statement.query_row([id], |row| row.get(0)))
                .map_err(SnapshotError::records(action))?;
            if is_parent {
                return Err(SnapshotError::HasChildren { name: name.to_owned() });
            }
            records
                .prepare_cached("DELETE FROM snapshots WHERE id = ?1")
                .and_then(|mut statement| statement.execute([id]))
                .map_err(SnapshotError::records(action))?;
            Ok(id)
        })
    }

    /// Sets the labels that `change` makes of the present ones.
    pub(in crate::snapshot) fn relabel(
        &self,
        name: &str,
        change: impl FnOnce(Labels) -> Result<Labels, SnapshotError>,
    ) -> Result<Info, SnapshotError> {
        let action = "updating a snapshot";
        writing(self, action, |records| {
            let (id, _) = identify(records, name)?;
            let labels = change(info(records, name)?.labels)?;
            replace_labels(records, id, &labels)?;
            records
                .prepare_cached("UPDATE snapshots SET updated_ns = ?2 WHERE id = ?1")
                .and_then(|mut statement| statement.execute((id, now_ns())))
                .map_err(SnapshotError::records(action))?;
            info(records, name)
        })
    }
}

/// What an active snapshot becomes.
#[derive(Clone, Copy, Debug)]
pub(in crate::snapshot) struct Commit<'a> {
    pub(in crate::snapshot) name: &'a str,
    pub(in crate::snapshot) parent: Option<&'a str>,
    pub(in crate::snapshot) labels: &'a Labels,
}

fn must_be_free(records: &Connection, name: &str) -> Result<(), SnapshotError> {
    if name.is_empty() {
        return Err(SnapshotError::Unnamed);
    }
    match find_id(records, name)? {
        Some(_) => Err(SnapshotError::Exists { name: name.to_owned() }),
        None => Ok(()),
    }
}

fn replace_labels(records: &Connection, id: i64, labels: &Labels) -> Result<(), SnapshotError> {
    let replace = || -> rusqlite::Result<()> {
        records.prepare_cached("DELETE FROM labels WHERE snapshot = ?1")?.execute([id])?;
        let mut insert = records.prepare_cached("INSERT INTO labels VALUES (?1, ?2, ?3)")?;
        for (key, value) in labels.iter().filter(|(_, value)| !value.is_empty()) {
            insert.execute((id, key, value))?;
        }
        Ok(())
    };
    replace().map_err(SnapshotError::records("writing labels"))
}

/// SQLite's integers are signed; no disk holds 2^63 bytes.
fn stored(usage: Usage) -> (i64, i64) {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    (signed(usage.size_bytes), signed(usage.inodes))
}

/// Nanoseconds since 1970: fits until the year 2262.
fn now_ns() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
}
