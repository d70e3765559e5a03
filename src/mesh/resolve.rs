//! Seeds become contacts: at once, or as often as DNS is asked.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::timeout;

use super::{
    Seed, Shared, seed,
    swim::{Contact, Event, MEMBERS_MAX},
};

/// DNS names are asked again this often: within the 30 s for which cluster DNS caches an answer.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);
/// While a name does not resolve, or has not yet: when a whole cluster starts, DNS does too.
const RESOLVE_RETRY: Duration = Duration::from_secs(1);
/// A resolver gives up after 5 s by itself (resolv.conf(5), `timeout`); twice that for two servers.
const RESOLVE_MAX: Duration = Duration::from_secs(10);

/// Turns the seeds into contacts, and asks DNS again and again.
pub(super) async fn resolve_forever(shared: &Shared) {
    let mut resolving = FuturesUnordered::new();
    for seed in &shared.settings.members {
        match seed {
            Seed::Host { host, port } => {
                let contact = Contact { address: seed::join(host, *port), names: vec![host.clone()] };
                let contacts = BTreeSet::from([contact]);
                shared.apply(Event::Resolved { seed: seed.to_string(), contacts });
            }
            Seed::Dns { name, port } => resolving.push(keep_resolved(shared, seed, name, *port)),
        }
    }
    shared.wake.notify_one();
    while resolving.next().await.is_some() {}
    std::future::pending().await
}

async fn keep_resolved(shared: &Shared, seed: &Seed, name: &str, port: u16) {
    let mut told = String::new();
    loop {
        let found = timeout(RESOLVE_MAX, tokio::net::lookup_host((name, port))).await;
        let next = match found {
            Ok(Ok(addresses)) => {
                let contacts: BTreeSet<Contact> = addresses
                    .take(MEMBERS_MAX)
                    .map(|address| Contact {
                        address: address.to_string(),
                        names: vec![name.to_owned(), address.ip().to_string()],
                    })
                    .collect();
                shared.apply(Event::Resolved { seed: seed.to_string(), contacts });
                shared.wake.notify_one();
                told.clear();
                RESOLVE_EVERY
            }
            failed => {
                // What it stood for before is kept: DNS may be down when the mesh is not.
                let why = match failed {
                    Ok(Err(error)) => error.to_string(),
                    Ok(Ok(_)) | Err(_) => format!("no answer within {RESOLVE_MAX:?}"),
                };
                if told != why {
                    tracing::warn!("cannot look up the members `{seed}`: {why}");
                    told = why;
                }
                RESOLVE_RETRY
            }
        };
        tokio::time::sleep(next).await;
    }
}
