//! Signatures of requests, looked at as a cloud does: made anew from what a server was asked, or held against the
//! key that they should come from.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::*;

/// Headers that stand in what Azure signs, in their order.
const SIGNED: [&str; 11] = [
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
];

/// The headers of a request by their names in small letters.
fn headers(head: &str) -> BTreeMap<String, String> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect()
}

/// Who a request says that it is from.
pub(super) fn authorization(head: &str) -> String {
    headers(head)["authorization"].clone()
}

/// A part of a query without its escapes.
fn plain(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let code = std::str::from_utf8(&tail[..2]).unwrap();
            bytes.push(u8::from_str_radix(code, 16).unwrap());
            rest = &tail[2..];
        } else {
            bytes.push(if *first == b'+' { b' ' } else { *first });
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// HMAC-SHA256 (RFC 2104).
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; 64];
    if key.len() > block.len() {
        let hash: [u8; 32] = Sha256::digest(key).into();
        block[..32].copy_from_slice(&hash);
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let keyed = |mask: u8, text: &[u8]| -> [u8; 32] {
        let hasher = Sha256::new().chain_update(block.map(|byte| byte ^ mask));
        hasher.chain_update(text).finalize().into()
    };
    keyed(0x5c, &keyed(0x36, text)).to_vec()
}

/// What a request has to say by Azure's rules (Authorize with Shared Key, Blob service, 2009-09-19 and later).
pub(super) fn shared_key(head: &str, account: &str, key: &str) -> String {
    let headers = headers(head);
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut text = format!("{method}\n");
    for name in SIGNED {
        let value = headers.get(name).map_or("", String::as_str);
        // No length where there is no body, since version 2015-02-21.
        let is_empty = name == "content-length" && value == "0";
        text += if is_empty { "" } else { value };
        text += "\n";
    }
    for (name, value) in headers.iter().filter(|(name, _)| name.starts_with("x-ms-")) {
        text.extend([name.as_str(), ":", value.as_str(), "\n"]);
    }
    text.extend(["/", account, path]);
    let mut parameters: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let values = parameters.entry(plain(name).to_lowercase()).or_default();
        values.push(plain(value));
    }
    for (name, mut values) in parameters {
        values.sort();
        let value = values.join(",");
        text.extend(["\n", name.as_str(), ":", value.as_str()]);
    }
    let signature = hmac(&STANDARD.decode(key).unwrap(), text.as_bytes());
    format!("SharedKey {account}:{}", STANDARD.encode(signature))
}

/// Header and claims of the JSON web token (RFC 7519, RS256) that a request has. Its signature comes from the key of
/// the certificate, says OpenSSL.
pub(super) fn token(head: &str, certificate: &str, folder: &Path) -> [Value; 2] {
    let said = authorization(head);
    let token = said.strip_prefix("Bearer ").unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let file = |name: &str| folder.join(name);
    fs::write(file("signed"), signed).unwrap();
    fs::write(
        file("signature"),
        URL_SAFE_NO_PAD.decode(signature).unwrap(),
    )
    .unwrap();
    fs::write(file("certificate.pem"), certificate).unwrap();
    let openssl = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        let output = command
            .current_dir(folder)
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output.stdout
    };
    let key = openssl(&["x509", "-in", "certificate.pem", "-pubkey", "-noout"]);
    fs::write(file("public.pem"), key).unwrap();
    let verify = ["dgst", "-sha256", "-verify", "public.pem"];
    openssl(&[&verify[..], &["-signature", "signature", "signed"]].concat());
    let (header, claims) = signed.split_once('.').unwrap();
    [header, claims].map(|part| {
        let bytes = URL_SAFE_NO_PAD.decode(part).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    })
}

/// RFC 4231, test cases 2 and 6.
#[test]
fn the_arithmetic_of_these_tests_is_that_of_the_standard() {
    let long = [0xaa; 131];
    for (key, text, expected) in [
        (
            &b"Jefe"[..],
            "what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (
            &long[..],
            "Test Using Larger Than Block-Size Key - Hash Key First",
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
        ),
    ] {
        let written: String = hmac(key, text.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(written, expected);
    }
}
