//! An API server that answers as a test says, and remembers what it was asked to write.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    pub method: Method,
    /// Path without the API group's prefix, for example `configmaps/x`.
    pub path: String,
    pub body: Value,
}

impl Write {
    /// Method and path, for comparisons of order.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// What the server does with a write.
pub enum Answer {
    /// Takes it, and returns the body with a UID and a new resource version.
    Take,
    /// This status.
    Status(u16, &'static str),
    /// This object.
    Object(Value),
    /// No answer at all.
    Silence,
}

type Rule = dyn Fn(&Method, &str, &Value) -> Answer + Send + Sync;

/// The server.
#[derive(Clone)]
pub struct FakeApi {
    writes: Arc<Mutex<Vec<Write>>>,
    rule: Arc<Rule>,
}

impl FakeApi {
    /// A server that follows `rule`; lists are empty and watches silent.
    pub fn new(rule: impl Fn(&Method, &str, &Value) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            writes: Arc::default(),
            rule: Arc::new(rule),
        }
    }

    /// What was written so far.
    pub fn writes(&self) -> Vec<Write> {
        self.writes.lock().unwrap().clone()
    }

    /// Methods and paths of what was written so far.
    pub fn lines(&self) -> Vec<String> {
        self.writes().iter().map(Write::line).collect()
    }

    /// A client of this server.
    pub fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let method = request.method().clone();
        let uri = request.uri().clone();
        let bytes = request.into_body().collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let path = short(uri.path());
        if uri
            .query()
            .is_some_and(|query| query.contains("watch=true"))
        {
            return silence().await;
        }
        if method == Method::GET && !uri.path().contains("/namespaces/") {
            return reply(
                200,
                &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []}),
            );
        }
        if method != Method::GET {
            self.writes.lock().unwrap().push(Write {
                method: method.clone(),
                path: path.clone(),
                body: body.clone(),
            });
        }
        match (self.rule)(&method, &path, &body) {
            Answer::Take => {
                let mut object = body;
                object["metadata"]["uid"] = json!("uid");
                object["metadata"]["resourceVersion"] = json!("2");
                reply(200, &object)
            }
            Answer::Object(object) => reply(200, &object),
            Answer::Status(code, reason) => reply(
                code,
                &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason}),
            ),
            Answer::Silence => silence().await,
        }
    }
}

async fn silence() -> Response<Body> {
    tokio::time::sleep(Duration::from_hours(1)).await;
    reply(500, &Value::Null)
}

fn reply(code: u16, body: &Value) -> Response<Body> {
    Response::builder()
        .status(StatusCode::from_u16(code).unwrap())
        .body(Body::from(serde_json::to_vec(body).unwrap()))
        .unwrap()
}

fn short(path: &str) -> String {
    path.rsplit_once("/namespaces/")
        .and_then(|(_, rest)| rest.split_once('/'))
        .map_or(path, |(_, rest)| rest)
        .to_owned()
}
