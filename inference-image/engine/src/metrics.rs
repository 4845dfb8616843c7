//! Prometheus metrics.

use std::sync::Arc;
use std::time::Instant;

use graftwork_listen::clock;
use graftwork_listen::gone_series::GoneSeries;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    TextEncoder,
};

use crate::ended::Ended;
use crate::registry::state::{Registry, Standing, Target};
use crate::vllm::{Load, VllmMetrics};

/// Every metric of an engine. Cheap to share.
#[derive(Debug)]
pub struct Metrics {
    registry: prometheus::Registry,
    /// Answered requests by `model`, `version` and `code`; both empty where no model was found.
    pub requests: IntCounterVec,
    /// Prompt tokens of answered requests by `model` and `version`.
    pub prompt_tokens: IntCounterVec,
    /// Generated tokens by `model` and `version`.
    pub generated_tokens: IntCounterVec,
    /// Sequences in the KV cache.
    pub running: IntGauge,
    /// Sequences in the queue.
    pub waiting: IntGauge,
    /// Requests that are not in the queue yet: their adapter is loaded, or their prompt cut.
    pub preparing: IntGauge,
    /// KV blocks in use.
    pub kv_blocks_used: IntGauge,
    /// KV blocks in all.
    pub kv_blocks_total: IntGauge,
    /// Forward passes.
    pub passes: IntCounter,
    /// Tokens that forward passes computed.
    pub pass_tokens: IntCounter,
    /// Sequences that lost their KV blocks and were computed again.
    pub preemptions: IntCounter,
    /// Prompt tokens whose keys and values were in the cache already.
    pub reused_tokens: IntCounter,
    /// Arrival to first token.
    pub time_to_first_token: Histogram,
    /// Mean time between tokens after the first, for each request.
    pub time_per_output_token: Histogram,
    /// Arrival to last token.
    pub request_duration: Histogram,
    /// Adapters in memory.
    pub resident_adapters: IntGauge,
    /// Bytes of the adapters in memory.
    pub resident_adapter_bytes: IntGauge,
    /// Versions of the desired list by `state`.
    pub adapters: IntGaugeVec,
    /// The same under other names, where asked for.
    pub vllm: Option<VllmMetrics>,
    /// How fast answers end: what refused clients are told depends on it.
    pub ended: Ended,
    gone: GoneSeries,
}

const STATES: [&str; 4] = ["Registered", "Verified", "Resident", "Refused"];

impl Metrics {
    /// Registers everything; `vllm`: with vLLM's names beside.
    ///
    /// # Errors
    /// Where two metrics share a name: a defect that the first start shows.
    pub fn new(vllm: Option<VllmMetrics>) -> prometheus::Result<Arc<Self>> {
        let registry = prometheus::Registry::new();
        let by_version = ["model", "version"];
        let counters = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels)
        };
        // 1 ms to about 130 s, and 0.1 ms to about 13 s, doubling.
        let latencies = prometheus::exponential_buckets(0.001, 2.0, 18)?;
        let token_times = prometheus::exponential_buckets(0.0001, 2.0, 18)?;
        let metrics = Self {
            requests: counters(
                "graftwork_engine_requests_total",
                "Answered requests; code 499: the client left.",
                &["model", "version", "code"],
            )?,
            prompt_tokens: counters(
                "graftwork_engine_prompt_tokens_total",
                "Prompt tokens of admitted requests.",
                &by_version,
            )?,
            generated_tokens: counters(
                "graftwork_engine_generated_tokens_total",
                "Generated tokens.",
                &by_version,
            )?,
            running: IntGauge::new(
                "graftwork_engine_running_requests",
                "Requests in the KV cache.",
            )?,
            waiting: IntGauge::new(
                "graftwork_engine_waiting_requests",
                "Requests in the queue.",
            )?,
            preparing: IntGauge::new(
                "graftwork_engine_preparing_requests",
                "Requests whose adapter is loaded, or whose prompt is cut, before they queue.",
            )?,
            kv_blocks_used: IntGauge::new(
                "graftwork_engine_kv_blocks_used",
                "KV cache blocks in use.",
            )?,
            kv_blocks_total: IntGauge::new(
                "graftwork_engine_kv_blocks",
                "KV cache blocks in all.",
            )?,
            passes: IntCounter::new("graftwork_engine_forward_passes_total", "Forward passes.")?,
            pass_tokens: IntCounter::new(
                "graftwork_engine_forward_tokens_total",
                "Tokens that forward passes computed, prompts included.",
            )?,
            preemptions: IntCounter::new(
                "graftwork_engine_preemptions_total",
                "Requests that lost their KV blocks and were computed again.",
            )?,
            reused_tokens: IntCounter::new(
                "graftwork_engine_prefix_reused_tokens_total",
                "Tokens of admitted requests that were in the KV cache already.",
            )?,
            time_to_first_token: Histogram::with_opts(
                HistogramOpts::new(
                    "graftwork_engine_time_to_first_token_seconds",
                    "Arrival to first token.",
                )
                .buckets(latencies.clone()),
            )?,
            time_per_output_token: Histogram::with_opts(
                HistogramOpts::new(
                    "graftwork_engine_time_per_output_token_seconds",
                    "Mean time between the tokens of a request after its first.",
                )
                .buckets(token_times),
            )?,
            request_duration: Histogram::with_opts(
                HistogramOpts::new(
                    "graftwork_engine_request_duration_seconds",
                    "Arrival to last token of completed requests.",
                )
                .buckets(latencies),
            )?,
            resident_adapters: IntGauge::new(
                "graftwork_engine_resident_adapters",
                "Adapters in memory.",
            )?,
            resident_adapter_bytes: IntGauge::new(
                "graftwork_engine_resident_adapter_bytes",
                "Bytes of the adapters in memory.",
            )?,
            adapters: IntGaugeVec::new(
                Opts::new(
                    "graftwork_engine_adapters",
                    "Adapter versions of the desired list by state.",
                ),
                &["state"],
            )?,
            vllm,
            ended: Ended::default(),
            gone: GoneSeries::default(),
            registry,
        };
        metrics.register()?;
        Ok(Arc::new(metrics))
    }

    fn register(&self) -> prometheus::Result<()> {
        let registry = &self.registry;
        registry.register(Box::new(self.requests.clone()))?;
        registry.register(Box::new(self.prompt_tokens.clone()))?;
        registry.register(Box::new(self.generated_tokens.clone()))?;
        registry.register(Box::new(self.running.clone()))?;
        registry.register(Box::new(self.waiting.clone()))?;
        registry.register(Box::new(self.preparing.clone()))?;
        registry.register(Box::new(self.kv_blocks_used.clone()))?;
        registry.register(Box::new(self.kv_blocks_total.clone()))?;
        registry.register(Box::new(self.passes.clone()))?;
        registry.register(Box::new(self.pass_tokens.clone()))?;
        registry.register(Box::new(self.preemptions.clone()))?;
        registry.register(Box::new(self.reused_tokens.clone()))?;
        registry.register(Box::new(self.time_to_first_token.clone()))?;
        registry.register(Box::new(self.time_per_output_token.clone()))?;
        registry.register(Box::new(self.request_duration.clone()))?;
        registry.register(Box::new(self.resident_adapters.clone()))?;
        registry.register(Box::new(self.resident_adapter_bytes.clone()))?;
        registry.register(Box::new(self.adapters.clone()))
    }

    /// Drops the series of versions that have been in no list for a while.
    pub fn forget_gone<A: Clone, W>(&self, adapters: &Registry<A, W>, now: Instant) {
        let is_live = |[model, version]: &[String; 2]| {
            // The base is always there, and what was refused has no version.
            let number = version.strip_prefix('v').and_then(|n| n.parse().ok());
            number.is_none_or(|number| {
                let target = Target::Exactly(model.clone(), number);
                adapters.find(&target).is_ok()
            })
        };
        for [model, version] in self.gone.expire(&self.requests, is_live, now) {
            let labels = [&model, &version];
            let _ = self.prompt_tokens.remove_label_values(&labels);
            let _ = self.generated_tokens.remove_label_values(&labels);
        }
    }

    /// Sets the gauges of the adapter registry.
    pub fn set_adapters<A: Clone, W>(&self, adapters: &Registry<A, W>) {
        let mut counts = [0_i64; STATES.len()];
        for (_, standing) in adapters.standings() {
            let index = match standing {
                Standing::Unread => continue,
                Standing::Registered => 0,
                Standing::Verified => 1,
                Standing::Resident => 2,
                Standing::Refused(_) => 3,
            };
            if let Some(count) = counts.get_mut(index) {
                *count += 1;
            }
        }
        for (state, count) in STATES.iter().zip(counts) {
            self.adapters.with_label_values(&[*state]).set(count);
        }
        self.resident_adapters
            .set(i64::try_from(adapters.resident()).unwrap_or(i64::MAX));
        self.resident_adapter_bytes
            .set(i64::try_from(adapters.resident_bytes()).unwrap_or(i64::MAX));
    }

    /// The text format, version 0.0.4.
    pub fn text(&self) -> String {
        let mut buffer = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut buffer) {
            tracing::error!(%error, "metrics can't be written");
        }
        let mut text = String::from_utf8_lossy(&buffer).into_owned();
        if let Some(vllm) = &self.vllm {
            text.push_str(&vllm.aliases(&text));
            let load = Load {
                running: self.running.get(),
                waiting: self.waiting.get() + self.preparing.get(),
                used_blocks: self.kv_blocks_used.get(),
                blocks: self.kv_blocks_total.get(),
            };
            text.push_str(&vllm.text(load, clock::unix_seconds()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use graftwork_contract::Digest;

    use super::*;
    use crate::registry::state::{Budget, Source, Version};

    fn registry(number: u32) -> Registry<u32, ()> {
        let mut registry = Registry::new(Budget {
            adapters: 1,
            bytes: 1,
        });
        let _ = registry.replace(vec![Version {
            name: "m".into(),
            number,
            source: Source {
                digest: Digest::of(b"m"),
                folder: "adapters/m".into(),
            },
            is_default: true,
        }]);
        registry
    }

    #[test]
    fn series_of_a_version_that_left_the_list_go_a_while_later_and_others_stay() {
        let metrics = Metrics::new(None).unwrap();
        for version in ["v1", "v2", "base"] {
            let requests = &metrics.requests;
            requests.with_label_values(&["m", version, "200"]).inc();
            let tokens = &metrics.prompt_tokens;
            tokens.with_label_values(&["m", version]).inc();
        }
        metrics.requests.with_label_values(&["", "", "404"]).inc();
        let (old, new) = (registry(1), registry(2));
        let begun = clock::now();
        let has = |version: &str| metrics.text().contains(&format!("version=\"{version}\""));
        let at = |registry: &Registry<u32, ()>, seconds: u64| {
            metrics.forget_gone(registry, begun + Duration::from_secs(seconds));
        };
        at(&new, 0);
        // It comes back, and leaves again: the time begins anew.
        at(&old, 600);
        at(&new, 1200);
        at(&new, 2000);
        assert!(has("v1"), "its last numbers");
        at(&new, 2200);
        assert!(!has("v1"));
        assert!(has("v2") && has("base") && has(""));
    }
}
