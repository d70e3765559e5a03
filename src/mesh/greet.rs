//! The I/O around the view: greetings out, names looked up, changes told.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{sleep_until, timeout};
use tonic::transport::Channel;

use super::{
    Member, Seed, Shared,
    connect::{self, Connections},
    dial::{ConnectError, Dialer},
    seed,
    view::{Change, Contact, Event, MEMBERS_MAX, Target},
};
use crate::wire::mesh::{self as wire, HelloRequest, members_client::MembersClient};

/// A member that is alive answers from memory: this is its second, after which it has missed one greeting.
const GREET_MAX: Duration = Duration::from_secs(1);
/// A first greeting also connects and proves both sides.
const FIRST_GREET_MAX: Duration = Duration::from_secs(5);
/// Greetings under way at once: enough to be through 10,000 members in a second at 25 ms each, and few
/// enough sockets when a whole rack has gone silent.
const GREETINGS_MAX: usize = 256;
/// DNS names are asked again this often: within the 30 s for which cluster DNS caches an answer.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);
/// While a name does not resolve, or has not yet: when a whole cluster starts, DNS does too.
const RESOLVE_RETRY: Duration = Duration::from_secs(1);
/// A resolver gives up after 5 s by itself (resolv.conf(5), `timeout`); twice that for two servers.
const RESOLVE_MAX: Duration = Duration::from_secs(10);
/// The longest Hello that anybody sends us: one member with every field at its limit fits many times over.
pub const HELLO_LEN_MAX: usize = 16 * 1024;
/// 10,000 members with every field at its limit.
const ANSWER_LEN_MAX: usize = 8 * 1024 * 1024;

/// Why a greeting came to nothing.
#[derive(Debug, thiserror::Error)]
enum GreetError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("it did not answer within {0:?}")]
    Timeout(Duration),
    #[error("it refused us: {0}")]
    Refused(String),
    #[error("{0}")]
    Call(String),
    #[error("it answers with what is no valid Hello: {0}")]
    Answer(String),
}

impl GreetError {
    fn is_final(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_final(),
            Self::Refused(_) | Self::Answer(_) => true,
            Self::Timeout(_) | Self::Call(_) => false,
        }
    }
}

/// Greets whoever is due, for ever.
pub(super) async fn greet_forever(shared: &Shared, connections: &Connections) {
    let mut greetings = FuturesUnordered::new();
    loop {
        let room = GREETINGS_MAX - greetings.len();
        let (targets, changes, next) = {
            let mut view = shared.view.lock();
            let (targets, changes) = view.due(Instant::now(), room);
            (targets, changes, view.next_due())
        };
        shared.changed(changes);
        greetings.extend(targets.into_iter().map(|target| Box::pin(greet(shared, connections, target))));
        let full = greetings.len() >= GREETINGS_MAX;
        tokio::select! {
            Some(event) = greetings.next() => shared.apply(event),
            () = shared.wake.notified() => {}
            () = due(next), if !full => {}
        }
    }
}

async fn due(next: Option<Instant>) {
    match next {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn greet(shared: &Shared, connections: &Connections, target: Target) -> Event {
    let (limit, greeted) = match &target {
        Target::Member { member, alive, introduce } => {
            let limit = if *alive { GREET_MAX } else { FIRST_GREET_MAX };
            (limit, timeout(limit, greet_member(shared, connections, member, *introduce)).await)
        }
        Target::Contact(contact) => {
            (FIRST_GREET_MAX, timeout(FIRST_GREET_MAX, greet_contact(shared, connections, contact)).await)
        }
    };
    match greeted.unwrap_or(Err(GreetError::Timeout(limit))) {
        Ok((member, heard)) => Event::Answered { target, member, heard },
        Err(error) => Event::Failed { target, reason: error.to_string(), is_final: error.is_final() },
    }
}

async fn greet_member(
    shared: &Shared,
    connections: &Connections,
    member: &Member,
    introduce: bool,
) -> Result<(Member, Vec<Member>), GreetError> {
    let channel = connections.control(member).await?;
    let (mut answer, heard) = match hello(shared, connections, channel, introduce).await {
        // The daemon may have gone or been restarted since the last greeting: dialing tells which. After
        // a mere silence the channel is kept, so that a busy member need not prove itself again.
        Err(GreetError::Call(_)) => {
            connections.forget_channel(&member.name);
            let channel = connections.control(member).await?;
            hello(shared, connections, channel, introduce).await?
        }
        answer => answer?,
    };
    if answer.name != member.name {
        return Err(GreetError::Answer(format!(
            "it calls itself `{}` but its certificate names `{}` first",
            answer.name, member.name
        )));
    }
    if let Ok((host, _)) = seed::split(&member.address) {
        answer.reached_at(&host);
    }
    Ok((checked_address(answer)?, heard))
}

async fn greet_contact(
    shared: &Shared,
    connections: &Connections,
    contact: &Contact,
) -> Result<(Member, Vec<Member>), GreetError> {
    let connected = dial_contact(connections, contact).await?;
    let remote = connected.stream.tcp().peer_addr();
    let certified = connected.peer_name.clone();
    let channel = connect::one_channel(&contact.address, connected).await?;
    let (mut answer, heard) = hello(shared, connections, channel, true).await?;
    if answer.name != certified {
        return Err(GreetError::Answer(format!(
            "it calls itself `{}` but its certificate names `{certified}` first",
            answer.name
        )));
    }
    if let Ok(remote) = remote {
        answer.reached_at(&remote.ip().to_string());
    }
    Ok((checked_address(answer)?, heard))
}

fn checked_address(member: Member) -> Result<Member, GreetError> {
    if member.is_unspecified() {
        return Err(GreetError::Answer(super::MemberError::Unspecified(member.name).to_string()));
    }
    Ok(member)
}

/// Dials by each name in turn, since a handshake checks the certificate for one.
async fn dial_contact(
    connections: &Connections,
    contact: &Contact,
) -> Result<crate::identity::Connected, ConnectError> {
    let mut last = None;
    for name in &contact.names {
        match connections.dialer().address(&contact.address, name, &[b"h2"]).await {
            Err(error @ ConnectError::Tls { .. }) => last = last.or(Some(error)),
            answer => return answer,
        }
    }
    Err(last.unwrap_or(ConnectError::Refused { address: contact.address.clone() }))
}

/// Who we say that we are. Listening everywhere, we do not know under which address others reach us: the
/// one from which we reach them is the best that a node can know by itself.
fn myself(shared: &Shared, dialer: &Dialer) -> Member {
    let listen = *shared.listen.lock();
    let mut view = shared.view.lock();
    if let (true, Some(local)) = (super::advertised(&shared.settings, listen).is_none(), dialer.local()) {
        view.advertise(seed::join(&local.to_string(), listen.port()));
    }
    view.me().clone()
}

/// Says who we are; the answer is who that is, and whom it introduces if it was asked to.
async fn hello(
    shared: &Shared,
    connections: &Connections,
    channel: Channel,
    introduce: bool,
) -> Result<(Member, Vec<Member>), GreetError> {
    let me = myself(shared, connections.dialer());
    let request = HelloRequest { version: wire::VERSION, from: Some(me.to_wire()), introduce };
    let mut client = MembersClient::new(channel)
        .max_decoding_message_size(ANSWER_LEN_MAX)
        .max_encoding_message_size(HELLO_LEN_MAX);
    let response = client.hello(request).await.map_err(|status| of_status(&status))?.into_inner();
    if response.version != wire::VERSION {
        return Err(GreetError::Answer(format!(
            "it speaks version {} of the mesh protocol and we speak {}",
            response.version,
            wire::VERSION
        )));
    }
    let told = |error: super::MemberError| GreetError::Answer(error.to_string());
    if response.members.len() > MEMBERS_MAX {
        return Err(GreetError::Answer(format!("it introduces more than {MEMBERS_MAX} members")));
    }
    let heard = response.members.into_iter().map(|member| Member::from_wire(Some(member)));
    Ok((Member::from_wire(response.member).map_err(told)?, heard.collect::<Result<_, _>>().map_err(told)?))
}

fn of_status(status: &tonic::Status) -> GreetError {
    use tonic::Code;
    match status.code() {
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Unimplemented => GreetError::Refused(status.message().chars().take(300).collect()),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => GreetError::Call(crate::identity::explain(status)),
    }
}

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

/// One line for each change.
pub(super) fn tell(change: &Change) {
    match change {
        Change::Joined(member) => tracing::info!(
            member = member.name, address = member.address, zone = member.zone, role = %member.role,
            "member `{}` is here", member.name
        ),
        Change::Replaced { old, new } if old.generation == new.generation => tracing::info!(
            member = new.name,
            "member `{}` is now at {} instead of {}",
            new.name,
            new.address,
            old.address
        ),
        Change::Replaced { old: _, new } => {
            tracing::info!(member = new.name, "member `{}` was restarted and is at {}", new.name, new.address)
        }
        Change::Unreachable { member, reason } => tracing::warn!(
            member = member.name,
            "member `{}` at {} is unreachable: {reason}",
            member.name,
            member.address
        ),
        Change::Forgotten(member) => {
            tracing::info!(member = member.name, "member `{}` is forgotten", member.name);
        }
        Change::Silent { contact, reason } => {
            tracing::warn!("no member at {} yet: {reason}", contact.address);
        }
        Change::Conflict { name, stays, ignored } => tracing::error!(
            "two nodes are called `{name}`: {stays} started last and stays, {ignored} is ignored; give each node a certificate of its own name"
        ),
        Change::Full => tracing::error!(
            "this mesh has reached its limit of {MEMBERS_MAX} members: further ones are ignored"
        ),
    }
}

/// What has been told about whom, so that a caller that comes every second makes one line.
#[derive(Default)]
pub(super) struct Complaints {
    told: BTreeMap<String, String>,
}

impl Complaints {
    /// Whether `reason` is not the last that was told about `name`.
    pub(super) fn is_news(&mut self, name: &str, reason: &str) -> bool {
        // Forgotten all at once, so that a churn of names cannot fill memory.
        if self.told.len() >= MEMBERS_MAX {
            self.told.clear();
        }
        self.told.insert(name.to_owned(), reason.to_owned()).as_deref() != Some(reason)
    }
}
