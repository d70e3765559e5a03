//! `flotilla preheat`, and the same over HTTP: one JSON line at every change of a node.

use axum::{
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures_util::{Stream, StreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::{BytesBySource, Parts, json_lines};
use crate::{
    mesh::Member,
    origin::Asker,
    preheat::{Order, Ordered, Place, PreheatError, Progress, Selector, State as Standing},
    pull::chain_of,
};

/// What is asked for, in the query.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    image: String,
    nodes: Option<String>,
    platform: Option<String>,
    into: Option<String>,
}

/// One line of the answer. The first is the image; then come the nodes, each until it is done or has failed; the last
/// is the summary, without which somebody has hung up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreheatLine {
    Image { image: String, digest: String, nodes: Vec<String> },
    Node(NodeLine),
    Summary(SummaryLine),
}

/// How it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SummaryLine {
    pub nodes: usize,
    pub done: usize,
    pub failed: usize,
}

/// How a node is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLine {
    pub node: String,
    pub zone: Option<String>,
    /// `waiting`, `pulling`, `unpacking`, `done` or `failed`; the last two are final.
    pub state: String,
    /// Bytes of config and layers; 0 while they are not known.
    pub bytes_total: u64,
    pub bytes: BytesBySource,
    pub reason: Option<String>,
}

impl NodeLine {
    fn new(member: &Member, progress: &Progress) -> Self {
        let (state, reason) = match &progress.state {
            Standing::Waiting => ("waiting", None),
            Standing::Pulling => ("pulling", None),
            Standing::Unpacking => ("unpacking", None),
            Standing::Done => ("done", None),
            Standing::Failed(reason) => ("failed", Some(reason.clone())),
        };
        Self {
            node: member.name.clone(),
            zone: member.zone.clone(),
            state: state.to_owned(),
            bytes_total: progress.total,
            bytes: progress.bytes.into(),
            reason,
        }
    }
}

/// `POST /v1/preheat?image=…[&nodes=…][&platform=…][&into=…]`.
pub(super) async fn order(State(parts): State<Parts>, Query(wish): Query<Wish>) -> Response {
    let order = match wish.order() {
        Ok(order) => order,
        Err(why) => return (StatusCode::BAD_REQUEST, why + "\n").into_response(),
    };
    let image = order.image.to_string();
    match parts.preheats.order(order).await {
        Ok(ordered) => json_lines(lines(image, ordered)),
        Err(error) => (status_of(&error), chain_of(&error) + "\n").into_response(),
    }
}

impl Wish {
    fn order(&self) -> Result<Order, String> {
        Ok(Order {
            image: parse(&self.image)?,
            nodes: self.nodes.as_deref().map(parse::<Selector>).transpose()?.unwrap_or_default(),
            platform: self.platform.as_deref().map(parse).transpose()?,
            place: self.into.as_deref().map(parse::<Place>).transpose()?.unwrap_or_default(),
            asker: Asker::Node,
        })
    }
}

fn parse<T>(text: &str) -> Result<T, String>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + 'static,
{
    text.parse().map_err(|error: T::Err| chain_of(&error))
}

/// What an order that was not begun is answered with.
pub(super) fn status_of(error: &PreheatError) -> StatusCode {
    if matches!(error, PreheatError::Nobody(_)) { StatusCode::NOT_FOUND } else { StatusCode::BAD_GATEWAY }
}

fn lines(image: String, ordered: Ordered) -> impl Stream<Item = PreheatLine> + Send {
    let Ordered { root, nodes, news } = ordered;
    let nodes: Vec<String> = nodes.into_iter().map(|member| member.name).collect();
    let summary = SummaryLine { nodes: nodes.len(), ..SummaryLine::default() };
    let first = PreheatLine::Image { image, digest: root.digest.to_string(), nodes };
    let rest = stream::unfold(Some((news, summary)), |state| async move {
        let (mut news, mut summary) = state?;
        let Some((member, progress)) = news.next().await else {
            // A node whose end nobody heard of has not got it.
            summary.failed = summary.nodes - summary.done;
            return Some((PreheatLine::Summary(summary), None));
        };
        summary.done += usize::from(progress.state == Standing::Done);
        Some((PreheatLine::Node(NodeLine::new(&member, &progress)), Some((news, summary))))
    });
    stream::once(async move { first }).chain(rest)
}
