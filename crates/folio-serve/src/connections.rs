//! Connections: how many, how long, and how they end.

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

use crate::Shared;
use crate::limits::Limits;
use crate::unread::{Lingering, Unread};

/// Bytes of a request's head, and of an answer that waits to be sent.
const BUFFER: usize = 64 << 10;

/// Accepts connections until `shutdown` resolves, then lets those there are end, for a while.
pub(crate) async fn accept(
    listener: TcpListener,
    router: Router,
    shared: &Arc<Shared>,
    shutdown: impl Future<Output = ()>,
) {
    let limits = &shared.limits;
    let places = Arc::new(Semaphore::new(limits.connections));
    let (ending, _) = watch::channel(false);
    tokio::pin!(shutdown);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place.expect("nobody closes it"))
        };
        let (accepted, place) = tokio::select! {
            () = &mut shutdown => break,
            next = next => next,
        };
        let Ok((stream, _)) = accepted else {
            // As when the process has no file descriptor left: some will come free.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (router, limits, told) = (router.clone(), limits.clone(), ending.subscribe());
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            shared.metrics.connections.inc();
            serve(stream, router, &limits, told).await;
            shared.metrics.connections.dec();
            drop(place);
        });
    }
    drop(listener);
    shared.begin_shutdown();
    ending.send_replace(true);
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    // Texts end by themselves within the time of grace; what they leave to be sent has another second.
    let _ = timeout(limits.grace_time + Duration::from_secs(1), places.acquire_many(all)).await;
}

/// Serves one connection to its end.
async fn serve(stream: TcpStream, router: Router, limits: &Limits, mut told: watch::Receiver<bool>) {
    // Tokens are small and should not wait for one another.
    let _ = stream.set_nodelay(true);
    let unread = Unread::default();
    let mut stream = TimeoutStream::new(Lingering::new(stream, unread.clone(), limits.drain_time));
    stream.set_write_timeout(Some(limits.stall_time));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head_time).max_buf_size(BUFFER);
    let service = TowerToHyperService::new(AddExtension::new(router, unread));
    let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
    tokio::pin!(connection);
    tokio::select! {
        // A broken connection is its client's affair.
        _ = &mut connection => return,
        _ = sleep(limits.connection_time) => {}
        _ = told.wait_for(|ending| *ending) => {}
    }
    // What is under way ends, and nothing more comes; a client that takes a byte now and then does not stay for ever.
    connection.as_mut().graceful_shutdown();
    let _ = timeout(limits.request_time + limits.stall_time, connection).await;
}
