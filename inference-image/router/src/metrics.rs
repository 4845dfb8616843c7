//! Prometheus metrics of one router.

use std::sync::Arc;
use std::time::{Duration, Instant};

use graftwork_listen::gone_series::GoneSeries;
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
    gone: GoneSeries,
}

impl Metrics {
    /// Registers everything, for the endpoint of that name.
    ///
    /// # Errors
    /// Where a name or label is invalid, which a test would see.
    pub fn new(endpoint: &str) -> Result<Self, prometheus::Error> {
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
            let options = HistogramOpts::new(name, help)
                .buckets(BOUNDS.to_vec())
                .const_label("endpoint", endpoint);
            let metric = HistogramVec::new(options, &["model", "version"])?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let requests = IntCounterVec::new(
            Opts::new(
                "graftwork_router_requests_total",
                "Requests by model, version and code: the HTTP status, truncated (a stream that broke) or cancelled (the client left).",
            )
            .const_label("endpoint", endpoint),
            &["model", "version", "code"],
        )?;
        registry.register(Box::new(requests.clone()))?;
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
            requests,
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
            gone: GoneSeries::default(),
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

    /// Drops the series of versions that have been in no table for a while.
    fn forget_gone(&self, table: &Table, now: Instant) {
        let is_live = |[model, version]: &[String; 2]| {
            model.is_empty()
                || table.models.get(model).is_some_and(|model| {
                    let candidate = model.candidate.as_ref().map(|one| &one.version);
                    label(&model.stable) == *version
                        || candidate.is_some_and(|candidate| label(candidate) == *version)
                })
        };
        for [model, version] in self.gone.expire(&self.requests, is_live, now) {
            let labels = [&model, &version];
            let _ = self.duration.remove_label_values(&labels);
            let _ = self.first_byte.remove_label_values(&labels);
            let _ = self.fallbacks.remove_label_values(&labels);
        }
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
        self.forget_gone(table, now);
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

#[cfg(test)]
mod tests {
    use graftwork_contract::proto::router::v1 as wire;
    use graftwork_contract::signing::Fence;
    use graftwork_listen::clock;

    use super::*;
    use crate::engine::Registry as Engines;

    fn table(version: u32) -> Table {
        let push = wire::RoutingTable {
            models: vec![wire::Model {
                name: "m".into(),
                stable: Some(wire::Version {
                    version,
                    digest: "sha256:a".into(),
                }),
                candidate: None,
                fallback: String::new(),
            }],
            engines: vec![],
            base_name: "base".into(),
            stand_ins: vec![],
        };
        Table::from_push(&push, Fence::default(), &Engines::default(), clock::now()).unwrap()
    }

    fn answer(metrics: &Metrics, table: &Table) {
        let version = &table.models["m"].stable;
        metrics.begin();
        metrics.end(version, "200");
        metrics.observe(version, Duration::from_secs(1), Duration::from_millis(1));
    }

    #[test]
    fn counters_and_times_name_endpoint_model_and_version() {
        let metrics = Metrics::new("assistants").unwrap();
        let table = table(1);
        answer(&metrics, &table);
        let text = metrics.render(&table, &[], clock::now()).unwrap();
        for sample in [
            r#"graftwork_router_requests_total{code="200",endpoint="assistants",model="m",version="v1"} 1"#,
            r#"graftwork_router_request_duration_seconds_count{endpoint="assistants",model="m",version="v1"} 1"#,
            r#"graftwork_router_first_byte_seconds_count{endpoint="assistants",model="m",version="v1"} 1"#,
        ] {
            assert!(text.contains(sample), "{sample} is not in {text}");
        }
    }

    #[test]
    fn series_of_a_version_that_left_the_table_go_a_while_later_and_others_stay() {
        let metrics = Metrics::new("assistants").unwrap();
        let (old, new) = (table(1), table(2));
        answer(&metrics, &old);
        answer(&metrics, &new);
        metrics.refused("404");
        let begun = clock::now();
        let has = |text: &str, version: &str| text.contains(&format!("version=\"{version}\""));
        let at = |table: &Table, seconds: u64| {
            let now = begun + Duration::from_secs(seconds);
            metrics.render(table, &[], now).unwrap()
        };
        assert!(has(&at(&new, 0), "v1"), "its last numbers");
        // It comes back, and leaves again: the time begins anew.
        assert!(has(&at(&old, 600), "v1"));
        assert!(has(&at(&new, 1200), "v1"));
        assert!(has(&at(&new, 2000), "v1"));
        let text = at(&new, 2200);
        assert!(!has(&text, "v1"), "{text}");
        assert!(has(&text, "v2") && has(&text, ""), "{text}");
    }
}
