//! Questions to the records.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::{Records, reading};
use crate::snapshot::{Filter, Info, Kind, LABEL_SNAPSHOT_REF, Labels, SnapshotError, Usage};

/// containerd's own List sends no more infos than this in a message.
const PAGE_MAX: usize = 100;

/// Where a listing goes on: behind the record of this id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(i64);

/// At most 100 infos of a listing, and where it goes on. A page may be empty before the end.
#[derive(Clone, Debug)]
pub struct Page {
    pub infos: Vec<Info>,
    pub next: Option<Cursor>,
}

/// A snapshot and the ids that it stands on.
#[derive(Clone, Debug)]
pub(in crate::snapshot) struct Standing {
    pub(in crate::snapshot) kind: Kind,
    /// Its own id, then its parents', nearest first.
    pub(in crate::snapshot) chain: Vec<i64>,
}

const COLUMNS: &str = "
    SELECT s.id, s.name, coalesce(p.name, ''), s.kind, s.created_ns, s.updated_ns
    FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent";

impl Records {
    pub(in crate::snapshot) fn stat(&self, name: &str) -> Result<Info, SnapshotError> {
        reading(self, "looking up a snapshot", |records| info(records, name))
    }

    pub(in crate::snapshot) fn standing(&self, name: &str) -> Result<Standing, SnapshotError> {
        reading(self, "looking up a snapshot's parents", |records| {
            let (id, kind) = identify(records, name)?;
            Ok(Standing { kind, chain: chain(records, id)? })
        })
    }

    /// Ids of the committed `parent` of `name` and of its parents; none below the empty name.
    pub(in crate::snapshot) fn below(&self, name: &str, parent: &str) -> Result<Vec<i64>, SnapshotError> {
        reading(self, "looking up parents", |records| match committed_parent(records, name, parent)? {
            Some(id) => chain(records, id),
            None => Ok(Vec::new()),
        })
    }

    /// Kind, id and the usage that was stored at commit.
    pub(in crate::snapshot) fn stored_usage(&self, name: &str) -> Result<(Kind, i64, Usage), SnapshotError> {
        let action = "reading a snapshot's usage";
        reading(self, action, |records| {
            let (id, kind) = identify(records, name)?;
            records
                .prepare_cached("SELECT size_bytes, inodes FROM snapshots WHERE id = ?1")
                .and_then(|mut statement| {
                    statement.query_row([id], |row| {
                        let (size, inodes): (i64, i64) = (row.get(0)?, row.get(1)?);
                        Ok(Usage { size_bytes: size.unsigned_abs(), inodes: inodes.unsigned_abs() })
                    })
                })
                .map(|usage| (kind, id, usage))
                .map_err(SnapshotError::records(action))
        })
    }

    pub(in crate::snapshot) fn page(&self, filter: &Filter, after: Cursor) -> Result<Page, SnapshotError> {
        let action = "listing snapshots";
        reading(self, action, |records| list(records, filter, after).map_err(SnapshotError::records(action)))
    }

    /// Committed snapshots made for `snapshot_ref` on exactly `parent`, the newest first.
    pub(in crate::snapshot) fn find(
        &self,
        snapshot_ref: &str,
        parent: &str,
    ) -> Result<Vec<(i64, Info)>, SnapshotError> {
        let action = "looking for a snapshot to reuse";
        reading(self, action, |records| {
            let query = format!(
                "{COLUMNS} JOIN labels l ON l.snapshot = s.id
                 WHERE l.key = ?1 AND l.value = ?2 AND s.kind = 'committed' AND coalesce(p.name, '') = ?3
                 ORDER BY s.id DESC"
            );
            let found = || {
                let mut statement = records.prepare_cached(&query)?;
                let rows = statement
                    .query_map((LABEL_SNAPSHOT_REF, snapshot_ref, parent), |row| from_row(records, row))?;
                rows.collect::<rusqlite::Result<_>>()
            };
            found().map_err(SnapshotError::records(action))
        })
    }
}

fn list(records: &Connection, filter: &Filter, after: Cursor) -> rusqlite::Result<Page> {
    let query = format!("{COLUMNS} WHERE s.id > ?1 ORDER BY s.id LIMIT {PAGE_MAX}");
    let mut statement = records.prepare_cached(&query)?;
    let rows: Vec<(i64, Info)> =
        statement.query_map([after.0], |row| from_row(records, row))?.collect::<rusqlite::Result<_>>()?;
    let last = rows.last().map(|(id, _)| Cursor(*id));
    let next = last.filter(|_| rows.len() == PAGE_MAX);
    let infos = rows.into_iter().map(|(_, info)| info).filter(|info| filter.matches(info)).collect();
    Ok(Page { infos, next })
}

/// The whole record of `name`.
pub(super) fn info(records: &Connection, name: &str) -> Result<Info, SnapshotError> {
    records
        .prepare_cached(&format!("{COLUMNS} WHERE s.name = ?1"))
        .and_then(|mut statement| statement.query_row([name], |row| from_row(records, row)).optional())
        .map_err(SnapshotError::records("reading a snapshot"))?
        .map(|(_, info)| info)
        .ok_or_else(|| SnapshotError::NotFound { name: name.to_owned() })
}

/// Id and kind of `name`.
pub(super) fn identify(records: &Connection, name: &str) -> Result<(i64, Kind), SnapshotError> {
    find_id(records, name)?.ok_or_else(|| SnapshotError::NotFound { name: name.to_owned() })
}

/// Id and kind of `name`, if it is there.
pub(super) fn find_id(records: &Connection, name: &str) -> Result<Option<(i64, Kind)>, SnapshotError> {
    records
        .prepare_cached("SELECT id, kind FROM snapshots WHERE name = ?1")
        .and_then(|mut statement| {
            statement.query_row([name], |row| Ok((row.get(0)?, kind_column(row, 1)?))).optional()
        })
        .map_err(SnapshotError::records("looking up a snapshot"))
}

/// Id of the committed `parent` that snapshot `name` is to stand on; `None` for the empty name.
pub(super) fn committed_parent(
    records: &Connection,
    name: &str,
    parent: &str,
) -> Result<Option<i64>, SnapshotError> {
    if parent.is_empty() {
        return Ok(None);
    }
    let (name, parent) = (name.to_owned(), parent.to_owned());
    match find_id(records, &parent)? {
        Some((id, Kind::Committed)) => Ok(Some(id)),
        Some((_, Kind::Active | Kind::View)) => Err(SnapshotError::ParentNotCommitted { name, parent }),
        None => Err(SnapshotError::ParentNotFound { name, parent }),
    }
}

/// `id`, its parent, and so on to the bottom.
fn chain(records: &Connection, id: i64) -> Result<Vec<i64>, SnapshotError> {
    const UPWARDS: &str = "
        WITH RECURSIVE standing (id, depth) AS (
            SELECT ?1, 0
            UNION ALL
            SELECT s.parent, depth + 1 FROM standing JOIN snapshots s ON s.id = standing.id
            WHERE s.parent IS NOT NULL
        )
        SELECT id FROM standing ORDER BY depth";
    records
        .prepare_cached(UPWARDS)
        .and_then(|mut statement| statement.query_map([id], |row| row.get(0))?.collect())
        .map_err(SnapshotError::records("following a snapshot's parents"))
}

fn from_row(records: &Connection, row: &Row<'_>) -> rusqlite::Result<(i64, Info)> {
    let id = row.get(0)?;
    let info = Info {
        name: row.get(1)?,
        parent: row.get(2)?,
        kind: kind_column(row, 3)?,
        created: time(row.get(4)?),
        updated: time(row.get(5)?),
        labels: labels(records, id)?,
    };
    Ok((id, info))
}

fn labels(records: &Connection, id: i64) -> rusqlite::Result<Labels> {
    let mut statement = records.prepare_cached("SELECT key, value FROM labels WHERE snapshot = ?1")?;
    statement.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn kind_column(row: &Row<'_>, column: usize) -> rusqlite::Result<Kind> {
    let name: String = row.get(column)?;
    Kind::from_name(&name)
        .ok_or_else(|| rusqlite::Error::InvalidColumnType(column, name, rusqlite::types::Type::Text))
}

fn time(nanoseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanoseconds.unsigned_abs())
}
