//! HTTP/1.1 as engine and router speak it: connections that send no head in time are closed, and an end lets
//! each finish its request; and the [`clock`] that both read.
//!
//! It reads no bodies and knows no routes.

#![forbid(unsafe_code)]

pub mod clock;

use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A connection that sends no request for so long is closed, and one that does not end its head.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long to wait where no connection can be accepted (too many open files).
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until stopped, then lets each finish its request.
#[derive(Debug)]
pub struct Listener {
    stop: CancellationToken,
    idle_timeout: Duration,
    connections: TaskTracker,
}

impl Listener {
    /// One that stops with this token, too.
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            stop,
            idle_timeout: IDLE_TIMEOUT,
            connections: TaskTracker::new(),
        }
    }

    /// With another time than [`IDLE_TIMEOUT`].
    #[must_use]
    pub fn with_idle_timeout(self, idle_timeout: Duration) -> Self {
        Self {
            idle_timeout,
            ..self
        }
    }

    /// What ends it.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Serves these routes in the background.
    pub fn serve(&self, listener: TcpListener, routes: Router) {
        let (stop, connections) = (self.stop.clone(), self.connections.clone());
        let idle_timeout = self.idle_timeout;
        self.connections.spawn(async move {
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                match accepted {
                    Ok((stream, _)) => {
                        // Small events must not wait for the acknowledgement of those before.
                        let _ = stream.set_nodelay(true);
                        let routes = routes.clone();
                        connections.spawn(connection(stream, routes, stop.clone(), idle_timeout));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "connection can't be accepted");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        });
    }

    /// Stops, and returns once every request is answered.
    pub async fn finish(&self) {
        self.stop.cancel();
        self.connections.close();
        self.connections.wait().await;
    }
}

async fn connection(
    stream: TcpStream,
    routes: Router,
    stop: CancellationToken,
    idle_timeout: Duration,
) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_timeout)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection broke");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn start(listener: &Listener) -> std::net::SocketAddr {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let slow = async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            "done"
        };
        let routes = Router::new().route("/", get(async || "here"));
        listener.serve(socket, routes.route("/slow", get(slow)));
        address
    }

    /// Sends some bytes; everything that comes back until the connection ends.
    async fn talk(address: std::net::SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        let ended = tokio::time::timeout(Duration::from_secs(10), read).await;
        assert!(ended.is_ok(), "it stays open: {answer}");
        answer
    }

    #[tokio::test]
    async fn a_head_that_does_not_end_closes_its_connection_and_no_other() {
        let listener =
            Listener::new(CancellationToken::new()).with_idle_timeout(Duration::from_millis(200));
        let address = start(&listener).await;
        for begun in ["", "GET", "GET / HTTP/1.1\r\nhost: x\r\nx-slow: "] {
            let answer = talk(address, begun.as_bytes()).await;
            assert!(!answer.contains("200 OK"), "{answer}");
        }
        let whole = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        assert!(talk(address, whole).await.ends_with("here"));
    }

    #[tokio::test]
    async fn the_end_waits_for_what_runs_and_closes_what_is_idle() {
        let listener = Listener::new(CancellationToken::new());
        let address = start(&listener).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        let running =
            tokio::spawn(
                async move { talk(address, b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await },
            );
        tokio::time::sleep(Duration::from_millis(100)).await;
        let finished = tokio::time::timeout(Duration::from_secs(10), listener.finish()).await;
        assert!(finished.is_ok(), "something stays open");
        assert!(running.await.unwrap().ends_with("done"));
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap_or(0), 0);
        assert!(TcpStream::connect(address).await.is_err());
    }
}
