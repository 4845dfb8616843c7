//! One request, as it went.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

/// What is asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// `model`.
    pub model: String,
    /// `user`.
    pub user: String,
    /// `prompt`.
    pub prompt: String,
    /// `max_tokens`.
    pub max_tokens: u32,
    /// Whether as a stream.
    pub stream: bool,
    /// The version header.
    pub version: Option<String>,
    /// Who asks, among the callers.
    pub caller: u64,
}

/// What came back.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// HTTP status; none: no answer.
    pub status: Option<u16>,
    /// Value of the version header.
    pub version: Option<String>,
    /// The text, all pieces of a stream joined.
    pub text: String,
    /// Whether a stream ended with `[DONE]`.
    pub done: bool,
    /// Whether a stream ended with an error event.
    pub stream_error: bool,
    /// Why there is no whole answer.
    pub error: Option<String>,
    /// Whether that is for want of time.
    pub timed_out: bool,
    /// Until the first byte of the body, in milliseconds.
    pub first_byte_milliseconds: Option<f64>,
    /// Until the last byte, in milliseconds.
    pub milliseconds: f64,
}

/// A client with kept connections and without retries.
pub struct Client {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    uri: http::Uri,
    timeout: Duration,
}

impl Client {
    /// For the endpoint at `url`.
    pub fn new(url: &str, timeout: Duration) -> anyhow::Result<Self> {
        let uri = format!("{}/v1/completions", url.trim_end_matches('/'))
            .parse()
            .context("--url")?;
        let http = HttpClient::builder(TokioExecutor::new())
            .retry_canceled_requests(false)
            .build_http();
        Ok(Self { http, uri, timeout })
    }

    /// Sends one request and reads its answer to the end.
    pub async fn send(&self, request: &Request) -> Answer {
        let start = Instant::now();
        let mut answer = Answer::default();
        match tokio::time::timeout(self.timeout, self.exchange(request, start, &mut answer)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => answer.error = Some(format!("{error:#}")),
            Err(_) => {
                answer.error = Some(format!("no last byte within {:?}", self.timeout));
                answer.timed_out = true;
            }
        }
        answer.milliseconds = start.elapsed().as_secs_f64() * 1000.0;
        answer
    }

    async fn exchange(
        &self,
        request: &Request,
        start: Instant,
        answer: &mut Answer,
    ) -> anyhow::Result<()> {
        let body = json!({
            "model": request.model, "prompt": request.prompt, "max_tokens": request.max_tokens,
            "temperature": 0, "stream": request.stream, "user": request.user,
        });
        let mut builder =
            http::Request::post(self.uri.clone()).header("content-type", "application/json");
        if let Some(version) = &request.version {
            builder = builder.header("x-graftwork-version", version);
        }
        let response = self
            .http
            .request(builder.body(Full::new(Bytes::from(body.to_string())))?)
            .await?;
        answer.status = Some(response.status().as_u16());
        let version = response
            .headers()
            .get("x-graftwork-adapter")
            .and_then(|value| value.to_str().ok());
        answer.version = version.map(str::to_owned);
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                answer
                    .first_byte_milliseconds
                    .get_or_insert_with(|| start.elapsed().as_secs_f64() * 1000.0);
                bytes.extend_from_slice(&data);
            }
        }
        read(request, &bytes, answer);
        Ok(())
    }
}

/// Reads a whole body.
pub fn read(request: &Request, bytes: &[u8], answer: &mut Answer) {
    let body = String::from_utf8_lossy(bytes);
    if answer.status != Some(200) {
        answer.error = Some(body.chars().take(300).collect());
    } else if request.stream {
        for data in body.lines().filter_map(|line| line.strip_prefix("data: ")) {
            if data == "[DONE]" {
                answer.done = true;
                continue;
            }
            let event: Value = serde_json::from_str(data).unwrap_or_default();
            if event.get("error").is_some() {
                answer.stream_error = true;
            }
            answer
                .text
                .push_str(event["choices"][0]["text"].as_str().unwrap_or_default());
        }
    } else {
        let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
        match value["choices"][0]["text"].as_str() {
            Some(text) => answer.text.push_str(text),
            None => answer.error = Some("the answer has no text".into()),
        }
    }
}
