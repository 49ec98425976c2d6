//! Drains request bodies that the handler did not read to the end.
//!
//! A client that is still sending when its connection closes may lose the response, and a client that reuses the
//! connection would lose its next request. So the rest of the body is read and discarded before the response is sent. If
//! that would take too long, the response has `Connection: close`, and the socket stays open until the client has had
//! time to read it.

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

use crate::limits::Limits;

/// Whether a connection is closed while its client may still be sending.
#[derive(Clone, Default)]
pub(crate) struct HasUnreadBody(Arc<AtomicBool>);

/// Middleware that drains the rest of a body, or marks the connection to be closed.
pub(crate) async fn drain(State(limits): State<Limits>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let has_unread_body = parts.extensions.get::<HasUnreadBody>().cloned().unwrap_or_default();
    // With `Expect: 100-continue` the client sends its body only after we start to read.
    let expects_continue = parts.headers.contains_key(header::EXPECT);
    let body = SharedBody(Arc::new(Mutex::new(BodyState { has_ended: body.is_end_stream(), body })));
    let mut response = next.run(Request::from_parts(parts, Body::new(body.clone()))).await;
    if body.has_ended() {
        return response;
    }
    // These bodies were too large or too slow already.
    let is_over_limit =
        matches!(response.status(), StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT);
    let is_drained = !is_over_limit
        && !expects_continue
        && body.size_hint().lower() <= limits.body_bytes as u64
        && timeout(limits.drain_time, body.discard(limits.body_bytes)).await.unwrap_or(false);
    if !is_drained {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        has_unread_body.0.store(true, Ordering::Relaxed);
    }
    response
}

/// A body that can still be drained after the handler has dropped its handle.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<BodyState>>);

struct BodyState {
    body: Body,
    has_ended: bool,
}

impl SharedBody {
    fn with<R>(&self, f: impl FnOnce(&mut BodyState) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn has_ended(&self) -> bool {
        self.with(|state| state.has_ended)
    }

    /// Reads the body to its end. Returns false if it has more than `max_bytes` or breaks off.
    async fn discard(mut self, max_bytes: usize) -> bool {
        let mut left = max_bytes;
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
        self.with(|state| {
            if state.has_ended {
                return Poll::Ready(None);
            }
            let frame = ready!(Pin::new(&mut state.body).poll_frame(context));
            state.has_ended = frame.is_none() || state.body.is_end_stream();
            Poll::Ready(frame)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended()
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|state| state.body.size_hint())
    }
}

/// A socket that is closed in two steps if its client may still be sending: the write side first, and the socket when
/// the client has closed its side or `linger_time` has passed. If the socket were closed at once, the system would
/// discard what the client has not read yet.
pub(crate) struct LingeringStream {
    stream: TcpStream,
    has_unread_body: HasUnreadBody,
    linger_time: Duration,
    /// Set once the write side is closed.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl LingeringStream {
    pub(crate) fn new(stream: TcpStream, has_unread_body: HasUnreadBody, linger_time: Duration) -> Self {
        Self { stream, has_unread_body, linger_time, deadline: None }
    }
}

impl AsyncRead for LingeringStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for LingeringStream {
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
        let Self { stream, has_unread_body, linger_time, deadline } = &mut *self;
        if deadline.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
        }
        if !has_unread_body.0.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let deadline = deadline.get_or_insert_with(|| Box::pin(sleep(*linger_time)));
        let mut discarded = [0; 4096];
        while deadline.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut discarded);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}
