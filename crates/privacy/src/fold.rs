//! Text as it is usually written: `＠` is an at sign, `４` a four. Detectors look for the usual forms.

use std::iter;

use unicode_normalization::{IsNormalized, UnicodeNormalization as _, is_nfkc_quick};

/// A text whose characters have Unicode's form NFKC, each by itself.
pub struct Folded {
    /// The text.
    pub text: String,
    changes: Vec<Change>,
}

/// A character that has another form: the bytes of that form, and its own.
struct Change {
    folded: (usize, usize),
    original: (usize, usize),
}

/// The folded text; none where it is the same.
pub fn fold(text: &str) -> Option<Folded> {
    if text.is_ascii() || is_nfkc_quick(text.chars()) == IsNormalized::Yes {
        return None;
    }
    let mut folded = String::with_capacity(text.len());
    let mut changes = Vec::new();
    for (at, letter) in text.char_indices() {
        let start = folded.len();
        folded.extend(iter::once(letter).nfkc());
        let form = folded.get(start..).unwrap_or_default();
        if !form.chars().eq(iter::once(letter)) {
            changes.push(Change {
                folded: (start, folded.len()),
                original: (at, at + letter.len_utf8()),
            });
        }
    }
    (!changes.is_empty()).then_some(Folded {
        text: folded,
        changes,
    })
}

impl Folded {
    /// Where in the original text something starts that does so at `at`: never within a character.
    pub fn start(&self, at: usize) -> usize {
        match self.last(|change| change.folded.0 <= at) {
            None => at,
            Some(change) if at < change.folded.1 => change.original.0,
            Some(change) => change.original.1 + (at - change.folded.1),
        }
    }

    /// Where in the original text something ends that does so at `at`.
    pub fn end(&self, at: usize) -> usize {
        match self.last(|change| change.folded.0 < at) {
            None => at,
            Some(change) => change.original.1 + at.saturating_sub(change.folded.1),
        }
    }

    /// The last change before some place; changes are in order.
    fn last(&self, is_before: impl Fn(&Change) -> bool) -> Option<&Change> {
        let count = self.changes.partition_point(is_before);
        self.changes.get(count.checked_sub(1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_texts_are_left_alone() {
        for text in ["ann@example.com", "åäö 漢字 🙂", "e\u{301}"] {
            assert!(fold(text).is_none(), "{text}");
        }
    }

    #[test]
    fn places_lead_back_to_whole_characters() {
        let text = "é ann＠b㏂x４";
        let folded = fold(text).unwrap();
        assert_eq!(folded.text, "é ann@ba.m.x4");
        let original = |part: &str| {
            let at = folded.text.find(part).unwrap();
            &text[folded.start(at)..folded.end(at + part.len())]
        };
        for (part, of) in [
            ("é", "é"),
            ("ann", "ann"),
            ("@", "＠"),
            ("n@b", "n＠b"),
            ("m", "㏂"),
            ("a.m.", "㏂"),
            ("x4", "x４"),
            ("4", "４"),
        ] {
            assert_eq!(original(part), of, "{part}");
        }
    }
}
