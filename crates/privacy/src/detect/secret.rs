//! Keys and tokens: those that say what they are by their first letters, private keys, passwords in
//! URIs, and whatever looks random beside a name such as `api_key=`.

use super::Span;
use crate::surroundings::{after, begins, ends, run, run_back};

/// A token that begins with letters of its own: these, and at least so many more of the alphabet.
struct Token {
    prefix: &'static str,
    minimum: usize,
    alphabet: fn(char) -> bool,
}

const fn token(prefix: &'static str, minimum: usize, alphabet: fn(char) -> bool) -> Token {
    Token {
        prefix,
        minimum,
        alphabet,
    }
}

const TOKENS: &[Token] = &[
    // AWS: access keys, temporary ones, and ids of users and roles.
    token("AKIA", 16, is_upper),
    token("ASIA", 16, is_upper),
    token("AIDA", 16, is_upper),
    token("AROA", 16, is_upper),
    token("ABIA", 16, is_upper),
    token("ACCA", 16, is_upper),
    // GitHub, GitLab.
    token("ghp_", 36, is_plain),
    token("gho_", 36, is_plain),
    token("ghu_", 36, is_plain),
    token("ghs_", 36, is_plain),
    token("ghr_", 36, is_plain),
    token("github_pat_", 22, is_name),
    token("glpat-", 20, is_name),
    token("glptt-", 20, is_name),
    token("glrt-", 20, is_name),
    // Slack.
    token("xoxb-", 10, is_name),
    token("xoxa-", 10, is_name),
    token("xoxp-", 10, is_name),
    token("xoxr-", 10, is_name),
    token("xoxs-", 10, is_name),
    token("xoxe-", 10, is_name),
    token("xoxe.xoxp-", 10, is_name),
    token("xapp-", 10, is_name),
    token("hooks.slack.com/services/", 20, is_path),
    // Google, Stripe, OpenAI and Anthropic, Hugging Face, npm, PyPI.
    token("AIza", 35, is_name),
    token("ya29.", 20, is_name),
    token("GOCSPX-", 20, is_name),
    token("sk_live_", 16, is_plain),
    token("sk_test_", 16, is_plain),
    token("rk_live_", 16, is_plain),
    token("rk_test_", 16, is_plain),
    token("whsec_", 24, is_plain),
    token("sk-", 20, is_name),
    token("hf_", 30, is_plain),
    token("npm_", 36, is_plain),
    token("pypi-", 40, is_name),
    // SendGrid, Shopify, DigitalOcean, Databricks, Docker Hub, Atlassian.
    token("SG.", 60, is_dotted),
    token("shpat_", 32, is_hex),
    token("dop_v1_", 64, is_hex),
    token("dapi", 32, is_hex),
    token("dckr_pat_", 20, is_name),
    token("ATATT3", 60, is_name),
];

/// Most characters of a token.
const LONGEST: usize = 512;
/// Words that a name of a secret holds.
const NAMES: &[&str] = &[
    "secret",
    "token",
    "password",
    "passwd",
    "passphrase",
    "apikey",
    "api_key",
    "api-key",
    "accesskey",
    "access_key",
    "access-key",
    "accountkey",
    "account_key",
    "account-key",
    "privatekey",
    "private_key",
    "private-key",
    "authorization",
    "credential",
    "bearer",
];
/// The shortest value beside a name.
const VALUE: usize = 16;
/// The least entropy of a value, in bits for each character: words have less, random letters more.
const ENTROPY: f64 = 3.0;
/// What a private key's file begins and ends with.
const PEM: (&str, &str, &str) = ("-----BEGIN ", "PRIVATE KEY", "-----END ");
/// Most bytes of a private key.
const PEM_BYTES: usize = 16 << 10;

/// Keys and tokens in a text.
pub fn find(text: &str) -> Vec<Span> {
    let mut found: Vec<Span> = Vec::new();
    for token in TOKENS {
        let starts = text.match_indices(token.prefix);
        found.extend(starts.filter_map(|(start, _)| known(text, start, token)));
    }
    found.extend(every(text, "eyJ", web_token));
    found.extend(private_keys(text));
    found.extend(every(text, "://", password_in_uri));
    found.extend(every(text, "=", assigned));
    found.extend(every(text, ":", assigned));
    found.extend(every(text, "earer ", bearer));
    found
}

/// What `read` makes of each place where `mark` stands.
fn every(
    text: &str,
    mark: &'static str,
    read: fn(&str, usize) -> Option<Span>,
) -> impl Iterator<Item = Span> {
    text.match_indices(mark)
        .filter_map(move |(at, _)| read(text, at))
}

fn is_upper(letter: char) -> bool {
    letter.is_ascii_uppercase() || letter.is_ascii_digit()
}

fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric()
}

fn is_name(letter: char) -> bool {
    is_plain(letter) || letter == '_' || letter == '-'
}

fn is_hex(letter: char) -> bool {
    letter.is_ascii_digit() || ('a'..='f').contains(&letter)
}

fn is_dotted(letter: char) -> bool {
    is_name(letter) || letter == '.'
}

fn is_path(letter: char) -> bool {
    is_plain(letter) || letter == '/'
}

/// The alphabet of values: Base64, URL-safe too, and what tokens join their parts with.
fn is_value(letter: char) -> bool {
    is_plain(letter) || "+/_.~=-".contains(letter)
}

fn known(text: &str, start: usize, token: &Token) -> Option<Span> {
    let from = start + token.prefix.len();
    let tail = text.get(from..)?;
    let length = run(tail, LONGEST, token.alphabet);
    let end = from + length;
    let whole = length >= token.minimum && begins(text, start, &['-']) && ends(text, end, &[]);
    whole.then_some((start, end))
}

/// A JSON web token: header, claims and signature, of which the first two are objects.
fn web_token(text: &str, start: usize) -> Option<Span> {
    if !begins(text, start, &['.', '-']) {
        return None;
    }
    let tail = text.get(start..)?;
    let length = run(tail, 16 << 10, |letter| is_name(letter) || letter == '.');
    let written = tail.get(..length)?.trim_end_matches('.');
    let parts: Vec<&str> = written.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else {
        return None;
    };
    let right = header.len() >= 12 && claims.len() >= 8 && signature.len() >= 8;
    (right && claims.starts_with("ey")).then_some((start, start + written.len()))
}

/// Private keys one after the other: what belongs to one begins none.
fn private_keys(text: &str) -> Vec<Span> {
    let mut found: Vec<Span> = Vec::new();
    for (at, _) in text.match_indices(PEM.0) {
        if found.last().is_none_or(|(_, end)| *end <= at) {
            found.extend(private_key(text, at));
        }
    }
    found
}

/// From `-----BEGIN` to the dashes that end it; where the end is missing, all that may belong to it.
fn private_key(text: &str, start: usize) -> Option<Span> {
    let tail = text.get(start..)?;
    let title = tail.get(..run(tail, 64, |letter| letter != '\n'))?;
    if !title.contains(PEM.1) {
        return None;
    }
    let near = tail
        .char_indices()
        .take_while(|(at, _)| *at < PEM_BYTES)
        .last();
    let near = tail.get(..near.map_or(0, |(at, letter)| at + letter.len_utf8()))?;
    let end = match near.find(PEM.2) {
        Some(last) => {
            let from = last + PEM.2.len();
            let dashes = near.get(from..)?.find("-----").map(|at| from + at + 5);
            dashes.unwrap_or(near.len())
        }
        None => {
            let body = PEM.0.len()
                + run(near.get(PEM.0.len()..)?, PEM_BYTES, |letter| {
                    is_value(letter) || letter.is_ascii_whitespace() || letter == '\\'
                });
            near.get(..body)?.trim_end().len()
        }
    };
    Some((start, start + end))
}

/// The password of `scheme://user:password@host`.
fn password_in_uri(text: &str, at: usize) -> Option<Span> {
    let from = at + 3;
    let tail = text.get(from..)?;
    let fits = |letter: char| !letter.is_whitespace() && !"/?#\"'<>[]".contains(letter);
    let authority = tail.get(..run(tail, LONGEST, fits))?;
    let user = authority.get(..authority.rfind('@')?)?;
    let colon = user.find(':')?;
    let start = from + colon + 1;
    let end = from + user.len();
    (end > start).then_some((start, end))
}

/// A value that looks random beside `=` or `:` and a name such as `api_key`.
fn assigned(text: &str, at: usize) -> Option<Span> {
    let head = text.get(..at)?.trim_end_matches([' ', '"', '\'', '`', ':']);
    let name = head.get(head.len() - run_back(head, 64, |it| is_name(it) || it == '.')..)?;
    let name = name.to_ascii_lowercase();
    if !NAMES.iter().any(|known| name.contains(known)) {
        return None;
    }
    let mut from = at + 1;
    while let Some(letter) = after(text, from).filter(|it| " \t\"'`>=:".contains(*it)) {
        from += letter.len_utf8();
    }
    let tail = text.get(from..)?;
    let scheme = ["Bearer ", "bearer ", "Basic ", "basic ", "token "]
        .into_iter()
        .find(|scheme| tail.starts_with(scheme));
    random(text, from + scheme.map_or(0, str::len))
}

/// What follows `Bearer `.
fn bearer(text: &str, at: usize) -> Option<Span> {
    random(text, at + "earer ".len())
}

/// A value that looks random.
fn random(text: &str, from: usize) -> Option<Span> {
    let tail = text.get(from..)?;
    let value = tail
        .get(..run(tail, LONGEST, is_value))?
        .trim_end_matches(['.', '-']);
    let mixed = value.chars().any(|letter| letter.is_ascii_digit())
        && value.chars().any(|letter| letter.is_ascii_alphabetic());
    let right = mixed && value.len() >= VALUE && entropy(value) >= ENTROPY;
    right.then_some((from, from + value.len()))
}

/// Shannon's entropy of the characters, in bits for each.
fn entropy(value: &str) -> f64 {
    let mut counts = [0_u32; 128];
    for byte in value.bytes() {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    let all = value.len() as f64;
    let shares = counts.iter().filter(|count| **count > 0);
    shares
        .map(|count| {
            let share = f64::from(*count) / all;
            -share * share.log2()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use crate::find::find as find_all;

    /// The secrets of a text, without overlaps.
    fn secrets(text: &str) -> Vec<&str> {
        find_all(text)
            .into_iter()
            .filter(|it| it.kind == crate::kind::Kind::Secret)
            .map(|it| &text[it.start..it.end])
            .collect()
    }

    /// Put together here, so that no scanner takes this file for a leak.
    fn samples() -> Vec<String> {
        let filler = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0";
        let of = |prefix: &str, length: usize| format!("{prefix}{}", &filler[..length]);
        vec![
            format!("AKIA{}", "IOSFODNN7EXAMPLE"),
            of("ghp_", 36),
            of("github_pat_", 30),
            of("glpat-", 20),
            format!("xoxb-{}", "123456789012-abcdefghijkl"),
            of("AIza", 35),
            of("sk_live_", 24),
            of("sk-", 32),
            of("hf_", 34),
            of("rk_test_", 24),
            of("whsec_", 32),
            of("GOCSPX-", 28),
            of("xoxe.xoxp-", 30),
            format!("SG.{}.{}{}", &filler[..22], filler, &filler[..3]),
            format!("dapi{}", "0123456789abcdef".repeat(2)),
            format!("dop_v1_{}", "0123456789abcdef".repeat(4)),
            of("dckr_pat_", 27),
            format!(
                "eyJ{}.eyJ{}.{}",
                "hbGciOiJIUzI1NiJ9",
                "zdWIiOiIxIn0",
                &filler[..30]
            ),
        ]
    }

    #[test]
    fn tokens_say_what_they_are() {
        for token in samples() {
            for text in [
                token.clone(),
                format!("use {token}, please"),
                format!("\"{token}\""),
            ] {
                assert_eq!(secrets(&text), [token.as_str()], "{text}");
            }
        }
    }

    #[test]
    fn random_values_beside_a_name_are_secrets() {
        let value = "Zk3Jq8Wv0xY1cT7bN5mR";
        for text in [
            format!("api_key={value}"),
            format!("API-KEY: {value};"),
            format!("\"client_secret\": \"{value}\","),
            format!("export DB_PASSWORD='{value}'"),
            format!("Authorization: Bearer {value}"),
            format!("curl -H 'authorization: token {value}'"),
            format!("aws.secret_access_key = {value}"),
            format!("token => {value}"),
            format!("AccountName=corpus;AccountKey={value}"),
        ] {
            assert_eq!(secrets(&text), [value], "{text}");
        }
        assert_eq!(
            secrets("postgres://ann:hunter2@db.example.com/x"),
            ["hunter2"]
        );
    }

    #[test]
    fn private_keys_go_whole() {
        let body = "MIIEvQIBADANBg\nkqhkiG9w0BAQEF\n";
        let begin = ["-----BEGIN RSA PRIVATE", " KEY-----\n"].concat();
        let end = ["-----END RSA PRIVATE", " KEY-----"].concat();
        let key = format!("{begin}{body}{end}");
        assert_eq!(secrets(&format!("see {key} there")), [key.as_str()]);
        let cut = format!("{begin}{}", body.trim_end());
        assert_eq!(secrets(&cut), [cut.as_str()]);
    }

    #[test]
    fn words_counts_and_hashes_are_none() {
        for text in [
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "commit=da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "max_tokens: 4096",
            "the secret: be kind to everybody",
            "password=[SECRET]",
            "token: aaaaaaaaaaaaaaaaaaaa1",
            "secret_name=production-database-credentials",
            "task-force-of-the-european-union",
            "eyJust a name",
            "AKIA",
            "SG.1",
            "the dapi0123456789abcdef file",
            "shpat_of_a_shop",
            "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----",
            "https://example.com:8080/a@b",
            "550e8400-e29b-41d4-a716-446655440000",
        ] {
            assert_eq!(secrets(text), Vec::<&str>::new(), "{text}");
        }
    }
}
