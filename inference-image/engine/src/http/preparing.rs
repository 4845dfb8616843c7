//! A request between its body and the device's queue: its adapter is loaded, its prompt cut, its schema compiled. It
//! waits, and whoever spreads requests over engines has to see that.

use std::sync::Arc;

use crate::metrics::Metrics;

/// Counts a request for as long as it lives.
#[derive(Debug)]
pub(super) struct Preparing {
    metrics: Arc<Metrics>,
    adapter: Option<String>,
}

impl Preparing {
    pub(super) fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.preparing.inc();
        Self {
            metrics: Arc::clone(metrics),
            adapter: None,
        }
    }

    /// Says which adapter it is for.
    pub(super) fn wants(&mut self, adapter: &str) {
        if let Some(vllm) = &self.metrics.vllm
            && self.adapter.is_none()
        {
            vllm.enter(adapter);
            self.adapter = Some(adapter.to_owned());
        }
    }
}

impl Drop for Preparing {
    fn drop(&mut self) {
        self.metrics.preparing.dec();
        if let (Some(vllm), Some(adapter)) = (&self.metrics.vllm, &self.adapter) {
            vllm.leave(adapter);
        }
    }
}
