//! The registry client against a registry that behaves, and against many that do not.

mod auth;
mod hosts;
mod reading;
mod real;
mod trouble;

use std::{sync::Arc, time::Duration};

use flotilla::{
    oci::{Digest, Repository},
    origin::{Body, Origin, OriginError, Patience, Settings},
};

use crate::registry::Registry;

/// A client that may speak plain HTTP to loopback and loses patience soon.
fn origin() -> Origin {
    origin_with(Settings::default())
}

/// Short waits between rounds; the deadlines stay long, for a busy machine must not decide a test.
fn patience() -> Patience {
    Patience {
        backoff: Duration::from_millis(1),
        stall: Duration::from_secs(60),
        answer: Duration::from_secs(60),
        connect: Duration::from_secs(60),
        ..Patience::default()
    }
}

fn origin_with(settings: Settings) -> Origin {
    Origin::with_patience(on_loopback(settings), patience()).expect("the settings are valid")
}

fn on_loopback(settings: Settings) -> Settings {
    let hosts_dir =
        if settings.hosts_dir == Settings::default().hosts_dir { vec![] } else { settings.hosts_dir };
    let plain_http =
        if settings.plain_http.is_empty() { vec!["127.0.0.1".into()] } else { settings.plain_http };
    Settings { hosts_dir, plain_http, ..settings }
}

fn team_app(registry: &Registry) -> Repository {
    Repository { host: registry.host(), path: "team/app".into() }
}

/// Bytes that differ everywhere, so that a piece in the wrong place is noticed.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..len).map(step).collect()
}

async fn collect(mut body: Body) -> Result<Vec<u8>, OriginError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

/// A registry with one blob of `len` bytes in `team/app`.
async fn with_blob(len: usize) -> (Registry, Digest, Arc<Vec<u8>>) {
    let (registry, bytes) = (Registry::start().await, noise(len));
    let digest = registry.put_blob("team/app", bytes.clone());
    (registry, digest, Arc::new(bytes))
}

/// Finds the blob and reads all of it.
async fn pull(
    origin: &Origin,
    registry: &Registry,
    digest: &Digest,
    len: usize,
) -> Result<Vec<u8>, OriginError> {
    let located = origin.locate(&[team_app(registry)], digest, len as u64).await?;
    collect(origin.read(&located, 0..len as u64).await?).await
}
