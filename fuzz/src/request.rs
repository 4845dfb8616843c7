//! A body, as each endpoint of the engine reads it.

use engine::openai::chat::ChatRequest;
use engine::openai::completion::CompletionRequest;
use engine::openai::tokens::{DetokenizeRequest, TokenizeRequest};

/// The models that endpoints read in the body; empty where all of them refuse it.
///
/// # Panics
/// Where a refusal is not the client's fault, says nothing, or says too much.
pub fn models(body: &[u8]) -> Vec<Option<String>> {
    let read = [
        ChatRequest::parse(body).map(|request| Some(request.parameters.model)),
        CompletionRequest::parse(body).map(|request| Some(request.parameters.model)),
        TokenizeRequest::parse(body).map(|request| request.model),
        DetokenizeRequest::parse(body).map(|request| request.model),
    ];
    let mut models = vec![];
    for read in read {
        match read {
            Ok(model) => models.push(model),
            Err(error) => {
                assert!(error.status.is_client_error(), "{error:?}");
                assert!((1..4096).contains(&error.message.len()), "{error:?}");
            }
        }
    }
    models
}
