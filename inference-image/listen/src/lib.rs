//! HTTP/1.1, and HTTP/2 without TLS (which gRPC needs), as engine and router speak them on one port: connections that
//! send no head in time are closed, and an end lets each finish its requests; a [`crew`] of threads for them; the [`clock`]
//! that both read; a request's [`body`]; their [`last_words`]; and what becomes of the metrics of versions that are gone ([`gone_series`]).
//!
//! It knows no routes.

#![forbid(unsafe_code)]

pub mod body;
pub mod clock;
pub mod crew;
pub mod gone_series;
pub mod last_words;

use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A connection that sends no request for so long is closed, and one that does not end its head.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// A client that takes nothing of what is sent to it for so long has left, or hangs, and would keep its place for good.
pub const UNTAKEN_TIMEOUT: Duration = Duration::from_secs(120);
/// How long to wait where no connection can be accepted (too many open files).
const PAUSE: Duration = Duration::from_millis(50);
/// What a client of HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How often a connection is looked at whose preface comes in parts.
const PREFACE_PAUSE: Duration = Duration::from_millis(20);
/// A client of HTTP/2 may keep its connection open without a request, as long as it answers pings.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long an answer to a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests of one connection at a time.
const STREAMS: u32 = 256;

/// Accepts connections until stopped, then lets each finish its request.
#[derive(Debug)]
pub struct Listener {
    stop: CancellationToken,
    idle_timeout: Duration,
    untaken_timeout: Duration,
    connections: TaskTracker,
}

impl Listener {
    /// One that stops with this token, too.
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            stop,
            idle_timeout: IDLE_TIMEOUT,
            untaken_timeout: UNTAKEN_TIMEOUT,
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

    /// With another time than [`UNTAKEN_TIMEOUT`].
    #[must_use]
    pub fn with_untaken_timeout(self, untaken_timeout: Duration) -> Self {
        Self {
            untaken_timeout,
            ..self
        }
    }

    /// What ends it.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Serves these routes in the background.
    pub fn serve(&self, listener: TcpListener, routes: Router) {
        self.serve_on(listener, routes, vec![Handle::current()]);
    }

    /// Serves these routes in the background, each connection on the next of `runtimes`.
    pub fn serve_on(&self, listener: TcpListener, routes: Router, runtimes: Vec<Handle>) {
        let (stop, connections) = (self.stop.clone(), self.connections.clone());
        let (idle_timeout, untaken_timeout) = (self.idle_timeout, self.untaken_timeout);
        self.connections.spawn(async move {
            let mut next = runtimes.iter().cycle();
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                let given = accepted.and_then(|(stream, _)| {
                    // Small events must not wait for the acknowledgement of those before.
                    let _ = stream.set_nodelay(true);
                    let socket = socket2::SockRef::from(&stream);
                    let _ = socket.set_tcp_user_timeout(Some(untaken_timeout));
                    stream.into_std()
                });
                match given {
                    Ok(stream) => {
                        let served = connection(stream, routes.clone(), stop.clone(), idle_timeout);
                        if let Some(runtime) = next.next() {
                            connections.spawn_on(served, runtime);
                        }
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
    stream: std::net::TcpStream,
    routes: Router,
    stop: CancellationToken,
    idle_timeout: Duration,
) {
    // Its events come to the runtime that this runs on.
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "connection can't be served");
            return;
        }
    };
    let begun = tokio::select! {
        biased;
        begun = tokio::time::timeout(idle_timeout, speaks_http2(&stream)) => begun,
        () = stop.cancelled() => return,
    };
    let ended = match begun {
        Ok(Ok(true)) => http2(stream, routes, stop).await,
        Ok(Ok(false)) => http1(stream, routes, stop, idle_timeout).await,
        // It broke, or nothing came.
        Ok(Err(_)) | Err(_) => return,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection broke");
    }
}

/// Looks at the first bytes and takes none of them.
async fn speaks_http2(stream: &TcpStream) -> std::io::Result<bool> {
    let mut head = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut head).await?;
        let begun = head.get(..seen).unwrap_or_default();
        if seen == 0 || !PREFACE.starts_with(begun) {
            return Ok(false);
        }
        if seen == PREFACE.len() {
            return Ok(true);
        }
        // At once there would be the same bytes again.
        tokio::time::sleep(PREFACE_PAUSE).await;
    }
}

async fn http1(
    stream: TcpStream,
    routes: Router,
    stop: CancellationToken,
    idle_timeout: Duration,
) -> hyper::Result<()> {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_timeout)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

async fn http2(stream: TcpStream, routes: Router, stop: CancellationToken) -> hyper::Result<()> {
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
        for begun in [
            "",
            "GET",
            "GET / HTTP/1.1\r\nhost: x\r\nx-slow: ",
            "PRI * HTT",
        ] {
            let answer = talk(address, begun.as_bytes()).await;
            assert!(!answer.contains("200 OK"), "{answer}");
        }
        let whole = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        assert!(talk(address, whole).await.ends_with("here"));
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_of_its_answer_loses_its_connection() {
        let listener = Listener::new(CancellationToken::new())
            .with_untaken_timeout(Duration::from_millis(500));
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let answers = Arc::new(());
        let answer = Arc::clone(&answers);
        let endless = move || {
            let answer = Arc::clone(&answer);
            let events = futures::stream::repeat_with(move || {
                let _ = &answer;
                Ok::<_, std::io::Error>(vec![b'x'; 1 << 16])
            });
            std::future::ready(axum::body::Body::from_stream(events))
        };
        listener.serve(socket, Router::new().route("/", get(endless)));
        let without = Arc::strong_count(&answers);
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(head).await.unwrap();
        stream.read_exact(&mut [0; 1 << 10]).await.unwrap();
        assert!(Arc::strong_count(&answers) > without);
        let ended = async {
            while Arc::strong_count(&answers) > without {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
        assert!(ended.is_ok(), "its answer is kept for good");
    }

    /// A client that speaks HTTP/2 from its first byte on.
    async fn http2_client(
        address: std::net::SocketAddr,
    ) -> hyper::client::conn::http2::SendRequest<axum::body::Body> {
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
                .await
                .unwrap();
        tokio::spawn(connection);
        client
    }

    async fn ask(
        client: &mut hyper::client::conn::http2::SendRequest<axum::body::Body>,
        uri: String,
    ) -> String {
        let request = axum::http::Request::get(uri).body(axum::body::Body::empty());
        let answer = client.send_request(request.unwrap()).await.unwrap();
        let body = axum::body::Body::new(answer.into_body());
        let bytes = axum::body::to_bytes(body, 1 << 10).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn the_same_port_speaks_http2_to_who_begins_with_it_and_lets_its_requests_end() {
        let listener = Listener::new(CancellationToken::new());
        let address = start(&listener).await;
        let mut client = http2_client(address).await;
        let mut other = client.clone();
        let slow =
            tokio::spawn(async move { ask(&mut other, format!("http://{address}/slow")).await });
        let answer = ask(&mut client, format!("http://{address}/")).await;
        assert_eq!(answer, "here");
        assert!(!slow.is_finished(), "one waits for the other");
        let finished = tokio::time::timeout(Duration::from_secs(10), listener.finish()).await;
        assert!(finished.is_ok(), "something stays open");
        assert_eq!(slow.await.unwrap(), "done");
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
