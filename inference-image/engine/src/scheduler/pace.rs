//! How many prompt tokens a pass may carry: beside decode rows so few that streams hardly feel it, and without them so
//! few that whoever came or left meanwhile is seen to soon.
//!
//! From measured times: a pass without prompt tokens takes `alone`, each prompt token adds `each`, and so does each
//! stream more than those that `alone` was measured of: where arithmetic is dear, a row is a row. As many are let in as
//! stretch the pass to [`STRETCH`] times what it would take without, and more where prompts wait in numbers: a few
//! streams must not keep many callers from their first token, nor the batch from being full. Which tokens share a pass
//! changes no bits, so that the answers do not depend on the clock.

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
    alone: Option<Alone>,
    each: Option<f64>,
}

/// A pass without prompt tokens.
#[derive(Debug, Clone, Copy)]
struct Alone {
    seconds: f64,
    /// Decode rows of it.
    rows: f64,
}

impl Alone {
    /// The same of so many rows, where each takes so long. Fewer take their share of the time at least.
    fn of(self, rows: f64, each: f64) -> Self {
        let seconds = self.seconds + each * (rows - self.rows);
        let share = self.seconds * (rows / self.rows).min(1.0);
        Self {
            seconds: seconds.max(share),
            rows,
        }
    }
}

impl Pace {
    /// A pass of so many decode rows and prompt tokens took so long.
    pub(super) fn took(&mut self, decode_rows: usize, prompt_tokens: usize, seconds: f64) {
        if !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        let (rows, tokens) = (decode_rows as f64, prompt_tokens as f64);
        match (decode_rows, prompt_tokens) {
            (0, 0) => {}
            (_, 0) => {
                // What was measured of other rows says little of these: it counts as far as they would have taken.
                let mut before = self.alone_of(rows).map(|alone| alone.seconds);
                follow(&mut before, seconds, NEWEST);
                self.alone = before.map(|seconds| Alone { seconds, rows });
            }
            (0, _) => follow(&mut self.each, seconds / tokens, RISING),
            _ => {
                // Fewer streams than were measured stay fewer for a while; those that are more came by this prompt.
                self.alone = self.alone.map(|alone| match self.each {
                    Some(each) if rows < alone.rows => alone.of(rows, each),
                    _ => alone,
                });
                let (alone, measured) = self.alone.map_or((0.0, rows), |it| (it.seconds, it.rows));
                let more = tokens + (rows - measured).max(0.0);
                // One lucky pass, or `alone` from busier times, must not open the gate for the next prompt.
                let each = (seconds - alone).max(seconds / 4.0) / more;
                follow(&mut self.each, each, RISING);
            }
        }
    }

    /// What a pass of so many decode rows takes without prompt tokens.
    fn alone_of(&self, rows: f64) -> Option<Alone> {
        let alone = self.alone?;
        Some(self.each.map_or(alone, |each| alone.of(rows, each)))
    }

    /// Prompt tokens of a pass that has no decode rows; none: nothing was measured yet.
    pub(super) fn prompt_tokens_alone(&self) -> Option<usize> {
        let tokens = LONGEST / self.each?;
        Some((tokens as usize).max(LEAST_ALONE))
    }

    /// Prompt tokens of a pass that has decode rows, where so many prompts are not computed yet; none: nothing was
    /// measured yet.
    pub(super) fn prompt_tokens(&self, decode_rows: usize, prompts: usize) -> Option<usize> {
        let rows = decode_rows.max(1) as f64;
        let (alone, each) = (self.alone_of(rows)?.seconds, self.each?);
        let crowd = STREAMS_A_PROMPT * prompts.saturating_sub(1) as f64 / rows;
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
        // 0.8 times 25.5 ms, 22.5 ms, and 53.5 ms, at 1 ms a token.
        assert_eq!((tokens(4, 1), tokens(1, 1), tokens(32, 3)), (20, 18, 42));
        assert_eq!((tokens(4, 2), tokens(32, 5), tokens(32, 6)), (81, 85, 100));
        assert_eq!(tokens(1, 31), 100, "a tenth of a second is the most");
    }

    #[test]
    fn streams_that_were_not_measured_take_what_as_many_tokens_of_a_prompt_do() {
        // 20 ms, and 1 ms for each row.
        let seconds = |rows: usize| 0.02 + 0.001 * rows as f64;
        let mut pace = Pace::default();
        pace.took(0, 1000, seconds(1000));
        for _ in 0..50 {
            pace.took(1, 0, seconds(1));
        }
        // Others join, prompt by prompt: no pass is without one.
        for rows in 1..32 {
            pace.took(rows, 40, seconds(rows + 40));
        }
        let tokens = pace.prompt_tokens(31, 1).unwrap();
        assert!((38..=41).contains(&tokens), "0.8 times 51 ms: {tokens}");
        // They end, beside a prompt that is long.
        for rows in (4..32).rev() {
            pace.took(rows, 40, seconds(rows + 40));
        }
        let tokens = pace.prompt_tokens(4, 1).unwrap();
        assert!((17..=20).contains(&tokens), "0.8 times 24 ms: {tokens}");
    }

    #[test]
    fn a_pass_over_fewer_streams_takes_their_share_of_the_time_at_least() {
        let mut pace = Pace::default();
        pace.took(0, 10, 0.1);
        pace.took(32, 0, 0.032);
        // By 10 ms a row nothing would be left; 2 of 32 rows take a sixteenth.
        let seconds = pace.alone_of(2.0).unwrap().seconds;
        assert!((seconds - 0.002).abs() < 1e-9, "{seconds}");
    }

    #[test]
    fn a_prompt_always_goes_on() {
        let mut pace = Pace::default();
        pace.took(1, 0, 0.001);
        pace.took(0, 10, 10.0);
        assert_eq!(pace.prompt_tokens(1, 1), Some(LEAST));
    }
}
