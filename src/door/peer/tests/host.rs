//! One registry host, many digests with trackers of their own.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use super::*;

const LIMIT: usize = 3;
const BLOBS: usize = 8;
const LEN: usize = (1 << 20) + 5;
/// What the registry takes for an answer, so that answers overlap.
const ANSWER: Duration = Duration::from_millis(10);
/// For how long it wants to be left alone when it has had enough.
const QUIET: Duration = Duration::from_secs(2);

/// A registry of several blobs that counts its readers, and may have enough of them.
struct Host {
    blobs: HashMap<String, Bytes>,
    reading: AtomicUsize,
    most: AtomicUsize,
    answered: AtomicUsize,
    /// After so many answers it wants to be left alone.
    enough: usize,
    quiet_until: Mutex<Option<Instant>>,
    /// It says so without an end, and not for how long.
    for_ever: bool,
    refused: AtomicUsize,
}

impl Host {
    fn new(enough: usize) -> Arc<Self> {
        Arc::new(Self::that_has(enough))
    }

    fn that_has(enough: usize) -> Self {
        let blob =
            |number: usize| -> Bytes { (0..LEN).map(|i| ((i * 31) >> 7) as u8 ^ number as u8).collect() };
        let blobs = (0..BLOBS).map(blob).map(|blob| (Digest::of(Algorithm::Sha256, &blob).to_string(), blob));
        Self {
            blobs: blobs.collect(),
            reading: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            enough,
            quiet_until: Mutex::default(),
            for_ever: false,
            refused: AtomicUsize::new(0),
        }
    }

    async fn up(self: &Arc<Self>, crowd: &Crowd) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tasks, stop, host) = (crowd.tasks.clone(), crowd.stop.clone(), self.clone());
        crowd.tasks.spawn(async move {
            while let Some(Ok((tcp, _))) = stop.run_until_cancelled(listener.accept()).await {
                let (host, stop) = (host.clone(), stop.clone());
                tasks.spawn(async move {
                    let service = service_fn(move |request| host.clone().answer(request));
                    let http1 = hyper::server::conn::http1::Builder::new();
                    stop.run_until_cancelled(http1.serve_connection(TokioIo::new(tcp), service)).await
                });
            }
        });
        address
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
        let digest = request.uri().path().rsplit('/').next().unwrap_or_default();
        let Some(blob) = self.blobs.get(digest) else { return Ok(Response::new(Full::default())) };
        let response = Response::builder().header(header::ACCEPT_RANGES, "bytes");
        if request.method() == Method::HEAD {
            let response = response.header(header::CONTENT_LENGTH, LEN);
            return Ok(response.body(Full::default()).unwrap());
        }
        if let Some(wait) = self.refuses() {
            let mut response = response.status(StatusCode::TOO_MANY_REQUESTS);
            if !self.for_ever {
                response = response.header(header::RETRY_AFTER, wait.as_millis().div_ceil(1000).to_string());
            }
            return Ok(response.body(Full::default()).unwrap());
        }
        self.most.fetch_max(self.reading.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(ANSWER).await;
        self.reading.fetch_sub(1, Ordering::SeqCst);
        let range = request.headers()[header::RANGE].to_str().unwrap();
        let (first, last) = range["bytes=".len()..].split_once('-').unwrap();
        let wanted = first.parse().unwrap()..last.parse::<usize>().unwrap() + 1;
        let stated = format!("bytes {}-{}/{LEN}", wanted.start, wanted.end - 1);
        let response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, stated);
        Ok(response.body(Full::new(blob.slice(wanted))).unwrap())
    }

    /// How long it still wants to be left alone.
    fn refuses(&self) -> Option<Duration> {
        let mut quiet_until = self.quiet_until.lock();
        if self.answered.fetch_add(1, Ordering::SeqCst) == self.enough || self.for_ever {
            *quiet_until = Some(Instant::now() + QUIET);
        }
        let left = quiet_until.map(|until| until.saturating_duration_since(Instant::now()))?;
        (!left.is_zero()).then(|| {
            self.refused.fetch_add(1, Ordering::SeqCst);
            left
        })
    }
}

/// Four nodes, and what they want of the host: all of its blobs.
async fn crowd_of(host: &Arc<Host>) -> (Crowd, Vec<Want>) {
    let settings = pull::Settings { host_readers: LIMIT, ..pull::Settings::default() };
    let crowd = Crowd::with(4, 1, true, settings).await;
    let address = host.up(&crowd).await.to_string();
    let want = |digest: &String| Want {
        digest: digest.parse().unwrap(),
        len: LEN as u64,
        origins: vec![Repository { host: address.clone(), path: "library/test".into() }],
        ..crowd.want.clone()
    };
    let wants = host.blobs.keys().map(want).collect();
    (crowd, wants)
}

/// They want them all at once, and have them.
async fn pulled_from(host: &Arc<Host>) {
    let (crowd, wants) = crowd_of(host).await;
    let start = |node: &Node| wants.iter().map(|want| node.pulls.start(want.clone())).collect::<Vec<_>>();
    for pull in crowd.nodes.iter().flat_map(start).collect::<Vec<_>>() {
        tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").unwrap();
    }
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_is_gone_holds_nobody_up() {
    let host = Host::new(usize::MAX);
    let (crowd, wants) = crowd_of(&host).await;
    let name = Digest::of(Algorithm::Sha256, wants[0].origins[0].host.as_bytes());
    let keeper = crowd.nodes[0].mesh.rank(&name)[0].name.clone();
    let (gone, living): (Vec<_>, Vec<_>) = crowd.nodes.iter().partition(|node| node.mesh.me().name == keeper);
    let start = |node: &&Node| wants.iter().map(|want| node.pulls.start(want.clone())).collect::<Vec<_>>();
    let pulls: Vec<_> = living.iter().flat_map(start).collect();
    // Some wait for their turn, and some have one.
    let busy = async {
        while host.most.load(Ordering::SeqCst) < LIMIT {
            tokio::time::sleep(ANSWER).await;
        }
    };
    tokio::time::timeout(GUARD, busy).await.expect("they read");
    gone[0].stop.cancel();
    for pull in pulls {
        tokio::time::timeout(GUARD, pull.proven()).await.expect("a pull hangs").unwrap();
    }
    crowd.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_digests_together_have_a_few_readers_at_one_host() {
    let host = Host::new(usize::MAX);
    pulled_from(&host).await;
    let most = host.most.load(Ordering::SeqCst);
    println!("{BLOBS} blobs, a limit of {LIMIT}: {most} readers at most");
    assert!(most <= LIMIT, "{most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_had_enough_is_left_alone_by_the_readers_of_all_digests() {
    let host = Host::new(2);
    pulled_from(&host).await;
    let refused = host.refused.load(Ordering::SeqCst);
    println!("{BLOBS} blobs, Retry-After of {QUIET:?}: {refused} requests refused");
    // Those that were out, and those that were let go before all had heard of it.
    assert!((1..=2 * LIMIT).contains(&refused), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_never_has_time_is_given_up() {
    let host = Arc::new(Host { for_ever: true, ..Host::that_has(0) });
    let (crowd, wants) = crowd_of(&host).await;
    let pulls: Vec<_> = crowd.nodes.iter().map(|node| node.pulls.start(wants[0].clone())).collect();
    for pull in pulls {
        let ended = tokio::time::timeout(2 * GUARD, pull.proven()).await.expect("a pull hangs");
        let error = ended.err().expect("nobody has it");
        assert_eq!(error.reason(), "origin_throttled");
    }
    println!("never an answer: {} requests", host.refused.load(Ordering::SeqCst));
    crowd.down().await;
}
