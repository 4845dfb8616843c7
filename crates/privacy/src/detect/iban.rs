//! IBANs (ISO 13616): the country's length and the check by 97.

use super::Span;
use crate::check_digits;
use crate::surroundings::{begins, ends, starts};

/// Countries of the registry, each with the length of its numbers.
const LENGTHS: &str = "\
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 \
    DJ27 DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 \
    HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 \
    MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 \
    RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 \
    VG24 XK20 YE30";

/// IBANs in a text, plain or in groups with one space or hyphen between them.
pub fn find(text: &str) -> Vec<Span> {
    starts(text, |letter| letter.is_ascii_alphabetic())
        .filter_map(|start| Some((start, number(text, start)?)))
        .collect()
}

/// Where the number that starts here ends.
fn number(text: &str, start: usize) -> Option<usize> {
    let head = text.get(start..start + 4)?;
    if !head.bytes().skip(2).all(|letter| letter.is_ascii_digit()) {
        return None;
    }
    let length = length(&head.get(..2)?.to_ascii_uppercase())?;
    let mut compact = String::with_capacity(length);
    let mut separated = false;
    for (offset, letter) in text.get(start..)?.char_indices() {
        match letter {
            ' ' | '-' if !separated => separated = true,
            letter if letter.is_ascii_alphanumeric() => {
                separated = false;
                compact.push(letter.to_ascii_uppercase());
            }
            _ => return None,
        }
        if compact.len() == length {
            let end = start + offset + 1;
            let right = begins(text, start, &[]) && ends(text, end, &[]);
            return (right && check_digits::iban(&compact)).then_some(end);
        }
    }
    None
}

fn length(country: &str) -> Option<usize> {
    LENGTHS
        .split_ascii_whitespace()
        .find_map(|entry| entry.strip_prefix(country)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::texts;

    #[test]
    fn numbers_are_found_however_they_are_grouped() {
        for number in [
            "GB82WEST12345698765432",
            "GB82 WEST 1234 5698 7654 32",
            "gb82west12345698765432",
            "DE89-3704-0044-0532-0130-00",
            "NO93 8601 1117 947",
            "FR1420041010050500013M02606",
        ] {
            for text in [format!("IBAN: {number}."), format!("to {number} by 12 May")] {
                assert_eq!(texts(find, &text), [number], "{text}");
            }
        }
    }

    #[test]
    fn what_fails_the_check_or_has_another_length_is_none() {
        for text in [
            "GB82WEST12345698765433",
            "GB82WEST1234569876543",
            "GB82WEST123456987654322",
            "XX82WEST12345698765432",
            "AGB82WEST12345698765432",
            "GB82  WEST12345698765432",
            "DE",
            "de é",
        ] {
            assert_eq!(texts(find, text), Vec::<&str>::new(), "{text}");
        }
    }
}
