//! Calls to pods from a shell: through the API server's port-forward, over a real connection.

use std::sync::{Arc, Mutex};

use futures::{SinkExt as _, StreamExt as _};
use graftwork_contract::proto::call::v1::SignedCall;
use graftwork_contract::proto::router::v1::router_server::{Router, RouterServer};
use graftwork_contract::proto::router::v1::{RoutingTable, StatsReply, StatsRequest, SyncReply};
use graftwork_operator::calls::{CallError, Calls, Peer};
use graftwork_operator::dial::Dialer;
use graftwork_operator::keys;
use graftwork_operator::lease::Term;
use graftwork_operator::metrics::Metrics;
use graftwork_operator_core::plan::Target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tonic::Status;

/// A router in a pod: it knows its UID and remembers what it was given.
#[derive(Clone, Default)]
struct Pod {
    calls: Arc<Mutex<Vec<SignedCall>>>,
}

#[tonic::async_trait]
impl Router for Pod {
    async fn sync(
        &self,
        request: tonic::Request<SignedCall>,
    ) -> Result<tonic::Response<SyncReply>, Status> {
        self.calls.lock().unwrap().push(request.into_inner());
        Ok(tonic::Response::new(SyncReply {
            pod_uid: "router-uid".to_owned(),
            boot_id: "boot".to_owned(),
            ..SyncReply::default()
        }))
    }

    async fn stats(
        &self,
        _: tonic::Request<StatsRequest>,
    ) -> Result<tonic::Response<StatsReply>, Status> {
        Ok(tonic::Response::new(StatsReply {
            pod_uid: "router-uid".to_owned(),
            boot_id: "boot".to_owned(),
            ..StatsReply::default()
        }))
    }
}

async fn listener() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Starts the pod. Returns its address.
async fn start(pod: Pod) -> std::net::SocketAddr {
    let (listener, address) = listener().await;
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().add_service(RouterServer::new(pod));
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

/// An API server that forwards every port of the pod `router-0` to `pod` and knows no other pod.
/// Returns a client of it, and the paths that were asked for.
async fn api_server(pod: std::net::SocketAddr) -> (kube::Client, Arc<Mutex<Vec<String>>>) {
    let (listener, address) = listener().await;
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let paths = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(forward(stream, pod, Arc::clone(&paths)));
        }
    });
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    (kube::Client::try_from(config).unwrap(), asked)
}

/// One port-forward over a web socket: channel 0 is data, channel 1 errors; each begins with the port.
async fn forward(stream: TcpStream, pod: std::net::SocketAddr, paths: Arc<Mutex<Vec<String>>>) {
    let mut port = 0_u16;
    #[allow(clippy::result_large_err, reason = "the library's own type")]
    let handshake = |request: &Request, mut response: Response| {
        let uri = request.uri();
        paths.lock().unwrap().push(uri.to_string());
        if !uri.path().contains("/pods/router-0/") {
            let mut refusal = ErrorResponse::new(None);
            *refusal.status_mut() = http::StatusCode::NOT_FOUND;
            return Err(refusal);
        }
        let query = uri.query().unwrap_or_default();
        port = query
            .strip_prefix("&ports=")
            .or(query.strip_prefix("ports="))
            .unwrap()
            .parse()
            .unwrap();
        response.headers_mut().insert(
            http::header::SEC_WEBSOCKET_PROTOCOL,
            http::HeaderValue::from_static("v4.channel.k8s.io"),
        );
        Ok(response)
    };
    let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, handshake).await else {
        return;
    };
    let [low, high] = port.to_le_bytes();
    let (mut to_client, mut from_client) = socket.split();
    for channel in [0, 1] {
        let first = Message::binary(vec![channel, low, high]);
        to_client.send(first).await.unwrap();
    }
    let (mut from_pod, mut to_pod) = TcpStream::connect(pod).await.unwrap().into_split();
    let up = async {
        while let Some(Ok(message)) = from_client.next().await {
            if let Message::Binary(bytes) = message
                && to_pod.write_all(&bytes[1..]).await.is_err()
            {
                break;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(read @ 1..) = from_pod.read(&mut buffer).await {
            let framed = [&[0], &buffer[..read]].concat();
            if to_client.send(Message::binary(framed)).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

fn peer(pod: &str) -> Peer {
    Peer {
        namespace: "team".to_owned(),
        target: Target {
            pod: pod.to_owned(),
            uid: "router-uid".to_owned(),
            // Not to be reached from here, as a pod's address is not from a shell.
            ip: "192.0.2.1".to_owned(),
            restarts: 0,
        },
        owner_uid: "endpoint-uid".to_owned(),
    }
}

fn calls(client: kube::Client) -> Calls {
    Calls::new(
        Dialer::new(Some(client)),
        keys::from_seed([7; 32], None),
        Term::forever(),
        Metrics::new().unwrap(),
    )
}

#[tokio::test]
async fn a_router_is_asked_and_told_through_a_port_forward() {
    let pod = Pod::default();
    let (client, asked) = api_server(start(pod.clone()).await).await;
    let calls = calls(client);
    let peer = peer("router-0");
    let stats = calls
        .router_stats(&peer, StatsRequest::default())
        .await
        .unwrap();
    assert_eq!(stats.boot_id, "boot");
    calls
        .sync_router(&peer, &RoutingTable::default())
        .await
        .unwrap();
    let signed = pod.calls.lock().unwrap().clone();
    assert_eq!(signed.len(), 1);
    assert_eq!(signed[0].pod_uid, "router-uid", "it is signed for that pod");
    let asked = asked.lock().unwrap().clone();
    assert_eq!(
        asked.len(),
        1,
        "one port-forward serves all calls: {asked:?}"
    );
    let path = "/api/v1/namespaces/team/pods/router-0/portforward";
    assert!(asked[0].starts_with(path), "{asked:?}");
}

#[tokio::test]
async fn a_port_forward_that_is_refused_is_said_with_the_pods_name() {
    let (client, _) = api_server(start(Pod::default()).await).await;
    let calls = calls(client);
    let error = calls
        .router_stats(&peer("router-1"), StatsRequest::default())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, CallError::Unreachable { pod, .. } if pod == "router-1"),
        "{error}"
    );
    assert!(error.to_string().contains("404"), "{error}");
}
