//! A connection that is given up when its other side has not moved for too long.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// What counts as not moving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    /// Bytes that the other side does not take.
    Writes,
    /// No bytes in either direction.
    Both,
}

/// A stream whose reads and writes fail once it has stood still.
pub(super) struct Patient<S> {
    stream: S,
    watch: Watch,
    limit: Duration,
    /// Runs while something waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// Given up when what is sent is not taken for `limit`. That nothing comes is for others to judge.
    pub(super) fn with_readers(stream: S, limit: Duration) -> Self {
        Self { stream, watch: Watch::Writes, limit, waiting: None }
    }

    /// Given up when nothing has come and nothing was taken for `limit`.
    pub(super) fn with_idlers(stream: S, limit: Duration) -> Self {
        Self { stream, watch: Watch::Both, limit, waiting: None }
    }

    /// Passes on how it stands with bytes; an error instead of one wait too many.
    fn judge<T>(&mut self, moved: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if moved.is_ready() {
            self.waiting = None;
            return moved;
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the other side does not move")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        match self.watch {
            Watch::Writes => read,
            Watch::Both => self.judge(read, cx),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.judge(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(400);

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (here, mut there) = tokio::io::duplex(4);
        let mut here = Patient::with_readers(here, LIMIT);
        let slow = async {
            for _ in 0..3 {
                tokio::time::sleep(LIMIT / 2).await;
                there.read_exact(&mut [0; 4]).await.unwrap();
            }
        };
        let (sent, ()) = tokio::join!(here.write_all(b"sixteen bytes it"), slow);
        sent.unwrap();
        assert_eq!(here.write_all(b"more").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let quiet = tokio::time::timeout(2 * LIMIT, here.read_u8()).await;
        assert!(quiet.is_err(), "nobody has to say anything");
    }

    #[tokio::test]
    async fn a_tunnel_in_which_nothing_moves_is_given_up() {
        let (client, mut client_end) = tokio::io::duplex(64);
        let (server, mut server_end) = tokio::io::duplex(64);
        let (mut here, mut there) = (client, Patient::with_idlers(server, LIMIT));
        let began = tokio::time::Instant::now();
        let talk = async {
            for _ in 0..3 {
                tokio::time::sleep(LIMIT * 3 / 4).await;
                client_end.write_all(b"x").await.unwrap();
                server_end.read_u8().await.unwrap();
            }
        };
        let (ended, ()) = tokio::join!(tokio::io::copy_bidirectional(&mut here, &mut there), talk);
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= LIMIT * 3, "it lived as long as something moved");
    }
}
