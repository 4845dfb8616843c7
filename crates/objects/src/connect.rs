//! Connections to addresses that were checked. A name is looked up once, all its addresses are checked, and
//! one of those is connected to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use graftwork_contract::address::{Guard, Refused};
use graftwork_contract::uri::Host;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Time to connect to one address.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Where to may not be connected to.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Where to is written in a way that readers disagree about.
    #[error("the host is no plain name or address")]
    NoHost,
    /// The name has no address now.
    #[error("host {host} can't be found: {problem}")]
    Unknown {
        /// The host.
        host: String,
        /// What the resolver says.
        problem: io::Error,
    },
    /// No address answers.
    #[error("no connection to host {host}: {problem}")]
    Silent {
        /// The host.
        host: String,
        /// The last address, with what is wrong with it.
        problem: String,
    },
}

/// Connects to an address of the host that may be connected to.
///
/// # Errors
/// See [`ConnectError`].
pub async fn to(guard: &Guard, host: &Host, port: u16) -> Result<TcpStream, ConnectError> {
    guard.check_host(host)?;
    let resolved: Vec<IpAddr> = match host {
        Host::Address(_) => Vec::new(),
        Host::Name(name) => tokio::net::lookup_host((name.as_str(), port))
            .await
            .map_err(|problem| ConnectError::Unknown {
                host: host.to_string(),
                problem,
            })?
            .map(|address| address.ip())
            .collect(),
    };
    let addresses: Vec<SocketAddr> = guard.check_addresses(host, port, &resolved)?;
    let mut problem = "it has no address".to_owned();
    for address in addresses {
        match timeout(CONNECT_TIME, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => problem = format!("{address}: {error}"),
            Err(_) => {
                problem = format!("{address}: no answer within {} s", CONNECT_TIME.as_secs());
            }
        }
    }
    Err(ConnectError::Silent {
        host: host.to_string(),
        problem,
    })
}
