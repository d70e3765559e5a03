//! The records, in SQLite.
//!
//! ```text
//! snapshots  id  name (unique)  parent -> id  kind  created_ns updated_ns  size_bytes inodes (once committed)
//! labels     (snapshot -> id, key)  value
//! ```
//!
//! synchronous=FULL: a transaction that has returned survives a power cut. Losing records makes every image
//! on the node unusable, so that is what a Prepare's `fsync` buys.

mod read;
mod write;

use std::{collections::HashSet, fs::File, io, path::Path, time::Duration};

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _};

pub use self::read::{Cursor, Page};
pub(super) use self::{
    read::Standing,
    write::{Commit, NewRecord},
};
use super::{OpenError, SnapshotError};

/// Form of the tables, kept in `user_version`.
const FORM: i64 = 1;

const TABLES: &str = "
    CREATE TABLE snapshots (
        id         INTEGER PRIMARY KEY AUTOINCREMENT,
        name       TEXT NOT NULL UNIQUE,
        parent     INTEGER REFERENCES snapshots (id),
        kind       TEXT NOT NULL CHECK (kind IN ('view', 'active', 'committed')),
        created_ns INTEGER NOT NULL,
        updated_ns INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL DEFAULT 0,
        inodes     INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX snapshots_by_parent ON snapshots (parent);
    CREATE TABLE labels (
        snapshot INTEGER NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
        key      TEXT NOT NULL,
        value    TEXT NOT NULL,
        PRIMARY KEY (snapshot, key)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX labels_by_value ON labels (key, value);
    PRAGMA user_version = 1;
";

/// The lock on the root keeps other daemons out; a person's `sqlite3` may still hold the file for a moment.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of disk kept for the log, so that on a full disk a snapshot can still be removed, which is what frees it.
/// SQLite writes the log back after 1000 pages of 4 KiB and then begins it anew; a little more for the last
/// transaction.
const LOG_BYTES: u64 = 5 << 20;

#[derive(Debug)]
pub(super) struct Records {
    writer: Mutex<Connection>,
    /// Reads go on while a writer waits for the disk.
    reader: Mutex<Connection>,
}

impl Records {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Records { path: path.to_owned(), source };
        let writer = connect(path).map_err(failed)?;
        let form: i64 = writer.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        if form > FORM {
            return Err(OpenError::Newer { path: path.to_owned(), found: form, known: FORM });
        }
        if form == 0 {
            writer.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} COMMIT;")).map_err(failed)?;
        }
        let reader = connect(path).map_err(failed)?;
        reader.pragma_update(None, "query_only", true).map_err(failed)?;
        if let Err(error) = keep_room_for_log(path) {
            tracing::warn!(path = %path.display(), %error, "no room kept for the log of snapshot records: a full disk will refuse removals as well");
        }
        Ok(Self { writer: Mutex::new(writer), reader: Mutex::new(reader) })
    }

    /// Ids of all records.
    pub(super) fn ids(&self) -> rusqlite::Result<HashSet<i64>> {
        let reader = self.reader.lock();
        let mut statement = reader.prepare("SELECT id FROM snapshots")?;
        statement.query_map([], |row| row.get(0))?.collect()
    }

    /// The highest id that a record ever had.
    pub(super) fn highest_id(&self) -> rusqlite::Result<i64> {
        let reader = self.reader.lock();
        let sequence = "SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'";
        Ok(reader.query_row(sequence, [], |row| row.get(0)).optional()?.unwrap_or(0))
    }

    /// Name of the record `id`: only for telling somebody about it.
    pub(super) fn name_of(&self, id: i64) -> rusqlite::Result<String> {
        self.reader.lock().query_row("SELECT name FROM snapshots WHERE id = ?1", [id], |row| row.get(0))
    }
}

/// Reserves blocks behind the end of the log. No lock of SQLite's is on that file, so that closing it here is safe.
fn keep_room_for_log(records: &Path) -> io::Result<()> {
    let mut log = records.as_os_str().to_owned();
    log.push("-wal");
    let log = File::options().write(true).open(log)?;
    Ok(rustix::fs::fallocate(&log, rustix::fs::FallocateFlags::KEEP_SIZE, 0, LOG_BYTES)?)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

/// Runs one read transaction.
fn reading<T>(
    records: &Records,
    action: &'static str,
    read: impl FnOnce(&Connection) -> Result<T, SnapshotError>,
) -> Result<T, SnapshotError> {
    let mut reader = records.reader.lock();
    let transaction = reader.transaction().map_err(SnapshotError::records(action))?;
    read(&transaction)
}

/// Runs one write transaction: all of it or, on any error, nothing.
fn writing<T>(
    records: &Records,
    action: &'static str,
    write: impl FnOnce(&Connection) -> Result<T, SnapshotError>,
) -> Result<T, SnapshotError> {
    let mut writer = records.writer.lock();
    let transaction = writer
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .map_err(SnapshotError::records(action))?;
    let value = write(&transaction)?;
    transaction.commit().map_err(SnapshotError::records(action))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Cursor, Filter, Kind, Labels, Usage};

    #[test]
    fn readers_do_not_wait_for_a_writer() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("metadata.db")).unwrap();
        let (kind, labels, usage) = (Kind::Active, &Labels::new(), Usage::default());
        records.insert(&NewRecord { id: 1, name: "here", parent: "", kind, labels, usage }).unwrap();

        let mut writer = records.writer.lock();
        let transaction = writer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
        transaction.execute("UPDATE snapshots SET name = 'gone'", []).unwrap();
        // With the write under way and its lock held, all of these see what was there before.
        assert_eq!(records.stat("here").unwrap().name, "here");
        assert_eq!(records.standing("here").unwrap().chain, [1]);
        assert_eq!(records.page(&Filter::default(), Cursor::default()).unwrap().infos.len(), 1);
        drop(transaction);
    }

    #[test]
    fn a_transaction_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("metadata.db")).unwrap();
        let (kind, labels, usage) = (Kind::Committed, &Labels::new(), Usage::default());
        records.insert(&NewRecord { id: 1, name: "here", parent: "", kind, labels, usage }).unwrap();
        let again = NewRecord { id: 2, name: "here", parent: "", kind, labels, usage };
        assert!(matches!(records.insert(&again), Err(SnapshotError::Exists { .. })));
        let torn = records.relabel("here", |mut labels| {
            labels.insert("half".into(), "done".into());
            Err(SnapshotError::Immutable { name: "here".into(), path: "kind".into() })
        });
        assert!(torn.is_err());
        assert!(records.stat("here").unwrap().labels.is_empty());
        assert_eq!(records.ids().unwrap().len(), 1);
        assert_eq!(records.highest_id().unwrap(), 1);
    }
}
