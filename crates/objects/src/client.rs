//! HTTP over connections to checked addresses: for web servers, hubs, and the object stores' library, which
//! never connects by itself.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use graftwork_contract::address::Guard;
use graftwork_contract::uri::Host;
use http::{Response, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client as Pool, Error as PoolError};
use hyper_util::rt::{TokioExecutor, TokioIo};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::Service;

use crate::connect::{self, ConnectError};
use crate::problem::find;

/// Time until a server begins to answer, connecting included.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// A client. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: Pool<HttpsConnector<Guarded>, HttpRequestBody>,
    guard: Arc<Guard>,
}

impl Client {
    /// A client that connects to what `guard` allows, and over TLS to what these authorities know.
    ///
    /// # Errors
    /// TLS that can't be set up, which is a defect.
    pub fn new(guard: Guard, roots: RootCertStore) -> Result<Self, rustls::Error> {
        let guard = Arc::new(guard);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Guarded {
                guard: Arc::clone(&guard),
            });
        Ok(Self(Arc::new(Inner {
            pool: Pool::builder(TokioExecutor::new()).build(connector),
            guard,
        })))
    }

    /// Whether the installation allows this host.
    pub fn may_reach(&self, host: &Host) -> bool {
        self.0.guard.check_host(host).is_ok()
    }

    /// The beginning of a server's answer. Redirects are not followed.
    ///
    /// # Errors
    /// No connection, or no answer in time.
    pub async fn send(&self, request: HttpRequest) -> Result<Response<Incoming>, HttpError> {
        match timeout(ANSWER_TIME, self.0.pool.request(request)).await {
            Ok(answer) => answer.map_err(failed),
            Err(late) => Err(HttpError::new(HttpErrorKind::Timeout, late)),
        }
    }
}

/// What may help is tried again by the object stores' library; a refusal is not.
fn failed(error: PoolError) -> HttpError {
    let refused = matches!(
        find::<ConnectError>(&error),
        Some(ConnectError::Refused(_) | ConnectError::NoHost)
    );
    let kind = if refused || find::<rustls::Error>(&error).is_some() {
        HttpErrorKind::Unknown
    } else if error.is_connect() {
        HttpErrorKind::Connect
    } else {
        HttpErrorKind::Interrupted
    };
    HttpError::new(kind, error)
}

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = self.send(request).await?.into_parts();
        let body = body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error));
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}

impl HttpConnector for Client {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// Connects to checked addresses.
#[derive(Debug, Clone)]
pub struct Guarded {
    guard: Arc<Guard>,
}

impl Service<Uri> for Guarded {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let guard = Arc::clone(&self.guard);
        Box::pin(async move {
            let text = uri.host().unwrap_or_default();
            let text = text
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
                .unwrap_or(text);
            let host = Host::parse(text).map_err(|_| ConnectError::NoHost)?;
            let usual = if uri.scheme_str() == Some("http") {
                80
            } else {
                443
            };
            let port = uri.port_u16().unwrap_or(usual);
            Ok(TokioIo::new(connect::to(&guard, &host, port).await?))
        })
    }
}
