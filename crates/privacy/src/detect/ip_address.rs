//! IPv4 and IPv6 addresses. Those that are nobody's (loopback, unspecified, broadcast, masks) are
//! left alone.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Span;
use crate::context::Context;
use crate::surroundings::{begins, ends, run, starts};

/// Most characters of an IPv6 address.
const LONGEST: usize = 45;

/// IP addresses in a text, without a port or the length of a prefix.
pub fn find(text: &str) -> Vec<Span> {
    let mut found: Vec<Span> = starts(text, |letter| letter.is_ascii_hexdigit() || letter == ':')
        .filter(|start| begins(text, *start, &[':', '.', '-']))
        .filter_map(|start| Some((start, v6(text, start)?)))
        .collect();
    found.extend(
        starts(text, |letter| letter.is_ascii_digit())
            .filter(|start| begins(text, *start, &['.', '-', '+']))
            .filter_map(|start| Some((start, v4(text, start)?)))
            .filter(|(start, _)| !Context::before(text, *start).says_version()),
    );
    found
}

fn v4(text: &str, start: usize) -> Option<usize> {
    let tail = text.get(start..)?;
    let length = run(tail, 16, |letter| letter.is_ascii_digit() || letter == '.');
    let written = tail.get(..length)?.trim_end_matches('.');
    let address: Ipv4Addr = written.parse().ok()?;
    let end = start + written.len();
    let nobody = matches!(address.octets(), [0 | 127 | 255, ..]);
    (!nobody && ends(text, end, &['.', '-'])).then_some(end)
}

fn v6(text: &str, start: usize) -> Option<usize> {
    let tail = text.get(start..)?;
    let fits = |letter: char| letter.is_ascii_hexdigit() || letter == ':' || letter == '.';
    let written = tail.get(..run(tail, LONGEST + 1, fits))?;
    let mut written = written.trim_end_matches('.');
    // A colon that ends a clause is no part of the address; two may be.
    if written.ends_with(':') && !written.ends_with("::") {
        written = written.strip_suffix(':')?;
    }
    let colons = written.matches(':').count();
    // Names of programs have the same shape: abc::def.
    let plain = colons == 7 || written.contains(|letter: char| letter.is_ascii_digit());
    if colons < 2 || !plain {
        return None;
    }
    let address: Ipv6Addr = written.parse().ok()?;
    let end = start + written.len();
    let nobody = address.is_unspecified() || address.is_loopback();
    (!nobody && ends(text, end, &[':'])).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::texts;

    #[test]
    fn addresses_are_found_without_port_and_prefix() {
        for (text, expected) in [
            ("from 203.0.113.7.", "203.0.113.7"),
            ("203.0.113.7:8080", "203.0.113.7"),
            ("10.0.0.0/8", "10.0.0.0"),
            ("[2001:db8::7]:443", "2001:db8::7"),
            ("2001:db8::/32", "2001:db8::"),
            ("fe80::1%eth0", "fe80::1"),
            ("::ffff:203.0.113.7 said", "::ffff:203.0.113.7"),
            (
                "9b44:baf5:264e:d787:f87a:7977:ad44:8abd.",
                "9b44:baf5:264e:d787:f87a:7977:ad44:8abd",
            ),
            ("address 2001:db8::7: it", "2001:db8::7"),
            ("http://203.0.113.7/x", "203.0.113.7"),
        ] {
            let spans = texts(find, text);
            assert!(spans.contains(&expected), "{text}: {spans:?}");
        }
    }

    #[test]
    fn versions_times_and_nobodys_addresses_are_none() {
        for text in [
            "version 1.2.3.4",
            "Firmware: 10.4.2.1",
            "v1.2.3.4",
            "release no 4.0.0.1",
            "1.2.3.4-beta",
            "1.2.3.4.5",
            "1.2.3",
            "256.1.1.1",
            "10.0.19041.1",
            "01.02.03.04",
            "127.0.0.1",
            "0.0.0.0",
            "255.255.255.0",
            "::1",
            "::",
            "12:34:56",
            "00:1a:2b:3c:4d:5e",
            "std::fs",
            "abc::def",
            "add::bad::fed",
            "key:: value",
        ] {
            assert_eq!(texts(find, text), Vec::<&str>::new(), "{text}");
        }
    }
}
