//! White space in texts, looked for in many bytes at a time: most of what people write has single blanks between words.

#![expect(
    clippy::needless_bitwise_bool,
    reason = "a branch for each byte keeps the compiler from looking at many at once"
)]

/// Whether a byte is white space of ASCII, as Unicode has it.
const fn is_space(byte: u8) -> bool {
    byte == b' ' || byte.wrapping_sub(b'\t') < 5
}

/// Whether a text has white space beyond ASCII's (Unicode's `White_Space`).
fn has_wide(text: &str) -> bool {
    if text.is_ascii() {
        return false;
    }
    let bytes = text.as_bytes();
    let seconds = bytes.get(1..).unwrap_or_default();
    let thirds = bytes.get(2..).unwrap_or_default();
    // U+0085 and U+00A0.
    let in_two = bytes.iter().zip(seconds).fold(false, |found, (a, b)| {
        found | ((*a == 0xc2) & ((*b == 0x85) | (*b == 0xa0)))
    });
    let triples = bytes.iter().zip(seconds).zip(thirds);
    in_two
        | triples.fold(false, |found, ((a, b), c)| {
            let ogham = (*a == 0xe1) & (*b == 0x9a) & (*c == 0x80);
            let ideographic = (*a == 0xe3) & (*b == 0x80) & (*c == 0x80);
            // U+2000 to U+200A, U+2028, U+2029 and U+202F; U+205F.
            let general = (*b == 0x80)
                & ((c.wrapping_sub(0x80) < 11) | (c.wrapping_sub(0xa8) < 2) | (*c == 0xaf));
            let mathematical = (*b == 0x81) & (*c == 0x9f);
            found | ogham | ideographic | ((*a == 0xe2) & (general | mathematical))
        })
}

/// Words, as white space parts them.
pub fn words(text: &str) -> u64 {
    if has_wide(text) {
        return text.split_whitespace().count() as u64;
    }
    // Few enough that a byte counts them.
    const PIECE: usize = 128;
    let bytes = text.as_bytes();
    let first = bytes.first().is_some_and(|byte| !is_space(*byte));
    let after = bytes.get(1..).unwrap_or_default();
    let pieces = bytes.chunks(PIECE).zip(after.chunks(PIECE));
    let others = pieces.map(|(before, after)| {
        let begins = before.iter().zip(after);
        u64::from(begins.fold(0_u8, |count, (before, byte)| {
            count + u8::from(is_space(*before) & !is_space(*byte))
        }))
    });
    u64::from(first) + others.sum::<u64>()
}

/// Whether white space is single blanks between words, and none at the ends.
pub fn is_even(text: &str) -> bool {
    let bytes = text.as_bytes();
    let after = bytes.get(1..).unwrap_or_default();
    let has_others = bytes.iter().fold(false, |found, byte| {
        found | (is_space(*byte) & (*byte != b' '))
    });
    let has_two = bytes
        .iter()
        .zip(after)
        .fold(false, |found, (a, b)| found | ((*a == b' ') & (*b == b' ')));
    let at_ends = bytes.first() == Some(&b' ') || bytes.last() == Some(&b' ');
    !has_others && !has_two && !at_ends && !has_wide(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plainly_even(text: &str) -> bool {
        text.split_whitespace().collect::<Vec<_>>().join(" ") == text
    }

    #[test]
    fn all_of_unicodes_white_space_is_known_and_nothing_else() {
        for letter in '\0'..=char::MAX {
            for text in [
                format!("{letter}"),
                format!("a{letter}b"),
                format!("a {letter}"),
            ] {
                assert_eq!(
                    words(&text),
                    text.split_whitespace().count() as u64,
                    "{letter:?}"
                );
            }
            let text = format!("a{letter}b");
            assert_eq!(is_even(&text), plainly_even(&text), "{letter:?}");
        }
    }

    proptest! {
        #[test]
        fn words_and_evenness_are_those_of_the_text(text in "[a \\t\\u{85}\\u{a0}é\\u{2009}“\\u{3000}、]{0,300}|[a-z ]{0,700}|\\PC{0,40}") {
            prop_assert_eq!(words(&text), text.split_whitespace().count() as u64);
            prop_assert_eq!(is_even(&text), plainly_even(&text));
        }
    }
}
