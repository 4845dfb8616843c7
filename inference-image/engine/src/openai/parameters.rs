//! Parameters that both endpoints have.

use serde_json::Value;

use super::ApiError;
use super::fields::{Fields, Neutral};

/// Most stop texts of one request, as in OpenAI.
const MAXIMUM_STOPS: usize = 4;

/// Parameters at which nothing changes, for both endpoints.
const NEUTRAL: &[(&str, Neutral)] = &[
    ("presence_penalty", Neutral::Zero),
    ("frequency_penalty", Neutral::Zero),
    ("logit_bias", Neutral::Empty),
    ("user", Neutral::Any),
    ("metadata", Neutral::Any),
    ("safety_identifier", Neutral::Any),
    ("prompt_cache_key", Neutral::Any),
    ("store", Neutral::False),
    ("service_tier", Neutral::Text(&["auto", "default"])),
];

/// How an answer is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// What the client named.
    pub model: String,
    /// 0: the most probable token.
    pub temperature: f32,
    /// Nucleus sampling.
    pub top_p: f32,
    /// Given by the client, so that the same request has the same answer.
    pub seed: Option<u64>,
    /// The answer ends before the first of these.
    pub stop: Vec<String>,
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
        if let Some(n) = fields.whole("n", 1..=128)?
            && n > 1
        {
            return Err(ApiError::unsupported(
                "n",
                format!("n is {n}, this engine gives at most 1 choice; send {n} requests"),
            ));
        }
        let temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32;
        let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0) as f32;
        if top_p <= 0.0 {
            return Err(fields.wrong("top_p", "is 0, it must be above 0"));
        }
        let seed = fields
            .whole("seed", i64::MIN..=i64::MAX)?
            .map(i64::cast_unsigned);
        let stop = read_stop(fields)?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let include_usage = match fields.object("stream_options")? {
            None => false,
            Some(_) if !stream => {
                return Err(fields.wrong("stream_options", "is only allowed with stream = true"));
            }
            Some(mut options) => {
                let include = options.boolean("include_usage")?.unwrap_or(false);
                options.neutral(&[("include_obfuscation", Neutral::False)])?;
                options.finish()?;
                include
            }
        };
        fields.neutral(NEUTRAL)?;
        Ok(Self {
            model,
            temperature,
            top_p,
            seed,
            stop,
            maximum_new_tokens: None,
            stream,
            include_usage,
            logprobs: None,
        })
    }
}

/// Takes a token limit.
///
/// # Errors
/// 400 where it is not a whole number of at least 1.
pub fn read_token_limit(fields: &mut Fields, name: &str) -> Result<Option<usize>, ApiError> {
    Ok(fields
        .whole(name, 1..=i64::from(i32::MAX))?
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
            Value::String(text) if !text.is_empty() => Ok(text),
            Value::String(_) => Err(fields.wrong("stop", "has an empty text")),
            other => Err(fields.wrong_type("stop", "a string or a list of strings", &other)),
        })
        .collect()
}
