//! What happens to a request's body that the answer did not need.
//!
//! A client that is still sending when its connection is closed may lose the answer, and one that reuses the connection
//! without having been warned loses its next request. So the rest of a body is read and discarded before the answer is
//! sent; if that would take too long the answer says `Connection: close`, and the socket is closed only when the client
//! has had time to read it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Body as _, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};

use crate::Shared;

/// Whether a connection is closed while its client may still be sending.
#[derive(Clone, Default)]
pub(crate) struct Unread(Arc<AtomicBool>);

/// Reads the rest of a body, or has the connection closed.
pub(crate) async fn drain(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let unread = parts.extensions.get::<Unread>().cloned().unwrap_or_default();
    // Such a client waits for our word before it sends anything; to read would be to give it.
    let waits = parts.headers.contains_key(header::EXPECT);
    let body = SharedBody(Arc::new(Mutex::new(Rest { has_ended: body.is_end_stream(), body })));
    let mut response = next.run(Request::from_parts(parts, Body::new(body.clone()))).await;
    if body.has_ended() {
        return response;
    }
    let limits = &shared.limits;
    // Of these more than the limit, or nothing for some time, came already.
    let is_hopeless =
        matches!(response.status(), StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT);
    let is_drained = !is_hopeless
        && !waits
        && body.size_hint().lower() <= limits.body_bytes as u64
        && timeout(limits.drain_time, body.discard(limits.body_bytes)).await.unwrap_or(false);
    if !is_drained {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        unread.0.store(true, Ordering::Relaxed);
    }
    response
}

/// A body that its reader may drop and that can be read further nevertheless.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<Rest>>);

struct Rest {
    body: Body,
    has_ended: bool,
}

impl SharedBody {
    fn with<R>(&self, work: impl FnOnce(&mut Rest) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn has_ended(&self) -> bool {
        self.with(|rest| rest.has_ended)
    }

    /// Reads to the end, and returns whether it came within `most` bytes.
    async fn discard(mut self, most: usize) -> bool {
        let mut left = most;
        loop {
            match std::future::poll_fn(|context| Pin::new(&mut self).poll_frame(context)).await {
                None => return true,
                Some(Err(_)) => return false,
                Some(Ok(frame)) => {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    match left.checked_sub(bytes) {
                        Some(rest) => left = rest,
                        None => return false,
                    }
                }
            }
        }
    }
}

impl http_body::Body for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.with(|rest| {
            if rest.has_ended {
                return Poll::Ready(None);
            }
            let frame = ready!(Pin::new(&mut rest.body).poll_frame(context));
            rest.has_ended = frame.is_none() || rest.body.is_end_stream();
            Poll::Ready(frame)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended()
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|rest| rest.body.size_hint())
    }
}

/// A socket that, if its client may still be sending, is closed in two steps: first nothing more is written, and when the
/// client has closed its side or some time has passed, the socket goes. Closed at once, the system would discard what
/// the client has not yet read.
pub(crate) struct Lingering {
    stream: TcpStream,
    unread: Unread,
    time: Duration,
    /// Set when nothing more is written.
    until: Option<Pin<Box<Sleep>>>,
}

impl Lingering {
    pub(crate) fn new(stream: TcpStream, unread: Unread, time: Duration) -> Self {
        Self { stream, unread, time, until: None }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, unread, time, until } = &mut *self;
        if until.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
        }
        if !unread.0.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let until = until.get_or_insert_with(|| Box::pin(sleep(*time)));
        let mut discarded = [0; 4096];
        while until.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut discarded);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}
