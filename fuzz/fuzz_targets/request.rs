//! What engine and router read in a request's body: where both take it, they mean the same model.

#![no_main]

#[path = "../src/request.rs"]
mod request;

use libfuzzer_sys::fuzz_target;
use router::request::Probe;

fuzz_target!(|body: &[u8]| {
    let models = request::models(body);
    if let Ok(probe) = Probe::read(body) {
        for model in models {
            assert_eq!(model.as_deref(), Some(probe.model.as_str()));
        }
    }
});
