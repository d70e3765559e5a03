//! An encrypted connection whose errors speak.
//!
//! In TLS 1.3 a client is done before the server has judged its certificate, so the verdict arrives as an
//! error of the first read, deep inside HTTP. It is put into words here, where it is still known.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::explain::explain;

/// Which end of a connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We dialed.
    Client,
    /// We accepted.
    Server,
}

/// A failure of TLS, with the side that saw it: the same message means different things to the two.
#[derive(Debug)]
pub struct TlsFailure {
    pub side: Side,
    pub(super) source: io::Error,
}

impl fmt::Display for TlsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&explain(self))
    }
}

impl std::error::Error for TlsFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A connection to another member, both ends proven.
pub struct TlsStream {
    inner: tokio_rustls::TlsStream<TcpStream>,
    side: Side,
}

impl TlsStream {
    pub(super) fn new(inner: tokio_rustls::TlsStream<TcpStream>, side: Side) -> Self {
        Self { inner, side }
    }

    /// The TCP connection underneath.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        self.inner.get_ref().0
    }

    /// Whether the handshake was cut short by a session of an earlier one.
    #[must_use]
    pub fn resumed(&self) -> bool {
        self.inner.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// An error of TLS becomes `PermissionDenied` with its explanation; an error of TCP stays as it is.
    fn told<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        result.map_err(|error| {
            let of_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
            if !of_tls {
                return error;
            }
            let failure = TlsFailure { side: self.side, source: error };
            io::Error::new(io::ErrorKind::PermissionDenied, failure)
        })
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.told(read)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.told(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.told(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.told(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.told(shut)
    }
}
