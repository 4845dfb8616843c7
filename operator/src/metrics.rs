//! What the operator counts.

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::api::ApiError;
use crate::cache::Kind;

/// The operator's metrics; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    reconciles: IntCounterVec,
    errors: IntCounterVec,
    duration: HistogramVec,
    queue: IntGaugeVec,
    writes: IntCounterVec,
    calls: IntCounterVec,
    runs: IntGaugeVec,
    rollouts: IntGaugeVec,
    leader: IntGauge,
}

impl Metrics {
    /// All metrics, at zero.
    ///
    /// # Errors
    /// Where two have one name: a bug that the first test shows.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let reconciles = counter(
            "graftwork_reconciles_total",
            "Reconciles that ended, by kind.",
            &["kind"],
        )?;
        let errors = counter(
            "graftwork_reconcile_errors_total",
            "Reconciles that failed, by kind and category.",
            &["kind", "category"],
        )?;
        let writes = counter(
            "graftwork_api_writes_total",
            "Writes to the API server, by kind, verb and outcome.",
            &["kind", "verb", "outcome"],
        )?;
        let calls = counter(
            "graftwork_calls_total",
            "gRPC calls to pods, by method and outcome.",
            &["method", "outcome"],
        )?;
        let queue = gauge(
            "graftwork_queue_depth",
            "Objects that wait to be looked at, by kind.",
            &["kind"],
        )?;
        let runs = gauge(
            "graftwork_training_runs",
            "TrainingRuns by the reason of their condition Succeeded.",
            &["reason"],
        )?;
        let rollouts = gauge(
            "graftwork_rollouts",
            "Adapters on endpoints by the state of their rollout.",
            &["state"],
        )?;
        let duration = HistogramVec::new(
            HistogramOpts::new(
                "graftwork_reconcile_duration_seconds",
                "Duration of reconciles, by kind.",
            )
            .buckets(prometheus::exponential_buckets(0.001, 2.5, 12)?),
            &["kind"],
        )?;
        registry.register(Box::new(duration.clone()))?;
        let leader = IntGauge::new("graftwork_leader", "1 while this process leads.")?;
        registry.register(Box::new(leader.clone()))?;
        Ok(Self {
            registry,
            reconciles,
            errors,
            duration,
            queue,
            writes,
            calls,
            runs,
            rollouts,
            leader,
        })
    }

    /// A reconcile ended after `seconds`.
    pub fn reconciled(&self, kind: Kind, seconds: f64) {
        self.reconciles.with_label_values(&[kind.name()]).inc();
        self.duration
            .with_label_values(&[kind.name()])
            .observe(seconds);
    }

    /// A reconcile failed.
    pub fn failed(&self, kind: Kind, category: &str) {
        self.errors
            .with_label_values(&[kind.name(), category])
            .inc();
    }

    /// Sets the depth of a kind's queue.
    pub fn queue(&self, kind: Kind, depth: usize) {
        let depth = i64::try_from(depth).unwrap_or(i64::MAX);
        self.queue.with_label_values(&[kind.name()]).set(depth);
    }

    /// A write to the API server ended, well where there is no error.
    pub fn wrote(&self, kind: &str, verb: &str, error: Option<&ApiError>) {
        let outcome = error.map_or("ok", ApiError::category);
        self.writes.with_label_values(&[kind, verb, outcome]).inc();
    }

    /// A call to a pod ended.
    pub fn call(&self, method: &str, outcome: &str) {
        self.calls.with_label_values(&[method, outcome]).inc();
    }

    /// This process leads, or does not: then it has nothing to say about the cluster's objects, which
    /// would otherwise be counted once for each replica.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if !leads {
            self.runs.reset();
            self.rollouts.reset();
        }
    }

    /// Sets the number of runs by reason.
    pub fn runs(&self, reasons: impl IntoIterator<Item = String>) {
        self.runs.reset();
        for reason in reasons {
            self.runs.with_label_values(&[&reason]).inc();
        }
    }

    /// Sets the number of rollouts by state.
    pub fn rollouts(&self, states: impl IntoIterator<Item = String>) {
        self.rollouts.reset();
        for state in states {
            self.rollouts.with_label_values(&[&state]).inc();
        }
    }

    /// The text format of Prometheus.
    pub fn print(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics can't be printed");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_printed() {
        let metrics = Metrics::new().unwrap();
        metrics.reconciled(Kind::Run, 0.01);
        metrics.wrote("Job", "create", None);
        metrics.runs(["Training".to_owned(), "Training".to_owned()]);
        metrics.leads(true);
        let text = metrics.print();
        for line in [
            "graftwork_reconciles_total{kind=\"TrainingRun\"} 1",
            "graftwork_api_writes_total{kind=\"Job\",outcome=\"ok\",verb=\"create\"} 1",
            "graftwork_training_runs{reason=\"Training\"} 2",
            "graftwork_leader 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
        metrics.runs([]);
        assert!(!metrics.print().contains("reason=\"Training\""));
    }

    #[test]
    fn a_process_that_does_not_lead_any_more_says_nothing_about_objects() {
        let metrics = Metrics::new().unwrap();
        metrics.leads(true);
        metrics.runs(["Training".to_owned()]);
        metrics.rollouts(["Stepping".to_owned()]);
        assert!(
            metrics
                .print()
                .contains("graftwork_rollouts{state=\"Stepping\"} 1")
        );
        metrics.leads(false);
        let text = metrics.print();
        assert!(text.contains("graftwork_leader 0"), "{text}");
        for gauge in ["graftwork_training_runs{", "graftwork_rollouts{"] {
            assert!(!text.contains(gauge), "{text}");
        }
    }
}
