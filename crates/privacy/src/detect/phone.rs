//! Phone numbers: international ones anywhere, national ones by how they are grouped, and bare digits
//! by their first one or by the words before them.

use super::Span;
use crate::context::Context;
use crate::surroundings::{after, before, is_word};

/// What stands between groups of digits; a second one only beside a parenthesis.
const SEPARATORS: [char; 7] = [' ', '-', '.', '/', '\u{a0}', '\u{202f}', '\u{2011}'];
/// What may stand before a number: it is not the tail of another name.
const BEFORE: &str = "\"'[<{(:;,=>*|“„«¿¡–—`";
/// Most digits that are read.
const MAXIMUM_DIGITS: usize = 18;
/// Most groups of one number.
const MAXIMUM_GROUPS: usize = 7;

/// A group of digits.
#[derive(Debug)]
struct Group {
    digits: String,
    /// It stands in parentheses.
    parenthesised: bool,
    /// What stands between it and the group before.
    separator: String,
    /// Where it ends, with its parenthesis.
    end: usize,
}

/// Groups that may be a number.
#[derive(Debug, Default)]
struct Groups {
    plus: bool,
    list: Vec<Group>,
}

/// Phone numbers in a text, with an extension where there is one.
pub fn find(text: &str) -> Vec<Span> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some((start, letter)) = next(text, at) {
        at = start + letter.len_utf8();
        if before(text, start).is_some_and(|last| !last.is_whitespace() && !BEFORE.contains(last)) {
            at = end_of_name(text, start);
            continue;
        }
        let groups = read(text, start);
        let Some(first) = groups.list.first() else {
            continue;
        };
        at = first.end;
        if let Some(end) = number(text, start, &groups) {
            found.push((start, end));
            at = end;
        }
    }
    found
}

/// The next place where a number may begin.
fn next(text: &str, from: usize) -> Option<(usize, char)> {
    let begins = |letter: char| letter.is_ascii_digit() || letter == '+' || letter == '(';
    let (offset, letter) = text
        .get(from..)?
        .char_indices()
        .find(|(_, it)| begins(*it))?;
    Some((from + offset, letter))
}

/// Where the name ends that a digit is within: versions, hashes and paths are skipped whole.
fn end_of_name(text: &str, from: usize) -> usize {
    let tail = text.get(from..).unwrap_or_default();
    let of_name = |letter: char| is_word(letter) || "+()._-/#@:".contains(letter);
    let length = tail
        .find(|letter: char| !of_name(letter))
        .unwrap_or(tail.len());
    from + length.max(1)
}

/// Reads groups of digits from `start` on.
fn read(text: &str, start: usize) -> Groups {
    let mut groups = Groups::default();
    let mut at = start;
    if after(text, at) == Some('+') {
        groups.plus = true;
        at += 1;
    }
    let mut separator = String::new();
    let mut count = 0;
    while count <= MAXIMUM_DIGITS && groups.list.len() <= MAXIMUM_GROUPS {
        let parenthesised = after(text, at) == Some('(');
        if parenthesised {
            at += 1;
            if groups.list.is_empty() && after(text, at) == Some('+') {
                groups.plus = true;
                at += 1;
            }
        }
        let tail = text.get(at..).unwrap_or_default();
        let length = tail.bytes().take_while(u8::is_ascii_digit).count();
        let digits = tail.get(..length).unwrap_or_default();
        at += length;
        if digits.is_empty() || (parenthesised && after(text, at) != Some(')')) {
            break;
        }
        at += usize::from(parenthesised);
        count += length;
        groups.list.push(Group {
            digits: digits.to_owned(),
            parenthesised,
            separator: std::mem::take(&mut separator),
            end: at,
        });
        while let Some(letter) = after(text, at)
            .filter(|letter| SEPARATORS.contains(letter) && separator.chars().count() < 2)
        {
            separator.push(letter);
            at += letter.len_utf8();
        }
        let beside_parenthesis = parenthesised || after(text, at) == Some('(');
        if separator.chars().count() == 2 && !beside_parenthesis {
            break;
        }
    }
    groups
}

/// Where the number ends: as many of the groups as make one.
fn number(text: &str, start: usize, groups: &Groups) -> Option<usize> {
    let context = Context::before(text, start);
    (1..=groups.list.len()).rev().find_map(|count| {
        let list = groups.list.get(..count)?;
        if !is_phone(groups.plus, list, &context) {
            return None;
        }
        let end = list.last()?.end;
        let end = end + extension(text.get(end..)?);
        is_apart(text, end).then_some(end)
    })
}

/// Nothing of a word, an amount or a longer number follows.
fn is_apart(text: &str, end: usize) -> bool {
    let Some(next) = after(text, end) else {
        return true;
    };
    let behind = after(text, end + next.len_utf8());
    let goes_on = ".,-/:".contains(next) && behind.is_some_and(|it| it.is_ascii_digit());
    !(is_word(next) || "@%°€$£".contains(next) || goes_on)
}

/// The length of an extension: `x123`, ` ext. 123`.
fn extension(tail: &str) -> usize {
    let rest = tail.strip_prefix(' ').unwrap_or(tail);
    let words = ["extension", "ext.", "ext", "x"];
    let Some(rest) = words.iter().find_map(|word| rest.strip_prefix(word)) else {
        return 0;
    };
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if (1..=6).contains(&digits) {
        tail.len() - rest.len() + digits
    } else {
        0
    }
}

fn is_phone(plus: bool, list: &[Group], context: &Context) -> bool {
    let lengths: Vec<usize> = list.iter().map(|group| group.digits.len()).collect();
    let digits: String = list.iter().map(|group| group.digits.as_str()).collect();
    let count = digits.len();
    if list.len() > MAXIMUM_GROUPS {
        return false;
    }
    if plus {
        return (8..=15).contains(&count) && !digits.starts_with('0');
    }
    let leads_with_parenthesis = list.first().is_some_and(|group| group.parenthesised);
    if leads_with_parenthesis && (8..=12).contains(&count) {
        return true;
    }
    let parted_by = |letters: &[char]| {
        let mut separators = list.iter().skip(1).map(|group| group.separator.as_str());
        separators.all(|separator| {
            let mut written = separator.chars();
            matches!((written.next(), written.next()), (Some(letter), None) if letters.contains(&letter))
        })
    };
    let is_date = matches!(lengths.as_slice(), [2, 2, 4] | [4, 2, 2]);
    let is_address = list.len() == 4 && parted_by(&['.']) && lengths.iter().all(|it| *it <= 3);
    // Thailand has numbers of three groups, which books only have with hyphens.
    let is_thai = lengths == [1, 4, 4] && !parted_by(&['-']);
    let second = list.get(1);
    let is_book = list.first().is_some_and(|group| group.digits == "0")
        && second.is_some_and(|group| !group.parenthesised)
        && !is_thai;
    if is_date || is_address || is_book {
        return false;
    }
    if digits.starts_with("00") && !digits.starts_with("000") && (11..=17).contains(&count) {
        return true;
    }
    if is_north_american(&lengths, &digits) && parted_by(&['-', '.']) {
        return true;
    }
    if context.says_thing() {
        return false;
    }
    let named = context.says_phone() && (7..=15).contains(&count);
    named || is_national(&lengths, &digits, parted_by)
}

/// Area code, exchange and line, with a 1 before or without.
fn is_north_american(lengths: &[usize], digits: &str) -> bool {
    let area = match lengths {
        [3, 3, 4] => digits.chars().next(),
        [1, 3, 3, 4] if digits.starts_with('1') => digits.chars().nth(1),
        _ => None,
    };
    area.is_some_and(|first| ('2'..='9').contains(&first))
}

/// How numbers are written at home.
fn is_national(lengths: &[usize], digits: &str, parted_by: impl Fn(&[char]) -> bool) -> bool {
    let spaced = || parted_by(&[' ', '\u{a0}', '\u{202f}']);
    let mut letters = digits.chars();
    let first = letters.next().unwrap_or_default();
    let second = letters.next().unwrap_or_default();
    match (first, lengths) {
        // The trunk prefix of most of the world.
        ('0', [count]) => (9..=12).contains(count),
        ('0', _) => (8..=12).contains(&digits.len()),
        // Italian mobile numbers have no trunk prefix, Russian ones an 8.
        ('2'..='9', [10])
        | ('3', [9 | 11])
        | ('8', [11] | [1, 3, 3, 4] | [1, 3, 3, 2, 2])
        | (_, [3, 3, 4]) => true,
        // Poland and its neighbours, Chile, Greece, and countries that write pairs at the end.
        ('4'..='9', [3, 3, 3])
        | ('2' | '9', [1, 4, 4])
        | ('2' | '6', [3, 7] | [4, 6])
        | ('2'..='9', [3, 3, 2, 2]) => spaced(),
        (_, [2, 2 | 3, 2, 2] | [3, 2, 3] | [2, 4, 4]) if spaced() => true,
        // Japan without its trunk prefix.
        (_, [2 | 3, 4, 4]) if parted_by(&['-']) => true,
        // China's mobile numbers.
        ('1', [11]) => ('3'..='9').contains(&second),
        // Portugal's mobile numbers.
        ('9', [9]) => "1236".contains(second),
        // Hungary: the area, a slash, and a hyphen within the number.
        ('2'..='9', [2, 3, 4]) => !parted_by(&['-']) && parted_by(&['/', '-']),
        // Brazil: the area, a space, and a hyphen within the number.
        (_, [2, 4 | 5, 4]) => !spaced() && parted_by(&[' ', '-']),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::texts;

    #[test]
    fn numbers_of_many_countries_are_found_whole() {
        for number in [
            "+1-541-754-3010",
            "001-541-754-3010x4128",
            "(541)754-3010",
            "(541) 754-3010",
            "541-754-3010 ext. 12",
            "541.754.3010",
            "5417543010",
            "+44(0)115 4960914",
            "(0161) 496 0066",
            "(029)2018374",
            "+49 (0) 9141 777631",
            "0491 12345678",
            "+33 (0)1 41 63 60 83",
            "04 15 39 15 00",
            "0232781286",
            "+46 (0)8 123 45 67",
            "08-391 50 00",
            "+34842 91 41 77",
            "3420837783",
            "+39 0925141776",
            "(0406)-812415",
            "609 141 777",
            "22 657 07 04",
            "(+358) 083778353",
            "17 06 69 07",
            "91 1706-6907",
            "080-9141-7776",
            "+919141777631",
            "0 2123 4567",
            "9 8123 4567",
            "13912345678",
            "8 912 345 6789",
            "8 (912) 345-67-89",
            "89123456789",
            "912345678",
            "30/123-4567",
            "210 6123456",
            "2310 612345",
            "312 345 67 89",
            "0(212)345 67 89",
            "0 (532) 345 67 89",
            "+(370) 61234567",
        ] {
            for text in [
                number.to_owned(),
                format!("so {number}, says"),
                format!("<{number}>"),
            ] {
                assert_eq!(texts(find, &text), [number], "{text}");
            }
        }
        assert_eq!(texts(find, "call 39150008 now"), ["39150008"]);
        assert_eq!(texts(find, "tel:5550123 or"), ["5550123"]);
        assert_eq!(
            texts(find, "+1 541 754 3010 and +1 541 754 3011"),
            ["+1 541 754 3010", "+1 541 754 3011"]
        );
    }

    #[test]
    fn what_other_numbers_are_is_none() {
        for text in [
            "order 4839201745",
            "call about order 48392017",
            "Order no. 483-920-174",
            "invoice number 0483920174",
            "ticket #5417543010",
            "ORD-5417543010",
            "v5417543010",
            "39150008",
            "1700000000",
            "2024-01-12",
            "12/05/2024",
            "20240112",
            "2024-01-12 10:11:12",
            "1990-1995",
            "203.0.113.7",
            "1.22.333.4444567",
            "0-306-40615-2",
            "0 306 40615 2",
            "0-306-40615-X",
            "0-7645-2641-X",
            "11912345678",
            "941234567",
            "order 89123456789",
            "12-345-6789",
            "2310-612345",
            "978-0-306-40615-7",
            "3.14159265358",
            "12345678901234567890",
            "da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "550e8400-e29b-41d4-a716-446655440000",
            "EUR 1.234.567,89",
            "5417543010%",
            "123 456 789",
            "page 12 of 345",
            "(2024)",
            "()",
            "+",
        ] {
            assert_eq!(texts(find, text), Vec::<&str>::new(), "{text}");
        }
    }
}
