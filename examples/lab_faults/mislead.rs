//! A registry's proxy that flips bytes in every blob on its way.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header::HOST, uri::PathAndQuery};
use http_body_util::{BodyExt as _, Empty, combinators::BoxBody};
use hyper::{body::Frame, body::Incoming, server, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::TcpListener;

type Body = BoxBody<Bytes, hyper::Error>;
type Registry = Client<HttpConnector, Empty<Bytes>>;

/// Serves until it is killed.
pub(super) fn run(listen: SocketAddr, registry: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    runtime.block_on(serve(listen, registry))
}

#[expect(clippy::disallowed_methods, reason = "a connection's task ends with the program")]
async fn serve(listen: SocketAddr, registry: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    super::say(&format!("listening on {}", listener.local_addr()?))?;
    let client: Registry = Client::builder(TokioExecutor::new()).build_http();
    loop {
        let (tcp, _) = listener.accept().await.context("accepting")?;
        let client = client.clone();
        let service = service_fn(move |request| {
            let client = client.clone();
            async move { Ok::<_, Infallible>(answer(&client, registry, request).await) }
        });
        let serving = server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service);
        tokio::spawn(async move {
            // A caller that hangs up ends its connection, no more.
            let _ended = serving.await;
        });
    }
}

async fn answer(client: &Registry, registry: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    match pass_on(client, registry, request).await {
        Ok(response) => response,
        Err(_) => {
            let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    }
}

async fn pass_on(
    client: &Registry,
    registry: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>> {
    let (mut head, _) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let is_blob = path.contains("/blobs/");
    head.uri = Uri::try_from(format!("http://{registry}{path}"))?;
    head.headers.insert(HOST, HeaderValue::from_str(&registry.to_string())?);
    let response = client.request(Request::from_parts(head, Empty::new())).await?;
    let spoiled = move |frame: Frame<Bytes>| if is_blob { frame.map_data(spoil) } else { frame };
    Ok(response.map(|body| body.map_frame(spoiled).boxed()))
}

/// Another first byte.
fn spoil(bytes: Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    if let Some(first) = bytes.first_mut() {
        *first ^= 0xff;
    }
    bytes.into()
}
