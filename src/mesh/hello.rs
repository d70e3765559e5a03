//! Hello, from the asking side: who is there?

use std::time::{Duration, Instant};

use tokio::time::timeout;
use tonic::transport::Channel;

use super::{
    Member, MemberError, Shared,
    connect::{self, Connections},
    dial::{ConnectError, Dialer},
    seed,
    swim::{Contact, Event, Life, Target},
};
use crate::wire::mesh::{self as wire, HelloRequest, members_client::MembersClient};

/// A greeting may connect first, and proves both sides.
const GREET_MAX: Duration = Duration::from_secs(5);
/// The longest Hello that anybody sends us: one member with every field at its limit fits many times over.
pub const HELLO_LEN_MAX: usize = 16 * 1024;
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

pub(super) async fn greet(shared: &Shared, connections: &Connections, target: Target) -> Event {
    let greeting = async {
        match &target {
            Target::Member(life) => greet_member(shared, connections, life.member()).await,
            Target::Contact(contact) => greet_contact(shared, connections, contact).await,
        }
    };
    match timeout(GREET_MAX, greeting).await.unwrap_or(Err(GreetError::Timeout(GREET_MAX))) {
        Ok(life) => Event::Answered { target, life },
        Err(error) => Event::Failed { target, reason: error.to_string(), is_final: error.is_final() },
    }
}

async fn greet_member(
    shared: &Shared,
    connections: &Connections,
    member: &Member,
) -> Result<Life, GreetError> {
    let channel = connections.control(member).await?;
    let (mut answer, revision) = match hello(shared, connections, channel).await {
        // The daemon may have gone or been restarted since the last call: dialing tells which.
        Err(GreetError::Call(_)) => {
            connections.forget_channel(&member.name);
            let channel = connections.control(member).await?;
            hello(shared, connections, channel).await?
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
    Ok(Life::new(checked_address(answer)?, revision))
}

async fn greet_contact(
    shared: &Shared,
    connections: &Connections,
    contact: &Contact,
) -> Result<Life, GreetError> {
    let connected = dial_contact(connections, contact).await?;
    let remote = connected.stream.tcp().peer_addr();
    let certified = connected.peer_name.clone();
    let channel = connect::one_channel(&contact.address, connected).await?;
    let (mut answer, revision) = hello(shared, connections, channel).await?;
    if answer.name != certified {
        return Err(GreetError::Answer(format!(
            "it calls itself `{}` but its certificate names `{certified}` first",
            answer.name
        )));
    }
    if let Ok(remote) = remote {
        answer.reached_at(&remote.ip().to_string());
    }
    Ok(Life::new(checked_address(answer)?, revision))
}

fn checked_address(member: Member) -> Result<Member, GreetError> {
    if member.is_unspecified() {
        return Err(GreetError::Answer(MemberError::Unspecified(member.name).to_string()));
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
fn myself(shared: &Shared, dialer: &Dialer) -> Life {
    let listen = *shared.listen.lock();
    let mut swim = shared.swim.lock();
    if let (true, Some(local)) = (super::advertised(&shared.settings, listen).is_none(), dialer.local()) {
        swim.advertise(seed::join(&local.to_string(), listen.port()), Instant::now());
    }
    swim.me().clone()
}

/// Says who we are; the answer is who that is, and in which revision.
async fn hello(
    shared: &Shared,
    connections: &Connections,
    channel: Channel,
) -> Result<(Member, u32), GreetError> {
    let wire::Life { member: from, revision } = myself(shared, connections.dialer()).to_wire();
    let request = HelloRequest { version: wire::VERSION, from, revision };
    let mut client = MembersClient::new(channel)
        .max_decoding_message_size(HELLO_LEN_MAX)
        .max_encoding_message_size(HELLO_LEN_MAX);
    let response = client.hello(request).await.map_err(|status| of_status(&status))?.into_inner();
    if response.version != wire::VERSION {
        return Err(GreetError::Answer(format!(
            "it speaks version {} of the mesh protocol and we speak {}",
            response.version,
            wire::VERSION
        )));
    }
    let member = Member::from_wire(response.member);
    let member = member.map_err(|error| GreetError::Answer(error.to_string()))?;
    Ok((member, response.revision))
}

/// Whether the connection may be the reason and not the other side's answer.
pub(super) fn is_broken(status: &tonic::Status) -> bool {
    matches!(of_status(status), GreetError::Call(_))
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
