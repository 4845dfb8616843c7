//! Check digits. Numbers come as ASCII without separators; one that has another length or another
//! character than its rule expects is wrong.

/// The digits of a number; none where there is anything else.
pub fn digits(number: &str) -> Option<Vec<u32>> {
    number.chars().map(|letter| letter.to_digit(10)).collect()
}

/// The sum of digits times weights.
fn weighted(digits: &[u32], weights: &[u32]) -> u32 {
    digits
        .iter()
        .zip(weights)
        .map(|(digit, weight)| digit * weight)
        .sum()
}

/// Luhn's check (ISO/IEC 7812-1): payment cards, Swedish and Canadian numbers.
pub fn luhn(number: &str) -> bool {
    let Some(digits) = digits(number) else {
        return false;
    };
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(index, digit)| match (index % 2, digit * 2) {
            (0, _) => *digit,
            (_, double) if double > 9 => double - 9,
            (_, double) => double,
        })
        .sum();
    !digits.is_empty() && sum.is_multiple_of(10)
}

/// ISO/IEC 7064 MOD 97-10 as IBANs use it: the first four characters go to the end, letters count from
/// 10, and the rest by 97 is 1.
pub fn iban(number: &str) -> bool {
    let (Some(head), Some(tail)) = (number.get(..4), number.get(4..)) else {
        return false;
    };
    let rest = tail
        .chars()
        .chain(head.chars())
        .try_fold(0_u32, |rest, letter| {
            let value = letter.to_digit(36)?;
            let shifted = if value > 9 { rest * 100 } else { rest * 10 };
            Some((shifted + value) % 97)
        });
    rest == Some(1)
}

/// The number by 97.
fn modulo_97(number: &str) -> Option<u32> {
    number.chars().try_fold(0, |rest, letter| {
        Some((rest * 10 + letter.to_digit(10)?) % 97)
    })
}

/// Verhoeff's dihedral check: Aadhaar.
pub fn verhoeff(number: &str) -> bool {
    const PERMUTATION: [u32; 10] = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4];
    let Some(digits) = digits(number) else {
        return false;
    };
    let rest = digits
        .iter()
        .rev()
        .enumerate()
        .fold(0, |rest, (index, digit)| {
            let permuted = (0..index % 8).fold(*digit, |digit, _| {
                PERMUTATION.get(digit as usize).copied().unwrap_or(digit)
            });
            in_dihedral_group(rest, permuted)
        });
    rest == 0
}

/// The product in the dihedral group of order 10: 0 to 4 turn, 5 to 9 turn over.
fn in_dihedral_group(a: u32, b: u32) -> u32 {
    let (turn_a, turn_b) = (a % 5, b % 5);
    match (a < 5, b < 5) {
        (true, true) => (turn_a + turn_b) % 5,
        (true, false) => 5 + (turn_a + turn_b) % 5,
        (false, true) => 5 + (turn_a + 5 - turn_b) % 5,
        (false, false) => (turn_a + 5 - turn_b) % 5,
    }
}

/// EAN-13: Swiss AHV numbers.
pub fn ean_13(number: &str) -> bool {
    digits(number).is_some_and(|digits| {
        let weights = [1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1];
        digits.len() == 13 && weighted(&digits, &weights).is_multiple_of(10)
    })
}

/// PESEL (Poland), without its date.
pub fn pesel(number: &str) -> bool {
    digits(number).is_some_and(|digits| {
        let weights = [1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1];
        digits.len() == 11 && weighted(&digits, &weights).is_multiple_of(10)
    })
}

/// Fødselsnummer (Norway), without its date: both of its check digits.
pub fn fodselsnummer(number: &str) -> bool {
    digits(number).is_some_and(|digits| {
        digits.len() == 11
            && weighted(&digits, &[3, 7, 6, 1, 8, 9, 4, 5, 2, 1]).is_multiple_of(11)
            && weighted(&digits, &[5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1]).is_multiple_of(11)
    })
}

/// CPF (Brazil): both of its check digits. Eleven equal digits fit and are nobody's.
pub fn cpf(number: &str) -> bool {
    digits(number).is_some_and(|digits| {
        let rest = |weights: &[u32]| weighted(&digits, weights) * 10 % 11 % 10;
        let same = digits.windows(2).all(|pair| pair.first() == pair.last());
        digits.len() == 11
            && !same
            && digits.get(9) == Some(&rest(&[10, 9, 8, 7, 6, 5, 4, 3, 2]))
            && digits.get(10) == Some(&rest(&[11, 10, 9, 8, 7, 6, 5, 4, 3, 2]))
    })
}

/// BSN (Netherlands): the eleven test.
pub fn bsn(number: &str) -> bool {
    digits(number).is_some_and(|digits| {
        let Some((check, body)) = digits.split_last().filter(|_| digits.len() == 9) else {
            return false;
        };
        let sum = weighted(body, &[9, 8, 7, 6, 5, 4, 3, 2]);
        sum > 0 && sum % 11 == *check
    })
}

/// Steuer-Identifikationsnummer (Germany): ISO/IEC 7064 MOD 11,10, and of the first ten digits one
/// stands twice or three times, the others at most once.
pub fn steuer_id(number: &str) -> bool {
    let Some(digits) = digits(number).filter(|digits| digits.len() == 11) else {
        return false;
    };
    let Some((check, body)) = digits.split_last() else {
        return false;
    };
    let times = |digit: u32| body.iter().filter(|it| **it == digit).count();
    let repeated: Vec<usize> = (0..10).map(times).filter(|count| *count > 1).collect();
    if body.first() == Some(&0) || !matches!(repeated.as_slice(), [2 | 3]) {
        return false;
    }
    let product = body.iter().fold(10, |product, digit| {
        let sum = (digit + product) % 10;
        (if sum == 0 { 10 } else { sum }) * 2 % 11
    });
    (11 - product) % 10 == *check
}

/// Rijksregisternummer (Belgium): 97 less the rest, for births before 2000 and after.
pub fn belgian(number: &str) -> bool {
    let (Some(body), Some(check)) = (number.get(..9), number.get(9..11)) else {
        return false;
    };
    let fits = |prefix: &str| {
        let rest = modulo_97(&format!("{prefix}{body}"));
        rest.is_some_and(|rest| check.parse() == Ok(97 - rest))
    };
    number.len() == 11 && (fits("") || fits("2"))
}

/// T.C. kimlik numarası (Turkey).
pub fn turkish(number: &str) -> bool {
    let Some(digits) = digits(number).filter(|digits| digits.len() == 11) else {
        return false;
    };
    let odd = weighted(&digits, &[1, 0, 1, 0, 1, 0, 1, 0, 1]);
    let even = weighted(&digits, &[0, 1, 0, 1, 0, 1, 0, 1]);
    let all: u32 = digits.iter().take(10).sum();
    // 80 keeps the difference above 0 and is a multiple of 10.
    digits.first() != Some(&0)
        && digits.get(9) == Some(&((odd * 7 + 80 - even) % 10))
        && digits.get(10) == Some(&(all % 10))
}

/// NIR (France): 97 less the rest of the first 13; Corsica's letters count as 19 and 18.
pub fn nir(number: &str) -> bool {
    let (Some(body), Some(check)) = (number.get(..13), number.get(13..)) else {
        return false;
    };
    let body = body.replacen("2A", "19", 1).replacen("2B", "18", 1);
    let rest = modulo_97(&body);
    number.len() == 15 && rest.is_some_and(|rest| check.parse() == Ok(97 - rest))
}

/// The letter of DNI and NIE (Spain).
pub fn spanish(number: &str) -> bool {
    const LETTERS: &str = "TRWAGMYFPDXBNJZSQVHLCKE";
    let (Some(body), Some(check)) = (number.get(..8), number.get(8..)) else {
        return false;
    };
    let body = match body.split_at_checked(1) {
        Some(("X", rest)) => format!("0{rest}"),
        Some(("Y", rest)) => format!("1{rest}"),
        Some(("Z", rest)) => format!("2{rest}"),
        _ => body.to_owned(),
    };
    let letter = body
        .parse::<usize>()
        .ok()
        .and_then(|body| LETTERS.get(body % 23..=body % 23));
    letter == Some(check)
}

/// The check character of HETU (Finland): the nine digits by 31.
pub fn hetu(number: &str) -> bool {
    const LETTERS: &str = "0123456789ABCDEFHJKLMNPRSTUVWXY";
    let (Some(date), Some(serial), Some(check)) =
        (number.get(..6), number.get(7..10), number.get(10..))
    else {
        return false;
    };
    let letter = format!("{date}{serial}")
        .parse::<usize>()
        .ok()
        .and_then(|body| LETTERS.get(body % 31..=body % 31));
    letter == Some(check)
}

/// The check character of the codice fiscale (Italy).
pub fn codice_fiscale(number: &str) -> bool {
    /// What a character counts at an odd place, by its value (letters as their digits' places).
    const ODD: [u32; 26] = [
        1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24,
        23,
    ];
    let (Some(body), Some(check)) = (number.get(..15), number.get(15..)) else {
        return false;
    };
    let sum = body
        .chars()
        .enumerate()
        .try_fold(0, |sum, (index, letter)| {
            let value = letter.to_digit(36)?;
            let place = if value > 9 { value - 10 } else { value };
            let counts = if index.is_multiple_of(2) {
                *ODD.get(place as usize)?
            } else {
                place
            };
            Some(sum + counts)
        });
    let expected = sum.and_then(|sum| char::from_digit(10 + sum % 26, 36));
    expected.is_some_and(|expected| check.to_ascii_lowercase() == expected.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A digit or letter that is another one.
    fn other(letter: char) -> char {
        match letter {
            '9' => '0',
            'Z' => 'A',
            _ => char::from_u32(letter as u32 + 1).unwrap_or('0'),
        }
    }

    #[test]
    fn numbers_that_are_right_pass_and_no_number_with_one_wrong_digit_does() {
        type Rule = fn(&str) -> bool;
        let cases: [(Rule, [&str; 3]); 15] = [
            (luhn, ["4111111111111111", "378282246310005", "8112189876"]),
            (
                iban,
                [
                    "GB82WEST12345698765432",
                    "DE89370400440532013000",
                    "NO9386011117947",
                ],
            ),
            (verhoeff, ["2363", "2363", "2363"]),
            (ean_13, ["7569217076985", "7563415967021", "7560648912750"]),
            (pesel, ["83060616727", "75021606847", "15271603889"]),
            (fodselsnummer, ["23098706720", "10126505030", "02035932642"]),
            (cpf, ["94175970002", "57358651022", "58909084723"]),
            (bsn, ["401863578", "128749635", "475360916"]),
            (steuer_id, ["86095742719", "65929970489", "86095742719"]),
            (belgian, ["83060610644", "11011149128", "78102606983"]),
            (turkish, ["44167211084", "78403885418", "10000000146"]),
            (spanish, ["59279191A", "X0834372R", "Z7939126Z"]),
            (hetu, ["150784-3122", "180508A740K", "291055-492U"]),
            (
                codice_fiscale,
                ["MRCBNC92L16B656M", "BRDLNA51P30D101B", "GRGNTL68H09I403O"],
            ),
            (
                nir,
                ["245074410900240", "258100407082406", "181037055059929"],
            ),
        ];
        for (rule, numbers) in cases {
            for number in numbers {
                assert!(rule(number), "{number}");
                let last = number.chars().next_back().unwrap();
                let wrong = format!("{}{}", &number[..number.len() - 1], other(last));
                assert!(!rule(&wrong), "{wrong}");
            }
        }
    }

    #[test]
    fn corsicans_have_a_letter() {
        // 1 45 02 2B 033 187 with 97 - 1450218033187 % 97.
        let check = 97 - 1_450_218_033_187_u64 % 97;
        assert!(nir(&format!("145022B033187{check:02}")));
        assert!(!nir(&format!("145022C033187{check:02}")));
    }

    #[test]
    fn other_lengths_and_characters_are_wrong_and_never_a_panic() {
        let rules: [fn(&str) -> bool; 15] = [
            luhn,
            iban,
            verhoeff,
            ean_13,
            pesel,
            fodselsnummer,
            cpf,
            bsn,
            steuer_id,
            belgian,
            turkish,
            spanish,
            hetu,
            codice_fiscale,
            nir,
        ];
        for rule in rules {
            for text in ["é", "ééééééééééééééé", "12345678é", "x", "-------------"]
            {
                assert!(!rule(text), "{text}");
            }
        }
        assert!(!cpf("11111111111"));
        assert!(!bsn("000000000"));
    }
}
