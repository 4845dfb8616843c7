//! Parameters that both endpoints have.

use graftwork_model::sampler::{Adjustments, SamplingParams};
use serde_json::Value;

use super::ApiError;
use super::fields::{Fields, Neutral};

/// Most choices of one prompt, as in OpenAI.
pub const MAXIMUM_CHOICES: i64 = 128;
/// Most stop texts of one request: OpenAI's 4 are too few for evaluation harnesses.
pub const MAXIMUM_STOPS: usize = 16;
/// Bytes of one stop text: so much of an answer may be held back.
pub const MAXIMUM_STOP_BYTES: usize = 1024;
/// Tokens with a bias.
pub const MAXIMUM_BIASES: usize = 1024;

/// Parameters at which nothing changes, for both endpoints.
const NEUTRAL: &[(&str, Neutral)] = &[
    ("user", Neutral::AnyText),
    ("metadata", Neutral::Texts),
    ("safety_identifier", Neutral::AnyText),
    ("prompt_cache_key", Neutral::AnyText),
    ("store", Neutral::False),
    ("service_tier", Neutral::Text(&["auto", "default"])),
    // Other servers' own parameters.
    ("min_tokens", Neutral::Zero),
    ("use_beam_search", Neutral::False),
    ("length_penalty", Neutral::One),
    ("skip_special_tokens", Neutral::True),
];

/// How answers are generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// What the client named.
    pub model: String,
    /// Answers to each prompt.
    pub choices: usize,
    /// Which tokens may be drawn, and how probably.
    pub sampling: SamplingParams,
    /// Penalties and biases.
    pub adjustments: Adjustments,
    /// Given by the client, so that the same request has the same answer.
    pub seed: Option<u64>,
    /// The answer ends before the first of these.
    pub stop: Vec<String>,
    /// Whether the answer goes on after an end of text, up to its limit.
    pub ignore_eos: bool,
    /// Tokens to generate at most.
    pub maximum_new_tokens: Option<usize>,
    /// Server-sent events instead of one body.
    pub stream: bool,
    /// A last event with the usage.
    pub include_usage: bool,
    /// Log-probabilities: of the chosen token, and of so many most probable ones.
    pub logprobs: Option<usize>,
}

impl Parameters {
    /// Takes the shared parameters; `logprobs` and the token limits are the endpoint's own.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let model = fields
            .text("model")?
            .filter(|model| !model.is_empty())
            .ok_or_else(|| ApiError::invalid("model", "model is missing: name an adapter"))?;
        let choices = fields.whole("n", 1..=MAXIMUM_CHOICES)?.unwrap_or(1) as usize;
        let sampling = read_sampling(fields)?;
        let adjustments = read_adjustments(fields)?;
        let seed = fields
            .whole("seed", i64::MIN..=i64::MAX)?
            .map(i64::cast_unsigned);
        let stop = read_stop(fields)?;
        let ignore_eos = fields.boolean("ignore_eos")?.unwrap_or(false);
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let include_usage = match fields.object("stream_options")? {
            None => false,
            Some(_) if !stream => {
                return Err(fields.wrong("stream_options", "is only allowed with stream = true"));
            }
            Some(mut options) => {
                let include = options.boolean("include_usage")?.unwrap_or(false);
                options.neutral(&[
                    ("include_obfuscation", Neutral::False),
                    ("continuous_usage_stats", Neutral::False),
                ])?;
                options.finish()?;
                include
            }
        };
        fields.neutral(NEUTRAL)?;
        Ok(Self {
            model,
            choices,
            sampling,
            adjustments,
            seed,
            stop,
            ignore_eos,
            maximum_new_tokens: None,
            stream,
            include_usage,
            logprobs: None,
        })
    }
}

fn read_sampling(fields: &mut Fields) -> Result<SamplingParams, ApiError> {
    let temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32;
    let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0) as f32;
    if top_p <= 0.0 {
        return Err(fields.wrong("top_p", "is 0, it must be above 0 and at most 1"));
    }
    // -1 and 0 both mean no limit, as in vLLM.
    let top_k = fields.whole("top_k", -1..=i64::from(i32::MAX))?;
    Ok(SamplingParams {
        temperature,
        top_p,
        top_k: top_k.unwrap_or(0).max(0) as u32,
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0) as f32,
    })
}

fn read_adjustments(fields: &mut Fields) -> Result<Adjustments, ApiError> {
    let presence = fields.number("presence_penalty", -2.0..=2.0)?;
    let frequency = fields.number("frequency_penalty", -2.0..=2.0)?;
    let repetition = fields.number("repetition_penalty", 0.01..=100.0)?;
    Ok(Adjustments {
        presence_penalty: presence.unwrap_or(0.0) as f32,
        frequency_penalty: frequency.unwrap_or(0.0) as f32,
        repetition_penalty: repetition.unwrap_or(1.0) as f32,
        logit_bias: read_bias(fields)?,
    })
}

/// `{"<token id>": <bias>}`; whether the vocabulary has the token is looked at where it is known.
fn read_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => {
            return Err(fields.wrong_type("logit_bias", "an object of token ids", &other));
        }
    };
    if map.len() > MAXIMUM_BIASES {
        let problem = format!("has {} tokens, the limit is {MAXIMUM_BIASES}", map.len());
        return Err(fields.wrong("logit_bias", &problem));
    }
    let mut biases = map
        .iter()
        .map(|(key, value)| {
            let id = key.parse::<u32>().map_err(|_| {
                fields.wrong("logit_bias", "has a key that is no token id: write \"42\"")
            })?;
            match value.as_f64() {
                Some(bias) if (-100.0..=100.0).contains(&bias) => Ok((id, bias as f32)),
                _ => Err(fields.wrong(
                    "logit_bias",
                    &format!("of token {id} must be a number from -100 to 100"),
                )),
            }
        })
        .collect::<Result<Vec<(u32, f32)>, ApiError>>()?;
    // "7" and "07" are one token.
    biases.sort_unstable_by_key(|(id, _)| *id);
    if biases
        .windows(2)
        .any(|pair| matches!(pair, [a, b] if a.0 == b.0))
    {
        return Err(fields.wrong("logit_bias", "names a token twice"));
    }
    Ok(biases)
}

/// Takes a token limit.
///
/// # Errors
/// 400 where it is not a whole number of at least `least`.
pub fn read_token_limit(
    fields: &mut Fields,
    name: &str,
    least: i64,
) -> Result<Option<usize>, ApiError> {
    Ok(fields
        .whole(name, least..=i64::from(i32::MAX))?
        .map(|limit| limit as usize))
}

fn read_stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![Value::String(text)],
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(fields.wrong_type("stop", "a string or a list of strings", &other));
        }
    };
    if list.len() > MAXIMUM_STOPS {
        let problem = format!("has {} entries, the limit is {MAXIMUM_STOPS}", list.len());
        return Err(fields.wrong("stop", &problem));
    }
    list.into_iter()
        .map(|item| match item {
            Value::String(text) if text.is_empty() => {
                Err(fields.wrong("stop", "has an empty text"))
            }
            Value::String(text) if text.len() > MAXIMUM_STOP_BYTES => {
                let problem = format!(
                    "has a text of {} bytes, the limit is {MAXIMUM_STOP_BYTES}",
                    text.len()
                );
                Err(fields.wrong("stop", &problem))
            }
            Value::String(text) => Ok(text),
            other => Err(fields.wrong_type("stop", "a string or a list of strings", &other)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &str) -> Result<Parameters, ApiError> {
        let body = format!(r#"{{"model": "a", {fields}}}"#);
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        let parameters = Parameters::read(&mut fields)?;
        fields.finish().map(|()| parameters)
    }

    #[test]
    fn what_changes_the_draw_is_read() {
        let read = read(
            r#""n": 3, "temperature": 0.5, "top_p": 0.25, "top_k": 40, "min_p": 0.125, "seed": -1,
            "presence_penalty": -2, "frequency_penalty": 0.5, "repetition_penalty": 1.5,
            "logit_bias": {"7": -100, "3": 0.5}, "stop": "END", "ignore_eos": true"#,
        )
        .unwrap();
        let sampling = SamplingParams {
            temperature: 0.5,
            top_p: 0.25,
            top_k: 40,
            min_p: 0.125,
        };
        let adjustments = Adjustments {
            presence_penalty: -2.0,
            frequency_penalty: 0.5,
            repetition_penalty: 1.5,
            logit_bias: vec![(3, 0.5), (7, -100.0)],
        };
        assert_eq!((read.sampling, read.adjustments), (sampling, adjustments));
        assert_eq!((read.choices, read.seed), (3, Some(u64::MAX)));
        assert_eq!((read.stop, read.ignore_eos), (vec!["END".to_owned()], true));
    }

    #[test]
    fn minus_one_and_zero_are_no_limit_of_top_k() {
        for value in ["-1", "0"] {
            let read = read(&format!(r#""top_k": {value}"#)).unwrap();
            assert_eq!(read.sampling.top_k, 0);
        }
    }

    #[test]
    fn every_limit_is_named_with_the_value_that_exceeds_it() {
        let long = format!(r#""stop": "{}""#, "x".repeat(1025));
        let many = (0..1025).map(|id| format!(r#""{id}": 0"#));
        let many = format!(
            r#""logit_bias": {{{}}}"#,
            many.collect::<Vec<_>>().join(",")
        );
        let stops = format!(r#""stop": {:?}"#, vec!["x"; 17]);
        for (fields, parts) in [
            (r#""n": 129"#, ["n is 129", "from 1 to 128"]),
            (r#""top_k": -2"#, ["top_k is -2", "from -1 to"]),
            (r#""min_p": 1.5"#, ["min_p is 1.5", "from 0 to 1"]),
            (r#""top_p": 1e-60"#, ["top_p is 0", "above 0"]),
            (
                r#""presence_penalty": 2.5"#,
                ["presence_penalty is 2.5", "from -2 to 2"],
            ),
            (
                r#""frequency_penalty": -3"#,
                ["frequency_penalty is -3", "from -2 to 2"],
            ),
            (
                r#""repetition_penalty": 0"#,
                ["repetition_penalty is 0", "from 0.01 to 100"],
            ),
            (
                r#""logit_bias": {"1": 101}"#,
                ["logit_bias of token 1", "from -100 to 100"],
            ),
            (
                r#""logit_bias": {"x": 1}"#,
                ["logit_bias has a key", "token id"],
            ),
            (
                r#""logit_bias": {"7": 1, "07": 2}"#,
                ["logit_bias names", "twice"],
            ),
            (
                many.as_str(),
                ["logit_bias has 1025 tokens", "limit is 1024"],
            ),
            (long.as_str(), ["a text of 1025 bytes", "limit is 1024"]),
            (stops.as_str(), ["stop has 17 entries", "limit is 16"]),
        ] {
            let error = read(fields).unwrap_err();
            assert_eq!(error.status, 400, "{error}");
            for part in parts {
                assert!(error.message.contains(part), "{part:?} is not in {error}");
            }
        }
    }

    #[test]
    fn other_servers_parameters_pass_where_they_change_nothing() {
        read(r#""min_tokens": 0, "use_beam_search": false, "skip_special_tokens": true"#).unwrap();
        let error = read(r#""skip_special_tokens": false"#).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("skip_special_tokens"));
    }
}
