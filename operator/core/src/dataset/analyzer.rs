//! `spec.privacy.analyzer`, read once.

use graftwork_api::analyzer::Analyzer as Said;
use graftwork_contract::dataset::Analyzer;
use graftwork_contract::uri::Endpoint;

use super::validate::Invalid;

/// Language of texts where the spec does not say.
const LANGUAGE: &str = "en";
/// How sure the analyser must be where the spec does not say.
const MINIMUM_SCORE: &str = "0.5";
/// Seconds that an answer may take where the spec does not say.
const TIMEOUT_SECONDS: u32 = 30;
/// Most seconds that an answer may take: the builder's connections wait no longer.
const MAXIMUM_SECONDS: u32 = 60;

/// Reads the field.
///
/// # Errors
/// The part of it that can't work.
pub fn read(said: &Said) -> Result<Analyzer, Invalid> {
    let invalid = |part: &str, message: String| {
        Invalid::new(format!("spec.privacy.analyzer.{part}"), message)
    };
    // What a URI holds is not repeated: it may be a credential.
    Endpoint::parse(&said.url).map_err(|error| invalid("url", error.to_string()))?;
    let score = said
        .minimum_score
        .as_ref()
        .map_or(MINIMUM_SCORE, graftwork_api::Decimal::as_str);
    if Analyzer::score(score).is_none() {
        let message = format!("\"{score}\" is not a decimal from 0 to 1, such as 0.5");
        return Err(invalid("minimumScore", message));
    }
    let timeout_seconds = said.timeout_seconds.unwrap_or(TIMEOUT_SECONDS);
    if !(1..=MAXIMUM_SECONDS).contains(&timeout_seconds) {
        let message = format!("is {timeout_seconds}, must be from 1 to {MAXIMUM_SECONDS}");
        return Err(invalid("timeoutSeconds", message));
    }
    let mut entities = said.entities.clone();
    if entities.is_empty() {
        entities = Analyzer::USUAL_ENTITIES.map(str::to_owned).to_vec();
    }
    // Their order means nothing to a build's fingerprint.
    entities.sort_unstable();
    Ok(Analyzer {
        url: said.url.clone(),
        language: said.language.clone().unwrap_or_else(|| LANGUAGE.to_owned()),
        entities,
        minimum_score: score.to_owned(),
        timeout_seconds,
    })
}
