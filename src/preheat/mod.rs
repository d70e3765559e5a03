//! An image onto chosen nodes, before anybody asks for it there.
//!
//! ```text
//!   order ── the registry says, once, what the name stands for ── the selector chooses among the mesh's members
//!     ├── this node      here: manifests, config, layers by `pull`; then containerd by CRI, if it is to have them
//!     └── every other    Preheat.Pull on the mesh's control channel: the same, there; progress comes back
//! ```
//! Credentials stay: members get a name and a digest, and bytes from those who may read the registry. Whoever goes
//! away from his order gives it up on every node; what has arrived stays for a while, as with any pull.

mod here;
mod image;
mod message;
mod selector;

use std::{
    future::Future,
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::{Semaphore, watch};
use tokio_stream::wrappers::WatchStream;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{Code, Status};

pub use self::{
    image::Root,
    message::MessageError,
    selector::{Selector, SelectorError},
};
use crate::{
    containerd::{CallError, Client},
    mesh::{ConnectError, Member, Mesh},
    oci::{self, Platform, Reference},
    origin::{Asker, Origin, OriginError},
    pull::{BySource, Pull, PullError, Pulls, Want, chain_of},
    wire::mesh::preheat_client::PreheatClient,
};

/// Images that one node preheats at a time; the others wait. Each is a crowd's pull with all its layers at once.
const AT_ONCE: usize = 8;
/// Members that are dialed at a time: a handshake takes milliseconds of processor, and ten thousand may be ordered.
const DIALS_AT_ONCE: usize = 64;

/// Where the bytes are to be in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// In Flotilla's own store: every node has one, and it serves every client.
    #[default]
    Store,
    /// In containerd as well, unpacked.
    Containerd,
}

/// A text that is no place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is neither store nor containerd")]
pub struct PlaceError(String);

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        match text {
            "store" => Ok(Self::Store),
            "containerd" => Ok(Self::Containerd),
            other => Err(PlaceError(other.chars().take(40).collect())),
        }
    }
}

/// What somebody orders.
#[derive(Clone, Debug)]
pub struct Order {
    pub image: Reference,
    pub nodes: Selector,
    /// `None`: each node its own.
    pub platform: Option<Platform>,
    pub place: Place,
    /// A client's own pass is shown to the registry by this node alone, which then takes part wherever the image is to
    /// go: the others may have none.
    pub asker: Asker,
}

/// What one node is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errand {
    pub image: Reference,
    pub root: Root,
    pub platform: Option<Platform>,
    pub place: Place,
}

/// How far a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of config and layers; 0 while the manifest is not there.
    pub total: u64,
    pub bytes: BySource,
    pub state: State,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    Waiting,
    Pulling,
    /// The bytes are there, and containerd takes them.
    Unpacking,
    Done,
    Failed(String),
}

/// Why an image is not on a node.
#[derive(Debug, thiserror::Error)]
pub enum PreheatError {
    #[error("the registry does not say what {image} is")]
    Resolve { image: String, source: Arc<OriginError> },
    #[error("{image} is of media type {media_type:?}, which is neither an image nor an index of images")]
    MediaType { image: String, media_type: String },
    #[error("no member of the mesh is meant by `{0}`")]
    Nobody(String),
    #[error("the {what} of {image} is not usable")]
    Document { what: &'static str, image: String, source: oci::DocumentError },
    #[error("{image} has no image for {platform}")]
    Platform { image: String, platform: String },
    #[error("containerd pulls for {own} and not for {platform}; into the store would do")]
    ForeignPlatform { platform: String, own: String },
    #[error("a part of the image did not come")]
    Pull { source: Arc<PullError> },
    #[error("containerd does not take it")]
    Containerd(#[source] CallError),
    #[error("it cannot be reached")]
    Unreachable(#[source] ConnectError),
    #[error("its Flotilla is too old to be ordered to pull: update it")]
    Unknown,
    /// A status prints itself with all that it is made of: only its words are kept.
    #[error("the order did not get through: {0}")]
    Call(String),
    #[error("it went away in the middle")]
    Gone,
    #[error("what it says makes no sense")]
    Message(#[source] MessageError),
    /// In the member's own words.
    #[error("{0}")]
    There(String),
}

/// What preheating works with.
#[derive(Clone)]
pub struct Parts {
    pub origin: Origin,
    pub pulls: Pulls,
    pub mesh: Mesh,
    pub containerd: Client,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// Takes orders, and does this node's part of those of others. Cheap to clone.
#[derive(Clone)]
pub struct Preheats {
    parts: Arc<Parts>,
    turns: Arc<Semaphore>,
}

/// An order that is being carried out; given up when this is dropped.
pub struct Ordered {
    pub root: Root,
    pub nodes: Vec<Member>,
    /// How each node is doing, at every change.
    pub news: stream::SelectAll<stream::BoxStream<'static, (Member, Progress)>>,
}

impl Preheats {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Has the chosen nodes pull.
    ///
    /// # Errors
    /// The registry does not say what the image is, or a part of the selector means nobody.
    pub async fn order(&self, order: Order) -> Result<Ordered, PreheatError> {
        let me = self.parts.mesh.me();
        let mut members: Vec<Member> = self.parts.mesh.all().into_iter().map(|(member, _)| member).collect();
        if !members.iter().any(|member| member.name == me.name) {
            members.push(me.clone());
        }
        if let Some(idle) = order.nodes.idle(&members).next() {
            return Err(PreheatError::Nobody(idle.to_owned()));
        }
        let root = image::resolve(&self.parts, &order.image, &order.asker).await?;
        let has_pass = !matches!(order.asker, Asker::Node);
        members.retain(|member| order.nodes.takes(member) || (has_pass && member.name == me.name));
        let errand =
            Errand { image: order.image, root: root.clone(), platform: order.platform, place: order.place };
        tracing::info!(
            image = %errand.image, digest = %root.digest, nodes = %order.nodes, count = members.len(),
            into = ?errand.place, "preheat"
        );
        let dials = Arc::new(Semaphore::new(DIALS_AT_ONCE));
        let streams = members.iter().map(|member| {
            let followed = match member.name == me.name {
                true => self.here(errand.clone(), order.asker.clone()),
                false => self.there(member.clone(), errand.clone(), dials.clone()),
            };
            let member = member.clone();
            followed.map(move |progress| (member.clone(), progress)).boxed()
        });
        let news = stream::select_all(streams.collect::<Vec<_>>());
        Ok(Ordered { root, nodes: members, news })
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> Member {
        self.parts.mesh.me()
    }

    /// The layers of an image for this machine's platform, to be pulled one by one.
    ///
    /// # Errors
    /// The registry does not say what the image consists of.
    pub async fn layers(&self, image: &Reference) -> Result<Vec<Want>, PreheatError> {
        image::layers(&self.parts, image, &Asker::Node).await
    }

    /// Starts the layers of an image that somebody is about to pull on this node, in his name. They go on for as long as
    /// what is returned is held, and a while longer.
    ///
    /// # Errors
    /// As [`Self::layers`].
    pub async fn ahead(&self, image: &Reference, asker: &Asker) -> Result<Vec<Pull>, PreheatError> {
        let repository = std::slice::from_ref(&image.repository);
        if self.parts.pulls.known_among(repository).await.is_empty() {
            return Ok(Vec::new());
        }
        let layers = image::layers(&self.parts, image, asker).await?;
        Ok(layers.into_iter().map(|layer| self.parts.pulls.start(layer)).collect())
    }

    /// Does an errand on this node.
    #[must_use]
    pub fn here(&self, errand: Errand, asker: Asker) -> Followed {
        let (parts, turns) = (self.parts.clone(), self.turns.clone());
        self.follow(|progress| async move {
            let _turn = turns.acquire().await.expect("the semaphore is never closed");
            here::run(&parts, &errand, &asker, &progress).await
        })
    }

    /// Has another member do an errand.
    fn there(&self, member: Member, errand: Errand, dials: Arc<Semaphore>) -> Followed {
        let mesh = self.parts.mesh.clone();
        self.follow(|progress| async move {
            let dial = dials.acquire().await.expect("the semaphore is never closed");
            let channel = mesh.control(&member).await.map_err(PreheatError::Unreachable)?;
            let answer = PreheatClient::new(channel).pull(errand.to_wire()).await.map_err(refused)?;
            drop(dial);
            let mut said = answer.into_inner();
            while let Some(message) = said.message().await.map_err(refused)? {
                let news = Progress::from_wire(message).map_err(PreheatError::Message)?;
                let state = news.state.clone();
                match state {
                    State::Done => {
                        progress.send_modify(|known| (known.total, known.bytes) = (news.total, news.bytes));
                        return Ok(());
                    }
                    State::Failed(reason) => return Err(PreheatError::There(reason)),
                    State::Waiting | State::Pulling | State::Unpacking => {
                        progress.send_if_modified(|known| std::mem::replace(known, news.clone()) != news);
                    }
                }
            }
            Err(PreheatError::Gone)
        })
    }

    /// Runs something that tells its progress, until its end or until nobody follows it any more.
    fn follow<R>(&self, run: impl FnOnce(Arc<watch::Sender<Progress>>) -> R) -> Followed
    where
        R: Future<Output = Result<(), PreheatError>> + Send + 'static,
    {
        let (sender, changes) = watch::channel(Progress::default());
        let sender = Arc::new(sender);
        let running = run(sender.clone());
        let given_up = self.parts.stop.child_token();
        let until = given_up.clone();
        self.parts.tasks.spawn(async move {
            let state = match until.run_until_cancelled(running).await {
                Some(Ok(())) => State::Done,
                Some(Err(error)) => State::Failed(chain_of(&error)),
                None => State::Failed("the daemon stops".to_owned()),
            };
            sender.send_modify(|progress| progress.state = state);
        });
        Followed { changes: WatchStream::new(changes), _given_up: given_up.drop_guard() }
    }
}

fn refused(status: Status) -> PreheatError {
    if status.code() == Code::Unimplemented {
        return PreheatError::Unknown;
    }
    PreheatError::Call(status.message().to_owned())
}

/// The progress of one node, to its end; dropping it gives the errand up.
pub struct Followed {
    changes: WatchStream<Progress>,
    _given_up: DropGuard,
}

impl Stream for Followed {
    type Item = Progress;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Progress>> {
        self.changes.poll_next_unpin(context)
    }
}
