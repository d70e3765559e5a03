//! Machines that vanish, and daemons that are only slow.

use tokio::{
    io::copy_bidirectional,
    net::{TcpSocket, TcpStream},
    sync::watch,
};

use super::*;

/// Connections that the kernel takes for a listener of this backlog while nobody accepts any: one more than the backlog.
const BACKLOG: u32 = 1;

/// The way to a member. Closed, it is as if the machine at its end had lost its power: nobody answers, nothing is reset.
struct Way {
    address: SocketAddr,
    open: watch::Sender<bool>,
    /// They fill the queue of a listener that accepts no more.
    fill: Vec<TcpStream>,
}

impl Way {
    fn to(end: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(BACKLOG).unwrap();
        let address = listener.local_addr().unwrap();
        let (open, mut is_open) = watch::channel(true);
        let tasks = TaskTracker::new();
        let forwards = tasks.clone();
        tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    biased;
                    () = becomes(&mut is_open, false) => {
                        becomes(&mut is_open, true).await;
                        continue;
                    }
                    accepted = listener.accept() => accepted,
                };
                forwards.spawn(forward(accepted.unwrap().0, end, is_open.clone()));
            }
        });
        Self { address, open, fill: Vec::new() }
    }

    /// Nobody listens any more, but the machine.
    fn hang(&self) {
        self.open.send_replace(false);
    }

    async fn close(&mut self) {
        self.hang();
        for _ in 0..=BACKLOG {
            self.fill.push(TcpStream::connect(self.address).await.unwrap());
        }
    }

    fn open(&mut self) {
        self.fill.clear();
        self.open.send_replace(true);
    }
}

/// Carries bytes until the way closes, and then holds both ends without a word.
async fn forward(mut from: TcpStream, end: SocketAddr, mut is_open: watch::Receiver<bool>) {
    let Ok(mut to) = TcpStream::connect(end).await else { return };
    tokio::select! {
        _either_hung_up = copy_bidirectional(&mut from, &mut to) => {}
        () = becomes(&mut is_open, false) => becomes(&mut is_open, true).await,
    }
}

/// For ever, once the way itself is gone.
async fn becomes(is_open: &mut watch::Receiver<bool>, wanted: bool) {
    if is_open.wait_for(|open| *open == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Two who know each other, `a` and `b`; `b` is reached by a way.
async fn two(ca: &Ca) -> (Node, Node, Way) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listen = listener.local_addr().unwrap();
    drop(listener);
    let way = Way::to(listen);
    let a = Start::new(ca, "a").up().await;
    let start = Start { listen, advertise: Some(way.address.to_string()), ..Start::new(ca, "b") };
    let b = start.knowing(a.address).up().await;
    a.sees("a b").await;
    b.sees("a b").await;
    (a, b, way)
}

fn whatever() -> Digest {
    Digest::of(Algorithm::Sha256, b"whatever")
}

fn ranked(node: &Node) -> String {
    node.mesh.rank(&whatever()).iter().map(|member| member.name.as_str()).collect::<Vec<_>>().join(" ")
}

async fn is_ranked(node: &Node, names: &str) {
    let mut changed = node.mesh.changed();
    let ranked = async {
        while ranked(node) != names {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(GUARD, ranked).await.expect("it is back");
}

async fn is_gone(node: &Node, member: &Member) {
    tokio::time::timeout(GUARD, node.mesh.gone(member, &whatever())).await.expect("nobody opens");
}

#[tokio::test]
async fn a_machine_that_answers_nothing_is_passed_over_until_it_opens() {
    let ca = Ca::new("ca");
    let (a, b, mut way) = two(&ca).await;
    let both = ranked(&a);
    assert_eq!(both.len(), "a b".len());
    // b goes on, and reaches a: that says nothing of the way to it.
    way.close().await;
    let member = b.mesh.me();
    is_gone(&a, &member).await;
    assert_eq!(ranked(&a), "a");
    // And nobody else waits for it.
    is_gone(&a, &member).await;
    way.open();
    is_ranked(&a, &both).await;
    assert_eq!(a.mesh.member("b").map(|back| back.generation), Some(member.generation), "the same daemon");
}

#[tokio::test]
async fn a_restart_ends_the_silence() {
    let ca = Ca::new("ca");
    let (a, b, mut way) = two(&ca).await;
    let both = ranked(&a);
    way.close().await;
    let (member, listen) = (b.mesh.me(), b.die().await);
    is_gone(&a, &member).await;
    assert_eq!(ranked(&a), "a");
    // Elsewhere, while the old place is as silent as before.
    let _b = Start { listen, generation: 2, ..Start::new(&ca, "b") }.knowing(a.address).up().await;
    is_ranked(&a, &both).await;
}

#[tokio::test]
async fn a_daemon_that_is_only_slow_is_not_gone() {
    let ca = Ca::new("ca");
    let (a, b, way) = two(&ca).await;
    let both = ranked(&a);
    // Its machine opens connections; nothing is accepted or said any more.
    way.hang();
    let gone = tokio::time::timeout(Duration::from_secs(1), a.mesh.gone(&b.mesh.me(), &whatever())).await;
    assert!(gone.is_err() && ranked(&a) == both, "`gone` says so of a machine that answers");
}

#[tokio::test]
async fn who_only_knocks_is_not_complained_of() {
    let ca = Ca::new("ca");
    let a = Start::new(&ca, "a").up().await;
    drop(TcpStream::connect(a.address).await.unwrap());
    let said = a.turned_away().await;
    assert_eq!(said, "a connection was gone before its first byte");
}
