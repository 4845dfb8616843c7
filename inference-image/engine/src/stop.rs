//! Stop texts: the answer ends before the first of them, wherever token boundaries fall.

/// Watches a growing text for stop texts and holds back what may turn out to be one.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// The end of the text so far that is the beginning of a stop text.
    held: String,
}

/// What one more piece of text led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// Text that is certainly part of the answer.
    pub text: String,
    /// Whether a stop text came; nothing after it counts.
    pub stopped: bool,
}

impl StopMatcher {
    /// Watches for `stops`, none of them empty.
    pub fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &str) -> Matched {
        self.held.push_str(piece);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min();
        if let Some(at) = first {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return Matched {
                text,
                stopped: true,
            };
        }
        let keep = self
            .held
            .char_indices()
            .map(|(at, _)| at)
            .find(|at| {
                self.held
                    .get(*at..)
                    .is_some_and(|end| self.stops.iter().any(|stop| stop.starts_with(end)))
            })
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        Matched {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// What was held back, when no text comes any more.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut text = String::new();
        for piece in pieces {
            let matched = matcher.push(piece);
            text.push_str(&matched.text);
            if matched.stopped {
                return (text, true);
            }
        }
        text.push_str(&matcher.finish());
        (text, false)
    }

    #[test]
    fn a_stop_text_is_found_across_pieces_and_is_not_part_of_the_answer() {
        assert_eq!(run(&["\n\n"], &["a\n", "\nb"]), ("a".into(), true));
        assert_eq!(run(&["END"], &["x E", "N", "D y"]), ("x ".into(), true));
    }

    #[test]
    fn the_first_of_several_counts() {
        assert_eq!(run(&["c", "b"], &["abc"]), ("a".into(), true));
    }

    #[test]
    fn what_only_looked_like_a_stop_text_is_given_out() {
        assert_eq!(run(&["END"], &["x EN"]), ("x EN".into(), false));
        assert_eq!(run(&["aab"], &["aa", "ab"]), ("a".into(), true));
    }

    #[test]
    fn nothing_is_held_back_longer_than_needed() {
        let mut matcher = StopMatcher::new(vec!["END".into()]);
        assert_eq!(matcher.push("xyE").text, "xy");
        assert_eq!(matcher.push("f").text, "Ef");
    }

    proptest! {
        #[test]
        fn pieces_do_not_change_the_answer(
            text in "[ab\u{e4}]{0,20}",
            stop in "[ab\u{e4}]{1,4}",
            cut in 0_usize..20,
        ) {
            let at = text.char_indices().map(|(at, _)| at).nth(cut).unwrap_or(text.len());
            let (head, tail) = text.split_at(at);
            let expected = match text.find(&stop) {
                Some(at) => (text[..at].to_owned(), true),
                None => (text.clone(), false),
            };
            prop_assert_eq!(run(&[&stop], &[head, tail]), expected);
        }
    }
}
