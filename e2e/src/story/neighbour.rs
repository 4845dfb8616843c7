//! Where a server of a story's own listens: on this machine, where pods reach it.

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use tokio::process::Command;

use super::Stage;

/// The next port to try. Below those that the system lends to clients, so that a server that comes back finds its own.
static NEXT: AtomicU16 = AtomicU16::new(25_400);
/// How many are tried.
const TRIES: usize = 100;

/// This machine's address on the way to the node.
pub async fn address(stage: &Stage) -> anyhow::Result<IpAddr> {
    let nodes: Api<Node> = Api::all(stage.world.cluster.client.clone());
    let nodes = nodes.list(&ListParams::default().limit(1)).await?.items;
    let node = nodes.into_iter().next().context("no node")?;
    let addresses = node.status.and_then(|status| status.addresses);
    let node = addresses
        .into_iter()
        .flatten()
        .find(|address| address.type_ == "InternalIP")
        .context("a node without an address")?;
    // Connecting sends nothing: it asks the routes.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((node.address.as_str(), 9))?;
    Ok(socket.local_addr()?.ip())
}

/// A port of `address` that nobody has, another one each time: stories are told beside each other.
pub fn port(address: IpAddr) -> anyhow::Result<u16> {
    (0..TRIES)
        .map(|_| NEXT.fetch_add(1, Ordering::Relaxed))
        .find(|&port| TcpListener::bind((address, port)).is_ok())
        .with_context(|| format!("{address}: {TRIES} ports one after another are in use"))
}

/// A program that gets `signal` when we are gone, also when we are killed. The local cluster's machine is a Linux with
/// util-linux.
pub fn companion(program: &Path, signal: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]).arg(program);
    command
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn servers_side_by_side_get_ports_of_their_own_and_none_that_is_in_use() {
        let here = IpAddr::from(Ipv4Addr::LOCALHOST);
        let first = port(here).unwrap();
        let second = port(here).unwrap();
        assert_ne!(first, second);
        let taken = NEXT.load(Ordering::Relaxed);
        let other = TcpListener::bind((here, taken)).unwrap();
        assert_ne!(port(here).unwrap(), taken);
        drop(other);
    }
}
