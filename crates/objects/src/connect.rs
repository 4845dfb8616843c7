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
    to_found(guard, host, port, async |name| {
        let found = tokio::net::lookup_host((name, port)).await?;
        Ok(found.map(|address| address.ip()).collect())
    })
    .await
}

/// The same, where `look_up` says which addresses a name has.
async fn to_found(
    guard: &Guard,
    host: &Host,
    port: u16,
    look_up: impl AsyncFnOnce(&str) -> io::Result<Vec<IpAddr>>,
) -> Result<TcpStream, ConnectError> {
    guard.check_host(host)?;
    let resolved = match host {
        Host::Address(_) => Vec::new(),
        Host::Name(name) => look_up(name)
            .await
            .map_err(|problem| ConnectError::Unknown {
                host: host.to_string(),
                problem,
            })?,
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[tokio::test]
    async fn a_name_of_the_world_that_leads_inside_is_connected_to_only_where_it_is_allowed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let host = Host::parse("data.example.com").unwrap();
        let public = Ipv4Addr::new(93, 184, 216, 34).into();
        let inside = IpAddr::from(Ipv4Addr::LOCALHOST);
        for found in [vec![inside], vec![public, inside], vec![inside, public]] {
            let look_up = async |_: &str| Ok(found.clone());
            let error = to_found(&Guard::default(), &host, port, look_up).await;
            assert!(matches!(error, Err(ConnectError::Refused(_))), "{error:?}");
        }
        let nobody = listener.accept().map(drop).unwrap_err();
        assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock, "no byte was sent");

        let guard = Guard::parse(&["127.0.0.0/8".to_owned()]).unwrap();
        let look_up = async |_: &str| Ok(vec![inside]);
        to_found(&guard, &host, port, look_up).await.unwrap();
        assert!(listener.accept().is_ok());
    }
}
