//! A value in memory, and a file of the store's directory that holds it across restarts.
//!
//! One task writes the file, the whole of it at a time: at a crash the last second is lost, no more, unless the disk
//! would not take it.

use std::{io, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Store;

/// Changes are written together: a rollout makes many at once.
const PAUSE: Duration = Duration::from_secs(1);
/// A disk that would not take them is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// A file and what it is about.
#[derive(Clone, Copy, Debug)]
pub struct File {
    pub name: &'static str,
    /// For operators: "forgot …".
    pub about: &'static str,
}

/// A value that outlives the daemon. Cheap to clone.
#[derive(Debug)]
pub struct Kept<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    file: File,
    value: Mutex<Value<T>>,
    changed: Notify,
}

#[derive(Debug)]
struct Value<T> {
    value: T,
    is_written: bool,
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Clone + Default + Serialize + DeserializeOwned + Send + 'static> Kept<T> {
    /// What the store has kept, or nothing, and the task that keeps it from now on. Blocks.
    #[must_use]
    pub fn start(store: &Store, file: File, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let kept = Self::open(store, file);
        tasks.spawn(kept.clone().keep(store.clone(), tasks.clone(), stop.clone()));
        kept
    }

    pub(crate) fn open(store: &Store, file: File) -> Self {
        let kept = store.kept_file(file.name);
        let read =
            kept.and_then(|bytes| Ok(bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()?));
        let value = read.unwrap_or_else(|error| {
            tracing::warn!("forgot {}: {} in the data folder: {error}", file.about, file.name);
            None
        });
        let value = Value { value: value.unwrap_or_default(), is_written: true };
        Self(Arc::new(Inner { file, value: Mutex::new(value), changed: Notify::new() }))
    }

    pub fn read<R>(&self, with: impl FnOnce(&T) -> R) -> R {
        with(&self.0.value.lock().value)
    }

    /// Changes it; what `with` says is whether the file is to follow.
    pub fn change(&self, with: impl FnOnce(&mut T) -> bool) {
        let mut value = self.0.value.lock();
        if with(&mut value.value) {
            value.is_written = false;
            self.0.changed.notify_one();
        }
    }

    /// Writes what changes, until the daemon stops and once more then.
    async fn keep(self, store: Store, tasks: TaskTracker, stop: CancellationToken) {
        let (mut goes_on, mut pause) = (true, PAUSE);
        while goes_on {
            let changed = async {
                self.0.changed.notified().await;
                tokio::time::sleep(pause).await;
            };
            goes_on = stop.run_until_cancelled(changed).await.is_some();
            let (kept, store) = (self.clone(), store.clone());
            // One that panicked has said so.
            let written = tasks.spawn_blocking(move || kept.write(&store)).await.unwrap_or(Ok(()));
            if let Err(error) = &written {
                if pause == PAUSE {
                    let File { name, about } = self.0.file;
                    tracing::warn!("{about} is not kept: cannot write {name} in the data folder: {error}");
                }
                self.0.changed.notify_one();
            }
            pause = if written.is_ok() { PAUSE } else { TRY_AGAIN };
        }
    }

    fn write(&self, store: &Store) -> io::Result<()> {
        let value = {
            let mut value = self.0.value.lock();
            if std::mem::replace(&mut value.is_written, true) {
                return Ok(());
            }
            value.value.clone()
        };
        let kept = serde_json::to_vec(&value).map_err(io::Error::from);
        let kept = kept.and_then(|bytes| store.keep_file(self.0.file.name, &bytes));
        if kept.is_err() {
            self.0.value.lock().is_written = false;
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Settings;

    const FILE: File = File { name: "numbers.json", about: "numbers" };

    fn store(dir: &std::path::Path) -> Store {
        Store::open(Settings { dir: dir.to_owned(), sync: false, ..Settings::default() }).unwrap()
    }

    fn numbers(store: &Store) -> Kept<Vec<u32>> {
        Kept::open(store, FILE)
    }

    #[tokio::test]
    async fn a_value_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let opened = store(dir.path());
        let kept = numbers(&opened);
        let keeping = tasks.spawn(kept.clone().keep(opened.clone(), tasks.clone(), stop.clone()));
        for number in [7, 8] {
            kept.change(|numbers| {
                numbers.push(number);
                true
            });
        }
        stop.cancel();
        keeping.await.unwrap();
        drop(opened);
        assert_eq!(numbers(&store(dir.path())).read(Vec::clone), [7, 8]);
    }

    #[test]
    fn a_file_that_is_not_what_was_written_costs_what_was_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        store.keep_file(FILE.name, b"[1, -1]").unwrap();
        let kept = numbers(&store);
        assert!(kept.read(Vec::is_empty));
        kept.change(|numbers| {
            numbers.push(9);
            true
        });
        kept.write(&store).unwrap();
        assert_eq!(numbers(&store).read(Vec::clone), [9]);
    }

    #[test]
    fn what_the_disk_would_not_take_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let kept = numbers(&store);
        // Nothing can be renamed over a directory.
        std::fs::create_dir(dir.path().join(FILE.name)).unwrap();
        kept.change(|numbers| {
            numbers.push(9);
            true
        });
        kept.write(&store).unwrap_err();
        std::fs::remove_dir(dir.path().join(FILE.name)).unwrap();
        kept.write(&store).unwrap();
        assert_eq!(numbers(&store).read(Vec::clone), [9]);
        kept.change(|_| false);
        assert!(kept.0.value.lock().is_written);
    }
}
