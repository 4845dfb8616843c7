//! `adapter_config.json`, read and written. The keys that are read, and those that say nothing about
//! the maths, are listed; any other key must have the value that PEFT gives it by itself.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::lora::LoraConfig;
use crate::peft::AdapterError;
use crate::targets::{Names, TargetModules, Targets};

/// Keys that [`parse`] reads.
const READ: [&str; 13] = [
    "alpha_pattern",
    "base_model_name_or_path",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// Keys that are for people and programs around the model; any value will do.
const INFORMATION: [&str; 4] = ["auto_mapping", "inference_mode", "peft_version", "revision"];

/// Whether a key that is not read has a value that changes nothing: PEFT's own, or another that
/// only chose the first values of weights that are all there now.
fn is_neutral(field: &str, value: &Value) -> bool {
    let is_off = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
    };
    is_off
        || match field {
            "bias" => value == "none",
            "init_lora_weights" => *value == Value::Bool(true) || value == "gaussian",
            "megatron_core" => value == "megatron.core",
            "qalora_group_size" => value.as_u64() == Some(16),
            "runtime_config" => *value == json!({"ephemeral_gpu_offload": false}),
            _ => false,
        }
}

/// The adapter's make, and the base model that it names.
pub(crate) fn parse(bytes: &[u8]) -> Result<(LoraConfig, String), AdapterError> {
    let keys = Keys(serde_json::from_slice(bytes).map_err(AdapterError::Json)?);
    let kind = keys.get("peft_type");
    if kind.is_none_or(|value| value != "LORA") {
        return Err(unsupported("peft_type", kind, "`LORA`"));
    }
    for (field, value) in &keys.0 {
        let field = field.as_str();
        let is_listed = READ.contains(&field) || INFORMATION.contains(&field);
        if !is_listed && !is_neutral(field, value) {
            return Err(unsupported(field, Some(value), "PEFT's default"));
        }
    }
    let task = keys.get("task_type");
    if task.is_some_and(|value| value != "CAUSAL_LM") {
        return Err(invalid("task_type", task, "`CAUSAL_LM`"));
    }
    let rank = keys.get("r");
    let base = keys
        .get("base_model_name_or_path")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let config = LoraConfig {
        rank: size(rank).ok_or_else(|| invalid("r", rank, "a whole number"))?,
        alpha: keys.number("lora_alpha", 8.0)?,
        dropout: keys.number("lora_dropout", 0.0)?,
        targets: keys.targets()?,
        use_rslora: match keys.get("use_rslora") {
            None => false,
            value => value
                .and_then(Value::as_bool)
                .ok_or_else(|| invalid("use_rslora", value, "true or false"))?,
        },
    };
    Ok((config, base.to_owned()))
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(
        || "missing".to_owned(),
        |value| {
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        },
    )
}

fn invalid(field: &'static str, value: Option<&Value>, expected: &'static str) -> AdapterError {
    AdapterError::Invalid {
        field,
        value: shown(value),
        expected,
    }
}

fn unsupported(field: &str, value: Option<&Value>, supported: &'static str) -> AdapterError {
    AdapterError::Unsupported {
        field: field.to_owned(),
        value: shown(value),
        supported,
    }
}

fn size(value: Option<&Value>) -> Option<usize> {
    usize::try_from(value?.as_u64()?).ok()
}

/// A parsed object, asked by key; `null` counts as absent.
struct Keys(Map<String, Value>);

impl Keys {
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn number(&self, field: &'static str, default: f64) -> Result<f64, AdapterError> {
        match self.get(field) {
            None => Ok(default),
            value => value
                .and_then(Value::as_f64)
                .ok_or_else(|| invalid(field, value, "a number")),
        }
    }

    fn targets(&self) -> Result<Targets, AdapterError> {
        const EXPECTED: &str = "a list of module names, a regular expression or `all-linear`";
        let field = "target_modules";
        let modules = match self.names(field, EXPECTED)? {
            None => return Err(invalid(field, None, EXPECTED)),
            Some(Names::Pattern(all)) if all.eq_ignore_ascii_case("all-linear") => {
                TargetModules::AllLinear
            }
            Some(names) => TargetModules::Named(names),
        };
        let targets = Targets {
            exclude: self.names("exclude_modules", "a list of names or a regular expression")?,
            layers: self.layers()?,
            layers_pattern: self.layers_pattern()?,
            rank_pattern: self.pattern("rank_pattern", "names with ranks", |value| {
                size(Some(value))
            })?,
            alpha_pattern: self.pattern("alpha_pattern", "names with numbers", Value::as_f64)?,
            modules,
        };
        // As PEFT: it asks layers of listed names only.
        let is_list = matches!(targets.modules, TargetModules::Named(Names::List(_)));
        for (field, is_set) in [
            ("layers_to_transform", targets.layers.is_some()),
            ("layers_pattern", !targets.layers_pattern.is_empty()),
        ] {
            if is_set && !is_list {
                let expected = "absent where target_modules is no list";
                return Err(invalid(field, self.get(field), expected));
            }
        }
        if targets.layers.is_none() && !targets.layers_pattern.is_empty() {
            let field = "layers_pattern";
            let expected = "absent without layers_to_transform";
            return Err(invalid(field, self.get(field), expected));
        }
        Ok(targets)
    }

    /// A list of names or a regular expression; nothing where the list is empty.
    fn names(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<Names>, AdapterError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(pattern)) => Ok(Some(Names::Pattern(pattern.clone()))),
            value => {
                let names = strings(value).ok_or_else(|| invalid(field, value, expected))?;
                Ok((!names.is_empty()).then_some(Names::List(names)))
            }
        }
    }

    /// One layer or a list of them; an empty list is none.
    fn layers(&self) -> Result<Option<BTreeSet<usize>>, AdapterError> {
        let field = "layers_to_transform";
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let layers: Option<BTreeSet<usize>> = match value {
            Value::Array(list) => list.iter().map(|layer| size(Some(layer))).collect(),
            one => size(Some(one)).map(|layer| BTreeSet::from([layer])),
        };
        let layers =
            layers.ok_or_else(|| invalid(field, Some(value), "a layer's number or a list"))?;
        Ok(Some(layers).filter(|layers| !layers.is_empty()))
    }

    fn layers_pattern(&self) -> Result<Vec<String>, AdapterError> {
        let field = "layers_pattern";
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::String(one)) if one.is_empty() => Ok(Vec::new()),
            Some(Value::String(one)) => Ok(vec![one.clone()]),
            value => strings(value).ok_or_else(|| invalid(field, value, "a name or a list")),
        }
    }

    /// Values by regular expression, in the file's order, which decides.
    fn pattern<T>(
        &self,
        field: &'static str,
        expected: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<(String, T)>, AdapterError> {
        let Some(value) = self.get(field) else {
            return Ok(Vec::new());
        };
        let pairs = value.as_object().and_then(|keys| {
            keys.iter()
                .map(|(name, value)| Some((name.clone(), read(value)?)))
                .collect()
        });
        pairs.ok_or_else(|| invalid(field, Some(value), expected))
    }
}

fn strings(value: Option<&Value>) -> Option<Vec<String>> {
    let names = value?.as_array()?.iter();
    names.map(|name| Some(name.as_str()?.to_owned())).collect()
}

/// The configuration with the keys that PEFT and vLLM read.
pub(crate) fn to_json(config: &LoraConfig, base_model_name_or_path: &str) -> Value {
    let names = |names: &Names| match names {
        Names::List(list) => json!(list),
        Names::Pattern(pattern) => json!(pattern),
    };
    let targets = &config.targets;
    let ranks = targets.rank_pattern.iter();
    let ranks: Map<String, Value> = ranks
        .map(|(name, rank)| (name.clone(), json!(rank)))
        .collect();
    let alphas = targets.alpha_pattern.iter();
    let alphas: Map<String, Value> = alphas
        .map(|(name, alpha)| (name.clone(), number(*alpha)))
        .collect();
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name_or_path,
        "inference_mode": true,
        "r": config.rank,
        "lora_alpha": number(config.alpha),
        "lora_dropout": config.dropout,
        "target_modules": match &targets.modules {
            TargetModules::Named(named) => names(named),
            TargetModules::AllLinear => json!("all-linear"),
        },
        "exclude_modules": targets.exclude.as_ref().map(names),
        "use_rslora": config.use_rslora,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "use_dora": false,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "layers_to_transform": targets.layers,
        "layers_pattern": (!targets.layers_pattern.is_empty()).then_some(&targets.layers_pattern),
        "revision": null,
    })
}

/// PEFT types `lora_alpha` as an integer; a whole number is written as one.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What peft 0.21.2 writes beside the keys that are read, all at their defaults.
    fn written_by_peft() -> Value {
        json!({
            "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null,
            "auto_mapping": null, "base_model_name_or_path": "org/base", "bias": "none",
            "corda_config": null, "ensure_weight_tying": false, "eva_config": null,
            "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
            "init_lora_weights": true, "kasa_config": null, "layer_replication": null,
            "layers_pattern": null, "layers_to_transform": null, "loftq_config": {},
            "lora_alpha": 16, "lora_bias": false, "lora_dropout": 0.1, "lora_ga_config": null,
            "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
            "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2",
            "qalora_group_size": 16, "r": 8, "rank_pattern": {}, "revision": null,
            "target_modules": ["v_proj", "q_proj"], "target_parameters": null,
            "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null,
            "use_dora": false, "use_qalora": false, "use_rslora": false, "velora_config": null
        })
    }

    fn with(changes: Value) -> Result<LoraConfig, AdapterError> {
        let mut config = written_by_peft();
        for (field, value) in changes.as_object().unwrap() {
            config[field] = value.clone();
        }
        parse(config.to_string().as_bytes()).map(|(config, _)| config)
    }

    #[test]
    fn what_peft_writes_is_read() {
        let (config, base) = parse(written_by_peft().to_string().as_bytes()).unwrap();
        assert_eq!(base, "org/base");
        assert_eq!((config.rank, config.alpha, config.dropout), (8, 16.0, 0.1));
        let list = Names::List(vec!["v_proj".to_owned(), "q_proj".to_owned()]);
        assert_eq!(config.targets.modules, TargetModules::Named(list));
        let again = parse(to_json(&config, "org/base").to_string().as_bytes())
            .unwrap()
            .0;
        assert_eq!(again, config);
    }

    #[test]
    fn patterns_layers_and_expressions_are_read_in_their_order_and_written_again() {
        for changes in [
            json!({
                "use_rslora": true, "rank_pattern": {"z": 4, "a": 2},
                "alpha_pattern": {"q_proj": 2.5}, "layers_to_transform": [3, 1],
                "layers_pattern": "layers", "exclude_modules": ["mlp"]
            }),
            json!({"target_modules": r".*\.(q|v)_proj", "exclude_modules": ".*1.*"}),
            json!({"target_modules": "all-linear", "init_lora_weights": "gaussian"}),
            json!({"layers_to_transform": 2, "auto_mapping": {"parent_library": "x"}}),
            json!({"layers_to_transform": [], "runtime_config": {"ephemeral_gpu_offload": false}}),
        ] {
            let config = with(changes).unwrap();
            let again = parse(to_json(&config, "").to_string().as_bytes())
                .unwrap()
                .0;
            assert_eq!(again, config);
        }
        let config = with(json!({"rank_pattern": {"z": 4, "a": 2}})).unwrap();
        let order = [("z".to_owned(), 4), ("a".to_owned(), 2)];
        assert_eq!(config.targets.rank_pattern, order);
        let one = with(json!({"layers_to_transform": 2})).unwrap();
        assert_eq!(one.targets.layers, Some(BTreeSet::from([2])));
    }

    #[test]
    fn values_of_the_wrong_kind_are_named() {
        for (changes, field) in [
            (json!({"rank_pattern": {"q_proj": "2"}}), "rank_pattern"),
            (json!({"alpha_pattern": ["q_proj"]}), "alpha_pattern"),
            (json!({"layers_to_transform": [-1]}), "layers_to_transform"),
            (json!({"layers_pattern": "layers"}), "layers_pattern"),
            (json!({"exclude_modules": 3}), "exclude_modules"),
            (json!({"target_modules": []}), "target_modules"),
            (json!({"use_rslora": 1}), "use_rslora"),
            (
                json!({"target_modules": "all-linear", "layers_to_transform": [1]}),
                "layers_to_transform",
            ),
        ] {
            let text = with(changes).unwrap_err().to_string();
            assert!(
                text.starts_with(&format!("{field} in adapter_config")),
                "{text}"
            );
        }
    }
}
