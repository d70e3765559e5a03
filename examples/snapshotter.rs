//! The bare snapshotter on a socket, for containerd's own conformance suite: `snapshotter ROOT SOCKET`.

use std::{path::Path, sync::Arc};

use flotilla::{
    door::snapshots::{Intercepted, Interceptor, Prepare, serve, service},
    snapshot::Snapshots,
};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

struct Nobody;

#[async_trait::async_trait]
impl Interceptor for Nobody {
    async fn prepare(&self, _request: &Prepare) -> Intercepted {
        Intercepted::Pass
    }

    fn removed(&self, _key: &str) {}

    fn committed(&self, _key: &str) {}
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(root), Some(socket)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: snapshotter ROOT SOCKET");
    };
    let snapshots = Arc::new(Snapshots::open(Path::new(&root))?);
    let listener = UnixListener::bind(&socket)?;
    serve(listener, service(snapshots, Arc::new(Nobody)), CancellationToken::new()).await?;
    Ok(())
}
