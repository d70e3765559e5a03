//! The I/O around the membership: what it wants done, and what came of it.
//!
//! Frames, comparisons and greetings are requests on the control channels. A frame's answer carries what the
//! other side has for us, so that a probe and its answer are one request on one connection.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{sleep_until, timeout};
use tonic::{Status, transport::Channel};

use super::{
    ConnectError, Member, Shared,
    connect::Connections,
    hello,
    swim::{Action, Event, Life},
};
use crate::wire::mesh::{SwimFrames, members_client::MembersClient};

/// Greetings under way at once: few enough sockets when a whole rack has gone silent.
const GREETINGS_MAX: usize = 64;
/// Frames under way at once; one more is dropped, which SWIM takes for a lost packet. A node sends a few a
/// second, and some tens while there is news.
const FRAMES_MAX: usize = 256;
/// Comparisons under way at once.
const COMPARISONS_MAX: usize = 4;
/// A frame that has not arrived by then is of no use: the probe it belongs to has failed.
const FRAME_MAX: Duration = Duration::from_secs(2);
/// And a sign of life that has not come by then is asked for again.
const WATCH_MAX: Duration = Duration::from_secs(1);
/// Two thousand members, over a slow link.
const COMPARISON_MAX: Duration = Duration::from_secs(10);
/// How long the good-bye may take.
const LEAVE_MAX: Duration = Duration::from_millis(500);
/// Frames in one message.
pub(super) const FRAMES_IN_MESSAGE_MAX: usize = 16;
/// The longest message: 2,048 members with every field at its limit are 1.3 MiB.
pub const MESSAGE_LEN_MAX: usize = 2 * 1024 * 1024;

/// Why a request to a member came to nothing.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("it did not answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Call(String),
}

impl CallError {
    fn is_final(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_final(),
            Self::Timeout(_) | Self::Call(_) => false,
        }
    }
}

/// What has ended.
enum Done {
    Greeting(Event),
    Frame { to: Life, answer: Result<Vec<Bytes>, CallError> },
    Watch { who: Life, answer: Result<Vec<Bytes>, CallError> },
    Comparison { with: Life, outcome: Result<(), CallError> },
}

type Tasks<'a> = FuturesUnordered<BoxFuture<'a, Done>>;

/// What is under way.
#[derive(Default)]
struct Under<'a> {
    tasks: Tasks<'a>,
    greetings: usize,
    frames: usize,
    comparisons: usize,
}

/// Does what the membership wants, for ever.
pub(super) async fn run_forever(shared: &Shared, connections: &Connections) {
    let mut under = Under::default();
    loop {
        let room = GREETINGS_MAX - under.greetings;
        let (actions, next) = {
            let mut swim = shared.swim.lock();
            swim.poll(room, Instant::now());
            (swim.take_actions(), swim.next_due(room))
        };
        shared.tell_changes();
        let more = !actions.is_empty();
        for action in actions {
            under.begin(shared, connections, action);
        }
        tokio::select! {
            Some(done) = under.tasks.next() => under.end(shared, done),
            () = shared.wake.notified() => {}
            () = due(next), if !more => {}
            // What has begun may have left less room, and changed what is due.
            () = std::future::ready(()), if more => {}
        }
    }
}

async fn due(next: Option<Instant>) {
    match next {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl<'a> Under<'a> {
    fn begin(&mut self, shared: &'a Shared, connections: &'a Connections, action: Action) {
        match action {
            Action::Greet(target) => {
                self.greetings += 1;
                let greeting = async { Done::Greeting(hello::greet(shared, connections, target).await) };
                self.tasks.push(Box::pin(greeting));
            }
            Action::Send { frame, to } if self.frames < FRAMES_MAX => {
                self.frames += 1;
                self.tasks.push(Box::pin(async move {
                    let answer = send(connections, to.member(), vec![frame.into()], FRAME_MAX).await;
                    Done::Frame { to, answer }
                }));
            }
            Action::Compare { with } if self.comparisons < COMPARISONS_MAX => {
                self.comparisons += 1;
                self.tasks.push(Box::pin(async move {
                    let comparing = timeout(COMPARISON_MAX, compare(shared, connections, &with)).await;
                    let outcome = comparing.unwrap_or(Err(CallError::Timeout(COMPARISON_MAX)));
                    Done::Comparison { with, outcome }
                }));
            }
            Action::Watch { who } if self.frames < FRAMES_MAX => {
                self.frames += 1;
                self.tasks.push(Box::pin(async move {
                    let answer = send(connections, who.member(), Vec::new(), WATCH_MAX).await;
                    Done::Watch { who, answer }
                }));
            }
            Action::Watch { .. } => {}
            Action::Send { .. } => tracing::debug!("dropped a frame: {FRAMES_MAX} are under way"),
            Action::Compare { .. } => {}
        }
    }

    fn end(&mut self, shared: &Shared, done: Done) {
        match done {
            Done::Greeting(event) => {
                self.greetings -= 1;
                if let Event::Answered { life, .. } = &event {
                    shared.heard_from(life.name());
                }
                shared.apply(event);
            }
            Done::Frame { to, answer } => {
                self.frames -= 1;
                match answer {
                    Ok(frames) => shared.answered(to.name(), &frames),
                    Err(error) => {
                        let (reason, is_final) = (error.to_string(), error.is_final());
                        shared.apply(Event::Unsent { to, reason, is_final });
                    }
                }
            }
            Done::Watch { who, answer } => {
                self.frames -= 1;
                match answer {
                    Ok(frames) => {
                        shared.answered(who.name(), &frames);
                        shared.apply(Event::Seen { who });
                    }
                    Err(error) => {
                        let (reason, is_final) = (error.to_string(), error.is_final());
                        shared.apply(Event::Missed { who, reason, is_final });
                    }
                }
            }
            Done::Comparison { with, outcome } => {
                self.comparisons -= 1;
                if let Err(error) = outcome {
                    tracing::debug!(member = with.name(), "cannot compare views: {error}");
                }
                shared.tell_changes();
            }
        }
    }
}

/// Says good-bye to a few, who tell the others.
pub(super) async fn leave(shared: &Shared, connections: &Connections) {
    let actions = {
        let mut swim = shared.swim.lock();
        swim.leave(Instant::now());
        swim.take_actions()
    };
    let frames: FuturesUnordered<_> = actions
        .into_iter()
        .filter_map(|action| match action {
            Action::Send { to, frame } => Some(async move {
                send(connections, to.member(), vec![frame.into()], FRAME_MAX).await.map(|_answer| ())
            }),
            Action::Greet(_) | Action::Watch { .. } | Action::Compare { .. } => None,
        })
        .collect();
    let _told_or_late = timeout(LEAVE_MAX, frames.collect::<Vec<_>>()).await;
}

async fn send(
    connections: &Connections,
    to: &Member,
    frames: Vec<Vec<u8>>,
    within: Duration,
) -> Result<Vec<Bytes>, CallError> {
    let request = SwimFrames { frames };
    let sending = call(connections, to, move |mut client| {
        let request = request.clone();
        Box::pin(async move { client.swim(request).await })
    });
    let answer = timeout(within, sending).await.unwrap_or(Err(CallError::Timeout(within)))?;
    Ok(answer.frames.into_iter().take(FRAMES_IN_MESSAGE_MAX).map(Bytes::from).collect())
}

/// Sums there, parts back; then members both ways, if any part differs.
async fn compare(shared: &Shared, connections: &Connections, with: &Life) -> Result<(), CallError> {
    let said = |error: super::CompareError| CallError::Call(error.to_string());
    let sums = shared.swim.lock().comparison();
    let parts = call(connections, with.member(), move |mut client| {
        let sums = sums.clone();
        Box::pin(async move { client.compare(sums).await })
    });
    let parts = parts.await?;
    let request = shared.swim.lock().compared(&parts).map_err(said)?;
    let Some(request) = request else { return Ok(()) };
    let answer = call(connections, with.member(), move |mut client| {
        let request = request.clone();
        Box::pin(async move { client.exchange(request).await })
    });
    let answer = answer.await?;
    shared.swim.lock().exchanged(with, answer, Instant::now()).map_err(said)
}

/// One request on the control channel; on a new one if that has broken, for the daemon may have been restarted.
async fn call<T>(
    connections: &Connections,
    to: &Member,
    ask: impl Fn(MembersClient<Channel>) -> BoxFuture<'static, Result<tonic::Response<T>, Status>>,
) -> Result<T, CallError> {
    let client = |channel| {
        MembersClient::new(channel)
            .max_decoding_message_size(MESSAGE_LEN_MAX)
            .max_encoding_message_size(MESSAGE_LEN_MAX)
    };
    let first = ask(client(connections.control(to).await?)).await;
    let answer = match first {
        Err(status) if hello::is_broken(&status) => {
            connections.forget_channel(&to.name);
            ask(client(connections.control(to).await?)).await
        }
        answer => answer,
    };
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| CallError::Call(crate::identity::explain(&status)))
}
