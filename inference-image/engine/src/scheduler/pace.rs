//! How many prompt tokens a pass may carry: beside decode rows so few that streams hardly feel it, and without them so
//! few that whoever came or left meanwhile is seen to soon.
//!
//! From measured times: a pass without prompt tokens takes `alone`, and each prompt token adds `each`. As many
//! are let in as stretch the pass to [`STRETCH`] times `alone`, and more where prompts wait in numbers: a few streams must
//! not keep many callers from their first token, nor the batch from being full. Which tokens share a pass changes no bits, so that
//! the answers do not depend on the clock.

/// What a pass with prompt tokens may take, in passes without.
const STRETCH: f64 = 1.8;
/// Beside so many streams each prompt but the first stretches a pass once more: they are to join the batch before its
/// first streams end, or it is never full. One long prompt never does.
const STREAMS_A_PROMPT: f64 = 16.0;
/// Seconds that many prompts may add to a pass: a reader hardly sees it, and the rows are as many as a pass computes best.
const CROWDED: f64 = 0.1;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.2;
/// Its weight where a prompt token became dearer: each attends to more tokens than those before it, and a mean that
/// lags behind lets in too many.
const RISING: f64 = 0.5;
/// A prompt always goes on by so many tokens. Many more would by themselves take as long as a pass over a quantised
/// base, where a processor's arithmetic is dear.
const LEAST: usize = 2;
/// Seconds that a pass over prompts alone may take: between passes departed clients give their places back, and short
/// requests begin.
const LONGEST: f64 = 0.5;
/// Prompt tokens of such a pass at least: a machine that takes longer for so few would else read all weights for ever
/// fewer of them.
const LEAST_ALONE: usize = 32;

/// The measurements, in seconds.
#[derive(Debug, Default)]
pub(super) struct Pace {
    alone: Option<f64>,
    each: Option<f64>,
}

impl Pace {
    /// A pass of so many decode rows and prompt tokens took so long.
    pub(super) fn took(&mut self, decode_rows: usize, prompt_tokens: usize, seconds: f64) {
        if !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        match (decode_rows, prompt_tokens) {
            (0, 0) => {}
            (_, 0) => follow(&mut self.alone, seconds, NEWEST),
            (0, tokens) => follow(&mut self.each, seconds / tokens as f64, RISING),
            (_, tokens) => {
                let rest = seconds - self.alone.unwrap_or(0.0);
                // One lucky pass, or `alone` from busier times, must not open the gate for the next prompt.
                let each = rest.max(seconds / 4.0) / tokens as f64;
                follow(&mut self.each, each, RISING);
            }
        }
    }

    /// Prompt tokens of a pass that has no decode rows; none: nothing was measured yet.
    pub(super) fn prompt_tokens_alone(&self) -> Option<usize> {
        let tokens = LONGEST / self.each?;
        Some((tokens as usize).max(LEAST_ALONE))
    }

    /// Prompt tokens of a pass that has decode rows, where so many prompts are not computed yet; none: nothing was
    /// measured yet.
    pub(super) fn prompt_tokens(&self, decode_rows: usize, prompts: usize) -> Option<usize> {
        let (alone, each) = (self.alone?, self.each?);
        let crowd = STREAMS_A_PROMPT * prompts.saturating_sub(1) as f64 / decode_rows.max(1) as f64;
        let one = (STRETCH - 1.0) * alone;
        let seconds = one.max((one * crowd).min(CROWDED));
        Some(((seconds / each) as usize).max(LEAST))
    }
}

/// Moves the mean towards the newest measurement, by `rising` where that is greater.
fn follow(mean: &mut Option<f64>, newest: f64, rising: f64) {
    *mean = Some(mean.map_or(newest, |mean| {
        let weight = if newest > mean { rising } else { NEWEST };
        mean + weight * (newest - mean)
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_held_back_before_anything_was_measured() {
        let mut pace = Pace::default();
        assert_eq!(pace.prompt_tokens(4, 1), None);
        pace.took(4, 0, 0.01);
        assert_eq!(
            pace.prompt_tokens(4, 1),
            None,
            "a prompt's cost is not known"
        );
        pace.took(0, 0, 0.01);
        pace.took(4, 0, f64::NAN);
        assert_eq!(pace.prompt_tokens(4, 1), None);
    }

    #[test]
    fn a_pass_with_a_prompt_settles_below_twice_the_time_of_one_without() {
        // 8 rows take 20 ms; a prompt token adds 0.3 ms, the first 40 come for nothing.
        let seconds = |tokens: usize| 0.02 + 0.0003 * tokens.saturating_sub(40) as f64;
        let mut pace = Pace::default();
        pace.took(0, 256, seconds(256));
        let mut worst = 0.0_f64;
        for round in 0..200 {
            pace.took(8, 0, seconds(0));
            let tokens = pace.prompt_tokens(8, 1).unwrap();
            pace.took(8, tokens, seconds(tokens));
            if round >= 20 {
                worst = worst.max(seconds(tokens));
            }
        }
        assert!(worst <= 2.0 * seconds(0), "{worst} s");
        let tokens = pace.prompt_tokens(8, 1).unwrap();
        assert!(tokens > 60, "room that is there is used: {tokens} tokens");
    }

    #[test]
    fn a_prompt_that_nobody_is_read_to_beside_goes_on_in_passes_of_half_a_second() {
        // Reading all weights takes 0.1 s, a token 10 ms: 256 of them would take 2.7 s.
        let seconds = |tokens: usize| 0.1 + 0.01 * tokens as f64;
        let mut pace = Pace::default();
        assert_eq!(pace.prompt_tokens_alone(), None);
        pace.took(0, 256, seconds(256));
        for _ in 0..50 {
            let tokens = pace.prompt_tokens_alone().unwrap();
            pace.took(0, tokens, seconds(tokens));
            assert!(seconds(tokens) <= 0.6, "{tokens} tokens");
        }
        let tokens = pace.prompt_tokens_alone().unwrap();
        assert!(tokens >= 35, "time that is there is used: {tokens} tokens");
        // A machine on which nothing goes that fast.
        pace.took(0, 1, 1e6);
        assert_eq!(pace.prompt_tokens_alone(), Some(LEAST_ALONE));
    }

    #[test]
    fn many_prompts_go_on_faster_than_one_beside_as_many_streams() {
        let tokens = |decode_rows, prompts| {
            let mut pace = Pace::default();
            pace.took(4, 0, 0.0255);
            pace.took(0, 100, 0.1);
            pace.prompt_tokens(decode_rows, prompts).unwrap()
        };
        // 0.8 times 25.5 ms, at 1 ms a token.
        assert_eq!((tokens(4, 1), tokens(1, 1), tokens(32, 3)), (20, 20, 20));
        assert_eq!((tokens(4, 2), tokens(32, 5), tokens(32, 8)), (81, 40, 71));
        assert_eq!(tokens(1, 31), 100, "a tenth of a second is the most");
    }

    #[test]
    fn a_prompt_always_goes_on() {
        let mut pace = Pace::default();
        pace.took(1, 0, 0.001);
        pace.took(0, 10, 10.0);
        assert_eq!(pace.prompt_tokens(1, 1), Some(LEAST));
    }
}
