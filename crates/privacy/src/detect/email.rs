//! E-mail addresses as people have them (RFC 5321 without quoted and commented forms; letters of any
//! script).

use super::Span;
use crate::surroundings::{after, run, run_back};

/// Most characters before the `@`.
const LOCAL: usize = 64;
/// Most characters after it.
const DOMAIN: usize = 253;
/// Most characters of a domain's last part.
const TOP: usize = 24;
/// What follows an `@` in the names of files for screens, as in `icon@2x.png`.
const FILES: [&str; 6] = ["png", "jpg", "jpeg", "gif", "svg", "webp"];

/// E-mail addresses in a text.
pub fn find(text: &str) -> Vec<Span> {
    text.match_indices('@')
        .filter_map(|(at, _)| address(text, at))
        .collect()
}

fn address(text: &str, at: usize) -> Option<Span> {
    let head = text.get(..at)?;
    let fits = |letter: char| letter.is_alphanumeric() || "._%+-'".contains(letter);
    let local = head.get(at - run_back(head, LOCAL, fits)..)?;
    let local = local.rsplit("..").next()?;
    let local = local.trim_start_matches(|letter: char| !letter.is_alphanumeric() && letter != '_');
    if local.is_empty() || local.ends_with(['.', '\'']) {
        return None;
    }
    let tail = text.get(at + 1..)?;
    let fits = |letter: char| letter.is_alphanumeric() || letter == '-' || letter == '.';
    let domain = domain(tail.get(..run(tail, DOMAIN, fits))?)?;
    let end = at + 1 + domain.len();
    // A repository's address names a machine's user; what follows a colon is a path.
    let is_repository = local == "git" && matches!(after(text, end), Some(':' | '/'));
    (!is_repository).then_some((at - local.len(), end))
}

/// The longest beginning that is a domain: two parts or more, the last one of letters.
fn domain(text: &str) -> Option<&str> {
    let is_part = |part: &&str| {
        !part.is_empty() && part.len() <= 63 && !part.starts_with('-') && !part.ends_with('-')
    };
    let mut parts: Vec<&str> = text.split('.').take_while(is_part).collect();
    while parts.last().is_some_and(|part| !is_top(part)) {
        parts.pop();
    }
    let last = parts.last()?;
    let is_file = FILES.contains(last) && parts.first().is_some_and(|part| part.ends_with('x'));
    if parts.len() < 2 || is_file {
        return None;
    }
    let length = parts.iter().map(|part| part.len() + 1).sum::<usize>() - 1;
    text.get(..length)
}

fn is_top(part: &str) -> bool {
    let count = part.chars().count();
    part.starts_with("xn--")
        || ((2..=TOP).contains(&count) && part.chars().all(char::is_alphabetic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::texts;

    #[test]
    fn addresses_are_found_without_what_stands_around_them() {
        for (text, expected) in [
            ("ann@example.com", "ann@example.com"),
            ("<ann@example.com>,", "ann@example.com"),
            (
                "mailto:ann.b+c@mail.example.co.uk?x",
                "ann.b+c@mail.example.co.uk",
            ),
            ("'o'brien@example.com'", "o'brien@example.com"),
            ("wait...ann@example.com.", "ann@example.com"),
            ("e-mail=ann_b@ex-ample.org;", "ann_b@ex-ample.org"),
            ("björn@exämple.se", "björn@exämple.se"),
            ("a@b.xn--p1ai", "a@b.xn--p1ai"),
            ("ann@example.com.5", "ann@example.com"),
            ("git@example.com wrote", "git@example.com"),
            ("@ann@example.com", "ann@example.com"),
        ] {
            assert_eq!(texts(find, text), [expected], "{text}");
        }
        assert_eq!(texts(find, "a@b.com,c@d.com"), ["a@b.com", "c@d.com"]);
    }

    #[test]
    fn what_only_has_an_at_sign_is_none() {
        for text in [
            "@ann",
            "ann@localhost",
            "react@18.2.0",
            "pkg@1.2.3-beta",
            "icon@2x.png",
            "git@github.com:org/repo.git",
            "ssh://git@github.com/org/repo",
            "a @ b.com",
            "@scope/package@2",
            "x@-bad-.com",
            "3 @ 4.50",
            "ann.@example.com",
            "@",
        ] {
            assert_eq!(texts(find, text), Vec::<&str>::new(), "{text}");
        }
    }
}
