//! Accepts connections, limits their number and lifetime, and closes them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tower_http::add_extension::AddExtension;

use crate::body_drain::{HasUnreadBody, LingeringStream};
use crate::limits::Limits;
use crate::state::Shared;

/// Maximum bytes of a request's head, and of a response that is buffered.
const BUFFER: usize = 64 << 10;

/// Accepts connections until `shutdown` resolves, then waits for the open ones to end, for a limited time.
pub(crate) async fn accept(
    listener: TcpListener,
    router: Router,
    shared: &Arc<Shared>,
    shutdown: impl Future<Output = ()>,
) {
    let limits = &shared.limits;
    let permits = Arc::new(Semaphore::new(limits.connections));
    let (is_shutting_down, _) = watch::channel(false);
    tokio::pin!(shutdown);
    loop {
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (listener.accept().await, permit.expect("the semaphore is never closed"))
        };
        let (accepted, permit) = tokio::select! {
            () = &mut shutdown => break,
            next = next => next,
        };
        let Ok((stream, _)) = accepted else {
            // For instance, the process is out of file descriptors. Some will be freed.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (router, limits, shutdown) = (router.clone(), limits.clone(), is_shutting_down.subscribe());
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            shared.metrics.connections.inc();
            serve(stream, router, &limits, shutdown).await;
            shared.metrics.connections.dec();
            drop(permit);
        });
    }
    drop(listener);
    shared.begin_shutdown();
    is_shutting_down.send_replace(true);
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    // Sequences end within the grace time. One more second is for sending the rest of their responses.
    let _ = timeout(limits.grace_time + Duration::from_secs(1), permits.acquire_many(all)).await;
}

/// Serves one connection to its end.
async fn serve(stream: TcpStream, router: Router, limits: &Limits, mut shutdown: watch::Receiver<bool>) {
    // Send each token at once, without Nagle's algorithm.
    let _ = stream.set_nodelay(true);
    let unread = HasUnreadBody::default();
    let mut stream = TimeoutStream::new(LingeringStream::new(stream, unread.clone(), limits.drain_time));
    stream.set_write_timeout(Some(limits.stall_time));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head_time).max_buf_size(BUFFER);
    let service = TowerToHyperService::new(AddExtension::new(router, unread));
    let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
    tokio::pin!(connection);
    tokio::select! {
        // Errors of a connection are ignored: its client has gone.
        _ = &mut connection => return,
        _ = sleep(limits.connection_time) => {}
        _ = shutdown.wait_for(|is_shutting_down| *is_shutting_down) => {}
    }
    // Finish the current request and accept no further one. The timeout ends clients that read a byte now and then.
    connection.as_mut().graceful_shutdown();
    let _ = timeout(limits.request_time + limits.stall_time, connection).await;
}
