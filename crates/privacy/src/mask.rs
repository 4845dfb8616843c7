//! Text without its personal data.

use std::fmt;

use crate::find::{Finding, find};
use crate::fold::fold;
use crate::hmac::hmac_sha256;
use crate::kind::{Counts, Kind};
use crate::others::{Other, beside};

/// The shortest key for pseudonyms.
pub const MINIMUM_KEY_BYTES: usize = 16;
/// Bytes of a code that a pseudonym shows, as two letters each: 80 bits, so that two of a million
/// million values are the same with a chance of one in two.
const PSEUDONYM_BYTES: usize = 10;
/// What is masked may bare something beside it, so that masking goes on until nothing is found. Each
/// pass takes away at least one character that is not a mask's, and texts need one or two.
const MAXIMUM_PASSES: usize = 16;

/// The key of pseudonyms. Who has it can tell whose pseudonym one is, by trying.
#[derive(Clone)]
pub struct Key(Vec<u8>);

/// A key with too few bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyTooShort {
    /// How many it has.
    pub bytes: usize,
}

impl fmt::Display for KeyTooShort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes;
        write!(
            formatter,
            "the key for pseudonyms has {bytes} bytes; at least {MINIMUM_KEY_BYTES} are needed"
        )
    }
}

impl std::error::Error for KeyTooShort {}

impl Key {
    /// A key of at least [`MINIMUM_KEY_BYTES`].
    ///
    /// # Errors
    /// [`KeyTooShort`]
    pub fn new(bytes: &[u8]) -> Result<Self, KeyTooShort> {
        if bytes.len() < MINIMUM_KEY_BYTES {
            return Err(KeyTooShort { bytes: bytes.len() });
        }
        Ok(Self(bytes.to_vec()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key(hidden)")
    }
}

/// What stands where personal data stood.
#[derive(Debug, Clone)]
pub enum Masker {
    /// The type alone: `[EMAIL]`.
    Redact,
    /// The type and a pseudonym, `[EMAIL-abcdefghijklmnopabcd]`: the same value has the same one under
    /// the same key, in whatever way it was written.
    Pseudonymise(Key),
}

/// The text without its personal data, which `counts` counts; none where there is nothing to mask.
/// Masking what was masked changes nothing.
pub fn mask(text: &str, masker: &Masker, counts: &mut Counts) -> Option<String> {
    let mut masked: Option<String> = None;
    for _ in 0..MAXIMUM_PASSES {
        let subject = masked.as_deref().unwrap_or(text);
        let findings = find(subject);
        if findings.is_empty() {
            break;
        }
        for finding in &findings {
            counts.add(finding.kind);
        }
        let parts: Vec<Part<'_>> = findings.iter().map(Part::own).collect();
        masked = Some(replace(subject, &parts, masker));
    }
    masked
}

/// The text without its personal data and without what others found beside it, see [`mask`]. Where
/// the two overlap, what we found stands.
pub fn mask_with(
    text: &str,
    others: &[Other<'_>],
    masker: &Masker,
    counts: &mut Counts,
) -> Option<String> {
    if others.is_empty() {
        return mask(text, masker, counts);
    }
    let found = find(text);
    let others = beside(text, &found, others);
    for finding in &found {
        counts.add(finding.kind);
    }
    for other in &others {
        counts.add_named(other.name, 1);
    }
    let mut parts: Vec<Part<'_>> = found.iter().map(Part::own).collect();
    parts.extend(others.iter().map(Part::other));
    if parts.is_empty() {
        return None;
    }
    parts.sort_unstable_by_key(|part| part.start);
    let first = replace(text, &parts, masker);
    Some(mask(&first, masker, counts).unwrap_or(first))
}

/// A part of a text that is replaced.
struct Part<'a> {
    start: usize,
    end: usize,
    name: &'a str,
    placeholder: &'a str,
    /// None: others found it.
    kind: Option<Kind>,
}

impl<'a> Part<'a> {
    fn own(finding: &Finding) -> Self {
        Self {
            start: finding.start,
            end: finding.end,
            name: finding.kind.name(),
            placeholder: finding.kind.placeholder(),
            kind: Some(finding.kind),
        }
    }

    fn other(other: &Other<'a>) -> Self {
        Self {
            start: other.start,
            end: other.end,
            name: other.name,
            placeholder: other.placeholder,
            kind: None,
        }
    }
}

fn replace(text: &str, parts: &[Part<'_>], masker: &Masker) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut from = 0;
    for part in parts {
        masked.push_str(text.get(from..part.start).unwrap_or_default());
        let value = text.get(part.start..part.end).unwrap_or_default();
        masked.push('[');
        masked.push_str(part.placeholder);
        if let Masker::Pseudonymise(key) = masker {
            masked.push('-');
            masked.push_str(&pseudonym(key, part, value));
        }
        masked.push(']');
        from = part.end;
    }
    masked.push_str(text.get(from..).unwrap_or_default());
    masked
}

/// Letters alone, so that no pseudonym looks like a number of any type.
fn pseudonym(key: &Key, part: &Part<'_>, value: &str) -> String {
    let value = part
        .kind
        .map_or_else(|| words(value), |kind| normal(kind, value));
    let code = hmac_sha256(&key.0, &[part.name.as_bytes(), b"\0", &value]);
    let letter = |nibble: u8| char::from(b'a' + nibble);
    code.iter()
        .take(PSEUDONYM_BYTES)
        .flat_map(|byte| [letter(byte >> 4), letter(byte & 0xf)])
        .collect()
}

/// One name however it is written: neither case nor spaces nor points tell people apart.
fn words(value: &str) -> Vec<u8> {
    let lower = value.to_lowercase();
    let words = lower
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").into_bytes()
}

/// One value however it is written: case, separators and forms of letters say nothing of a person.
fn normal(kind: Kind, value: &str) -> Vec<u8> {
    let folded = fold(value).filter(|_| kind != Kind::Secret);
    let value = folded.as_ref().map_or(value, |folded| folded.text.as_str());
    match kind {
        Kind::Secret => value.as_bytes().to_vec(),
        Kind::Email | Kind::IpAddress => value.to_lowercase().into_bytes(),
        Kind::Iban | Kind::PaymentCard | Kind::NationalId | Kind::Phone => value
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .map(|letter| letter.to_ascii_uppercase() as u8)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> Key {
        Key::new(b"a key of some length").unwrap()
    }

    fn masked(text: &str, masker: &Masker) -> (String, Counts) {
        let mut counts = Counts::default();
        let masked = mask(text, masker, &mut counts);
        (masked.unwrap_or_else(|| text.to_owned()), counts)
    }

    #[test]
    fn what_is_found_is_replaced_by_its_type_and_counted() {
        let text = "Write to ann@example.com or ann.b@example.com, from 203.0.113.7.";
        let (text, counts) = masked(text, &Masker::Redact);
        assert_eq!(text, "Write to [EMAIL] or [EMAIL], from [IP_ADDRESS].");
        let counts: Vec<_> = counts.by_name().into_iter().collect();
        assert_eq!(
            counts,
            [("email".to_owned(), 2), ("ipAddress".to_owned(), 1)]
        );
    }

    #[test]
    fn what_is_written_in_other_forms_is_found_where_it_stands() {
        let text = "Skriv till ann＠example．com, eller betala med ４１１１ １１１１ １１１１ １１１１ nu.";
        let (text, _) = masked(text, &Masker::Redact);
        assert_eq!(
            text,
            "Skriv till [EMAIL], eller betala med [PAYMENT_CARD] nu."
        );
        let masker = Masker::Pseudonymise(key());
        for (form, usual) in [
            ("ann＠example.com", "ann@example.com"),
            ("４111 1111 1111 １１１１", "4111 1111 1111 1111"),
        ] {
            assert_eq!(masked(form, &masker), masked(usual, &masker));
        }
    }

    #[test]
    fn a_text_without_personal_data_is_left_alone() {
        let mut counts = Counts::default();
        assert_eq!(mask("nothing here", &Masker::Redact, &mut counts), None);
        assert!(counts.is_empty());
    }

    #[test]
    fn a_pseudonym_depends_on_key_and_value_and_not_on_how_it_is_written() {
        let other = Masker::Pseudonymise(Key::new(b"another key of some length").unwrap());
        let masker = Masker::Pseudonymise(key());
        let of = |text: &str, masker| masked(text, masker).0;
        let first = of("Ann@Example.com", &masker);
        assert_eq!(first.len(), "[EMAIL-]".len() + 2 * PSEUDONYM_BYTES);
        assert_eq!(first, of("ann@example.com", &masker));
        assert_ne!(first, of("ann@example.com", &other));
        assert_ne!(first, of("bob@example.com", &masker));
        assert_eq!(
            of("4111 1111 1111 1111", &masker),
            of("4111-1111-1111-1111", &masker)
        );
    }

    #[test]
    fn neither_errors_nor_debug_output_show_a_key() {
        assert!(!format!("{:?}", Masker::Pseudonymise(key())).contains("length"));
        let error = Key::new(b"SECRET").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the key for pseudonyms has 6 bytes; at least 16 are needed"
        );
    }

    fn person(start: usize, end: usize) -> Other<'static> {
        Other {
            name: "person",
            placeholder: "PERSON",
            start,
            end,
        }
    }

    #[test]
    fn what_others_found_is_masked_beside_what_we_found() {
        let text = "Ann Lee (ann@example.com) met Bo";
        let others = [person(0, 7), person(30, 32), person(5, 14)];
        let mut counts = Counts::default();
        let masked = mask_with(text, &others, &Masker::Redact, &mut counts).unwrap();
        assert_eq!(masked, "[PERSON] ([EMAIL]) met [PERSON]");
        assert_eq!(counts.by_name()["person"], 2);
        assert_eq!(counts.by_name()["email"], 1);
        let mut none = Counts::default();
        assert_eq!(mask_with("Bo", &[], &Masker::Redact, &mut none), None);
    }

    #[test]
    fn a_persons_pseudonym_does_not_depend_on_how_the_name_is_written() {
        let masker = Masker::Pseudonymise(key());
        let of = |text: &str| {
            let others = [person(0, text.len())];
            mask_with(text, &others, &masker, &mut Counts::default()).unwrap()
        };
        assert!(of("Ann Lee").starts_with("[PERSON-"));
        assert_eq!(of("Ann Lee"), of("ANN  LEE."));
        assert_ne!(of("Ann Lee"), of("Bo Lee"));
    }

    /// Pieces that stand beside one another in ways that nobody writes.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => prop::sample::select(vec![
                "ann@example.com", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00",
                "203.0.113.7", "2001:db8::7", "+46 8 123 456 78", "(212) 555-0123", "811228-9874",
                "AKIAIOSFODNN7EXAMPLE", "password=", "token: ", "Bearer ", "version ", "order ",
                "tel ", "[EMAIL]", "[PHONE-abcdefghijklmnopabcd]", "x", "-", ".", "/", "@", "0", "é",
                "-----BEGIN PRIVATE KEY-----", "://user:", "\n", "7", "#", "1x",
                "ann＠example．com", "＠", "４", "㏂",
            ]).prop_map(str::to_owned),
            1 => ".{0,6}",
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn masking_twice_is_masking_once(text in pieces()) {
            for masker in [Masker::Redact, Masker::Pseudonymise(key())] {
                let (once, _) = masked(&text, &masker);
                let (twice, counts) = masked(&once, &masker);
                prop_assert_eq!(&twice, &once);
                prop_assert!(counts.is_empty());
            }
        }

        #[test]
        fn masking_what_others_found_leaves_nothing_for_us(text in pieces(), from in 0_usize..40, length in 1_usize..20) {
            let inner = |at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            let others = [person(inner(from), inner(from + length))];
            let mut counts = Counts::default();
            let once = mask_with(&text, &others, &Masker::Redact, &mut counts).unwrap_or_else(|| text.clone());
            prop_assert!(find(&once).is_empty());
        }

        #[test]
        fn offsets_stand_between_characters_in_order_and_apart(text in pieces()) {
            let mut from = 0;
            for finding in find(&text) {
                prop_assert!(finding.start >= from && finding.end > finding.start);
                prop_assert!(text.get(finding.start..finding.end).is_some());
                from = finding.end;
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            find(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn nothing_of_what_was_found_is_left(text in pieces()) {
            let findings = find(&text);
            let (masked, _) = masked(&text, &Masker::Redact);
            for finding in findings {
                let value = &text[finding.start..finding.end];
                if value.len() > 12 && text.matches(value).count() == 1 {
                    prop_assert!(!masked.contains(value));
                }
            }
        }
    }
}
