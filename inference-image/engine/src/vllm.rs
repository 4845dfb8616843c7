//! Gauges under vLLM's names, for what reads those: the endpoint picker of the Gateway API inference
//! extension, autoscalers, dashboards. Off unless asked for; our own names are always there.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use graftwork_model::kv::KV_BLOCK_TOKENS;

/// Adapters that requests on the device are for, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdaptersInUse {
    /// Of requests in the KV cache.
    pub running: BTreeSet<String>,
    /// Of requests in the queue.
    pub waiting: BTreeSet<String>,
}

/// Counts of the device at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Requests in the KV cache.
    pub running: i64,
    /// Requests in the queue.
    pub waiting: i64,
    /// KV blocks in use.
    pub used_blocks: i64,
    /// KV blocks in all.
    pub blocks: i64,
}

/// What the names are about, and which adapters are in use.
#[derive(Debug)]
pub struct VllmMetrics {
    model: String,
    maximum_adapters: u32,
    in_use: Mutex<AdaptersInUse>,
}

impl VllmMetrics {
    /// For a base model of that name, with room for so many adapters.
    pub fn new(model: &str, maximum_adapters: u32) -> Self {
        Self {
            model: model.to_owned(),
            maximum_adapters,
            in_use: Mutex::default(),
        }
    }

    /// Takes over which adapters are in use.
    pub fn set(&self, in_use: AdaptersInUse) {
        *self.in_use.lock().unwrap_or_else(PoisonError::into_inner) = in_use;
    }

    /// The text format. `now` in Unix seconds: of several series of `lora_requests_info`, which has the
    /// adapters as labels, readers take the newest.
    pub fn text(&self, load: Load, now: u64) -> String {
        let in_use = self
            .in_use
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let usage = if load.blocks > 0 {
            load.used_blocks as f64 / load.blocks as f64
        } else {
            0.0
        };
        let model = format!("model_name=\"{}\"", escaped(&self.model));
        let lists = format!(
            "max_lora=\"{}\",running_lora_adapters=\"{}\",waiting_lora_adapters=\"{}\"",
            self.maximum_adapters,
            joined(&in_use.running),
            joined(&in_use.waiting),
        );
        let cache = format!(
            "block_size=\"{KV_BLOCK_TOKENS}\",num_gpu_blocks=\"{}\"",
            load.blocks
        );
        let gauges = [
            (
                "num_requests_running",
                "Requests in the KV cache.",
                &model,
                load.running.to_string(),
            ),
            (
                "num_requests_waiting",
                "Requests in the queue.",
                &model,
                load.waiting.to_string(),
            ),
            (
                "kv_cache_usage_perc",
                "Share of the KV cache in use; 1 is all of it.",
                &model,
                usage.to_string(),
            ),
            (
                "gpu_cache_usage_perc",
                "The same, under vLLM's older name.",
                &model,
                usage.to_string(),
            ),
            (
                "lora_requests_info",
                "Adapters in use, in the labels; the value is the time.",
                &lists,
                now.to_string(),
            ),
            (
                "cache_config_info",
                "The KV cache, in the labels.",
                &cache,
                "1".to_owned(),
            ),
        ];
        let mut text = String::new();
        for (name, help, labels, value) in gauges {
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "# HELP vllm:{name} {help}\n# TYPE vllm:{name} gauge\nvllm:{name}{{{labels}}} {value}\n"
            );
        }
        text
    }
}

/// As the text format wants a label's value.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn joined(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    escaped(&names.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load {
        running: 3,
        waiting: 2,
        used_blocks: 5,
        blocks: 20,
    };

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_gauge_has_the_name_and_the_labels_that_pickers_read() {
        let metrics = VllmMetrics::new("tiny \"one\"", 8);
        metrics.set(AdaptersInUse {
            running: names(&["b", "a"]),
            waiting: names(&["c"]),
        });
        let text = metrics.text(LOAD, 1_700_000_000);
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let cache = format!(
            "vllm:cache_config_info{{block_size=\"{KV_BLOCK_TOKENS}\",num_gpu_blocks=\"20\"}} 1"
        );
        assert_eq!(
            samples,
            [
                r#"vllm:num_requests_running{model_name="tiny \"one\""} 3"#,
                r#"vllm:num_requests_waiting{model_name="tiny \"one\""} 2"#,
                r#"vllm:kv_cache_usage_perc{model_name="tiny \"one\""} 0.25"#,
                r#"vllm:gpu_cache_usage_perc{model_name="tiny \"one\""} 0.25"#,
                r#"vllm:lora_requests_info{max_lora="8",running_lora_adapters="a,b",waiting_lora_adapters="c"} 1700000000"#,
                cache.as_str(),
            ]
        );
        assert_eq!(text.matches("# TYPE").count(), 6);
    }

    #[test]
    fn an_idle_engine_has_empty_lists_and_an_empty_cache() {
        let load = Load { blocks: 0, ..LOAD };
        let text = VllmMetrics::new("m", 1).text(load, 1);
        assert!(text.contains("vllm:kv_cache_usage_perc{model_name=\"m\"} 0\n"));
        assert!(text.contains("running_lora_adapters=\"\",waiting_lora_adapters=\"\""));
    }
}
