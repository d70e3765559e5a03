//! How fast bytes may flow: what is in force, and an operator's word on it.

use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::Parts;

/// What decides on rates.
pub trait Rates: Send + Sync + 'static {
    fn rates(&self) -> RatesLine;

    /// Sets what is named, until the daemon ends.
    ///
    /// # Errors
    /// One of them is no rate; then none is set.
    fn set(&self, asked: &RatesQuery) -> Result<(), String>;
}

/// The rates in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RatesLine {
    /// To other members.
    pub upload: RateLine,
    /// From other members.
    pub download: RateLine,
    /// From registries.
    pub origin: RateLine,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLine {
    /// `null` is no limit.
    pub bytes_per_second: Option<u64>,
    /// `settings`, `schedule` or `operator`.
    pub by: String,
}

/// Each a size a second, `unlimited`, or `settings` for what the settings say at this time.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RatesQuery {
    pub upload: Option<String>,
    pub download: Option<String>,
    pub origin: Option<String>,
}

pub(super) async fn get(State(parts): State<Parts>) -> Json<RatesLine> {
    Json(parts.rates.rates())
}

pub(super) async fn set(State(parts): State<Parts>, Query(asked): Query<RatesQuery>) -> Response {
    match parts.rates.set(&asked) {
        Ok(()) => Json(parts.rates.rates()).into_response(),
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}
