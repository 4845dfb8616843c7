//! A request of the protocol, as the body of `POST /v1/completions`.

use std::collections::{BTreeMap, HashMap};

use graftwork_contract::proto::inference::infer_parameter::ParameterChoice;
use graftwork_contract::proto::inference::model_infer_request::{
    InferInputTensor, InferRequestedOutputTensor,
};
use graftwork_contract::proto::inference::{InferParameter, ModelInferRequest};
use serde_json::{Map, Number, Value};

/// The prompts.
pub(crate) const TEXT_INPUT: &str = "text_input";
/// Parameters as JSON, as servers with vLLM take them.
pub(crate) const SAMPLING_PARAMETERS: &str = "sampling_parameters";
/// The answers' texts.
pub(crate) const TEXT_OUTPUT: &str = "text_output";
/// Why each answer ended.
pub(crate) const FINISH_REASON: &str = "finish_reason";
/// Every output.
const OUTPUTS: [&str; 2] = [TEXT_OUTPUT, FINISH_REASON];
/// The only datatype here.
pub(crate) const BYTES: &str = "BYTES";
/// Texts of one tensor.
const MAXIMUM_TEXTS: i64 = 1024;

/// A request that can't be taken, with the reason.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Invalid(String);

/// What is asked for.
#[derive(Debug, PartialEq)]
pub(crate) struct Asked {
    /// For the HTTP API.
    pub(crate) body: Value,
    /// Outputs, in their order.
    pub(crate) outputs: Vec<&'static str>,
    /// Whether tensors travel as raw bytes.
    pub(crate) is_raw: bool,
}

fn invalid(reason: impl Into<String>) -> Invalid {
    Invalid(reason.into())
}

/// A version can't be asked for: the endpoint's rollout decides.
pub(crate) fn no_version(version: &str) -> Result<(), Invalid> {
    if version.is_empty() {
        return Ok(());
    }
    Err(invalid(
        "model_version must be left out: the endpoint decides which version answers; metadata x-graftwork-version takes candidate or stable",
    ))
}

/// Reads a request.
pub(crate) fn read(request: ModelInferRequest) -> Result<Asked, Invalid> {
    no_version(&request.model_version)?;
    if request.model_name.is_empty() {
        return Err(invalid("model_name is missing: name an adapter"));
    }
    let outputs = read_outputs(&request.outputs)?;
    let is_raw = !request.raw_input_contents.is_empty();
    let mut tensors = read_tensors(request.inputs, request.raw_input_contents)?;
    let mut fields = match tensors.remove(SAMPLING_PARAMETERS) {
        Some(texts) => read_sampling(&texts)?,
        None => Map::new(),
    };
    add_parameters(&mut fields, request.parameters)?;
    check_fields(&mut fields)?;
    let mut prompts = tensors
        .remove(TEXT_INPUT)
        .ok_or_else(|| invalid(format!("tensor {TEXT_INPUT} is missing")))?;
    let prompt: Value = match (prompts.len(), prompts.pop()) {
        (1, Some(only)) => only.into(),
        (_, last) => prompts.into_iter().chain(last).collect(),
    };
    fields.insert("model".to_owned(), request.model_name.into());
    fields.insert("prompt".to_owned(), prompt);
    Ok(Asked {
        body: Value::Object(fields),
        outputs,
        is_raw,
    })
}

fn read_outputs(wanted: &[InferRequestedOutputTensor]) -> Result<Vec<&'static str>, Invalid> {
    if wanted.is_empty() {
        return Ok(OUTPUTS.to_vec());
    }
    wanted
        .iter()
        .map(|output| {
            no_parameters(&output.name, &output.parameters)?;
            OUTPUTS
                .into_iter()
                .find(|known| *known == output.name)
                .ok_or_else(|| {
                    invalid(format!(
                        "there is no output {:?}: ask for {TEXT_OUTPUT} or {FINISH_REASON}",
                        output.name
                    ))
                })
        })
        .collect()
}

fn no_parameters(tensor: &str, of: &HashMap<String, InferParameter>) -> Result<(), Invalid> {
    match of.keys().min() {
        None => Ok(()),
        Some(name) => Err(invalid(format!(
            "tensor {tensor:?} has parameter {name:?}: tensors take none here"
        ))),
    }
}

/// The texts of each tensor, by its name.
fn read_tensors(
    inputs: Vec<InferInputTensor>,
    raw: Vec<Vec<u8>>,
) -> Result<BTreeMap<String, Vec<String>>, Invalid> {
    if !raw.is_empty() && raw.len() != inputs.len() {
        return Err(invalid(format!(
            "raw_input_contents has {} entries for {} tensors",
            raw.len(),
            inputs.len()
        )));
    }
    let mut raw = raw.into_iter();
    let mut tensors = BTreeMap::new();
    for input in inputs {
        let name = input.name.clone();
        if name != TEXT_INPUT && name != SAMPLING_PARAMETERS {
            return Err(invalid(format!(
                "there is no input {name:?}: send {TEXT_INPUT}, and {SAMPLING_PARAMETERS} where you like"
            )));
        }
        let texts = read_tensor(input, raw.next())?;
        if tensors.insert(name.clone(), texts).is_some() {
            return Err(invalid(format!("tensor {name} is there twice")));
        }
    }
    Ok(tensors)
}

fn read_tensor(tensor: InferInputTensor, raw: Option<Vec<u8>>) -> Result<Vec<String>, Invalid> {
    let InferInputTensor {
        name,
        datatype,
        shape,
        parameters,
        contents,
    } = tensor;
    no_parameters(&name, &parameters)?;
    if datatype != BYTES {
        return Err(invalid(format!(
            "tensor {name} is {datatype:?}, it must be {BYTES}"
        )));
    }
    let wanted = shape.iter().try_fold(1_i64, |product, length| {
        product.checked_mul(*length).filter(|_| *length > 0)
    });
    let wanted = wanted.filter(|wanted| *wanted <= MAXIMUM_TEXTS);
    let wanted = wanted.ok_or_else(|| {
        invalid(format!(
            "tensor {name} must have a shape of 1 to {MAXIMUM_TEXTS} texts"
        ))
    })?;
    let elements = match (raw, contents) {
        (Some(_), Some(_)) => {
            return Err(invalid(format!(
                "tensor {name} has contents beside raw_input_contents"
            )));
        }
        (Some(raw), None) => split(&raw).ok_or_else(|| {
            invalid(format!(
                "raw_input_contents of tensor {name} must be texts, each behind its length in 4 bytes"
            ))
        })?,
        (None, contents) => contents.unwrap_or_default().bytes_contents,
    };
    if i64::try_from(elements.len()) != Ok(wanted) {
        return Err(invalid(format!(
            "tensor {name} holds {} texts, its shape says {wanted}",
            elements.len()
        )));
    }
    elements
        .into_iter()
        .map(String::from_utf8)
        .collect::<Result<_, _>>()
        .map_err(|_| invalid(format!("tensor {name} holds something that is no UTF-8")))
}

/// Elements of raw bytes: each behind its length, little-endian.
fn split(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut elements = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (element, rest) = rest.split_at_checked(length)?;
        elements.push(element.to_vec());
        bytes = rest;
    }
    Some(elements)
}

fn read_sampling(texts: &[String]) -> Result<Map<String, Value>, Invalid> {
    let read = match texts {
        [text] => serde_json::from_str(text).ok(),
        _ => None,
    };
    read.ok_or_else(|| {
        invalid(format!(
            "tensor {SAMPLING_PARAMETERS} must hold one text: a JSON object"
        ))
    })
}

fn add_parameters(
    fields: &mut Map<String, Value>,
    parameters: HashMap<String, InferParameter>,
) -> Result<(), Invalid> {
    // In an order that does not change: the same request is the same body, which a response cache looks for.
    let parameters: BTreeMap<_, _> = parameters.into_iter().collect();
    for (name, parameter) in parameters {
        let value = read_parameter(&name, parameter)?;
        if fields.insert(name.clone(), value).is_some() {
            return Err(invalid(format!(
                "parameter {name:?} is in {SAMPLING_PARAMETERS}, too"
            )));
        }
    }
    Ok(())
}

fn read_parameter(name: &str, parameter: InferParameter) -> Result<Value, Invalid> {
    match parameter.parameter_choice {
        None => Err(invalid(format!("parameter {name:?} has no value"))),
        Some(ParameterChoice::BoolParam(value)) => Ok(value.into()),
        Some(ParameterChoice::Int64Param(value)) => Ok(value.into()),
        Some(ParameterChoice::Uint64Param(value)) => Ok(value.into()),
        Some(ParameterChoice::DoubleParam(value)) => Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| invalid(format!("parameter {name:?} is no finite number"))),
        Some(ParameterChoice::StringParam(text)) => Ok(read_text(name, text)),
    }
}

/// A text where the field takes one, and elsewhere JSON (`0.7`, `{"50256": -100}`): the protocol itself has neither
/// fractions nor objects.
fn read_text(name: &str, text: String) -> Value {
    let json = || serde_json::from_str::<Value>(&text).ok();
    let read = match name {
        "user" => None,
        "stop" => json().filter(Value::is_array),
        _ => json(),
    };
    read.unwrap_or(Value::String(text))
}

/// Fields that have their place elsewhere in the protocol, or none in its answer.
fn check_fields(fields: &mut Map<String, Value>) -> Result<(), Invalid> {
    for (name, place) in [("model", "model_name"), ("prompt", TEXT_INPUT)] {
        if fields.contains_key(name) {
            return Err(invalid(format!("parameter {name:?}: its place is {place}")));
        }
    }
    match fields.remove("stream") {
        None | Some(Value::Null | Value::Bool(false)) => {}
        Some(_) => {
            return Err(invalid(
                "parameter \"stream\": ModelInfer answers once; POST /v1/completions streams",
            ));
        }
    }
    match fields.remove("logprobs") {
        None | Some(Value::Null) => Ok(()),
        Some(_) => Err(invalid(
            "parameter \"logprobs\": the answer has no place for them; POST /v1/completions has",
        )),
    }
}

#[cfg(test)]
mod tests {
    use graftwork_contract::proto::inference::InferTensorContents;
    use serde_json::json;

    use super::*;

    fn tensor(name: &str, texts: &[&str]) -> InferInputTensor {
        InferInputTensor {
            name: name.into(),
            datatype: BYTES.into(),
            shape: vec![i64::try_from(texts.len()).unwrap()],
            contents: Some(InferTensorContents {
                bytes_contents: texts.iter().map(|text| text.as_bytes().to_vec()).collect(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn parameter(name: &str, choice: ParameterChoice) -> (String, InferParameter) {
        let parameter_choice = Some(choice);
        (name.into(), InferParameter { parameter_choice })
    }

    fn text(name: &str, value: &str) -> (String, InferParameter) {
        parameter(name, ParameterChoice::StringParam(value.into()))
    }

    fn request(inputs: Vec<InferInputTensor>) -> ModelInferRequest {
        ModelInferRequest {
            model_name: "m".into(),
            inputs,
            ..Default::default()
        }
    }

    fn one() -> ModelInferRequest {
        request(vec![tensor(TEXT_INPUT, &["x"])])
    }

    fn reason(request: ModelInferRequest) -> String {
        read(request).unwrap_err().to_string()
    }

    #[test]
    fn parameters_become_the_fields_of_a_completion() {
        let mut asked = one();
        asked.parameters = [
            parameter("max_tokens", ParameterChoice::Int64Param(8)),
            parameter("seed", ParameterChoice::Uint64Param(7)),
            parameter("top_p", ParameterChoice::DoubleParam(0.5)),
            parameter("echo", ParameterChoice::BoolParam(true)),
            parameter("stream", ParameterChoice::BoolParam(false)),
            text("temperature", "0.7"),
            text("logit_bias", r#"{"5": -1}"#),
            text("stop", r#"["a", "b"]"#),
            text("user", "7"),
        ]
        .into();
        let asked = read(asked).unwrap();
        assert_eq!(
            asked.body,
            json!({
                "model": "m", "prompt": "x", "max_tokens": 8, "seed": 7, "top_p": 0.5, "echo": true,
                "temperature": 0.7, "logit_bias": {"5": -1}, "stop": ["a", "b"], "user": "7",
            })
        );
        assert!(!asked.is_raw);
        assert_eq!(asked.outputs, [TEXT_OUTPUT, FINISH_REASON]);
    }

    #[test]
    fn a_stop_text_is_taken_as_it_is() {
        for stop in ["7", "null", "{}", "[", "\n"] {
            let mut asked = one();
            asked.parameters = [text("stop", stop)].into();
            assert_eq!(read(asked).unwrap().body["stop"], json!(stop));
        }
    }

    #[test]
    fn the_same_request_is_the_same_body_in_whatever_order_its_parameters_come() {
        let names = ["seed", "top_k", "n", "max_tokens", "min_tokens"];
        let body = |names: &[&str]| {
            let mut asked = one();
            asked.parameters = names
                .iter()
                .map(|name| parameter(name, ParameterChoice::Int64Param(1)))
                .collect();
            read(asked).unwrap().body.to_string()
        };
        let mut turned = names;
        turned.reverse();
        assert_eq!(body(&names), body(&turned));
    }

    #[test]
    fn several_texts_are_a_list_of_prompts() {
        let mut tensor = tensor(TEXT_INPUT, &["x", "y"]);
        tensor.shape = vec![2, 1];
        let asked = read(request(vec![tensor])).unwrap();
        assert_eq!(asked.body["prompt"], json!(["x", "y"]));
    }

    #[test]
    fn raw_contents_are_split_by_their_lengths() {
        let mut asked = request(vec![
            tensor(TEXT_INPUT, &["", ""]),
            tensor(SAMPLING_PARAMETERS, &[""]),
        ]);
        for input in &mut asked.inputs {
            input.contents = None;
        }
        asked.raw_input_contents = vec![
            b"\x01\0\0\0x\x02\0\0\0yz".to_vec(),
            b"\x09\0\0\0{\"n\": 2 }".to_vec(),
        ];
        let read = read(asked.clone()).unwrap();
        assert!(read.is_raw);
        assert_eq!(
            read.body,
            json!({"model": "m", "prompt": ["x", "yz"], "n": 2})
        );
        for broken in [&b"\x02\0\0\0x"[..], b"\x01\0\0", b"\xff\xff\xff\xff"] {
            asked.raw_input_contents[0] = broken.to_vec();
            assert!(reason(asked.clone()).contains("length"), "{broken:?}");
        }
    }

    #[test]
    fn what_can_not_be_done_is_named() {
        let with = |change: fn(&mut ModelInferRequest)| {
            let mut asked = one();
            change(&mut asked);
            reason(asked)
        };
        for (reason, expected) in [
            (with(|r| r.model_name.clear()), "model_name"),
            (with(|r| r.model_version = "1".into()), "model_version"),
            (with(|r| r.inputs.clear()), "text_input is missing"),
            (
                with(|r| r.inputs.push(r.inputs[0].clone())),
                "text_input is there twice",
            ),
            (with(|r| r.inputs[0].name = "x".into()), "no input \"x\""),
            (with(|r| r.inputs[0].datatype = "FP32".into()), "\"FP32\""),
            (with(|r| r.inputs[0].shape = vec![2]), "its shape says 2"),
            (with(|r| r.inputs[0].shape = vec![-1, -1]), "shape of 1 to"),
            (with(|r| r.inputs[0].shape = vec![i64::MAX, 4]), "shape of"),
            (with(|r| r.inputs[0].shape = vec![2000]), "1024 texts"),
            (
                with(|r| {
                    r.inputs[0].contents.as_mut().unwrap().bytes_contents[0] = vec![0xff];
                }),
                "UTF-8",
            ),
            (
                with(|r| r.raw_input_contents = vec![vec![]]),
                "beside raw_input_contents",
            ),
            (
                with(|r| r.raw_input_contents = vec![vec![], vec![]]),
                "2 entries for 1 tensors",
            ),
            (
                with(|r| {
                    r.inputs[0].parameters = [text("classification", "1")].into();
                }),
                "\"classification\"",
            ),
            (
                with(|r| {
                    r.outputs = vec![InferRequestedOutputTensor {
                        name: "logits".into(),
                        ..Default::default()
                    }];
                }),
                "no output \"logits\"",
            ),
            (
                with(|r| r.parameters = [text("model", "x")].into()),
                "its place is model_name",
            ),
            (
                with(|r| r.parameters = [text("prompt", "x")].into()),
                "its place is text_input",
            ),
            (
                with(|r| r.parameters = [text("stream", "true")].into()),
                "\"stream\"",
            ),
            (
                with(|r| r.parameters = [text("logprobs", "1")].into()),
                "\"logprobs\"",
            ),
            (
                with(|r| r.parameters = [("n".into(), InferParameter::default())].into()),
                "has no value",
            ),
            (
                with(|r| {
                    r.parameters = [parameter("n", ParameterChoice::DoubleParam(f64::NAN))].into();
                }),
                "finite",
            ),
        ] {
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn a_parameter_has_one_place_only() {
        let mut asked = request(vec![
            tensor(TEXT_INPUT, &["x"]),
            tensor(SAMPLING_PARAMETERS, &[r#"{"n": 1}"#]),
        ]);
        asked.parameters = [text("n", "2")].into();
        assert!(reason(asked).contains("\"n\" is in sampling_parameters"));
        for text in ["[]", "x", ""] {
            let sampling = tensor(SAMPLING_PARAMETERS, &[text]);
            let asked = request(vec![tensor(TEXT_INPUT, &["x"]), sampling]);
            assert!(reason(asked).contains("a JSON object"), "{text}");
        }
    }
}
