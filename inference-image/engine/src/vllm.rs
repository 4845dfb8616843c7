//! Metrics under vLLM's names, for what reads those: the endpoint picker of the Gateway API inference
//! extension, autoscalers, dashboards. Off unless asked for; our own names are always there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use graftwork_model::kv::KV_BLOCK_TOKENS;

/// Our counters and histograms that vLLM has, too.
const ALIASES: [(&str, &str); 6] = [
    (
        "graftwork_engine_time_to_first_token_seconds",
        "vllm:time_to_first_token_seconds",
    ),
    (
        "graftwork_engine_time_per_output_token_seconds",
        "vllm:request_time_per_output_token_seconds",
    ),
    (
        "graftwork_engine_request_duration_seconds",
        "vllm:e2e_request_latency_seconds",
    ),
    (
        "graftwork_engine_prompt_tokens_total",
        "vllm:prompt_tokens_total",
    ),
    (
        "graftwork_engine_generated_tokens_total",
        "vllm:generation_tokens_total",
    ),
    (
        "graftwork_engine_preemptions_total",
        "vllm:num_preemptions_total",
    ),
];

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
    /// Requests in the queue, or on their way to it.
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
    /// Of requests on their way to the queue: how many each.
    preparing: Mutex<BTreeMap<String, usize>>,
}

impl VllmMetrics {
    /// For a base model of that name, with room for so many adapters.
    pub fn new(model: &str, maximum_adapters: u32) -> Self {
        Self {
            model: model.to_owned(),
            maximum_adapters,
            in_use: Mutex::default(),
            preparing: Mutex::default(),
        }
    }

    /// Takes over which adapters are in use.
    pub fn set(&self, in_use: AdaptersInUse) {
        *lock(&self.in_use) = in_use;
    }

    /// A request for this adapter is on its way to the queue.
    pub fn enter(&self, adapter: &str) {
        let mut preparing = lock(&self.preparing);
        *preparing.entry(adapter.to_owned()).or_default() += 1;
    }

    /// It is there, or was refused.
    pub fn leave(&self, adapter: &str) {
        let mut preparing = lock(&self.preparing);
        let left = preparing.get(adapter).map_or(0, |count| count - 1);
        if left == 0 {
            preparing.remove(adapter);
        } else {
            preparing.insert(adapter.to_owned(), left);
        }
    }

    /// Our metrics of this text under vLLM's names, with the base model's name as label.
    pub fn aliases(&self, ours: &str) -> String {
        let model = format!("model_name=\"{}\"", escaped(&self.model));
        let mut text = String::new();
        for line in ours.lines() {
            for (our_name, name) in ALIASES {
                if let Some(alias) = alias(line, our_name, name, &model) {
                    text.push_str(&alias);
                    text.push('\n');
                }
            }
        }
        text
    }

    /// The text format. `now` in Unix seconds: of several series of `lora_requests_info`, which has the
    /// adapters as labels, readers take the newest.
    pub fn text(&self, load: Load, now: u64) -> String {
        let mut in_use = lock(&self.in_use).clone();
        in_use.waiting.extend(lock(&self.preparing).keys().cloned());
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

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line about our metric, under another name and with one more label; none: it is about another.
fn alias(line: &str, ours: &str, name: &str, label: &str) -> Option<String> {
    for comment in ["# HELP ", "# TYPE "] {
        if let Some(rest) = line.strip_prefix(comment) {
            let rest = rest.strip_prefix(ours)?;
            return rest
                .starts_with(' ')
                .then(|| format!("{comment}{name}{rest}"));
        }
    }
    let rest = line.strip_prefix(ours)?;
    let (part, rest) = ["_bucket", "_sum", "_count", ""]
        .iter()
        .find_map(|part| Some((*part, rest.strip_prefix(*part)?)))?;
    match rest.strip_prefix('{') {
        Some(rest) => Some(format!("{name}{part}{{{label},{rest}")),
        None => rest
            .starts_with(' ')
            .then(|| format!("{name}{part}{{{label}}}{rest}")),
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
    fn who_is_on_the_way_to_the_queue_waits() {
        let metrics = VllmMetrics::new("m", 8);
        metrics.set(AdaptersInUse {
            running: names(&["a"]),
            waiting: names(&["b"]),
        });
        for _ in 0..2 {
            metrics.enter("cold");
        }
        metrics.leave("cold");
        let waiting =
            |text: &str, list: &str| text.contains(&format!("waiting_lora_adapters=\"{list}\""));
        assert!(waiting(&metrics.text(LOAD, 1), "b,cold"));
        metrics.leave("cold");
        metrics.leave("cold");
        assert!(waiting(&metrics.text(LOAD, 1), "b"));
    }

    #[test]
    fn counters_and_histograms_have_vllms_names_and_the_models() {
        let ours = "\
# HELP graftwork_engine_prompt_tokens_total Prompt tokens.
# TYPE graftwork_engine_prompt_tokens_total counter
graftwork_engine_prompt_tokens_total{model=\"a\",version=\"v1\"} 4
graftwork_engine_preemptions_total 2
graftwork_engine_time_to_first_token_seconds_bucket{le=\"0.001\"} 0
graftwork_engine_time_to_first_token_seconds_sum 0.5
graftwork_engine_time_to_first_token_seconds_count 1
graftwork_engine_prompt_tokens_total_of_another 1
graftwork_engine_forward_passes_total 7
";
        assert_eq!(
            VllmMetrics::new("m", 1).aliases(ours),
            "\
# HELP vllm:prompt_tokens_total Prompt tokens.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{model_name=\"m\",model=\"a\",version=\"v1\"} 4
vllm:num_preemptions_total{model_name=\"m\"} 2
vllm:time_to_first_token_seconds_bucket{model_name=\"m\",le=\"0.001\"} 0
vllm:time_to_first_token_seconds_sum{model_name=\"m\"} 0.5
vllm:time_to_first_token_seconds_count{model_name=\"m\"} 1
"
        );
    }

    #[test]
    fn an_idle_engine_has_empty_lists_and_an_empty_cache() {
        let load = Load { blocks: 0, ..LOAD };
        let text = VllmMetrics::new("m", 1).text(load, 1);
        assert!(text.contains("vllm:kv_cache_usage_perc{model_name=\"m\"} 0\n"));
        assert!(text.contains("running_lora_adapters=\"\",waiting_lora_adapters=\"\""));
    }
}
