//! An API server that answers as a test says, and remembers what it was asked to write.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

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

/// One list or watch of all namespaces.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The last part of its path, for example `configmaps`.
    pub plural: String,
    pub query: String,
    /// What it asks for.
    pub accept: String,
}

/// What the server does with a list of all namespaces.
#[derive(Clone)]
enum Listed {
    Objects(Vec<Value>),
    Status(u16),
    Silence,
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
    /// Another one, but not at once.
    Late(Duration, Box<Answer>),
    /// Another one, once the test allows it.
    Held(CancellationToken, Box<Answer>),
}

type Rule = dyn Fn(&Method, &str, &Value) -> Answer + Send + Sync;

/// The server.
#[derive(Clone)]
pub struct FakeApi {
    writes: Arc<Mutex<Vec<Write>>>,
    reads: Arc<Mutex<Vec<Read>>>,
    lists: HashMap<&'static str, Listed>,
    rule: Arc<Rule>,
}

impl FakeApi {
    /// A server that follows `rule`; lists are empty and watches silent.
    pub fn new(rule: impl Fn(&Method, &str, &Value) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            writes: Arc::default(),
            reads: Arc::default(),
            lists: HashMap::new(),
            rule: Arc::new(rule),
        }
    }

    /// The same server, with these objects of that plural.
    pub fn with(mut self, plural: &'static str, objects: Vec<Value>) -> Self {
        self.lists.insert(plural, Listed::Objects(objects));
        self
    }

    /// The same server, which answers lists of that plural with a code.
    pub fn refusing(mut self, plural: &'static str, code: u16) -> Self {
        self.lists.insert(plural, Listed::Status(code));
        self
    }

    /// The same server, which does not answer lists of that plural.
    pub fn silent_about(mut self, plural: &'static str) -> Self {
        self.lists.insert(plural, Listed::Silence);
        self
    }

    /// Lists and watches of all namespaces so far.
    pub fn reads(&self) -> Vec<Read> {
        self.reads.lock().unwrap().clone()
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

    /// Serves on this machine, for processes. Returns the address.
    pub async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = self.clone();
        let answer = move |request: Request<axum::body::Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
                let request = Request::from_parts(parts, Body::from(bytes.to_vec()));
                server.answer(request).await.map(axum::body::Body::new)
            }
        };
        let router = axum::Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    async fn list(&self, plural: &str) -> Response<Body> {
        let items = match self.lists.get(plural) {
            None => Vec::new(),
            Some(Listed::Objects(objects)) => objects.clone(),
            Some(Listed::Status(code)) => {
                let text = format!("{code} {plural}");
                return reply(
                    *code,
                    &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": text, "message": text}),
                );
            }
            Some(Listed::Silence) => return silence().await,
        };
        reply(
            200,
            &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}),
        )
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let method = request.method().clone();
        let uri = request.uri().clone();
        let accept = request.headers().get(http::header::ACCEPT);
        let accept = accept.map(|accept| accept.to_str().unwrap().to_owned());
        let bytes = request.into_body().collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let path = short(uri.path());
        let query = uri.query().unwrap_or_default().to_owned();
        if method == Method::GET && !uri.path().contains("/namespaces/") {
            let (group, plural) = uri.path().rsplit_once('/').unwrap();
            self.reads.lock().unwrap().push(Read {
                plural: plural.to_owned(),
                query: query.clone(),
                accept: accept.unwrap_or_default(),
            });
            if query.contains("watch=true") {
                return silence().await;
            }
            // A cluster-scoped object by its name: the rule says.
            if !group.ends_with("priorityclasses") {
                return self.list(plural).await;
            }
        }
        if method != Method::GET {
            self.writes.lock().unwrap().push(Write {
                method: method.clone(),
                path: path.clone(),
                body: body.clone(),
            });
        }
        let path = path.strip_prefix(SCHEDULING).unwrap_or(&path);
        let mut answer = (self.rule)(&method, path, &body);
        loop {
            answer = match answer {
                Answer::Late(after, late) => {
                    tokio::time::sleep(after).await;
                    *late
                }
                Answer::Held(release, held) => {
                    release.cancelled().await;
                    *held
                }
                _ => break,
            };
        }
        match answer {
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
            Answer::Late(..) | Answer::Held(..) => unreachable!("it was waited for"),
        }
    }
}

/// Path of the only cluster-scoped objects that are asked for by name.
const SCHEDULING: &str = "/apis/scheduling.k8s.io/v1/";

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
