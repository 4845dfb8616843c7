//! Connections to pods: by IP address from inside the cluster, through a port-forward from a shell.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use graftwork_contract::causes::causes;
use graftwork_operator_core::plan::Target;
use http::Uri;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::Api;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// Deadline for a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Deadline for one through the API server.
const CONNECT_FORWARDED: Duration = Duration::from_secs(8);

/// Why a pod can't be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address is none.
    #[error("pod address {0:?} is not one")]
    Address(String),
    /// No connection.
    #[error("{0}")]
    Connect(String),
}

/// Makes and keeps connections, one for each process in a pod and port.
pub struct Dialer {
    forward: Option<Client>,
    channels: Mutex<HashMap<(String, i32, u16), Channel>>,
}

impl Dialer {
    /// Dials IP addresses, or through `forward` where it is given.
    pub fn new(forward: Option<Client>) -> Self {
        Self {
            forward,
            channels: Mutex::default(),
        }
    }

    /// A connection to a port of a pod.
    ///
    /// # Errors
    /// Where there is none within a few seconds.
    pub async fn channel(
        &self,
        namespace: &str,
        target: &Target,
        port: u16,
    ) -> Result<Channel, DialError> {
        let key = (target.uid.clone(), target.restarts, port);
        if let Ok(channels) = self.channels.lock()
            && let Some(channel) = channels.get(&key)
        {
            return Ok(channel.clone());
        }
        let channel = match &self.forward {
            None => connect(&target.ip, port).await?,
            Some(client) => forward(client.clone(), namespace, &target.pod, port).await?,
        };
        if let Ok(mut channels) = self.channels.lock() {
            // A process that started anew has a connection of its own.
            channels
                .retain(|(uid, restarts, _), _| *uid != target.uid || *restarts == target.restarts);
            channels.insert(key, channel.clone());
        }
        Ok(channel)
    }

    /// Forgets a pod's connections: the next call dials again.
    pub fn forget(&self, uid: &str) {
        if let Ok(mut channels) = self.channels.lock() {
            channels.retain(|(known, _, _), _| known != uid);
        }
    }

    /// Forgets the connections of pods that are gone.
    pub fn keep_only(&self, exists: impl Fn(&str) -> bool) {
        if let Ok(mut channels) = self.channels.lock() {
            channels.retain(|(uid, _, _), _| exists(uid));
        }
    }
}

fn endpoint(uri: Uri) -> Endpoint {
    Endpoint::from(uri)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
}

async fn connect(ip: &str, port: u16) -> Result<Channel, DialError> {
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    let uri: Uri = format!("http://{host}:{port}")
        .parse()
        .map_err(|_| DialError::Address(ip.to_owned()))?;
    let endpoint = endpoint(uri).connect_timeout(CONNECT);
    match tokio::time::timeout(CONNECT, endpoint.connect()).await {
        Ok(channel) => channel.map_err(|error| DialError::Connect(causes(&error))),
        Err(_) => Err(DialError::Connect(format!(
            "no connection to {host}:{port} within {} s",
            CONNECT.as_secs()
        ))),
    }
}

async fn forward(
    client: Client,
    namespace: &str,
    pod: &str,
    port: u16,
) -> Result<Channel, DialError> {
    let api: Api<Pod> = Api::namespaced(client, namespace);
    let name = pod.to_owned();
    let connector = service_fn(move |_: Uri| {
        let api = api.clone();
        let name = name.clone();
        async move {
            let mut forwarder = api
                .portforward(&name, &[port])
                .await
                .map_err(std::io::Error::other)?;
            let stream = forwarder
                .take_stream(port)
                .ok_or_else(|| std::io::Error::other("the port-forward has no stream"))?;
            // The forwarder's task ends with the stream.
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = endpoint(Uri::from_static("http://pod"));
    let connecting = endpoint.connect_with_connector(connector);
    match tokio::time::timeout(CONNECT_FORWARDED, connecting).await {
        Ok(channel) => channel.map_err(|error| DialError::Connect(causes(&error))),
        Err(_) => Err(DialError::Connect(format!(
            "no port-forward to pod {pod} within {} s",
            CONNECT_FORWARDED.as_secs()
        ))),
    }
}
