//! The connection, and requests that carry namespace and lease.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint, Uri},
};

use super::{CallError, Version, VersionError};
use crate::wire::containerd::services::{
    content::v1::content_client::ContentClient,
    introspection::v1::{PluginsRequest, introspection_client::IntrospectionClient},
    namespaces::v1::{ListNamespacesRequest, namespaces_client::NamespacesClient},
    version::v1::version_client::VersionClient,
};

/// Largest message either way: containerd's own limit (`defaults.go`).
pub(super) const MESSAGE_LEN_MAX: usize = 16 << 20;

/// Longest wait for one answer. containerd 1.6 and 1.7 hash and sync multi-GB blobs inside the one write
/// transaction that every other writer queues behind; half a minute of that is slow, more is stuck.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Connecting to a local socket either works at once or not at all.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// containerd behind its unix socket. Cheap to clone; connects at the first call and again after containerd
/// was restarted.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    address: PathBuf,
    channel: Channel,
}

impl Client {
    /// A client of the containerd that listens at `address`. Touches nothing yet; must run inside a tokio
    /// runtime, which drives the connection.
    #[must_use]
    pub fn new(address: &Path) -> Self {
        let socket = address.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The URI only fills in the `:authority` header; a Go server takes any.
        let channel = Endpoint::from_static("http://containerd.invalid")
            .connect_timeout(CONNECT_MAX)
            .connect_with_connector_lazy(connect);
        Self { inner: Arc::new(Inner { address: address.to_owned(), channel }) }
    }

    /// The socket.
    #[must_use]
    pub fn address(&self) -> &Path {
        &self.inner.address
    }

    /// Everything that lives in one namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Namespace {
        Namespace { client: self.clone(), name: name.into() }
    }

    /// containerd's version.
    ///
    /// # Errors
    /// containerd is absent, says nothing that reads as a version, or is older than 1.6.
    pub async fn version(&self) -> Result<Version, VersionError> {
        let mut service = VersionClient::new(self.channel());
        let answer = self.ask("tell its version", service.version(())).await?;
        let version: Version = answer.version.parse()?;
        version.check()?;
        Ok(version)
    }

    /// Names of all namespaces.
    ///
    /// # Errors
    /// The call failed.
    pub async fn namespaces(&self) -> Result<Vec<String>, CallError> {
        let mut service = NamespacesClient::new(self.channel());
        let listing = service.list(ListNamespacesRequest::default());
        let answer = self.ask("list its namespaces", listing).await?;
        Ok(answer.namespaces.into_iter().map(|namespace| namespace.name).collect())
    }

    /// Where containerd keeps its blobs: `<root>/blobs/<algorithm>/<hex>`.
    ///
    /// # Errors
    /// The call failed, or the content plugin does not say.
    pub async fn content_root(&self) -> Result<PathBuf, CallError> {
        let asked = "tell the root of its content store";
        let mut service = IntrospectionClient::new(self.channel());
        let filters = vec!["type==io.containerd.content.v1,id==content".to_owned()];
        let answer = self.ask(asked, service.plugins(PluginsRequest { filters })).await?;
        let root = answer.plugins.iter().find_map(|plugin| plugin.exports.get("root"));
        root.map(PathBuf::from).ok_or_else(|| CallError::Answer {
            asked: asked.into(),
            answer: format!("{} content plugins, none with a `root`", answer.plugins.len()),
        })
    }

    pub(super) fn channel(&self) -> Channel {
        self.inner.channel.clone()
    }

    /// Waits for one answer, and words what goes wrong.
    pub(super) async fn ask<T>(
        &self,
        asked: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        self.within(ANSWER_MAX, asked, call).await.map(Response::into_inner)
    }

    /// As [`Self::ask`], with another limit and for streams.
    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        asked: &str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, CallError> {
        let slow = |_| CallError::Slow { address: self.address().into(), asked: asked.into(), limit };
        let answer = timeout(limit, call).await.map_err(slow)?;
        answer.map_err(|status| CallError::new(self.address(), asked, status))
    }
}

/// One namespace of containerd.
#[derive(Clone, Debug)]
pub struct Namespace {
    pub(super) client: Client,
    name: Arc<str>,
}

impl Namespace {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.client.channel())
            .max_decoding_message_size(MESSAGE_LEN_MAX)
            .max_encoding_message_size(MESSAGE_LEN_MAX)
    }

    /// A request in this namespace.
    pub(super) fn request<T>(&self, message: T) -> Result<Request<T>, CallError> {
        self.leased_request(message, None)
    }

    /// A request in this namespace that puts what it makes under `lease`.
    pub(super) fn leased_request<T>(&self, message: T, lease: Option<&str>) -> Result<Request<T>, CallError> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", ascii("namespace", &self.name)?);
        if let Some(lease) = lease {
            request.metadata_mut().insert("containerd-lease", ascii("lease", lease)?);
        }
        Ok(request)
    }
}

fn ascii(what: &'static str, name: &str) -> Result<MetadataValue<Ascii>, CallError> {
    name.parse().map_err(|_| CallError::Name { what, name: name.chars().take(100).collect() })
}
