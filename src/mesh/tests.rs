//! Members on loopback, over real TLS: they meet, die, come back, and are refused in words.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tonic::Status;
use tower::Service;

use super::*;
use crate::{
    identity::{self, accept, testing::Ca},
    oci::Algorithm,
    wire::mesh::{
        members_client::MembersClient,
        members_server::{Members, MembersServer},
    },
};

/// Nothing here waits for time to pass; this only ends a test that would hang.
const GUARD: Duration = Duration::from_secs(60);

mod silence;

/// A member with the smallest mesh door there can be.
struct Node {
    mesh: Mesh,
    address: SocketAddr,
    door: Arc<Door>,
    /// Ends it with good-bye.
    stop: CancellationToken,
    /// Ends it as kill -9 does.
    kill: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Door {
    refused: Mutex<Vec<String>>,
    connections: AtomicU32,
    refused_news: Notify,
}

struct Answering {
    mesh: Mesh,
    peer_name: String,
}

#[tonic::async_trait]
impl Members for Answering {
    async fn hello(
        &self,
        request: tonic::Request<wire::HelloRequest>,
    ) -> Result<tonic::Response<wire::HelloResponse>, Status> {
        match self.mesh.answer(request.into_inner(), &self.peer_name) {
            Ok(answer) => Ok(tonic::Response::new(answer)),
            Err(error) => Err(Status::failed_precondition(error.to_string())),
        }
    }

    async fn swim(
        &self,
        request: tonic::Request<wire::SwimFrames>,
    ) -> Result<tonic::Response<wire::SwimFrames>, Status> {
        let answer = self.mesh.frames(request.into_inner(), &self.peer_name);
        answer.map(tonic::Response::new).map_err(|error| Status::invalid_argument(error.to_string()))
    }

    async fn compare(
        &self,
        request: tonic::Request<wire::CompareRequest>,
    ) -> Result<tonic::Response<wire::CompareResponse>, Status> {
        let answer = self.mesh.compare(request.get_ref());
        answer.map(tonic::Response::new).map_err(|error| Status::invalid_argument(error.to_string()))
    }

    async fn exchange(
        &self,
        request: tonic::Request<wire::ExchangeRequest>,
    ) -> Result<tonic::Response<wire::ExchangeResponse>, Status> {
        let answer = self.mesh.exchange(request.into_inner(), &self.peer_name);
        answer.map(tonic::Response::new).map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

struct Start<'a> {
    name: &'a str,
    identity: Identity,
    listen: SocketAddr,
    advertise: Option<String>,
    seeds: Vec<String>,
    generation: u64,
}

impl<'a> Start<'a> {
    fn new(ca: &Ca, name: &'a str) -> Self {
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        Self { name, identity: ca.identity(name), listen, advertise: None, seeds: Vec::new(), generation: 1 }
    }

    fn knowing(mut self, seed: impl ToString) -> Self {
        self.seeds.push(seed.to_string());
        self
    }

    async fn up(self) -> Node {
        let listener = TcpListener::bind(self.listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Settings {
            listen: address,
            advertise: self.advertise,
            members: self.seeds.iter().map(|seed| seed.parse().unwrap()).collect(),
            name: self.name.into(),
            zone: Some("z1".into()),
            role: Role::Peer,
            upload_rate: None,
            download_rate: None,
        };
        let mesh = Mesh::new(settings, Some(self.identity.clone()), self.generation);
        let (tasks, door) = (TaskTracker::new(), Arc::<Door>::default());
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let serving = serve(listener, self.identity, mesh.clone(), door.clone(), tasks.clone());
        let killed = kill.clone();
        tasks.spawn(async move { killed.run_until_cancelled(serving).await });
        let (running, stopped, killed) = (mesh.clone(), stop.clone(), kill.clone());
        tasks.spawn(async move { killed.run_until_cancelled(running.run(stopped)).await });
        Node { mesh, address, door, stop, kill, tasks }
    }
}

async fn serve(listener: TcpListener, identity: Identity, mesh: Mesh, door: Arc<Door>, tasks: TaskTracker) {
    // Connections end with this future.
    let closing = CancellationToken::new();
    let _close = closing.clone().drop_guard();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (identity, mesh, door) = (identity.clone(), mesh.clone(), door.clone());
        let closing = closing.clone();
        tasks.spawn(async move {
            closing.run_until_cancelled(connection(tcp, &identity, mesh, &door)).await;
        });
    }
}

async fn connection(tcp: tokio::net::TcpStream, identity: &Identity, mesh: Mesh, door: &Door) {
    let accepted = match accept(identity, tcp).await {
        Ok(accepted) => accepted,
        Err(error) => {
            door.refused.lock().push(error.to_string());
            door.refused_news.notify_waiters();
            return;
        }
    };
    door.connections.fetch_add(1, Ordering::Relaxed);
    let members = MembersServer::new(Answering { mesh, peer_name: accepted.peer_name });
    let service = service_fn(move |request: Request<Incoming>| {
        let mut members = members.clone();
        async move {
            match request.uri().path() {
                "/close" => Ok(Response::builder()
                    .header("connection", "close")
                    .body(tonic::body::Body::new(Full::new(Bytes::from_static(b"bye"))))
                    .unwrap()),
                path if path.starts_with("/v1/") => {
                    let path = Bytes::from(path.to_owned());
                    Ok(Response::new(tonic::body::Body::new(Full::new(path))))
                }
                _ => members.call(request).await,
            }
        }
    });
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(accepted.stream), service)
        .await;
}

impl Node {
    fn names(&self) -> String {
        self.mesh.members().iter().map(|member| member.name.as_str()).collect::<Vec<_>>().join(" ")
    }

    async fn sees(&self, names: &str) {
        let mut changed = self.mesh.changed();
        let seeing = async {
            while self.names() != names {
                changed.changed().await.unwrap();
            }
        };
        let seen = tokio::time::timeout(GUARD, seeing).await;
        assert!(seen.is_ok(), "sees `{}`, not `{names}`: {:?}", self.names(), self.mesh.all());
    }

    /// The listener and every connection close, as with kill -9.
    async fn die(self) -> SocketAddr {
        self.kill.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.address
    }

    /// Why this node sees nobody, in its own words.
    async fn trouble(&self) -> String {
        let unreachable = |all: Vec<(Member, MemberState)>| {
            all.into_iter().find_map(|(_, state)| match state {
                MemberState::Unreachable { reason } => Some(reason),
                MemberState::Alive | MemberState::Joining => None,
            })
        };
        let seeing = async {
            loop {
                if let Some(reason) = unreachable(self.mesh.all()) {
                    return reason;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(GUARD, seeing).await.expect("it sees no trouble")
    }

    /// What this node says about whom it turned away.
    async fn turned_away(&self) -> String {
        let seeing = async {
            loop {
                let news = self.door.refused_news.notified();
                if let Some(line) = self.door.refused.lock().first() {
                    return line.clone();
                }
                news.await;
            }
        };
        tokio::time::timeout(GUARD, seeing).await.expect("it turned nobody away")
    }
}

#[tokio::test]
async fn three_who_know_only_one_of_them_meet_and_rank_alike() {
    let ca = Ca::new("ca");
    let a = Start::new(&ca, "a").up().await;
    let b = Start::new(&ca, "b").knowing(a.address).up().await;
    b.sees("a b").await;
    // c hears of b from a, and b of c.
    let c = Start::new(&ca, "c").knowing(a.address).up().await;
    for node in [&a, &b, &c] {
        node.sees("a b c").await;
    }
    assert_eq!(a.mesh.members()[1], b.mesh.me());
    for n in 0..20u8 {
        let digest = crate::oci::Digest::of(Algorithm::Sha256, &[n]);
        assert_eq!(a.mesh.rank(&digest), b.mesh.rank(&digest));
        assert_eq!(a.mesh.rank(&digest), c.mesh.rank(&digest));
    }
}

#[tokio::test]
async fn one_who_dies_is_noticed_and_welcome_when_it_is_back() {
    let ca = Ca::new("ca");
    let a = Start::new(&ca, "a").up().await;
    let b = Start::new(&ca, "b").knowing(a.address).up().await;
    a.sees("a b").await;
    let old = b.mesh.me();
    let address = b.die().await;
    a.sees("a").await;
    let reason = a.trouble().await;
    assert!(reason.contains("refused the connection: no daemon listens there"), "{reason}");
    let b = Start { listen: address, generation: 2, ..Start::new(&ca, "b") }.knowing(a.address).up().await;
    a.sees("a b").await;
    assert_eq!(a.mesh.members()[1].generation, 2);
    assert_ne!(a.mesh.members()[1], old);
    b.sees("a b").await;
}

#[tokio::test]
async fn one_who_leaves_says_so() {
    let ca = Ca::new("ca");
    let a = Start::new(&ca, "a").up().await;
    let b = Start::new(&ca, "b").knowing(a.address).up().await;
    a.sees("a b").await;
    b.sees("a b").await;
    b.stop.cancel();
    a.sees("a").await;
    assert_eq!(a.trouble().await, "it left");
}

#[tokio::test]
async fn frames_are_taken_from_whom_the_certificate_names_only() {
    let ca = Ca::new("ca");
    let a = Start::new(&ca, "a").up().await;
    let b = Start::new(&ca, "b").knowing(a.address).up().await;
    let c = Start::new(&ca, "c").knowing(a.address).up().await;
    for node in [&a, &b, &c] {
        node.sees("a b c").await;
    }
    // c tells news in the name of b.
    let frames = b.mesh.shared.swim.lock().gossip();
    assert!(!frames.is_empty());
    let channel = c.mesh.control(&a.mesh.me()).await.unwrap();
    let mut client = wire::members_client::MembersClient::new(channel);
    let refused = client.swim(wire::SwimFrames { frames }).await.unwrap_err();
    assert!(refused.message().contains("comes from `b` and the certificate names `c`"), "{refused:?}");
    assert_eq!(a.names(), "a b c");
}

#[tokio::test]
async fn members_are_found_by_a_dns_name() {
    let ca = Ca::new("ca");
    let a = Start::new(&ca, "a").up().await;
    let b = Start::new(&ca, "b").knowing(format!("dns:localhost:{}", a.address.port())).up().await;
    a.sees("a b").await;
    b.sees("a b").await;
}

#[tokio::test]
async fn a_node_that_listens_everywhere_learns_its_address_by_dialing() {
    let ca = Ca::new("ca");
    let a = Start { listen: (Ipv4Addr::UNSPECIFIED, 0).into(), ..Start::new(&ca, "a") }.up().await;
    let port = a.address.port();
    let b = Start { listen: (Ipv4Addr::UNSPECIFIED, 0).into(), ..Start::new(&ca, "b") }
        .knowing(format!("127.0.0.1:{port}"))
        .up()
        .await;
    b.sees("a b").await;
    a.sees("a b").await;
    assert_eq!(a.mesh.members()[1].address, format!("127.0.0.1:{}", b.address.port()));
    assert_eq!(b.mesh.members()[0].address, format!("127.0.0.1:{port}"));
}

#[tokio::test]
async fn one_of_another_ca_is_refused_with_a_line_on_both_sides() {
    let a = Start::new(&Ca::new("ours"), "a").up().await;
    let b = Start::new(&Ca::new("theirs"), "b").knowing(a.address).up().await;
    let (dialing, answering) = (b.trouble().await, a.turned_away().await);
    assert!(dialing.contains("certificate is of an unknown CA"), "{dialing}");
    assert!(answering.contains("does not know the CA of our certificate"), "{answering}");
    assert_eq!((a.names(), b.names()), ("a".into(), "b".into()));
}

#[tokio::test]
async fn the_verdict_on_our_certificate_that_comes_after_the_handshake_is_told_in_words() {
    // The rotation that goes wrong most: b has the new certificate before a trusts the new CA.
    let (old, new, dir) = (Ca::new("old"), Ca::new("new"), tempfile::tempdir().unwrap());
    let files = new.node("b").write(dir.path());
    std::fs::write(&files.ca, format!("{}{}", old.pem, new.pem)).unwrap();
    let identity = identity::load(&files, std::time::SystemTime::now()).unwrap();
    let a = Start::new(&old, "a").up().await;
    let b = Start { identity, ..Start::new(&new, "b") }.knowing(a.address).up().await;
    let (dialing, answering) = (b.trouble().await, a.turned_away().await);
    assert!(dialing.contains("does not know the CA of our certificate"), "{dialing}");
    assert!(answering.contains("certificate is of an unknown CA"), "{answering}");
    let error = body(&b.mesh, &a.mesh.me(), "/v1/x").await.unwrap_err();
    assert!(
        matches!(&error, GetError::Refused { why, .. } if why.contains("does not know the CA")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_seed_dialed_by_a_name_that_its_certificate_lacks_is_refused() {
    let (ca, dir) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let files = ca.node("a").names(&["a"]).write(dir.path());
    let identity = identity::load(&files, std::time::SystemTime::now()).unwrap();
    let a = Start { identity, ..Start::new(&ca, "a") }.up().await;
    let b = Start::new(&ca, "b").knowing(a.address).up().await;
    let (dialing, answering) = (b.trouble().await, a.turned_away().await);
    assert!(dialing.contains("wrong name (SAN): we dialed 127.0.0.1"), "{dialing}");
    assert!(answering.contains("does not name (SAN) the node that was dialed"), "{answering}");
}

#[tokio::test]
async fn a_seed_that_speaks_plaintext_is_told_in_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let plain = TaskTracker::new();
    plain.spawn(async move {
        use tokio::io::AsyncWriteExt;
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let b = Start::new(&Ca::new("ca"), "b").knowing(address).up().await;
    let reason = b.trouble().await;
    assert!(reason.contains("we spoke TLS to a plaintext port"), "{reason}");
}

#[tokio::test]
async fn a_greeting_must_be_of_this_version_within_limits_and_under_the_certified_name() {
    let ca = Ca::new("ca");
    let a = Start::new(&ca, "a").up().await;
    let stranger = Member { name: "s".into(), address: "s:1".into(), ..a.mesh.me() };
    let ask = |version, from: Member, certified| {
        let request = wire::HelloRequest { version, from: Some(from.to_wire()), revision: 0 };
        a.mesh.answer(request, certified).map(|answer| answer.member.unwrap().name)
    };
    assert_eq!(ask(9, stranger.clone(), "s"), Err(HelloError::Version { theirs: 9 }));
    let impostor = HelloError::Name { claimed: "s".into(), certified: "t".into() };
    assert_eq!(ask(wire::VERSION, stranger.clone(), "t"), Err(impostor));
    let nowhere = Member { address: "0.0.0.0:7442".into(), ..stranger.clone() };
    let unspecified = HelloError::Member(MemberError::Unspecified("s".into()));
    assert_eq!(ask(wire::VERSION, nowhere, "s"), Err(unspecified));
    let long = Member { zone: Some("z".repeat(64)), ..stranger.clone() };
    assert!(matches!(ask(wire::VERSION, long, "s"), Err(HelloError::Member(MemberError::Zone(_)))));
    let namesake = Member { name: "a".into(), generation: 99, ..stranger.clone() };
    assert!(
        matches!(ask(wire::VERSION, namesake, "a"), Err(HelloError::Refused(line)) if line.contains("also called `a`"))
    );
    let nobody = wire::HelloRequest { version: wire::VERSION, from: None, revision: 0 };
    assert_eq!(a.mesh.answer(nobody, "s"), Err(HelloError::Member(MemberError::Absent)));
    assert_eq!(ask(wire::VERSION, stranger, "s"), Ok("a".into()));
}

async fn body(mesh: &Mesh, to: &Member, path: &str) -> Result<String, GetError> {
    let response = mesh.get(to, path).await?;
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    Ok(String::from_utf8(bytes.into()).unwrap())
}

#[tokio::test]
async fn gets_share_connections_that_are_idle_and_dial_when_one_was_closed() {
    let ca = Ca::new("ca");
    let a = Start::new(&ca, "a").up().await;
    // Not running: every connection that a sees is one of these gets.
    let settings = Settings {
        listen: (Ipv4Addr::LOCALHOST, 1).into(),
        advertise: None,
        members: Vec::new(),
        name: "b".into(),
        zone: None,
        role: Role::Peer,
        upload_rate: None,
        download_rate: None,
    };
    let b = Mesh::new(settings, Some(ca.identity("b")), 1);
    let to = a.mesh.me();
    let connections = || a.door.connections.load(Ordering::Relaxed);
    for n in 0..5 {
        assert_eq!(body(&b, &to, &format!("/v1/{n}")).await.unwrap(), format!("/v1/{n}"));
    }
    assert_eq!(connections(), 1);
    let first = b.get(&to, "/v1/x").await.unwrap();
    let second = b.get(&to, "/v1/y").await.unwrap();
    assert_eq!(second.into_body().collect().await.unwrap().to_bytes(), "/v1/y");
    assert_eq!(first.into_body().collect().await.unwrap().to_bytes(), "/v1/x");
    assert!(connections() <= 2);
    let before = connections();
    for _ in 0..3 {
        assert_eq!(body(&b, &to, "/close").await.unwrap(), "bye");
    }
    assert_eq!(body(&b, &to, "/v1/z").await.unwrap(), "/v1/z");
    assert!(connections() > before);

    let restarted = Member { generation: 2, ..to.clone() };
    let before = connections();
    assert_eq!(body(&b, &restarted, "/v1/z").await.unwrap(), "/v1/z");
    assert_eq!(connections(), before + 1, "nothing kept leads to the old daemon");
    assert!(matches!(b.get(&to, "v1").await, Err(GetError::Path { .. })));
    let other = Member { name: "c".into(), ..to.clone() };
    let error = body(&b, &other, "/v1/z").await.unwrap_err().to_string();
    assert!(error.contains("wrong name (SAN): we dialed c"), "{error}");
    let address = a.die().await;
    let error = body(&b, &to, "/v1/z").await.unwrap_err();
    assert!(
        matches!(&error, GetError::Connect(ConnectError::Refused { address: at }) if *at == address.to_string())
    );
}

#[tokio::test]
async fn a_control_channel_outlives_its_connection() {
    let ca = Ca::new("ca");
    let a = Start::new(&ca, "a").up().await;
    let b = Start::new(&ca, "b").up().await;
    let to = a.mesh.me();
    let channel = b.mesh.control(&to).await.unwrap();
    let hello = async |channel: &Channel| {
        let mut client = wire::members_client::MembersClient::new(channel.clone());
        let from = Some(b.mesh.me().to_wire());
        client.hello(wire::HelloRequest { version: wire::VERSION, from, revision: 0 }).await
    };
    assert!(hello(&channel).await.is_ok());
    let address = a.die().await;
    assert!(hello(&channel).await.is_err());
    let again = Start { listen: address, ..Start::new(&ca, "a") }.up().await;
    let answered = async { while hello(&channel).await.is_err() {} };
    tokio::time::timeout(GUARD, answered).await.expect("the channel dials again");
    drop(again);
}

#[test]
fn what_is_advertised_is_a_host_with_or_without_a_port() {
    for good in ["node5", "node5:7442", "10.0.0.5", "fd00::5", "[fd00::5]", "[fd00::5]:7442"] {
        assert!(is_advertisable(good), "{good}");
    }
    for bad in ["", "http://node5", "node5:", "node5:0", "a b"] {
        assert!(!is_advertisable(bad), "{bad}");
    }
}

#[tokio::test]
async fn without_a_certificate_a_node_is_alone() {
    let settings = Settings {
        listen: (Ipv4Addr::UNSPECIFIED, 7442).into(),
        advertise: Some("Node5".into()),
        members: vec!["127.0.0.1:1".parse().unwrap()],
        name: "node5".into(),
        zone: None,
        role: Role::Leech,
        upload_rate: None,
        download_rate: None,
    };
    let mesh = Mesh::new(settings, None, 1);
    assert_eq!(mesh.me().address, "node5:7442");
    assert_eq!(mesh.rank(&crate::oci::Digest::of(Algorithm::Sha256, b"")), [mesh.me()]);
    assert!(matches!(mesh.control(&mesh.me()).await, Err(ConnectError::Closed)));
    let caller = Member { name: "x".into(), address: "x:1".into(), ..mesh.me() };
    let hello = wire::HelloRequest { version: wire::VERSION, from: Some(caller.to_wire()), revision: 0 };
    assert_eq!(mesh.answer(hello, "x"), Err(HelloError::Closed));
    let stop = CancellationToken::new();
    stop.cancel();
    mesh.run(stop).await;
    assert_eq!(mesh.members(), [mesh.me()]);
}

/// Passes one connection after the other on to `to`, and counts bytes.
async fn relay(to: SocketAddr, tasks: &TaskTracker) -> (SocketAddr, Arc<[AtomicU32; 2]>) {
    async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, passed: &AtomicU32) {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut buffer).await {
            passed.fetch_add(u32::try_from(len).unwrap(), Ordering::Relaxed);
            if to.write_all(&buffer[..len]).await.is_err() {
                return;
            }
        }
        let _closed = to.shutdown().await;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let passed: Arc<[AtomicU32; 2]> = Arc::default();
    let (counted, copying) = (Arc::clone(&passed), tasks.clone());
    tasks.spawn(async move {
        while let Ok((here, _)) = listener.accept().await {
            let there = tokio::net::TcpStream::connect(to).await.unwrap();
            let counted = Arc::clone(&counted);
            copying.spawn(async move {
                let ((from_here, to_here), (from_there, to_there)) = (here.into_split(), there.into_split());
                tokio::join!(copy(from_here, to_there, &counted[0]), copy(from_there, to_here, &counted[1]));
            });
        }
    });
    (address, passed)
}

/// What the wire carries beyond TCP's own: the figures behind ARCHITECTURE's on idle membership.
#[tokio::test]
async fn a_message_on_a_kept_connection_costs_a_tenth_of_a_handshake() {
    let ca = Ca::new("ca");
    let (a, b) = (Start::new(&ca, "a").up().await, Start::new(&ca, "b").up().await);
    let (address, passed) = relay(b.address, &a.tasks).await;
    let to = Member { address: address.to_string(), ..b.mesh.me() };
    let connections = a.mesh.shared.connections.get().unwrap();
    let mut costs = Vec::new();
    for what in ["a new connection", "the same again", "a resumed connection"] {
        if what == "a resumed connection" {
            connections.forget_channel(&to.name);
        }
        let mut client = MembersClient::new(connections.control(&to).await.unwrap());
        client.swim(wire::SwimFrames::default()).await.unwrap();
        // An answer that has come has passed; what follows it (tickets, acknowledgements) has soon.
        let passed_now = || [0, 1].map(|way: usize| passed[way].load(Ordering::Relaxed));
        let mut before = passed_now();
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let after = passed_now();
            if before == after {
                break;
            }
            before = after;
        }
        let cost = [0, 1].map(|way: usize| passed[way].swap(0, Ordering::Relaxed));
        println!("{what} and an empty message on it: {} bytes there, {} back", cost[0], cost[1]);
        costs.push(cost[0] + cost[1]);
    }
    assert!(costs[1] * 10 < costs[0], "{costs:?}");
    assert!(costs[2] < costs[0], "{costs:?}");
}
