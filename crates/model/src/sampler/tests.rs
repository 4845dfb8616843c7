use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

fn key(position: u32) -> SampleKey {
    SampleKey {
        seed: 9,
        choice: 0,
        position,
    }
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    assert_eq!(sample(&LOGITS, &SamplingParams::GREEDY, key(0)), Ok(1));
    let all = SamplingParams {
        top_k: 1,
        ..SamplingParams::default()
    };
    assert_eq!(sample(&LOGITS, &all, key(0)), Ok(1));
}

#[test]
fn frequencies_follow_the_softmax() {
    let draws = 20_000;
    let mut counts = [0.0; 5];
    for position in 0..draws {
        counts[sample(&LOGITS, &SamplingParams::default(), key(position)).unwrap() as usize] += 1.0;
    }
    let expected = log_probs(&LOGITS, &[0, 1, 2, 3, 4]);
    for (count, expected) in counts.iter().zip(expected) {
        let share: f32 = count / draws as f32;
        assert!((share - expected.exp()).abs() < 0.015, "{counts:?}");
    }
}

#[test]
fn limits_keep_only_the_most_probable() {
    for params in [
        SamplingParams {
            top_k: 2,
            ..SamplingParams::default()
        },
        SamplingParams {
            top_p: 0.7,
            ..SamplingParams::default()
        },
    ] {
        let drawn: std::collections::BTreeSet<u32> = (0..500)
            .map(|position| sample(&LOGITS, &params, key(position)).unwrap())
            .collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [1, 3], "{params:?}");
    }
}

#[test]
fn a_draw_depends_on_its_key_alone() {
    let params = SamplingParams::default();
    let draw = |seed, choice, position| {
        sample(
            &[0.0; 1000],
            &params,
            SampleKey {
                seed,
                choice,
                position,
            },
        )
        .unwrap()
    };
    assert_eq!(draw(1, 0, 5), draw(1, 0, 5));
    assert_ne!(draw(1, 0, 5), draw(2, 0, 5));
    assert_ne!(draw(1, 0, 5), draw(1, 1, 5));
    assert_ne!(draw(1, 0, 5), draw(1, 0, 6));
}

#[test]
fn refusals_name_the_parameter() {
    let params = SamplingParams {
        top_p: 0.0,
        ..SamplingParams::default()
    };
    let text = sample(&LOGITS, &params, key(0)).unwrap_err().to_string();
    assert_eq!(text, "top_p is 0, must be above 0 and at most 1");
    assert_eq!(
        sample(&[f32::NAN], &SamplingParams::GREEDY, key(0)),
        Err(SamplerError::NoLogits)
    );
}

#[test]
fn top_log_probs_are_sorted() {
    let top = top_log_probs(&LOGITS, 3);
    assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
    assert_eq!(top_log_probs(&LOGITS, 99).len(), 5);
}

/// The definitions, one after the other, over a softmax of everything in f64.
fn reference(logits: &[f32], params: &SamplingParams) -> BTreeMap<u32, f64> {
    let scaled: Vec<f64> = logits
        .iter()
        .map(|logit| f64::from(*logit) / f64::from(params.temperature))
        .collect();
    let max = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scaled.iter().map(|value| (value - max).exp()).sum();
    let mut ranked: Vec<(u32, f64)> = (0_u32..)
        .zip(&scaled)
        .map(|(id, value)| (id, (value - max).exp() / sum))
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let best = ranked[0].1;
    ranked.retain(|(_, probability)| *probability >= f64::from(params.min_p) * best);
    if params.top_k > 0 {
        ranked.truncate(params.top_k as usize);
    }
    let total: f64 = ranked.iter().map(|(_, probability)| probability).sum();
    let mut kept = BTreeMap::new();
    let mut reached = 0.0;
    for (id, probability) in ranked {
        // At 1 nothing is cut, however little the last ones add.
        if params.top_p < 1.0 && reached >= f64::from(params.top_p) * total {
            break;
        }
        reached += probability;
        kept.insert(id, probability);
    }
    kept.values_mut().for_each(|value| *value /= reached);
    kept
}

proptest! {
    #[test]
    fn what_may_be_drawn_and_how_probably_is_what_the_definitions_say(
        logits in prop::collection::vec(-12.0_f32..12.0, 1..700),
        temperature in 0.1_f32..2.0,
        top_p in prop_oneof![Just(1.0_f32), 0.05_f32..1.0],
        top_k in prop_oneof![Just(0_u32), 2_u32..300],
        min_p in prop_oneof![Just(0.0_f32), 0.001_f32..0.5],
    ) {
        let params = SamplingParams { temperature, top_p, top_k, min_p };
        let drawn = candidates(&logits, &params);
        let total: f64 = drawn.iter().map(|(_, weight)| weight).sum();
        let drawn: BTreeMap<u32, f64> =
            drawn.into_iter().map(|(id, weight)| (id, weight / total)).collect();
        let expected = reference(&logits, &params);
        prop_assert_eq!(
            drawn.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>()
        );
        for (id, probability) in &expected {
            prop_assert!((drawn[id] - probability).abs() < 1e-9, "{id}: {probability}");
        }
    }
}

#[test]
fn the_smallest_set_that_reaches_top_p_is_kept_also_where_it_is_larger_than_the_first_look() {
    // Equal weights: half of 1,000 tokens are 500, the lowest ids.
    let half = SamplingParams {
        top_p: 0.5,
        ..SamplingParams::default()
    };
    let kept: Vec<u32> = candidates(&[0.0; 1000], &half)
        .iter()
        .map(|(id, _)| *id)
        .collect();
    assert_eq!(kept, (0..500).collect::<Vec<_>>());
}

#[test]
fn tokens_far_below_the_best_one_are_not_drawn_with_min_p() {
    // Shares of the best: 1, 1/2 and 1/4.
    let logits = [0.0, 0.5_f32.ln(), 0.25_f32.ln()];
    let count = |min_p| {
        let params = SamplingParams {
            min_p,
            ..SamplingParams::default()
        };
        candidates(&logits, &params).len()
    };
    assert_eq!([0.0, 0.2, 0.3, 0.6, 1.0].map(count), [3, 3, 2, 1, 1]);
}

#[test]
fn a_draw_goes_through_the_candidates_in_their_order() {
    let candidates = [(5, 1.0), (7, 3.0)];
    let drawn = [0.0, 0.24, 0.25, 0.99].map(|uniform| draw(&candidates, uniform));
    assert_eq!(drawn, [Some(5), Some(5), Some(7), Some(7)]);
    assert_eq!(draw(&[], 0.5), None);
}

#[test]
fn the_most_probable_token_is_the_first_of_its_equals_and_never_nan() {
    for count in [1, 15, 16, 17, 100] {
        let mut logits: Vec<f32> = (0..count).map(|i| -(i as f32)).collect();
        assert_eq!(argmax(&logits), 0, "{count}");
        logits[count - 1] = 7.0;
        logits[count / 2] = 7.0;
        assert_eq!(argmax(&logits), count as u32 / 2, "{count}");
        logits[count / 2] = f32::NAN;
        let left = if count / 2 == count - 1 { 0 } else { count - 1 };
        assert_eq!(argmax(&logits), left as u32, "{count}");
    }
    assert_eq!(argmax(&[-0.0, 0.0]), 0);
    assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), 0);
    assert_eq!(argmax(&[]), 0);
}
