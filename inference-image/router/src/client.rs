//! Connections to engines.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// A pod that is gone may not even refuse: so long a request waits for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Unacknowledged data or keep-alive probes for so long mean that the node is lost.
const DEAD_PEER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is kept that nobody uses.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A pool of connections.
pub type EngineClient = Client<HttpConnector, Full<Bytes>>;

thread_local! {
    /// Each thread that serves requests has its own: no other thread wakes for their way to an engine and back.
    static OWN: EngineClient = client();
}

/// A pool without a connection.
pub fn client() -> EngineClient {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    connector.set_keepalive(Some(DEAD_PEER_TIMEOUT / 2));
    connector.set_keepalive_interval(Some(DEAD_PEER_TIMEOUT / 5));
    connector.set_keepalive_retries(Some(3));
    connector.set_tcp_user_timeout(Some(DEAD_PEER_TIMEOUT));
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build(connector)
}

/// Sends a request by this thread's own pool.
pub fn send(request: Request<Full<Bytes>>) -> ResponseFuture {
    OWN.with(|own| own.request(request))
}
