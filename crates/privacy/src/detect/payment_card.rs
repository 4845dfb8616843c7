//! Payment cards: the networks' first digits and lengths, and Luhn's check.

use super::Span;
use crate::check_digits;
use crate::surroundings::{begins, ends, starts};

/// Most digits of a card.
const MAXIMUM_DIGITS: usize = 19;
/// Groups in which numbers are printed on cards.
const GROUPS: [&[usize]; 5] = [
    &[4, 4, 4, 4],
    &[4, 6, 5],
    &[4, 6, 4],
    &[4, 4, 4, 4, 3],
    &[4, 4, 4, 4, 2],
];
/// What joins a number to another one beside it.
const JOINS: [char; 6] = ['-', '.', '/', ',', ':', '+'];

/// Payment cards in a text, whatever they are said to be, plain or in their groups with one space or hyphen between them.
pub fn find(text: &str) -> Vec<Span> {
    starts(text, |letter| letter.is_ascii_digit())
        .filter(|start| begins(text, *start, &['-', '.', '/', '+', '#']))
        .filter_map(|start| Some((start, number(text, start)?)))
        .collect()
}

/// Where the number that starts here ends.
fn number(text: &str, start: usize) -> Option<usize> {
    let mut compact = String::new();
    let mut groups: Vec<usize> = vec![0];
    let mut separator = None;
    let mut found = None;
    let mut letters = text.get(start..)?.char_indices().peekable();
    while let Some((offset, letter)) = letters.next() {
        let next_is_digit = letters
            .peek()
            .is_some_and(|(_, next)| next.is_ascii_digit());
        if letter.is_ascii_digit() {
            compact.push(letter);
            if let Some(last) = groups.last_mut() {
                *last += 1;
            }
            if compact.len() > MAXIMUM_DIGITS {
                break;
            }
            let end = start + offset + 1;
            let printed = groups.len() == 1 || GROUPS.contains(&groups.as_slice());
            if !next_is_digit && printed && ends(text, end, &JOINS) && is_card(&compact) {
                found = Some(end);
            }
        } else if (letter == ' ' || letter == '-')
            && next_is_digit
            && separator.is_none_or(|known| known == letter)
        {
            separator = Some(letter);
            groups.push(0);
        } else {
            break;
        }
    }
    found
}

/// A network's number with its check digit.
fn is_card(number: &str) -> bool {
    let prefix = |digits: usize| {
        let head = number.get(..digits);
        head.and_then(|head| head.parse::<u32>().ok()).unwrap_or(0)
    };
    let known = match number.len() {
        // Maestro is the one with short numbers.
        12 => matches!(
            prefix(4),
            604 | 5018 | 5020 | 5038 | 5600..=5899 | 6304 | 6390 | 6759 | 6761..=6763
        ),
        13 => prefix(1) == 4,
        14 => matches!(prefix(3), 300..=305 | 309 | 360..=369 | 380..=399),
        15 => matches!(prefix(4), 1800 | 2131 | 3400..=3499 | 3700..=3799),
        16..=19 => matches!(
            prefix(4),
            2200..=2204 | 2221..=2720 | 3000..=3059 | 3500..=3699 | 3800..=3999 | 4000..=4999
                | 5018 | 5020 | 5038 | 5100..=5899 | 6011 | 6200..=6299 | 6304 | 6390
                | 6440..=6599 | 6759 | 6761..=6763
        ),
        _ => false,
    };
    known && check_digits::luhn(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::texts;

    #[test]
    fn cards_are_found_however_they_are_grouped() {
        for number in [
            "4111111111111111",
            "4111 1111 1111 1111",
            "4111-1111-1111-1111",
            "5555555555554444",
            "2223003122003222",
            "378282246310005",
            "3782 822463 10005",
            "30569309025904",
            "6011111111111117",
            "3530111333300000",
            "4222222222222",
            "4195683237418404949",
            "060434993154",
            "502007488757",
            "566355226838",
            "575890611412",
            "581339743527",
        ] {
            for text in [
                number.to_owned(),
                format!("card: {number}, 12/27"),
                format!("({number})"),
            ] {
                assert_eq!(texts(find, &text), [number], "{text}");
            }
        }
        let text = "4111 1111 1111 1111 123";
        assert_eq!(texts(find, text), ["4111 1111 1111 1111"]);
    }

    #[test]
    fn other_numbers_are_none() {
        for text in [
            "4111111111111112",
            "1234567890123452",
            "411111111111111",
            "4111 1111 11111111",
            "4111 1111-1111 1111",
            "v4111111111111111",
            "4111111111111111.5",
            "0.4111111111111111",
            "41111111111111110000000",
            "4111111111111111ab",
        ] {
            assert_eq!(texts(find, text), Vec::<&str>::new(), "{text}");
        }
    }
}
