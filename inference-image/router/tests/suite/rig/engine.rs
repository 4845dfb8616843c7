//! An engine that does what a test says, over a real socket.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use graftwork_contract::endpoint::{HEADER_ADAPTER, HEADER_ENGINE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// What an engine does with a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Behaviour {
    /// Answers at once: a stream of three events where one is asked for.
    Answer,
    /// Answers after a while.
    Slow(Duration),
    /// Closes the connection instead of answering.
    Abort,
    /// Closes the connection half-way through the body, or in the middle of a stream's second event.
    Cut,
    /// A stream that ends properly, but without `[DONE]`.
    EndWithoutDone,
    /// This status, in OpenAI's shape with this code.
    Status(u16, &'static str),
    /// A stream for ever, an event each 10 ms.
    Endless,
    /// A whole body of so many bytes, the connection closed before its end where said.
    Large { bytes: usize, cut: bool },
}

pub struct FakeEngine {
    pub address: SocketAddr,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

struct State {
    usual: Mutex<Behaviour>,
    once: Mutex<VecDeque<Behaviour>>,
    seen: Mutex<Vec<HeaderMap>>,
    open: AtomicUsize,
}

type EngineBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// Counts an open request until dropped.
struct Open(Arc<State>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl FakeEngine {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    #[expect(clippy::unused_async, reason = "reads like the other starts")]
    pub async fn start_at(address: SocketAddr) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            usual: Mutex::new(Behaviour::Answer),
            once: Mutex::default(),
            seen: Mutex::default(),
            open: AtomicUsize::new(0),
        });
        let accepting = tokio::spawn(accept(listener, state.clone()));
        Self {
            address,
            state,
            accepting,
        }
    }

    /// From now on.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.state.usual.lock().unwrap() = behaviour;
    }

    /// For the next completion alone.
    pub fn behave_once(&self, behaviour: Behaviour) {
        self.state.once.lock().unwrap().push_back(behaviour);
    }

    /// Headers of the completions that arrived.
    pub fn seen(&self) -> Vec<HeaderMap> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Forgets the completions that arrived.
    pub fn forget(&self) {
        self.state.seen.lock().unwrap().clear();
    }

    /// Completions that run.
    pub fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// As SIGKILL does: connections break, new ones are refused.
    pub async fn kill(self) -> SocketAddr {
        self.accepting.abort();
        let _ = self.accepting.await;
        self.address
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let state = state.clone();
        connections.spawn(async move {
            let service = service_fn(|request| answer(state.clone(), request));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<EngineBody>, std::io::Error> {
    if request.uri().path() == "/v1/models" {
        return Ok(Response::new(whole("{}".into())));
    }
    state.open.fetch_add(1, Ordering::SeqCst);
    let open = Open(state.clone());
    let (head, body) = request.into_parts();
    state.seen.lock().unwrap().push(head.headers.clone());
    let body: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
    let streams = body["stream"] == json!(true);
    let once = state.once.lock().unwrap().pop_front();
    let behaviour = once.unwrap_or(*state.usual.lock().unwrap());

    let adapter = head.headers[HEADER_ADAPTER].clone();
    let text = format!("from {}", adapter.to_str().unwrap());
    let event = format!(
        "data: {}\n\n",
        json!({"choices": [{"delta": {"content": text}}]})
    );
    let done = "data: [DONE]\n\n".to_owned();
    // Both endpoints' shapes at once.
    let unary = json!({
        "model": body["model"],
        "choices": [{"text": text, "message": {"content": text}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    })
    .to_string();
    let half = |text: &str| text[..text.len() / 2].to_owned();

    let (status, body) = match behaviour {
        Behaviour::Abort => return Err(std::io::Error::other("abort")),
        Behaviour::Status(status, code) => {
            let error =
                json!({"error": {"message": "no", "type": "x", "param": null, "code": code}});
            (
                StatusCode::from_u16(status).unwrap(),
                whole(error.to_string()),
            )
        }
        Behaviour::Large { bytes, cut } => {
            let piece = "x".repeat(64 << 10);
            let mut all: Vec<_> = (0..bytes / (64 << 10)).map(|_| Ok(piece.clone())).collect();
            if cut {
                all.push(Err(()));
            }
            (StatusCode::OK, pieces(all, Duration::from_millis(1), open))
        }
        Behaviour::Endless => {
            let events = futures::stream::repeat(Ok(event));
            (
                StatusCode::OK,
                stream(events, Duration::from_millis(10), open),
            )
        }
        Behaviour::Cut if streams => {
            let all = vec![Ok(event.clone()), Ok(half(&event)), Err(())];
            (StatusCode::OK, pieces(all, Duration::from_millis(5), open))
        }
        Behaviour::Cut => {
            let all = vec![Ok(half(&unary)), Err(())];
            (StatusCode::OK, pieces(all, Duration::from_millis(5), open))
        }
        Behaviour::EndWithoutDone => (
            StatusCode::OK,
            pieces(vec![Ok(event)], Duration::from_millis(5), open),
        ),
        Behaviour::Answer | Behaviour::Slow(_) => {
            if let Behaviour::Slow(time) = behaviour {
                tokio::time::sleep(time).await;
            }
            let all = if streams {
                vec![Ok(event.clone()), Ok(event.clone()), Ok(event), Ok(done)]
            } else {
                vec![Ok(unary)]
            };
            (StatusCode::OK, pieces(all, Duration::ZERO, open))
        }
    };
    let kind = if streams && status.is_success() {
        "text/event-stream"
    } else {
        "application/json"
    };
    Ok(Response::builder()
        .status(status)
        .header("content-type", kind)
        .header(HEADER_ENGINE, "base-build-isa")
        .header(HEADER_ADAPTER, adapter)
        .header("keep-alive", "timeout=5")
        .body(body)
        .unwrap())
}

fn whole(text: String) -> EngineBody {
    Full::new(Bytes::from(text))
        .map_err(std::io::Error::other)
        .boxed_unsync()
}

fn pieces(pieces: Vec<Result<String, ()>>, pause: Duration, open: Open) -> EngineBody {
    stream(futures::stream::iter(pieces), pause, open)
}

fn stream(
    pieces: impl futures::Stream<Item = Result<String, ()>> + Send + 'static,
    pause: Duration,
    open: Open,
) -> EngineBody {
    let open = Arc::new(open);
    let frames = pieces.then(move |piece| {
        let open = open.clone();
        async move {
            // Apart, so that a piece is on the wire before the next one.
            if pause > Duration::ZERO {
                tokio::time::sleep(pause).await;
            }
            drop(open);
            piece
                .map(|text| Frame::data(Bytes::from(text)))
                .map_err(|()| std::io::Error::other("cut"))
        }
    });
    StreamBody::new(frames).boxed_unsync()
}
