//! What is counted and logged about one request, whichever way it ends.

use std::sync::Arc;
use std::time::Instant;

use graftwork_listen::clock;

use crate::metrics::Metrics;

/// The client closed the connection before the answer was complete (nginx's code for it).
const CLIENT_LEFT: u16 = 499;

/// One request. Dropping it counts it; unless [`Self::end`] said otherwise, the client left.
#[derive(Debug)]
pub(super) struct Record {
    metrics: Arc<Metrics>,
    pub(super) request_id: String,
    arrived: Instant,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    prompt_tokens: usize,
    generated_tokens: u64,
    /// Places that the device had for it.
    places: usize,
    model: String,
    version: String,
    /// Value of `x-graftwork-adapter`: what really ran.
    pub(super) ran: Option<String>,
    code: u16,
}

impl Record {
    pub(super) fn new(metrics: Arc<Metrics>, request_id: String) -> Self {
        Self {
            metrics,
            request_id,
            arrived: clock::now(),
            first_token: None,
            last_token: None,
            prompt_tokens: 0,
            generated_tokens: 0,
            places: 0,
            model: String::new(),
            version: String::new(),
            ran: None,
            code: CLIENT_LEFT,
        }
    }

    /// Says what runs. `version` is `base` for the bare base model.
    pub(super) fn runs(&mut self, model: &str, version: String, header: String) {
        model.clone_into(&mut self.model);
        self.version = version;
        self.ran = Some(header);
    }

    pub(super) fn prompt(&mut self, tokens: usize) {
        self.prompt_tokens = tokens;
    }

    /// The device has its answers, so many.
    pub(super) fn takes(&mut self, places: usize) {
        self.places = places;
    }

    pub(super) fn token(&mut self) {
        let now = clock::now();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.metrics
                .time_to_first_token
                .observe((now - self.arrived).as_secs_f64());
        }
        self.last_token = Some(now);
        self.generated_tokens += 1;
    }

    pub(super) fn end(&mut self, code: u16) {
        self.code = code;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let labels = [self.model.as_str(), self.version.as_str()];
        let code = self.code.to_string();
        self.metrics
            .requests
            .with_label_values(&[self.model.as_str(), self.version.as_str(), code.as_str()])
            .inc();
        if self.ran.is_some() {
            let prompt = self.prompt_tokens as u64;
            self.metrics
                .prompt_tokens
                .with_label_values(&labels)
                .inc_by(prompt);
            self.metrics
                .generated_tokens
                .with_label_values(&labels)
                .inc_by(self.generated_tokens);
        }
        // What was refused before it ran says nothing about how fast answers end.
        if self.places > 0 {
            self.metrics.ended.add(clock::now(), self.places);
        }
        let duration = self.arrived.elapsed();
        if self.code == 200 {
            self.metrics
                .request_duration
                .observe(duration.as_secs_f64());
            if let (Some(first), Some(last)) = (self.first_token, self.last_token)
                && self.generated_tokens > 1
            {
                let gaps = (self.generated_tokens - 1) as f64;
                self.metrics
                    .time_per_output_token
                    .observe((last - first).as_secs_f64() / gaps);
            }
        }
        tracing::info!(
            request_id = self.request_id,
            adapter = self.ran,
            code = self.code,
            prompt_tokens = self.prompt_tokens,
            generated_tokens = self.generated_tokens,
            milliseconds = duration.as_millis() as u64,
            "request"
        );
    }
}
