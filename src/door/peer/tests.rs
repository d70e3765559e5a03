//! Nodes on loopback with everything real (TLS, mesh, store, origin client) and a registry that counts.

mod far;
#[expect(clippy::print_stdout, reason = "figures")]
mod host;
mod small;

use std::{
    io::Read,
    net::{Ipv4Addr, SocketAddr},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use parking_lot::Mutex;

use super::*;
use crate::{
    containerd::Client,
    identity::testing::Ca,
    mesh::{Role, Seed},
    oci::{Algorithm, Digest, Repository},
    origin::{Asker, Kind, Origin},
    piece::PieceLayout,
    preheat,
    pull::{self, Metrics, PullState, Pulls, Want},
    store::Store,
};

/// Ends a test that would hang; nothing waits for it.
const GUARD: Duration = Duration::from_secs(60);

/// A registry with one blob that takes down which bytes it sent.
struct Registry {
    blob: Bytes,
    sent: Mutex<Vec<Range<usize>>>,
    ranges: bool,
}

impl Registry {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !request.uri().path().contains("/blobs/") {
            return Response::new(Full::default());
        }
        let len = self.blob.len();
        let wanted = request.headers().get(header::RANGE).filter(|_| self.ranges).map(|range| {
            let (first, last) = range.to_str().unwrap()["bytes=".len()..].split_once('-').unwrap();
            first.parse().unwrap()..last.parse::<usize>().unwrap() + 1
        });
        let mut response = Response::builder().header(header::ACCEPT_RANGES, "bytes");
        let range = wanted.clone().unwrap_or(0..len);
        if let Some(wanted) = wanted {
            let stated = format!("bytes {}-{}/{len}", wanted.start, wanted.end - 1);
            response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, stated);
        }
        response = response.header(header::CONTENT_LENGTH, range.len());
        if request.method() == Method::HEAD {
            return response.body(Full::default()).unwrap();
        }
        self.sent.lock().push(range.clone());
        response.body(Full::new(self.blob.slice(range))).unwrap()
    }

    async fn up(self: Arc<Self>, tasks: &TaskTracker, stop: &CancellationToken) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, stop) = (tasks.clone(), stop.clone());
        tasks.spawn(async move {
            while let Some(Ok((tcp, _))) = stop.run_until_cancelled(listener.accept()).await {
                connections.spawn(self.clone().speak(tcp, stop.clone()));
            }
        });
        address
    }

    async fn speak(self: Arc<Self>, tcp: TcpStream, stop: CancellationToken) {
        let service = service_fn(move |request| {
            let registry = self.clone();
            async move { Ok::<_, std::convert::Infallible>(registry.answer(&request)) }
        });
        let http1 = hyper::server::conn::http1::Builder::new();
        stop.run_until_cancelled(http1.serve_connection(TokioIo::new(tcp), service)).await;
    }

    fn bytes_sent(&self) -> usize {
        self.sent.lock().iter().map(Range::len).sum()
    }
}

struct Node {
    pulls: Pulls,
    mesh: Mesh,
    store: Store,
    stop: CancellationToken,
    dir: tempfile::TempDir,
}

struct Crowd {
    registry: Arc<Registry>,
    want: Want,
    settings: pull::Settings,
    nodes: Vec<Node>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Crowd {
    /// `count` nodes that know each other, and a registry with a blob of `len` bytes.
    async fn new(count: usize, len: usize, ranges: bool) -> Self {
        Self::with(count, len, ranges, pull::Settings::default()).await
    }

    async fn with(count: usize, len: usize, ranges: bool, settings: pull::Settings) -> Self {
        let logs =
            tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env());
        let _set_by_another_test = logs.with_test_writer().try_init();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let blob: Bytes = (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        let registry = Arc::new(Registry { blob, sent: Mutex::default(), ranges });
        let host = registry.clone().up(&tasks, &stop).await.to_string();
        let want = Want {
            digest: Digest::of(Algorithm::Sha256, &registry.blob),
            len: len as u64,
            origins: vec![Repository { host, path: "library/test".into() }],
            kind: Kind::Blob,
            asker: Asker::Node,
            image: None,
        };
        let ca = Ca::new("mesh");
        let mut crowd = Self { registry, want, settings, nodes: Vec::new(), tasks, stop };
        let mut listeners = Vec::new();
        for _ in 0..count {
            listeners.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        }
        let members: Vec<_> = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap().to_string().parse().unwrap())
            .collect();
        for (number, listener) in listeners.into_iter().enumerate() {
            crowd.node(ca.identity(&format!("node-{number}")), listener, members.clone());
        }
        for node in &crowd.nodes {
            let mut changed = node.mesh.changed();
            let all = async {
                while node.mesh.members().len() < count {
                    changed.changed().await.unwrap();
                }
            };
            tokio::time::timeout(GUARD, all).await.expect("every node sees all");
        }
        crowd
    }

    fn node(&mut self, identity: Identity, listener: TcpListener, members: Vec<Seed>) {
        let (tasks, stop) = (self.tasks.clone(), self.stop.child_token());
        let settings = crate::mesh::Settings {
            listen: listener.local_addr().unwrap(),
            advertise: None,
            members,
            name: identity.name(),
            zone: None,
            role: Role::Peer,
            upload_rate: None,
            download_rate: None,
        };
        let mesh = Mesh::new(settings, Some(identity.clone()), 1);
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(crate::store::Settings {
            dir: dir.path().join("store"),
            quota: Some(1 << 32),
            keep_free: Some(0),
            sync: false,
            ..crate::store::Settings::default()
        })
        .unwrap();
        let origin = Origin::new(crate::origin::Settings {
            hosts_dir: Vec::new(),
            plain_http: vec!["127.0.0.1".to_owned()],
            ..crate::origin::Settings::default()
        })
        .unwrap();
        let pulls = Pulls::new(crate::pull::Parts {
            store: store.clone(),
            origin: origin.clone(),
            mesh: mesh.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
            metrics: Metrics::default(),
            settings: self.settings.clone(),
        });
        let preheats = preheat::Preheats::new(preheat::Parts {
            origin,
            pulls: pulls.clone(),
            mesh: mesh.clone(),
            containerd: Client::new(&dir.path().join("containerd.sock")),
            tasks: self.tasks.clone(),
            stop: stop.clone(),
        });
        let parts = Parts { identity, mesh: mesh.clone(), pulls: pulls.clone(), preheats };
        tasks.spawn(serve(listener, parts, stop.clone(), tasks.clone()));
        let (running, stopped) = (mesh.clone(), stop.clone());
        tasks.spawn(async move { running.run(stopped).await });
        self.nodes.push(Node { pulls, mesh, store, stop, dir });
    }

    async fn down(self) {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(GUARD, self.tasks.wait()).await.expect("everything ends with the stop signal");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_asks_the_origin_once_and_has_the_rest_from_each_other() {
    let len = (24 << 20) + 12_345;
    let crowd = Crowd::new(3, len, true).await;
    let pulls: Vec<_> = crowd.nodes.iter().map(|node| node.pulls.start(crowd.want.clone())).collect();
    for pull in &pulls {
        let blob = tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").unwrap();
        assert_eq!(blob.len(), len as u64);
    }
    assert_eq!(crowd.registry.bytes_sent(), len, "{:?}", crowd.registry.sent.lock());
    let bytes: Vec<_> = pulls.iter().map(|pull| pull.status().bytes).collect();
    assert_eq!(bytes.iter().map(|bytes| bytes.origin).sum::<u64>(), len as u64);
    for bytes in &bytes {
        assert_eq!(bytes.peer + bytes.origin, len as u64);
        assert!(bytes.peer > 0, "{bytes:?}");
    }
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_later_asks_the_origin_nothing() {
    let len = (9 << 20) + 7;
    let crowd = Crowd::new(3, len, true).await;
    for node in &crowd.nodes {
        let pull = node.pulls.start(crowd.want.clone());
        tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").unwrap();
    }
    assert_eq!(crowd.registry.bytes_sent(), len);
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_ranges_serves_a_crowd_as_well() {
    let len = (5 << 20) + 99;
    let crowd = Crowd::new(3, len, false).await;
    let pulls: Vec<_> = crowd.nodes.iter().map(|node| node.pulls.start(crowd.want.clone())).collect();
    for pull in &pulls {
        tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").unwrap();
    }
    assert!(pulls.iter().filter(|pull| pull.status().bytes.peer == len as u64).count() >= 1);
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_follows_the_bytes_in_order() {
    let len = (3 << 20) + 1;
    let crowd = Crowd::new(1, len, true).await;
    let pull = crowd.nodes[0].pulls.start(crowd.want.clone());
    let mut reader = pull.reader();
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map(|_| bytes)
    });
    let bytes = tokio::time::timeout(GUARD, reading).await.expect("the reader hangs").unwrap().unwrap();
    assert!(bytes == crowd.registry.blob);
    pull.proven().await.unwrap();
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_with_other_bytes_fails_the_pull_and_leaves_nothing() {
    let mut crowd = Crowd::new(1, 3 << 20, true).await;
    crowd.want.digest = Digest::of(Algorithm::Sha256, b"something else");
    let pull = crowd.nodes[0].pulls.start(crowd.want.clone());
    let error =
        tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").err().expect("it fails");
    assert_eq!(error.reason(), "wrong_digest");
    assert!(crowd.nodes[0].store.get(&crowd.want.digest).is_none());
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_nobody_has_fails_with_its_reason() {
    let mut crowd = Crowd::new(2, 1 << 20, true).await;
    crowd.want.origins.clear();
    let pull = crowd.nodes[0].pulls.start(crowd.want.clone());
    let error =
        tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").err().expect("it fails");
    assert_eq!(error.reason(), "no_origin");
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_that_dies_is_replaced() {
    let len = 48 << 20;
    let crowd = Crowd::new(4, len, true).await;
    let tracker = crowd.nodes[0].mesh.rank(&crowd.want.digest)[0].name.clone();
    let (dying, living): (Vec<_>, Vec<_>) =
        crowd.nodes.iter().partition(|node| node.mesh.me().name == tracker);
    let pulls: Vec<_> = living.iter().map(|node| node.pulls.start(crowd.want.clone())).collect();
    let mut status = pulls[0].watch();
    tokio::time::timeout(GUARD, status.wait_for(|status| status.arrived > 0)).await.unwrap().unwrap();
    dying[0].stop.cancel();
    for pull in &pulls {
        tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").unwrap();
    }
    let layout = PieceLayout::of(len as u64);
    let twice = crowd.registry.bytes_sent() - len;
    // What was leased when it died may be read twice.
    assert!(twice as u64 <= 8 * 8 * layout.piece_len(), "{twice}");
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_blob_no_more_is_no_liar() {
    let len = 3 << 20;
    let crowd = Crowd::new(2, len, true).await;
    let digest = &crowd.want.digest;
    let tracker = crowd.nodes[0].mesh.rank(digest)[0].name.clone();
    let (first, second): (Vec<_>, Vec<_>) =
        crowd.nodes.iter().partition(|node| node.mesh.me().name == tracker);
    let (tracker, other) = (first[0], second[0]);
    let pulled = async |node: &Node| {
        let pull = node.pulls.start(crowd.want.clone());
        tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").unwrap();
        pull.status().bytes
    };
    pulled(other).await;
    pulled(tracker).await;
    // Nobody has it any more, and the swarm remembers both.
    for node in [tracker, other] {
        assert!(node.store.remove(digest));
        let let_go = async {
            while node.pulls.here(digest).is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(GUARD, let_go).await.expect("the pull lets go of it");
    }
    assert_eq!(pulled(tracker).await.origin, len as u64);
    assert_eq!(pulled(other).await.peer, len as u64, "it is taken back");
    crowd.down().await;
}

impl Crowd {
    /// The containerd of a node has these bytes under the name of the blob.
    fn containerd_has(&self, number: usize, bytes: &[u8]) {
        let node = &self.nodes[number];
        let dir = node.dir.path().join("content");
        std::fs::create_dir_all(dir.join("sha256")).unwrap();
        std::fs::write(dir.join("sha256").join(self.want.digest.hex()), bytes).unwrap();
        node.store.offer(&dir, [(self.want.digest.clone(), self.want.len)].into());
    }

    /// Pulls on a node to the end; where the bytes came from.
    async fn pulled_by(&self, number: usize) -> crate::pull::BySource {
        let pull = self.nodes[number].pulls.start(self.want.clone());
        tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").unwrap();
        pull.status().bytes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_offers_is_read_when_it_is_asked_for() {
    for len in [300, (40 << 20) + 7] {
        let mut crowd = Crowd::new(2, len, true).await;
        crowd.want.origins.clear();
        crowd.containerd_has(0, &crowd.registry.blob);
        assert!(crowd.nodes[0].store.is_unread(&crowd.want.digest));
        assert_eq!(crowd.pulled_by(1).await.peer, len as u64);
        assert!(
            crowd.nodes[0].store.get(&crowd.want.digest).is_some(),
            "it was read for the first who asked"
        );
        crowd.down().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_of_other_bytes_costs_no_pull() {
    let len = (3 << 20) + 1;
    let crowd = Crowd::new(2, len, true).await;
    let mut wrong = crowd.registry.blob.to_vec();
    wrong[1 << 20] ^= 1;
    crowd.containerd_has(0, &wrong);
    assert_eq!(crowd.pulled_by(1).await.origin, len as u64);
    assert!(!crowd.nodes[0].store.holds(&crowd.want.digest), "it is not offered any more");
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_of_what_containerd_has_comes_from_no_network() {
    let len = (3 << 20) + 1;
    let crowd = Crowd::new(1, len, true).await;
    crowd.containerd_has(0, &crowd.registry.blob);
    assert_eq!(crowd.pulled_by(0).await.local, len as u64);
    assert_eq!(crowd.registry.bytes_sent(), 0);
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asks_for_is_read_when_the_node_is_idle() {
    let crowd = Crowd::new(1, 100, true).await;
    crowd.containerd_has(0, &crowd.registry.blob);
    let Node { pulls, store, .. } = &crowd.nodes[0];
    tokio::time::timeout(GUARD, pulls.read_when_idle(&crowd.want.digest)).await.expect("the node is idle");
    assert!(store.get(&crowd.want.digest).is_some());
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_whose_client_went_away_goes_on_for_whoever_comes_back() {
    assert_eq!(pull::Settings::default().linger, Duration::from_secs(60));
    let crowd = Crowd::new(1, 5 << 20, true).await;
    let pull = crowd.nodes[0].pulls.start(crowd.want.clone());
    let mut status = pull.watch();
    drop(pull);
    let proven = status.wait_for(|status| status.state == PullState::Proven);
    tokio::time::timeout(GUARD, proven).await.expect("the pull has stopped").unwrap();
    assert!(crowd.nodes[0].store.get(&crowd.want.digest).is_some());
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_nobody_comes_back_for_ends() {
    let linger = Duration::from_millis(300);
    let mut crowd =
        Crowd::with(1, 1 << 20, true, pull::Settings { linger, ..pull::Settings::default() }).await;
    // Whoever listens here never answers.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let host = silent.local_addr().unwrap().to_string();
    crowd.want.origins = vec![Repository { host, path: "library/test".into() }];
    let pull = crowd.nodes[0].pulls.start(crowd.want.clone());
    let mut status = pull.watch();
    let left_at = std::time::Instant::now();
    drop(pull);
    let ended = status.wait_for(|status| matches!(status.state, PullState::Failed(_)));
    let ended = tokio::time::timeout(GUARD, ended).await.expect("it goes on").unwrap().state.clone();
    assert_eq!(ended, PullState::Failed("forgotten"));
    assert!(left_at.elapsed() >= linger);
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_longer_than_any_is_refused_and_others_are_pulled() {
    let crowd = Crowd::new(1, 1000, true).await;
    let pulls = &crowd.nodes[0].pulls;
    for len in [u64::MAX, (1 << 54) - 1, crate::piece::BLOB_LEN_MAX + 1] {
        let pull = pulls.start(Want { len, ..crowd.want.clone() });
        assert_eq!(pull.proven().await.err().map(|error| error.reason()), Some("store"));
    }
    let pull = pulls.start(crowd.want.clone());
    tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").unwrap();
    crowd.down().await;
}
