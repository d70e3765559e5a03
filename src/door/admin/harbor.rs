//! Harbor's preheat hook: to Harbor, a node of Flotilla is a Dragonfly.
//!
//! | Harbor | health | order | progress |
//! |---|---|---|---|
//! | 2.12 and later | `GET /healthy` | `POST /oapi/v1/jobs` | `GET /oapi/v1/jobs/<id>` |
//! | before | `GET /_ping` | `POST /preheats` | `GET /preheats/<id>` |
//!
//! (goharbor/harbor, `src/pkg/p2p/preheat/provider/dragonfly.go`; the bearer token is Harbor's auth mode "OAuth".) The
//! credentials that Harbor sends along are shown to Harbor by this node alone, and gone with the pull.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::Parts;
use crate::{
    oci::{Digest, Reference},
    origin::{Asker, Pass},
    preheat::{Order, Place, Preheats, Selector, State as Standing},
    pull::chain_of,
};

/// Orders remembered, of some 300 bytes each: Harbor asks for seconds or minutes after one has ended.
const JOBS_MAX: usize = 256;
/// Failed nodes named to Harbor, which shows them on one page.
const NAMED_MAX: usize = 20;

/// What Harbor has ordered lately. Cheap to clone.
#[derive(Clone, Default)]
pub struct Jobs(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    last: u64,
    jobs: VecDeque<Job>,
}

#[derive(Clone, Debug, PartialEq)]
struct Job {
    id: u64,
    began: Timestamp,
    changed: Timestamp,
    end: Option<Result<(), String>>,
}

impl Jobs {
    /// The next job; `None` while as many as are remembered are under way.
    fn begin(&self) -> Option<Job> {
        let mut book = self.0.lock();
        if book.jobs.len() >= JOBS_MAX {
            let ended = book.jobs.iter().position(|job| job.end.is_some())?;
            book.jobs.remove(ended);
        }
        book.last += 1;
        let now = Timestamp::now();
        let job = Job { id: book.last, began: now, changed: now, end: None };
        book.jobs.push_back(job.clone());
        Some(job)
    }

    fn end(&self, id: u64, end: Result<(), String>) {
        if let Some(job) = self.0.lock().jobs.iter_mut().find(|job| job.id == id) {
            job.changed = Timestamp::now();
            job.end = Some(end);
        }
    }

    fn find(&self, id: u64) -> Option<Job> {
        self.0.lock().jobs.iter().find(|job| job.id == id).cloned()
    }
}

impl Job {
    /// As Harbor reads it since 2.12.
    fn new_form(&self) -> Value {
        let (state, error) = match &self.end {
            None => ("PENDING", None),
            Some(Ok(())) => ("SUCCESS", None),
            Some(Err(error)) => ("FAILURE", Some(error)),
        };
        let states: Vec<Value> = error.iter().map(|error| json!({ "error": error })).collect();
        json!({
            "id": self.id,
            "created_at": self.began.to_string(),
            "updated_at": self.changed.to_string(),
            "state": state,
            "result": { "job_states": states },
        })
    }

    /// As Harbor read it before.
    fn old_form(&self) -> Value {
        let (state, error) = match &self.end {
            None => ("RUNNING", ""),
            Some(Ok(())) => ("SUCCESS", ""),
            Some(Err(error)) => ("FAILED", error.as_str()),
        };
        let finished = self.end.as_ref().map(|_| self.changed.to_string());
        json!({
            "ID": self.id.to_string(),
            "startTime": self.began.to_string(),
            "finishTime": finished.unwrap_or_default(),
            "errorMsg": error,
            "Status": state,
        })
    }
}

/// The order, in the part that both forms share.
#[derive(Debug, Deserialize)]
pub(super) struct Wish {
    #[serde(rename = "type")]
    kind: String,
    url: String,
    #[serde(default)]
    headers: HashMap<String, Value>,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    scope: String,
}

/// The order since 2.12.
#[derive(Debug, Deserialize)]
pub(super) struct Framed {
    #[serde(rename = "type")]
    kind: String,
    args: Wish,
}

pub(super) async fn health() -> &'static str {
    "ok\n"
}

pub(super) async fn order_old(State(parts): State<Parts>, Json(wish): Json<Wish>) -> Response {
    begin(&parts, &wish, Job::old_form)
}

pub(super) async fn order_new(State(parts): State<Parts>, Json(framed): Json<Framed>) -> Response {
    if framed.kind != "preheat" {
        return refused(&format!("a job of type {:?}; only preheat is known", framed.kind));
    }
    begin(&parts, &framed.args, Job::new_form)
}

pub(super) async fn told_old(State(parts): State<Parts>, Path(id): Path<u64>) -> Response {
    told(&parts, id, Job::old_form)
}

pub(super) async fn told_new(State(parts): State<Parts>, Path(id): Path<u64>) -> Response {
    told(&parts, id, Job::new_form)
}

fn told(parts: &Parts, id: u64, form: fn(&Job) -> Value) -> Response {
    match parts.jobs.find(id) {
        Some(job) => Json(form(&job)).into_response(),
        None => (StatusCode::NOT_FOUND, "no such order is remembered\n").into_response(),
    }
}

fn refused(why: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response()
}

/// Begins the work and answers; the work goes on without Harbor.
fn begin(parts: &Parts, wish: &Wish, form: fn(&Job) -> Value) -> Response {
    let order = match wish.order(&parts.preheats) {
        Ok(order) => order,
        Err(why) => return refused(&why),
    };
    let Some(job) = parts.jobs.begin() else {
        let busy = format!("{JOBS_MAX} orders are under way\n");
        return (StatusCode::TOO_MANY_REQUESTS, busy).into_response();
    };
    let (jobs, preheats, id) = (parts.jobs.clone(), parts.preheats.clone(), job.id);
    parts.tasks.spawn(async move {
        let end = carry_out(&preheats, order).await;
        if let Err(why) = &end {
            tracing::warn!(job = id, "preheating for Harbor: {why}");
        }
        jobs.end(id, end);
    });
    Json(form(&job)).into_response()
}

/// Follows an order to its end; what failed is named by node.
async fn carry_out(preheats: &Preheats, order: Order) -> Result<(), String> {
    let mut ordered = preheats.order(order).await.map_err(|error| chain_of(&error))?;
    let mut failed = Vec::new();
    while let Some((member, progress)) = ordered.news.next().await {
        if let Standing::Failed(reason) = progress.state {
            failed.push(format!("{}: {reason}", member.name));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let count = format!("{} of {} nodes", failed.len(), ordered.nodes.len());
    failed.truncate(NAMED_MAX);
    Err(format!("{count}: {}", failed.join("; ")))
}

impl Wish {
    fn order(&self, preheats: &Preheats) -> Result<Order, String> {
        if self.kind != "image" {
            return Err(format!("an order for {:?}; only image is known", self.kind));
        }
        let mut image = image_of(&self.url).ok_or_else(|| {
            format!("{:?} is no address of a manifest: https://HOST/v2/NAME/manifests/TAG", self.url)
        })?;
        if !self.digest.is_empty() {
            let digest = self.digest.parse::<Digest>().map_err(|error| chain_of(&error))?;
            image.digest = Some(digest);
        }
        let nodes = self.nodes(preheats)?;
        Ok(Order { image, nodes, platform: None, place: Place::Store, asker: self.asker() })
    }

    /// Harbor's scope is of one peer, or all seeds, or all: one peer is this node.
    fn nodes(&self, preheats: &Preheats) -> Result<Selector, String> {
        let selector = match self.scope.as_str() {
            "" | "all_peers" => return Ok(Selector::default()),
            "all_seed_peers" => "role=seed".to_owned(),
            "single_peer" | "single_seed_peer" => preheats.me().name,
            other => return Err(format!("a scope {other:?}; single_peer and all_peers are known")),
        };
        selector.parse().map_err(|error| chain_of(&error))
    }

    fn asker(&self) -> Asker {
        let given = self.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        let value = given.and_then(|(_, value)| HeaderValue::from_str(value.as_str()?).ok());
        value.map_or(Asker::Node, |value| Asker::Client(Some(Pass::new(value))))
    }
}

/// The image behind the address of its manifest.
fn image_of(url: &str) -> Option<Reference> {
    let url: Url = url.parse().ok()?;
    let host = url.host_str()?;
    let (name, named) = url.path().strip_prefix("/v2/")?.rsplit_once("/manifests/")?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let separator = if named.contains(':') { '@' } else { ':' };
    format!("{host}{port}/{name}{separator}{named}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_a_manifest_is_an_image() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (url, image) in [
            ("https://harbor.example/v2/team/app/manifests/v1", "harbor.example/team/app:v1".to_owned()),
            ("http://10.0.0.1:8080/v2/a/manifests/x", "10.0.0.1:8080/a:x".to_owned()),
            (&format!("https://h.example/v2/a/manifests/{digest}"), format!("h.example/a@{digest}")),
        ] {
            assert_eq!(image_of(url).unwrap().to_string(), image);
        }
        for url in ["harbor.example/a:v1", "https://h/v2/a/blobs/x", "https://h/v2/UPPER/manifests/x", ""] {
            assert_eq!(image_of(url), None, "{url}");
        }
    }

    #[test]
    fn jobs_are_remembered_and_the_oldest_that_ended_go() {
        let jobs = Jobs::default();
        let first = jobs.begin().unwrap();
        assert_eq!(jobs.find(first.id).unwrap().new_form()["state"], "PENDING");
        jobs.end(first.id, Err("n1: no".into()));
        let told = jobs.find(first.id).unwrap();
        assert_eq!(told.new_form()["result"]["job_states"][0]["error"], "n1: no");
        assert_eq!(
            (&told.old_form()["Status"], &told.old_form()["errorMsg"]),
            (&json!("FAILED"), &json!("n1: no"))
        );
        for _ in 1..JOBS_MAX {
            jobs.begin().unwrap();
        }
        assert!(jobs.begin().is_some_and(|job| job.id == JOBS_MAX as u64 + 1));
        assert!(jobs.find(first.id).is_none());
        assert!(jobs.begin().is_none(), "all are under way");
    }
}
