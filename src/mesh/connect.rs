//! Connections to other members: dialed once, kept, dropped with the daemon that they lead to.
//!
//! Pieces travel over HTTP/1.1, one at a time on a connection: no flow-control window of HTTP/2 between
//! the two sockets, and no piece waits behind another. Small requests share one HTTP/2 channel.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response, header::HOST};
use http_body_util::Empty;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{sync::OnceCell, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Channel, Endpoint, Uri};

use super::{
    Member,
    dial::{ConnectError, Dialer},
};
use crate::identity::{self, Connected, Identity};

/// A member answers a GET from its memory or its disk; one that has not begun after this long is stalled.
const RESPONSE_HEAD_MAX: Duration = Duration::from_secs(10);
/// Connections kept idle to one member. A node reads at most a few pieces at a time from one member; more
/// would only hold sockets on the other side.
const IDLE_MAX: usize = 8;
/// Members to whom connections are kept. Up to so many, each probe finds one; in a larger mesh most probes
/// dial, and a node has no more sockets than these and its pulls'.
const KEPT_MAX: usize = 128;
/// Longer than the pauses within a pull, shorter than the 90 s and more after which firewalls forget.
const IDLE_FOR_MAX: Duration = Duration::from_secs(60);
/// A response head of another member is a status line and a few headers.
const RESPONSE_HEAD_LEN_MAX: usize = 16 * 1024;
/// An h2 connection with a request under way is asked this often, and is dead after as long again. One without
/// is not: a hundred connections would say more than the membership, which decides.
const H2_KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Why a member did not answer a GET.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("`{path}` is no path to ask a member for")]
    Path { path: String },
    #[error("`{member}` refused our certificate: {why}")]
    Refused { member: String, why: String },
    #[error("`{member}` did not begin to answer within {RESPONSE_HEAD_MAX:?}")]
    Timeout { member: String },
    #[error("the connection to `{member}` broke: {why}")]
    Io {
        member: String,
        why: String,
        #[source]
        source: hyper::Error,
    },
}

type Sender = http1::SendRequest<Empty<Bytes>>;

struct Kept {
    sender: Sender,
    used_at: Instant,
}

/// What we keep to one daemon of one member.
struct Lines {
    generation: u64,
    used_at: Mutex<Instant>,
    channel: Mutex<Arc<OnceCell<Channel>>>,
    kept: Mutex<Vec<Kept>>,
}

/// All connections of this node to others.
pub(super) struct Connections {
    dialer: Dialer,
    lines: Mutex<HashMap<String, Arc<Lines>>>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Connections {
    pub(super) fn new(identity: Identity, tasks: TaskTracker) -> Self {
        Self {
            dialer: Dialer::new(identity),
            lines: Mutex::default(),
            tasks,
            closing: CancellationToken::new(),
        }
    }

    pub(super) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Ends every connection, and waits until they are gone.
    pub(super) async fn close(&self) {
        self.closing.cancel();
        self.lines.lock().clear();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Drops what leads to a daemon that is gone. Requests under way end by themselves.
    pub(super) fn forget(&self, name: &str) {
        self.lines.lock().remove(name);
    }

    /// Drops the channel to a member: the next [`Self::control`] dials, and says why if it cannot.
    pub(super) fn forget_channel(&self, name: &str) {
        if let Some(lines) = self.lines.lock().get(name) {
            *lines.channel.lock() = Arc::default();
        }
    }

    pub(super) async fn control(&self, to: &Member) -> Result<Channel, ConnectError> {
        let lines = self.lines_to(to);
        let cell = lines.channel.lock().clone();
        let dialing = cell.get_or_try_init(async || {
            let first = self.dialer.member(to, &[b"h2"]).await?;
            channel(&self.dialer, to, first).await
        });
        dialing.await.cloned()
    }

    pub(super) async fn get(&self, to: &Member, path: &str) -> Result<Response<Incoming>, GetError> {
        let lines = self.lines_to(to);
        while let Some(sender) = lines.take() {
            // The other side may have closed it between two requests: then another one is tried.
            match self.ask(&lines, sender, to, path).await {
                Err(GetError::Io { .. }) => {}
                answer => return answer,
            }
        }
        let sender = self.dial_http1(to).await?;
        self.ask(&lines, sender, to, path).await
    }

    async fn ask(
        &self,
        lines: &Lines,
        mut sender: Sender,
        to: &Member,
        path: &str,
    ) -> Result<Response<Incoming>, GetError> {
        let member = || to.name.clone();
        let request = request(to, path)?;
        let response = timeout(RESPONSE_HEAD_MAX, sender.send_request(request))
            .await
            .map_err(|_| GetError::Timeout { member: member() })?
            .map_err(|source| match refusal(&source) {
                Some(why) => GetError::Refused { member: member(), why },
                None => GetError::Io { member: member(), why: identity::explain(&source), source },
            })?;
        // Busy until its body has been read; `take` looks.
        lines.keep(sender);
        Ok(response)
    }

    async fn dial_http1(&self, to: &Member) -> Result<Sender, ConnectError> {
        let connected = self.dialer.member(to, &[b"http/1.1"]).await?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(RESPONSE_HEAD_LEN_MAX.max(MIN_READ_BUFFER_LEN))
            .handshake(TokioIo::new(connected.stream))
            .await
            .map_err(|error| ConnectError::Http {
                address: to.address.clone(),
                why: identity::explain(&error),
            })?;
        // Whoever waits for the response gets the error.
        self.spawn(connection.map(|_| ()));
        Ok(sender)
    }

    /// A task that ends with the connections.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closing = self.closing.clone();
        self.tasks.spawn(async move { closing.run_until_cancelled_owned(task).await });
    }

    fn lines_to(&self, to: &Member) -> Arc<Lines> {
        let mut all = self.lines.lock();
        match all.get(&to.name) {
            Some(lines) if lines.generation == to.generation => {
                *lines.used_at.lock() = Instant::now();
                lines.clone()
            }
            // Somebody still asks for a daemon that has been replaced: not kept.
            Some(lines) if lines.generation > to.generation => Arc::new(Lines::new(to.generation)),
            Some(_) | None => {
                if all.len() >= KEPT_MAX && !all.contains_key(&to.name) {
                    drop_oldest(&mut all);
                }
                let lines = Arc::new(Lines::new(to.generation));
                all.insert(to.name.clone(), lines.clone());
                lines
            }
        }
    }
}

/// Drops what leads to the member that was asked longest ago. Whoever still reads from it, goes on.
fn drop_oldest(all: &mut HashMap<String, Arc<Lines>>) {
    let oldest = all.iter().min_by_key(|(_, lines)| *lines.used_at.lock()).map(|(name, _)| name.clone());
    oldest.into_iter().for_each(|name| drop(all.remove(&name)));
}

/// A piece is read in chunks of this size at most; hyper grows its buffer towards it.
const MIN_READ_BUFFER_LEN: usize = 512 * 1024;

impl Lines {
    fn new(generation: u64) -> Self {
        Self {
            generation,
            used_at: Mutex::new(Instant::now()),
            channel: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// A connection that is idle, the one used last first, so that the others can go cold and be dropped.
    fn take(&self) -> Option<Sender> {
        let mut kept = self.kept.lock();
        trim(&mut kept, Instant::now());
        let position = kept.iter().rposition(|kept| kept.sender.is_ready())?;
        Some(kept.remove(position).sender)
    }

    fn keep(&self, sender: Sender) {
        let mut kept = self.kept.lock();
        let now = Instant::now();
        trim(&mut kept, now);
        kept.push(Kept { sender, used_at: now });
    }
}

/// Drops what is closed, has been idle for too long, or is idle beyond the number we keep.
fn trim(kept: &mut Vec<Kept>, now: Instant) {
    kept.retain(|kept| {
        let cold = kept.sender.is_ready() && now.duration_since(kept.used_at) > IDLE_FOR_MAX;
        !cold && !kept.sender.is_closed()
    });
    let idle = kept.iter().filter(|kept| kept.sender.is_ready()).count();
    let mut surplus = idle.saturating_sub(IDLE_MAX);
    kept.retain(|kept| {
        let drop = surplus > 0 && kept.sender.is_ready();
        surplus -= usize::from(drop);
        !drop
    });
}

fn request(to: &Member, path: &str) -> Result<Request<Empty<Bytes>>, GetError> {
    let bad = || GetError::Path { path: path.chars().take(200).collect() };
    let host = HeaderValue::from_str(&to.name).map_err(|_| bad())?;
    if !path.starts_with('/') {
        return Err(bad());
    }
    Request::get(path).header(HOST, host).body(Empty::new()).map_err(|_| bad())
}

/// The other side's verdict on our certificate, which in TLS 1.3 comes after the handshake.
fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let io = error.source()?.downcast_ref::<io::Error>()?;
    (io.kind() == io::ErrorKind::PermissionDenied).then(|| identity::explain(io))
}

/// An h2 channel over `first`; when that breaks, the next request dials again, with every check.
async fn channel(dialer: &Dialer, to: &Member, first: Connected) -> Result<Channel, ConnectError> {
    let address = to.address.clone();
    let (dialer, to) = (dialer.clone(), to.clone());
    let first = Arc::new(Mutex::new(Some(first)));
    let connector = tower::service_fn(move |_: Uri| {
        let (dialer, to, first) = (dialer.clone(), to.clone(), first.lock().take());
        async move {
            let connected = match first {
                Some(connected) => connected,
                None => dialer.member(&to, &[b"h2"]).await?,
            };
            Ok::<_, ConnectError>(TokioIo::new(connected.stream))
        }
    });
    endpoint()
        .connect_with_connector(connector)
        .await
        .map_err(|error| ConnectError::Http { address, why: identity::explain(&error) })
}

/// An h2 channel over `connected` and nothing after it.
pub(super) async fn one_channel(address: &str, connected: Connected) -> Result<Channel, ConnectError> {
    let only = Mutex::new(Some(connected));
    let gone = address.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let only = only.lock().take().ok_or_else(|| ConnectError::Refused { address: gone.clone() });
        async move { only.map(|connected| TokioIo::new(connected.stream)) }
    });
    endpoint()
        .connect_with_connector(connector)
        .await
        .map_err(|error| ConnectError::Http { address: address.to_owned(), why: identity::explain(&error) })
}

fn endpoint() -> Endpoint {
    // Only `:authority`; where the bytes go is the connector's decision.
    Endpoint::from_static("http://member.flotilla")
        .http2_keep_alive_interval(H2_KEEP_ALIVE)
        .keep_alive_timeout(H2_KEEP_ALIVE)
        .keep_alive_while_idle(false)
}
