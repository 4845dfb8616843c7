//! How much of each source's rows a version takes. The source with the largest weight gives all of its rows,
//! each other one the share that its weight is of that.

use graftwork_api::dataset::Source;
use graftwork_contract::dataset::Share;

use super::validate::Invalid;

/// Digits after the point of a weight.
const DECIMALS: usize = 6;
/// A weight of 1, in the units that are counted with.
const ONE: u64 = 1_000_000;
/// The largest weight.
const LARGEST: u64 = 1000 * ONE;

/// The share of each source; none for all of its rows.
///
/// # Errors
/// A weight that is none.
pub fn read(sources: &[Source]) -> Result<Vec<Option<Share>>, Invalid> {
    let mut weights = Vec::with_capacity(sources.len());
    for source in sources {
        let Some(weight) = &source.weight else {
            weights.push(ONE);
            continue;
        };
        let read = millionths(weight.as_str()).filter(|it| (1..=LARGEST).contains(it));
        weights.push(read.ok_or_else(|| {
            Invalid::new(
                format!("spec.sources[{}].weight", source.name),
                format!("\"{weight}\" is not a decimal above 0 and at most 1000, such as 0.25"),
            )
        })?);
    }
    let whole = weights.iter().copied().max().unwrap_or(ONE);
    let share = |part| (part < whole).then_some(Share { part, whole });
    Ok(weights.into_iter().map(share).collect())
}

/// A decimal in millionths, exactly.
fn millionths(text: &str) -> Option<u64> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let is_number =
        |digits: &str| !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_digit());
    if !is_number(whole) || !is_number(decimals) || decimals.len() > DECIMALS {
        return None;
    }
    let padded = format!("{decimals:0<DECIMALS$}");
    let whole: u64 = whole.parse().ok()?;
    whole.checked_mul(ONE)?.checked_add(padded.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use graftwork_api::Decimal;

    use super::*;

    fn sources(weights: &[Option<&str>]) -> Vec<Source> {
        let named = weights.iter().copied().enumerate();
        let source = |(index, weight): (usize, Option<&str>)| Source {
            name: format!("s{index}"),
            weight: weight.map(Decimal::from),
            ..Source::default()
        };
        named.map(source).collect()
    }

    fn shares(weights: &[Option<&str>]) -> Vec<Option<(u64, u64)>> {
        let shares = read(&sources(weights)).unwrap().into_iter();
        shares.map(|it| it.map(|it| (it.part, it.whole))).collect()
    }

    #[test]
    fn the_largest_weight_takes_all_and_others_their_share_of_it() {
        assert_eq!(shares(&[None, None]), [None, None]);
        assert_eq!(shares(&[Some("0.25"), None]), [Some((250_000, ONE)), None]);
        assert_eq!(
            shares(&[Some("3"), Some("0.000001"), Some("1000"), None]),
            [
                Some((3 * ONE, LARGEST)),
                Some((1, LARGEST)),
                None,
                Some((ONE, LARGEST)),
            ]
        );
        assert_eq!(shares(&[Some("0.5")]), [None], "alone, a source gives all");
        assert_eq!(shares(&[Some("2.50"), Some("2.5")]), [None, None]);
    }

    #[test]
    fn what_is_no_weight_is_refused_by_its_source() {
        for text in [
            "0",
            "0.0000001",
            "-1",
            "1e3",
            "1000.000001",
            "",
            ".5",
            "1.",
            "a",
            "99999999999999999999",
        ] {
            let invalid = read(&sources(&[None, Some(text)])).unwrap_err();
            assert_eq!(invalid.field, "spec.sources[s1].weight", "{text}");
            assert!(invalid.message.contains(&format!("\"{text}\"")));
        }
    }
}
