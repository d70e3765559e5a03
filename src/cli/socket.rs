//! Requests to the daemon of this node, over its admin socket.

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::daemon::Settings;

/// Sends one request; answers with an error unless the daemon says 200.
pub(super) async fn request(
    settings: &Settings,
    method: Method,
    path: &str,
) -> anyhow::Result<Response<Incoming>> {
    let socket = settings.path("node.run_dir").unwrap_or_default().join("admin.sock");
    let stream = UnixStream::connect(&socket).await;
    let stream = stream.map_err(|error| {
        let is_kept_out = error.kind() == std::io::ErrorKind::PermissionDenied;
        let why = if is_kept_out { "is root's alone" } else { "has no daemon; is `flotilla serve` running?" };
        anyhow::Error::new(error).context(format!("{} {why}", socket.display()))
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "localhost")
        .body(Empty::<bytes::Bytes>::new())?;
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(connection);
    let response = sender.send_request(request).await.context("the daemon closed the connection")?;
    if !response.status().is_success() {
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        bail!("the daemon answers {status}: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(response)
}

/// Calls `each` with every JSON line of an answer, as it comes.
pub(super) async fn lines<T: DeserializeOwned>(
    response: Response<Incoming>,
    mut each: impl FnMut(T) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut body = response.into_body();
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the daemon went away")?;
        rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            each(serde_json::from_slice(&line).context("the daemon's answer is no JSON line")?)?;
        }
    }
    Ok(())
}

/// A text as it may stand in a query.
pub(super) fn in_query(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A runtime for one request.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
