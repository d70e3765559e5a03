//! What the tasks of a flight work with.

use std::{io, sync::Arc};

use tokio::sync::mpsc;

use super::{Shared, Want, arrival::Arrival, flight::News, leads::Leads};
use crate::piece::{Chain, Statement};

/// One task's share of the flight. Cheap to clone.
#[derive(Clone)]
pub(super) struct Hands {
    pub(super) parts: Arc<Shared>,
    pub(super) want: Arc<Want>,
    pub(super) leads: Leads,
    pub(super) arrival: Arc<Arrival>,
    pub(super) news: mpsc::Sender<News>,
}

impl Hands {
    /// Hashing and disk, off the async threads. `None` if the runtime is going down.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let hands = self.clone();
        self.parts.tasks.spawn_blocking(move || work(&hands)).await.ok()
    }

    /// Stores a piece that passed its check, with the chain that proves it where it was that; blocking.
    pub(super) fn store(
        &self,
        index: u32,
        bytes: &[u8],
        statement: Statement,
        link: Option<Arc<Chain>>,
    ) -> io::Result<Statement> {
        let released = || io::Error::other("the flight has let go of its files");
        let arriving = self.arrival.arriving().ok_or_else(released)?;
        if arriving.statement(index) != Some(statement) {
            arriving.write(index, bytes, statement)?;
        }
        link.into_iter().for_each(|chain| self.arrival.linked(index, chain));
        self.parts.metrics.verified.inc();
        Ok(statement)
    }
}
