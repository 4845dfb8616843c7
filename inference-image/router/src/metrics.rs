//! Prometheus metrics of one router.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::engine::Engine;
use crate::table::{Table, Version};

/// Seconds; from a cached short answer to a long generation.
const BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// The metrics, each registered in a registry of its own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    first_byte: HistogramVec,
    in_flight: IntGauge,
    retries: IntCounterVec,
    fallbacks: IntCounterVec,
    hedges: IntCounter,
    cache_hits: IntCounter,
    ejections: IntCounter,
    engines: IntGaugeVec,
    table_generation: IntGauge,
    table_lease_epoch: IntGauge,
    candidate_weight: IntGaugeVec,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// Where a name or label is invalid, which a test would see.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let histograms = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(BOUNDS.to_vec());
            let metric = HistogramVec::new(options, &["model", "version"])?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let ejections = IntCounter::new(
            "graftwork_router_ejections_total",
            "Engines taken out because a connection failed, or because others answer what they fail.",
        )?;
        registry.register(Box::new(ejections.clone()))?;
        let hedges = IntCounter::new(
            "graftwork_router_hedges_total",
            "Requests sent to a second engine because the first one was slow.",
        )?;
        registry.register(Box::new(hedges.clone()))?;
        let cache_hits = IntCounter::new(
            "graftwork_router_response_cache_hits_total",
            "Requests that were answered from the response cache.",
        )?;
        registry.register(Box::new(cache_hits.clone()))?;
        Ok(Self {
            requests: counters(
                "graftwork_router_requests_total",
                "Requests by model, version and code: the HTTP status, truncated (a stream that broke) or cancelled (the client left).",
                &["model", "version", "code"],
            )?,
            duration: histograms(
                "graftwork_router_request_duration_seconds",
                "Arrival to last byte of answers below status 400.",
            )?,
            first_byte: histograms(
                "graftwork_router_first_byte_seconds",
                "Arrival to first byte of the body of answers below status 400.",
            )?,
            in_flight: gauge(
                "graftwork_router_in_flight_requests",
                "Requests that run now.",
            )?,
            retries: counters(
                "graftwork_router_retries_total",
                "Requests sent to another engine, by what the one before did.",
                &["reason"],
            )?,
            fallbacks: counters(
                "graftwork_router_fallbacks_total",
                "Requests that were passed on to a fallback, by the model and version that was unavailable.",
                &["model", "version"],
            )?,
            hedges,
            cache_hits,
            ejections,
            engines: gauges(
                "graftwork_router_engines",
                "Engines known, by state: healthy or ejected.",
                &["state"],
            )?,
            table_generation: gauge(
                "graftwork_router_table_generation",
                "Generation of the pushed table; 0 while the mounted one is used.",
            )?,
            table_lease_epoch: gauge(
                "graftwork_router_table_lease_epoch",
                "Lease epoch of the pushed table; 0 while the mounted one is used.",
            )?,
            candidate_weight: gauges(
                "graftwork_router_candidate_weight_percent",
                "Weight of each candidate; 0 after its lease ended.",
                &["model", "version"],
            )?,
            registry,
        })
    }

    /// A request of `version` began; see [`Metrics::end`].
    pub fn begin(&self) {
        self.in_flight.inc();
    }

    /// It ended with `code`.
    pub fn end(&self, version: &Version, code: &str) {
        self.in_flight.dec();
        self.requests
            .with_label_values(&[&*version.model, &label(version), code])
            .inc();
    }

    /// A request that never got a version: its name is not a label, as anybody may choose it.
    pub fn refused(&self, code: &str) {
        self.requests.with_label_values(&["", "", code]).inc();
    }

    /// Times of a good answer.
    pub fn observe(&self, version: &Version, total: Duration, first_byte: Duration) {
        let label = label(version);
        let labels: [&str; 2] = [&version.model, &label];
        self.duration
            .with_label_values(&labels)
            .observe(total.as_secs_f64());
        self.first_byte
            .with_label_values(&labels)
            .observe(first_byte.as_secs_f64());
    }

    /// A second engine is asked beside the first.
    pub fn hedge(&self) {
        self.hedges.inc();
    }

    /// Another engine is tried.
    pub fn retry(&self, reason: &str) {
        self.retries.with_label_values(&[reason]).inc();
    }

    /// A fallback is asked for what `version` could not answer.
    pub fn fallback(&self, version: &Version) {
        self.fallbacks
            .with_label_values(&[&*version.model, &label(version)])
            .inc();
    }

    /// Another model's version is asked for a model that has none.
    pub fn stand_in(&self, model: &str) {
        self.fallbacks.with_label_values(&[model, "none"]).inc();
    }

    /// The response cache had the answer.
    pub fn cache_hit(&self) {
        self.cache_hits.inc();
    }

    /// An engine was ejected.
    pub fn ejection(&self) {
        self.ejections.inc();
    }

    /// The text format, with the gauges of the state as it is now.
    ///
    /// # Errors
    /// Where the encoder fails.
    pub fn render(
        &self,
        table: &Table,
        engines: &[Arc<Engine>],
        now: Instant,
    ) -> Result<String, prometheus::Error> {
        let fence = table.fence.unwrap_or_default();
        self.table_generation.set(fence.generation.cast_signed());
        self.table_lease_epoch.set(fence.lease_epoch.cast_signed());
        self.candidate_weight.reset();
        for candidate in table
            .models
            .values()
            .filter_map(|model| model.candidate.as_ref())
        {
            let version = &candidate.version;
            self.candidate_weight
                .with_label_values(&[&*version.model, &label(version)])
                .set(candidate.live_weight(now).into());
        }
        let ejected = engines.iter().filter(|engine| engine.is_ejected()).count();
        for (state, count) in [("healthy", engines.len() - ejected), ("ejected", ejected)] {
            self.engines
                .with_label_values(&[state])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

fn label(version: &Version) -> String {
    version
        .number
        .map_or_else(|| "base".to_owned(), |number| format!("v{number}"))
}
