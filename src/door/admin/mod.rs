//! Metrics, health, status: for operators, on loopback and on a socket of our own.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | Prometheus text |
//! | `/healthz` | 200 while the process serves |
//! | `/readyz` | 200 when everything that was configured works, else 503 and a line for each thing that does not |
//! | `/` | the status page |
//! | `/v1/status` | what `flotilla status --json` prints |
//! | `/v1/rates` | the rates in force, and who says so; `POST` with `?upload=…&download=…&origin=…` on the socket only |
//! | `POST /v1/pull?image=REF` | on the socket only: one JSON line a change of a layer, as it happens |
//! | `POST /v1/preheat?image=REF[&nodes=…][&platform=…][&into=…]` | one JSON line a change of a node |
//! | `/healthy`, `/oapi/v1/jobs`, `/_ping`, `/preheats` | Harbor's preheat hook |
//!
//! What orders something is open to whoever reaches the socket, and over HTTP to whoever shows the token.

mod harbor;
mod page;
mod preheat;
mod pull;
mod rates;
mod status;
mod token;

use std::{convert::Infallible, future::Future, path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Query, State},
    http::{StatusCode, header},
    middleware,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::task::TaskTracker;

pub use harbor::Jobs;
pub use preheat::{NodeLine, PreheatLine, SummaryLine};
pub use pull::{LayerLine, PullLine};
pub use rates::{RateLine, Rates, RatesLine, RatesQuery};
pub use status::{BytesBySource, ContainerdLine, MemberLine, MeshLine, PullingLine, Status, StoreLine};

use crate::{preheat::Preheats, pull::Pulls};

/// Largest order taken over HTTP: an address, a token of up to 8 KiB, and little else.
const ORDER_LEN_MAX: usize = 64 << 10;

/// What the rest of the daemon tells this door.
pub trait Report: Send + Sync + 'static {
    fn status(&self) -> Status;

    /// One line for each thing that was configured and does not work; empty when all does.
    fn unready(&self) -> Vec<String>;
}

/// What the admin door works with.
#[derive(Clone)]
pub struct Parts {
    pub metrics: Arc<Registry>,
    pub report: Arc<dyn Report>,
    pub rates: Arc<dyn Rates>,
    pub pulls: Pulls,
    pub preheats: Preheats,
    /// Holds the token of those who may order something over HTTP.
    pub token_file: Option<PathBuf>,
    /// Where orders go on whose client does not wait.
    pub tasks: TaskTracker,
    pub jobs: Jobs,
}

/// Serves operators on loopback: everything that only reads, and orders to whoever shows the token.
///
/// # Errors
/// The listener fails.
pub async fn serve_http(
    listener: TcpListener,
    parts: Parts,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, reading(parts.clone()).merge(guarded(parts))).with_graceful_shutdown(stop).await
}

/// Serves the command line on the admin socket, whose mode (0600) says who may order a pull.
///
/// # Errors
/// The listener fails.
pub async fn serve_socket(
    listener: UnixListener,
    parts: Parts,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let ordering = Router::new()
        .route("/v1/pull", post(order_pull))
        .route("/v1/preheat", post(preheat::order))
        .route("/v1/rates", post(rates::set))
        .with_state(parts.clone());
    axum::serve(listener, reading(parts).merge(ordering)).with_graceful_shutdown(stop).await
}

fn reading(parts: Parts) -> Router {
    Router::new()
        .route("/", get(async || Html(page::STATUS)))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/rates", get(rates::get))
        .route("/v1/status", get(async |State(parts): State<Parts>| Json(parts.report.status())))
        .with_state(parts)
}

/// Orders over HTTP.
fn guarded(parts: Parts) -> Router {
    Router::new()
        .route("/v1/preheat", post(preheat::order))
        .route("/healthy", get(harbor::health))
        .route("/oapi/v1/jobs", post(harbor::order_new))
        .route("/oapi/v1/jobs/{id}", get(harbor::told_new))
        .route("/_ping", get(harbor::health))
        .route("/preheats", post(harbor::order_old))
        .route("/preheats/{id}", get(harbor::told_old))
        .layer(DefaultBodyLimit::max(ORDER_LEN_MAX))
        .route_layer(middleware::from_fn_with_state(parts.clone(), token::guard))
        .with_state(parts)
}

async fn readyz(State(parts): State<Parts>) -> Response {
    let lines = parts.report.unready();
    if lines.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, lines.join("\n") + "\n").into_response()
}

async fn metrics(State(parts): State<Parts>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &parts.metrics) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[derive(serde::Deserialize)]
struct PullQuery {
    image: String,
}

async fn order_pull(State(parts): State<Parts>, Query(query): Query<PullQuery>) -> Response {
    match query.image.parse() {
        Ok(reference) => json_lines(pull::pull(parts.preheats, parts.pulls, reference)),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

/// An answer that goes on: one JSON line each.
fn json_lines(lines: impl Stream<Item = impl Serialize> + Send + 'static) -> Response {
    let lines = lines.map(|line| {
        let mut json = serde_json::to_vec(&line).expect("lines are plain data");
        json.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(json))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}
