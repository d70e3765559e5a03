//! Readers of registry hosts: this member's share of them, and those that it keeps.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::Trackers;
use crate::{
    mesh::Member,
    oci::{Algorithm, Digest},
    swarm::readers::{Ask, Budget, Keeper, Share},
    wire::mesh::swarm_client::SwarmClient,
};

/// A keeper answers from memory; one that has not by then is passed over.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// For so long, unless nobody else is left.
const AVOIDED_FOR: Duration = Duration::from_secs(5);

/// Locked after the swarms, and never across an await.
pub(super) struct Sharing {
    budget: Mutex<Budget>,
    keeper: Mutex<Keeper>,
    avoided: Mutex<HashMap<String, Instant>>,
}

impl Sharing {
    pub(super) fn new(readers_max: u32) -> Self {
        let keeper = Mutex::new(Keeper::new(readers_max));
        Self { budget: Mutex::default(), keeper, avoided: Mutex::default() }
    }
}

impl Trackers {
    /// What `from` may have out at a host that this member keeps.
    #[must_use]
    pub fn keep(&self, from: &str, ask: &Ask) -> Share {
        self.0.sharing.keeper.lock().ask(from, ask, Instant::now())
    }

    /// Divides what there is among the swarms, and asks for what there is to come.
    pub(super) fn share(&self) {
        let now = Instant::now();
        let asks = {
            let mut swarms = self.0.swarms.lock();
            let mut budget = self.0.sharing.budget.lock();
            budget.divide(swarms.values_mut().map(|tracked| &mut tracked.swarm), now);
            swarms
                .values_mut()
                .filter(|tracked| tracked.swarm.has_events())
                .for_each(|tracked| tracked.deliver(now));
            budget.due(now)
        };
        for ask in asks {
            let trackers = self.clone();
            self.0.tasks.spawn(async move { trackers.ask_keeper(ask).await });
        }
    }

    async fn ask_keeper(&self, ask: Ask) {
        let keeper = self.keeper_of(&ask.host);
        let me = self.0.mesh.me().name;
        let share = match keeper.name == me {
            true => Some(self.keep(&me, &ask)),
            false => match tokio::time::timeout(ANSWER_MAX, self.ask_there(&keeper, &ask)).await {
                Ok(Ok(share)) => Some(share),
                Ok(Err(why)) => self.pass_over(&keeper, &ask, &why),
                Err(_) => self.pass_over(&keeper, &ask, &format!("no answer within {ANSWER_MAX:?}")),
            },
        };
        self.0.sharing.budget.lock().answered(&ask, share, Instant::now());
        self.share();
    }

    async fn ask_there(&self, keeper: &Member, ask: &Ask) -> Result<Share, String> {
        let channel = self.0.mesh.control(keeper).await.map_err(|error| error.to_string())?;
        let answer = SwarmClient::new(channel).readers(ask.to_wire()).await;
        answer.map(|share| Share::from_wire(share.into_inner())).map_err(|status| status.to_string())
    }

    fn pass_over(&self, keeper: &Member, ask: &Ask, why: &str) -> Option<Share> {
        tracing::info!(host = %ask.host, keeper = %keeper.name, "lost the keeper of a host's readers: {why}");
        self.0.mesh.failed(&keeper.name);
        self.0.sharing.avoided.lock().insert(keeper.name.clone(), Instant::now());
        None
    }

    /// The first in the host's rank that has not just failed; this node if nobody is left.
    fn keeper_of(&self, host: &str) -> Member {
        let rank = self.0.mesh.rank(&Digest::of(Algorithm::Sha256, host.as_bytes()));
        let mut avoided = self.0.sharing.avoided.lock();
        avoided.retain(|_, at| at.elapsed() < AVOIDED_FOR);
        let keeper = rank.into_iter().find(|member| !avoided.contains_key(&member.name));
        keeper.unwrap_or_else(|| self.0.mesh.me())
    }
}
