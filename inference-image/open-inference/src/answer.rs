//! An answer of `POST /v1/completions`, as the protocol has it.

use std::collections::HashMap;

use graftwork_contract::endpoint::parse_adapter_header;
use graftwork_contract::proto::inference::infer_parameter::ParameterChoice;
use graftwork_contract::proto::inference::model_infer_response::InferOutputTensor;
use graftwork_contract::proto::inference::{
    InferParameter, InferTensorContents, ModelInferResponse,
};
use serde::Deserialize;

use crate::request::{BYTES, FINISH_REASON};

#[derive(Debug, Deserialize)]
struct Completion {
    model: String,
    choices: Vec<Choice>,
    usage: Usage,
}

#[derive(Debug, Deserialize)]
struct Choice {
    text: String,
    finish_reason: String,
}

#[derive(Debug, Deserialize)]
struct Usage {
    prompt_tokens: i64,
    completion_tokens: i64,
}

/// Writes an answer; `ran` is the header that says which version it is from.
///
/// # Errors
/// Where the body is no completion.
pub(crate) fn write(
    body: &[u8],
    ran: Option<&str>,
    outputs: &[&'static str],
    is_raw: bool,
    id: String,
) -> serde_json::Result<ModelInferResponse> {
    let Completion {
        model,
        choices,
        usage,
    } = serde_json::from_slice(body)?;
    let (model_name, model_version) = match ran.and_then(parse_adapter_header) {
        Some((name, version)) => (
            name.to_owned(),
            version
                .map(|version| version.to_string())
                .unwrap_or_default(),
        ),
        None => (model, String::new()),
    };
    let shape = vec![i64::try_from(choices.len()).unwrap_or(i64::MAX)];
    let mut raw_output_contents = Vec::new();
    let outputs = outputs
        .iter()
        .map(|name| {
            let elements = choices.iter().map(|choice| match *name {
                FINISH_REASON => choice.finish_reason.as_bytes(),
                _ => choice.text.as_bytes(),
            });
            let mut tensor = InferOutputTensor {
                name: (*name).to_owned(),
                datatype: BYTES.to_owned(),
                shape: shape.clone(),
                parameters: HashMap::new(),
                contents: None,
            };
            if is_raw {
                raw_output_contents.push(join(elements));
            } else {
                tensor.contents = Some(InferTensorContents {
                    bytes_contents: elements.map(<[u8]>::to_vec).collect(),
                    ..InferTensorContents::default()
                });
            }
            tensor
        })
        .collect();
    let parameters = [
        ("prompt_tokens", usage.prompt_tokens),
        ("completion_tokens", usage.completion_tokens),
    ];
    Ok(ModelInferResponse {
        model_name,
        model_version,
        id,
        parameters: parameters.map(count).into(),
        outputs,
        raw_output_contents,
    })
}

fn count((name, tokens): (&str, i64)) -> (String, InferParameter) {
    let parameter_choice = Some(ParameterChoice::Int64Param(tokens));
    (name.to_owned(), InferParameter { parameter_choice })
}

/// Elements, each behind its length, little-endian.
fn join<'a>(elements: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for element in elements {
        bytes.extend_from_slice(&(element.len() as u32).to_le_bytes());
        bytes.extend_from_slice(element);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::TEXT_OUTPUT;

    const BODY: &[u8] = br#"{
        "id": "cmpl-1", "model": "topics",
        "choices": [
            {"index": 0, "text": "a\u00e4", "logprobs": null, "finish_reason": "stop"},
            {"index": 1, "text": "", "logprobs": null, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}"#;
    const ALL: [&str; 2] = [TEXT_OUTPUT, FINISH_REASON];

    #[test]
    fn every_choice_is_an_element_of_every_output() {
        let ran = Some("topics@v7");
        let answer = write(BODY, ran, &ALL, false, "id".into()).unwrap();
        assert_eq!(
            (&*answer.model_name, &*answer.model_version, &*answer.id),
            ("topics", "7", "id")
        );
        let tensor = |index: usize| {
            let tensor = &answer.outputs[index];
            let contents = tensor.contents.as_ref().unwrap();
            let elements = &contents.bytes_contents;
            (&*tensor.name, &*tensor.shape, elements.clone())
        };
        let bytes = |texts: [&str; 2]| texts.map(|text| text.as_bytes().to_vec()).to_vec();
        assert_eq!(tensor(0), (TEXT_OUTPUT, &[2][..], bytes(["aä", ""])));
        assert_eq!(
            tensor(1),
            (FINISH_REASON, &[2][..], bytes(["stop", "length"]))
        );
        let tokens = &answer.parameters["completion_tokens"].parameter_choice;
        assert_eq!(*tokens, Some(ParameterChoice::Int64Param(5)));
        assert!(answer.raw_output_contents.is_empty());
    }

    #[test]
    fn who_sends_raw_bytes_gets_them_in_the_order_of_the_outputs() {
        let wanted = [FINISH_REASON, TEXT_OUTPUT];
        let answer = write(BODY, None, &wanted, true, String::new()).unwrap();
        assert_eq!(
            answer.raw_output_contents,
            [
                b"\x04\0\0\0stop\x06\0\0\0length".to_vec(),
                b"\x03\0\0\0a\xc3\xa4\0\0\0\0".to_vec(),
            ]
        );
        assert!(
            answer
                .outputs
                .iter()
                .all(|tensor| tensor.contents.is_none())
        );
        assert_eq!(
            (&*answer.model_name, &*answer.model_version),
            ("topics", "")
        );
    }

    #[test]
    fn the_base_model_and_a_fallback_are_named_by_what_ran() {
        let answer = write(BODY, Some("tiny@base"), &ALL, false, String::new()).unwrap();
        assert_eq!((&*answer.model_name, &*answer.model_version), ("tiny", ""));
        let answer = write(BODY, Some("other@v2"), &ALL, false, String::new()).unwrap();
        assert_eq!(
            (&*answer.model_name, &*answer.model_version),
            ("other", "2")
        );
    }

    #[test]
    fn a_body_of_another_shape_is_an_error() {
        for body in [&b"{}"[..], b"", b"[1]"] {
            assert!(write(body, None, &ALL, false, String::new()).is_err());
        }
    }
}
