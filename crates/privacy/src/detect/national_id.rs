//! National identity, tax and social security numbers: a shape, a date where the number has one, and
//! check digits where the country has any. Numbers whose shape says little are taken only after a word
//! that names them.

use super::Span;
use crate::check_digits as check;
use crate::context::Context;
use crate::surroundings::{begins, ends, starts};

/// What must stand before a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Whatever: the number speaks for itself.
    Anything,
    /// No name of a thing, such as "order".
    NoThing,
    /// A word for such a number.
    Name,
}

use Before::{Anything, Name, NoThing};

/// A way to write a number. In its shape 9 is a digit, A a letter and X either; the rest stands for
/// itself.
struct Form {
    shape: &'static str,
    before: Before,
    /// Whether a number of this shape is right: digits and letters alone, upper-case. Finland's keeps
    /// its sign.
    is_right: fn(&str) -> bool,
}

const fn form(shape: &'static str, before: Before, is_right: fn(&str) -> bool) -> Form {
    Form {
        shape,
        before,
        is_right,
    }
}

const FORMS: &[Form] = &[
    // United States: social security number.
    form("999-99-9999", NoThing, american),
    form("999 99 9999", Name, american),
    // Sweden, Denmark.
    form("999999-9999", NoThing, nordic),
    form("999999+9999", NoThing, swedish),
    form("99999999-9999", NoThing, swedish),
    form("999999999999", NoThing, swedish),
    // Finland.
    form("999999-999X", NoThing, finnish),
    form("999999+999X", NoThing, finnish),
    form("999999A999X", Anything, finnish),
    // Norway, Poland, Germany, Brazil, Belgium and Turkey have eleven digits.
    form("99999999999", NoThing, eleven_digits),
    form("999999 99999", NoThing, norwegian),
    form("99 999 999 999", NoThing, check::steuer_id),
    form("999.999.999-99", Anything, check::cpf),
    form("99.99.99-999.99", Anything, check::belgian),
    // United Kingdom: national insurance number.
    form("AA999999A", Anything, british),
    form("AA 999999 A", Anything, british),
    form("AA 99 99 99 A", Anything, british),
    // France.
    form("999999X99999999", NoThing, french),
    form("9 99 99 9X 999 999 99", Anything, french),
    // Spain: DNI and NIE.
    form("99999999A", Anything, check::spanish),
    form("99999999-A", Anything, check::spanish),
    form("A9999999A", Anything, check::spanish),
    form("A-9999999-A", Anything, check::spanish),
    // Italy.
    form("AAAAAAXXAXXAXXXA", Anything, check::codice_fiscale),
    // Switzerland.
    form("999.9999.9999.99", Anything, swiss),
    // Canada.
    form("999-999-999", NoThing, check::luhn),
    form("999 999 999", Name, check::luhn),
    // Netherlands.
    form("999999999", Name, check::bsn),
    form("9999.99.999", Name, check::bsn),
    // India.
    form("9999 9999 9999", NoThing, indian),
    form("999999999999", Name, indian),
];

/// National numbers in a text.
pub fn find(text: &str) -> Vec<Span> {
    starts(text, |letter| letter.is_ascii_alphanumeric())
        .filter(|start| begins(text, *start, &['-', '.', '/', '+', '#', '@']))
        .filter_map(|start| Some((start, number(text, start)?)))
        .collect()
}

/// Where the longest right number that starts here ends.
fn number(text: &str, start: usize) -> Option<usize> {
    let tail = text.get(start..)?;
    let right = FORMS.iter().filter_map(|form| {
        let end = start + fit(tail, form)?;
        (ends(text, end, &['-', '.', '/', '+', '@']) && stands_right(text, start, form.before))
            .then_some(end)
    });
    right.max()
}

/// The length of a right number at the beginning of `tail`; shapes are ASCII.
fn fit(tail: &str, form: &Form) -> Option<usize> {
    let written = tail.get(..form.shape.len())?;
    let fits = |(place, letter): (char, char)| match place {
        '9' => letter.is_ascii_digit(),
        'A' => letter.is_ascii_alphabetic(),
        'X' => letter.is_ascii_alphanumeric(),
        _ => letter == place,
    };
    if !form.shape.chars().zip(written.chars()).all(fits) {
        return None;
    }
    let keeps_sign = form.shape.starts_with("999999-") || form.shape.starts_with("999999+");
    let compact: String = written
        .chars()
        .filter(|letter| letter.is_ascii_alphanumeric() || (keeps_sign && "-+".contains(*letter)))
        .map(|letter| letter.to_ascii_uppercase())
        .collect();
    (form.is_right)(&compact).then_some(form.shape.len())
}

fn stands_right(text: &str, start: usize, before: Before) -> bool {
    let context = || Context::before(text, start);
    match before {
        Anything => true,
        NoThing => !context().says_thing(),
        Name => context().says_identity(),
    }
}

/// The number between two places.
fn part(number: &str, from: usize, to: usize) -> u32 {
    let part = number.get(from..to).and_then(|part| part.parse().ok());
    part.unwrap_or(0)
}

fn is_day(day: u32) -> bool {
    (1..=31).contains(&day)
}

fn is_month(month: u32) -> bool {
    (1..=12).contains(&month)
}

/// Area, group and serial that were given out.
fn american(number: &str) -> bool {
    let area = part(number, 0, 3);
    area != 0 && area != 666 && area < 900 && part(number, 3, 5) != 0 && part(number, 5, 9) != 0
}

/// Without century's sign; coordination numbers add 60 to the day.
fn swedish(number: &str) -> bool {
    let number = number.replace(['-', '+'], "");
    let short = match number.len() {
        10 => number.as_str(),
        12 if number.starts_with("19") || number.starts_with("20") => {
            number.get(2..).unwrap_or_default()
        }
        _ => return false,
    };
    let day = part(short, 4, 6);
    is_month(part(short, 2, 4))
        && (is_day(day) || is_day(day.wrapping_sub(60)))
        && check::luhn(short)
}

/// Denmark gave up its check digit in 2007: the date is all there is.
fn nordic(number: &str) -> bool {
    swedish(number) || (is_day(part(number, 0, 2)) && is_month(part(number, 2, 4)))
}

fn finnish(number: &str) -> bool {
    let sign = number.chars().nth(6).unwrap_or_default();
    is_day(part(number, 0, 2))
        && is_month(part(number, 2, 4))
        && "-+ABCDEFUVWXY".contains(sign)
        && check::hetu(number)
}

/// D-numbers add 40 to the day.
fn norwegian(number: &str) -> bool {
    let day = part(number, 0, 2);
    (is_day(day) || is_day(day.wrapping_sub(40)))
        && is_month(part(number, 2, 4))
        && check::fodselsnummer(number)
}

/// Months count on by 20 for each century.
fn polish(number: &str) -> bool {
    is_month(part(number, 2, 4) % 20) && is_day(part(number, 4, 6)) && check::pesel(number)
}

fn belgian(number: &str) -> bool {
    is_month(part(number, 2, 4)) && is_day(part(number, 4, 6)) && check::belgian(number)
}

fn eleven_digits(number: &str) -> bool {
    polish(number)
        || norwegian(number)
        || belgian(number)
        || check::cpf(number)
        || check::steuer_id(number)
        || check::turkish(number)
}

/// Prefixes that were given out. ZZ marks numbers that are not yet given.
fn british(number: &str) -> bool {
    const NEVER: [&str; 6] = ["BG", "GB", "KN", "NK", "NT", "TN"];
    let mut letters = number.chars();
    let first = letters.next().unwrap_or_default();
    let second = letters.next().unwrap_or_default();
    let last = number.chars().next_back().unwrap_or_default();
    !"DFIQUV".contains(first)
        && !"DFIOQUV".contains(second)
        && !number
            .get(..2)
            .is_some_and(|prefix| NEVER.contains(&prefix))
        && ("ABCD".contains(last) || (number.starts_with("ZZ") && last == 'T'))
}

/// Men have 1, women 2; months above 12 stand for unknown ones.
fn french(number: &str) -> bool {
    matches!(number.chars().next(), Some('1' | '2')) && check::nir(number)
}

fn swiss(number: &str) -> bool {
    number.starts_with("756") && check::ean_13(number)
}

fn indian(number: &str) -> bool {
    number.len() == 12 && !number.starts_with(['0', '1']) && check::verhoeff(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::texts;

    #[test]
    fn numbers_of_many_countries_are_found() {
        for number in [
            "405-87-9435",
            "870923-3103",
            "870923+3103",
            "19870923-3103",
            "198709233103",
            "010180-1234",
            "150784-3122",
            "180508A740K",
            "23098706720",
            "230987 06720",
            "83060616727",
            "86095742719",
            "86 095 742 719",
            "94175970002",
            "941.759.700-02",
            "83.06.06-106.44",
            "44167211084",
            "AB123456C",
            "AB 12 34 56 C",
            "ab123456c",
            "ZZ 868344 T",
            "245074410900240",
            "2 45 07 44 109 002 40",
            "59279191A",
            "59279191-A",
            "X0834372R",
            "MRCBNC92L16B656M",
            "756.9217.0769.85",
        ] {
            for text in [
                number.to_owned(),
                format!("born here: {number}, yes"),
                format!("({number})"),
            ] {
                assert_eq!(texts(find, &text), [number], "{text}");
            }
        }
    }

    #[test]
    fn numbers_whose_shape_says_little_need_a_word() {
        for (before, number) in [
            ("BSN ", "401863578"),
            ("social security number: ", "405 87 9435"),
            ("SIN ", "267 200 517"),
        ] {
            assert_eq!(texts(find, &format!("{before}{number}")), [number]);
            assert_eq!(texts(find, &format!("so {number}")), Vec::<&str>::new());
        }
    }

    #[test]
    fn other_numbers_are_none() {
        for text in [
            "000-12-3456",
            "666-12-3456",
            "900-12-3456",
            "123-00-4567",
            "870923-3104 870923+3104",
            "871323-3103",
            "order 405-87-9435",
            "Order no. 94175970002",
            "12345678901",
            "405-87-94356",
            "1405-87-9435",
            "X-405-87-9435",
            "2024-01-12",
            "BG123456C",
            "AB123456E",
            "59279191B",
            "MRCBNC92L16B656N",
            "757.9217.0769.85",
            "a1b2c3d4e5f60718",
            "é",
        ] {
            // Denmark has no check digit: a date and four digits are enough.
            let found: Vec<_> = texts(find, text);
            assert_eq!(found, Vec::<&str>::new(), "{text}");
        }
    }
}
