//! Getting pieces, chains and statements from other members.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::{flight::News, hands::Hands};
use crate::{
    mesh::{Member, is_name},
    piece::{Chain, Statement},
    swarm::{
        exchange::{Check, Fetched},
        message::{FED_HEADER, Name, REFERRED_MAX},
    },
};

/// A request without a byte for this long is called slow, and its piece may be asked of somebody else.
const SLOW_AFTER: Duration = Duration::from_millis(500);
/// And after this long it is given up.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// How often it is said that bytes come: a quarter of what makes an import stall.
const BEAT: Duration = Duration::from_millis(500);

/// Whom a member that is full has just fed the piece; names that cannot be are left out.
fn referred(headers: &HeaderMap) -> Vec<String> {
    let names = headers.get(FED_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let names = names.split(',').map(str::trim).filter(|name| is_name(name));
    names.take(REFERRED_MAX).map(str::to_owned).collect()
}

/// Why a member gave no body.
enum NoBody {
    Absent,
    Busy,
    Failed(String),
}

impl From<NoBody> for Fetched {
    fn from(why: NoBody) -> Self {
        match why {
            NoBody::Absent => Self::Absent,
            NoBody::Busy => Self::Busy,
            NoBody::Failed(_) => Self::Failed,
        }
    }
}

impl Hands {
    /// Fetches piece `index` from `peer`, checks it and stores it.
    pub(super) async fn fetch(self, peer: Member, index: u32, check: Check, chain: Option<Arc<Chain>>) {
        let digest = &self.want.digest;
        let len = self.arrival.layout().len_of(index);
        let _buffer = self.parts.buffer(len).await;
        let path = format!("/v1/blobs/{digest}/pieces/{index}");
        let outcome = match self.get(&peer, &path, len, Some(index)).await {
            Ok(bytes) if bytes.len() == len => self.keep(&peer, index, bytes, (check, chain)).await,
            Ok(_) => Fetched::Wrong,
            Err(why) => {
                if let NoBody::Failed(why) = &why {
                    tracing::debug!(%digest, peer = %peer.name, piece = index, "no piece: {why}");
                }
                why.into()
            }
        };
        if outcome == Fetched::Wrong {
            self.parts.refuse("mismatch", &peer.name);
            tracing::warn!(%digest, peer = %peer.name, piece = index, "refused a piece: it is not what was stated");
        }
        self.tell(News::Fetched { peer: peer.name, index, outcome, len }).await;
    }

    /// Keeps a small blob that came inside the tracker's answer.
    pub(super) async fn given(self, tracker: Member, bytes: Bytes, chain: Option<Arc<Chain>>) {
        let len = bytes.len();
        let outcome = self.keep(&tracker, 0, bytes, (Check::Chain, chain)).await;
        if outcome == Fetched::Wrong {
            self.parts.refuse("mismatch", &tracker.name);
        }
        self.tell(News::Fetched { peer: tracker.name, index: 0, outcome, len }).await;
    }

    /// Reads a small blob that is proven here, for the tracker.
    pub(super) async fn share(self) {
        let read = self.blocking(|hands| hands.parts.store.get(&hands.want.digest)?.read(0).ok()).await;
        if let Some(bytes) = read.flatten() {
            self.tell(News::Small(bytes)).await;
        }
    }

    async fn keep(
        &self,
        peer: &Member,
        index: u32,
        bytes: Bytes,
        check: (Check, Option<Arc<Chain>>),
    ) -> Fetched {
        let kept = self.blocking(move |hands| {
            let statement = blake3::hash(&bytes);
            let (good, link) = match check {
                (Check::Statement(stated), _) => (stated == statement, None),
                (Check::Chain, chain) => {
                    let link = chain.filter(|chain| chain.proves(index, &bytes));
                    (link.is_some(), link)
                }
            };
            if good { hands.store(index, &bytes, statement, link).map(Some) } else { Ok(None) }
        });
        match kept.await {
            Some(Ok(Some(statement))) => Fetched::Good(statement),
            Some(Ok(None)) => Fetched::Wrong,
            Some(Err(source)) => {
                self.tell(News::Disk(source)).await;
                Fetched::Failed
            }
            None => {
                tracing::debug!(peer = %peer.name, "a piece was not stored: the pull has ended");
                Fetched::Failed
            }
        }
    }

    /// Asks `sponsor` for the chain and tries it on the pieces that are here.
    pub(super) async fn fetch_chain(self, sponsor: Member) {
        let digest = self.want.digest.clone();
        let layout = self.arrival.layout();
        let len_max = layout.count() as usize * digest.algorithm().digest_len();
        let got = self.get(&sponsor, &format!("/v1/blobs/{digest}/chain"), len_max, None).await;
        let bytes = match got {
            Ok(bytes) => bytes,
            Err(why) => return self.tell(News::ChainFailed { sponsor, why: why.into() }).await,
        };
        let chain = Chain::from_bytes(&digest, layout.blob_len(), &bytes).ok().map(Arc::new);
        let tried = chain.clone();
        let unfit = self.blocking(move |hands| {
            let chain = tried?;
            let arriving = hands.arrival.arriving()?;
            let here: Vec<u32> = arriving.have().iter().collect();
            let fits = |index: u32| arriving.read(index).is_ok_and(|bytes| chain.proves(index, &bytes));
            Some(here.into_iter().filter(|&index| !fits(index)).collect())
        });
        let unfit = unfit.await.flatten();
        self.tell(News::Chain { sponsor: sponsor.name, chain, unfit }).await;
    }

    /// Asks a member, which may be this one, what it stated of the pieces that it read.
    pub(super) async fn ask_statements(self, voucher: Name) {
        let me = self.parts.mesh.me();
        let said = if voucher == me.name {
            Some((me, self.arrival.vouched()))
        } else {
            self.statements_of(&voucher).await
        };
        self.tell(News::Statements { voucher, said }).await;
    }

    async fn statements_of(&self, voucher: &str) -> Option<(Member, Vec<Statement>)> {
        let digest = &self.want.digest;
        let member = self.parts.mesh.member(voucher)?;
        let len = self.arrival.layout().count() as usize * blake3::OUT_LEN;
        let bytes = self.get(&member, &format!("/v1/blobs/{digest}/statements"), len, None).await;
        let bytes = bytes.ok().filter(|bytes| bytes.len() == len);
        if bytes.is_none() {
            tracing::info!(%digest, %voucher, "does not say what it stated");
        }
        let statements = bytes?.as_chunks().0.iter().map(|bytes| Statement::from_bytes(*bytes)).collect();
        Some((member, statements))
    }

    /// The blob is proven, and `member` said itself that it stated other bytes for the piece.
    pub(super) fn ban(&self, member: &Member, index: u32) {
        tracing::warn!(
            digest = %self.want.digest, peer = %member.name, piece = index,
            "banned: it stated wrong bytes; it is not believed again until it restarts"
        );
        self.parts.refuse("convicted", &member.name);
        self.parts.trackers.ban(member);
    }

    /// The blob is proven, and this node itself had stated other bytes for the piece.
    pub(super) fn misled(&self, me: &str, index: u32) {
        tracing::warn!(
            digest = %self.want.digest, piece = index,
            "the registry gave this node other bytes than the image has; look at what stands between them"
        );
        self.parts.refuse("misled", me);
    }

    async fn get(
        &self,
        peer: &Member,
        path: &str,
        len_max: usize,
        piece: Option<u32>,
    ) -> Result<Bytes, NoBody> {
        let mut slow = piece.map(|index| News::Slow { peer: peer.name.clone(), index });
        let answer = self.parts.mesh.get(peer, path);
        let mut answer = std::pin::pin!(answer);
        let head = match tokio::time::timeout(SLOW_AFTER, &mut answer).await {
            Ok(head) => head,
            Err(_) => {
                self.tell_once(&mut slow).await;
                answer.await
            }
        };
        let response = head.map_err(|error| {
            self.parts.mesh.failed(&peer.name);
            NoBody::Failed(error.to_string())
        })?;
        match response.status() {
            StatusCode::OK => self.body(peer, response.into_body(), len_max, (piece, slow)).await,
            StatusCode::NOT_FOUND => Err(NoBody::Absent),
            StatusCode::SERVICE_UNAVAILABLE => {
                let to = referred(response.headers());
                if let Some(index) = piece.filter(|_| !to.is_empty()) {
                    self.tell(News::Referred { index, to }).await;
                }
                Err(NoBody::Busy)
            }
            other => Err(NoBody::Failed(format!("answered {other}"))),
        }
    }

    async fn body(
        &self,
        peer: &Member,
        mut body: Incoming,
        len_max: usize,
        (piece, mut slow): (Option<u32>, Option<News>),
    ) -> Result<Bytes, NoBody> {
        let mut bytes = BytesMut::with_capacity(len_max);
        let mut told_at = Instant::now();
        loop {
            let frame = match tokio::time::timeout(SLOW_AFTER, body.frame()).await {
                Ok(frame) => frame,
                Err(_) => {
                    self.tell_once(&mut slow).await;
                    let later = tokio::time::timeout(STALLED_AFTER, body.frame()).await;
                    later.map_err(|_| NoBody::Failed(format!("no byte for {STALLED_AFTER:?}")))?
                }
            };
            let Some(frame) = frame else { return Ok(bytes.freeze()) };
            let frame = frame.map_err(|error| NoBody::Failed(error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                self.parts.mesh.heard(&peer.name);
                if bytes.len() + data.len() > len_max {
                    return Err(NoBody::Failed(format!("more than {len_max} bytes")));
                }
                self.parts.mesh.download().take(data.len() as u64).await;
                bytes.extend_from_slice(&data);
            }
            if let Some(index) = piece.filter(|_| told_at.elapsed() >= BEAT) {
                told_at = Instant::now();
                self.tell(News::Fetching { peer: peer.name.clone(), index }).await;
            }
        }
    }

    async fn tell_once(&self, news: &mut Option<News>) {
        if let Some(news) = news.take() {
            self.tell(news).await;
        }
    }

    pub(super) async fn tell(&self, news: News) {
        let sender: &mpsc::Sender<News> = &self.news;
        // Only fails when the flight is over, and then nobody wants to know.
        let _flight_ended = sender.send(news).await;
    }
}
