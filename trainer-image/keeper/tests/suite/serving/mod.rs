//! A keeper on a socket of its own.

use std::path::Path;

use graftwork_artifacts::Store;
use graftwork_contract::proto::store::v1::keeper_client::KeeperClient;
use keeper::config::Gatekeeper;
use keeper::folders::Claims;
use keeper::server::{self, Keeper};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Serves the folders `store` and `claims` of `dir` until the token is cancelled.
pub async fn serve(
    dir: &Path,
    gatekeeper: Gatekeeper,
) -> (KeeperClient<Channel>, CancellationToken) {
    let store = Store::open(dir.join("store")).unwrap();
    serve_store(dir, store, gatekeeper).await
}

/// Serves a store and the folder `claims` of `dir` until the token is cancelled.
pub async fn serve_store(
    dir: &Path,
    store: Store,
    gatekeeper: Gatekeeper,
) -> (KeeperClient<Channel>, CancellationToken) {
    let keeper = Keeper::new(store, Claims::new(dir.join("claims")), gatekeeper);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(server::serve(listener, keeper, stop.clone()));
    let client = KeeperClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    (client, stop)
}
