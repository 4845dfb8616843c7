//! Tables of good and hostile URIs.

use proptest::prelude::*;

use super::*;

#[test]
fn good_uris_are_read_into_their_parts() {
    let object = |store, bucket: &str, key: &str| DataUri::Object {
        store,
        bucket: bucket.to_owned(),
        key: key.to_owned(),
    };
    let hub = |repository: &str, revision: &str, path: &str| DataUri::Hub {
        repository: repository.to_owned(),
        revision: revision.to_owned(),
        path: path.to_owned(),
    };
    let web = |host: Host, port, path: &str| {
        DataUri::Web(WebUri {
            host,
            port,
            path: path.to_owned(),
        })
    };
    let name = |name: &str| Host::Name(name.to_owned());
    for (text, expected) in [
        (
            "s3://corpus/faq/*.jsonl",
            object(ObjectStore::S3, "corpus", "faq/*.jsonl"),
        ),
        (
            "gs://my.bucket-1/a",
            object(ObjectStore::Gs, "my.bucket-1", "a"),
        ),
        (
            "az://container/a=1/b",
            object(ObjectStore::Az, "container", "a=1/b"),
        ),
        (
            "s3://corpus/.hidden/x",
            object(ObjectStore::S3, "corpus", ".hidden/x"),
        ),
        ("hf://Org/name.x@main", hub("Org/name.x", "main", "")),
        (
            "hf://o/n@v1.0/data/**/x-*.parquet",
            hub("o/n", "v1.0", "data/**/x-*.parquet"),
        ),
        (
            "https://Data.Example.com/a/b.csv.gz",
            web(name("data.example.com"), 443, "/a/b.csv.gz"),
        ),
        (
            "https://example.com:8443/a%20b/%C3%A9",
            web(name("example.com"), 8443, "/a%20b/%C3%A9"),
        ),
        (
            "https://xn--exmple-cua.com/a",
            web(name("xn--exmple-cua.com"), 443, "/a"),
        ),
        (
            "https://8.8.8.8/a",
            web(Host::Address([8, 8, 8, 8].into()), 443, "/a"),
        ),
        (
            "https://[2606:4700::1]:444/a",
            web(Host::Address("2606:4700::1".parse().unwrap()), 444, "/a"),
        ),
    ] {
        assert_eq!(DataUri::parse(text), Ok(expected), "{text}");
    }
}

/// URIs that are refused before anything is looked up.
const HOSTILE: &[&str] = &[
    // No URI, or another scheme.
    "",
    "s3",
    "s3:",
    "s3:/",
    "s3://",
    "://bucket/key",
    "/etc/passwd",
    "//example.com/a",
    "example.com/a",
    "file:///etc/passwd",
    "http://example.com/a",
    "ftp://example.com/a",
    "gopher://example.com:70/_x",
    "data:text/plain,x",
    "javascript:alert(1)",
    "dict://example.com:11211/",
    "ldap://example.com/a",
    "jar:https://example.com/a!/b",
    "S3://bucket/key",
    "HTTPS://example.com/a",
    "https:/example.com/a",
    "https:example.com/a",
    "s3a://bucket/key",
    "unix:///var/run/docker.sock",
    "ssh://git@example.com/a",
    "git+https://example.com/a",
    "pvc://claim/a",
    "https+unix://x/a",
    " https://example.com/a",
    // Characters that readers treat in different ways.
    "https://example.com/a b",
    "https://example.com/a\tb",
    "https://example.com/a\nb",
    "https://example.com/a\r\nHost: x",
    "https://example.com/a\0b",
    "https://example.com\\@evil.com/a",
    "https://example.com\\.evil.com/a",
    "s3://bucket/a\\..\\b",
    "https://exämple.com/a",
    "https://example。com/a",
    "https://example.com/é",
    "s3://bucket/\u{202e}gpj",
    "https://⑫⑦.⓪.⓪.①/a",
    "https://example.com/\"a",
    "https://example.com/<a>",
    "https://example.com/`id`",
    "https://example.com/{a}",
    "https://example.com/a|b",
    "s3://bücket/key",
    "https://ex\u{200b}ample.com/a",
    // Credentials, in all their places.
    "https://user@example.com/a",
    "https://user:secret@example.com/a",
    "https://:secret@example.com/a",
    "https://example.com@evil.com/a",
    "https://@example.com/a",
    "https://example.com:443@evil.com/a",
    "https://user%40example.com@evil.com/a",
    "s3://key:secret@bucket/a",
    "s3://key@bucket/a",
    "gs://token@bucket/a",
    "az://account@container/a",
    "hf://token@org/name@main",
    "https://example.com/a?X-Amz-Signature=x",
    "https://example.com/a?",
    "https://example.com/a#token",
    "https://example.com/#",
    "s3://bucket/a?versionId=1",
    "s3://bucket/a#b",
    "az://container/a?sig=x",
    "hf://org/name@main?token=x",
    "https://example.com?x=/a",
    "https://example.com#@evil.com/a",
    // Hosts that are written in a way of their own.
    "https:///a",
    "https://",
    "https://.example.com/a",
    "https://example..com/a",
    "https://example.com./a",
    "https://-example.com/a",
    "https://example-.com/a",
    "https://exa_mple.com/a",
    "https://example.com,evil/a",
    "https://127.1/a",
    "https://127.0.1/a",
    "https://2130706433/a",
    "https://0x7f000001/a",
    "https://0x7f.0.0.1/a",
    "https://0177.0.0.1/a",
    "https://017700000001/a",
    "https://127.0.0.01/a",
    "https://127.0.0.1./a",
    "https://127.0.0.256/a",
    "https://1.2.3.4.5/a",
    "https://1.2.3/a",
    "https://example.com.127/a",
    "https://0/a",
    "https://%31%32%37.0.0.1/a",
    "https://example%2ecom/a",
    "https://[::1/a",
    "https://::1/a",
    "https://[::1]x/a",
    "https://[::1%25eth0]/a",
    "https://[fe80::1%eth0]/a",
    "https://[127.0.0.1]/a",
    "https://[::ffff:127.0.0.1.1]/a",
    "https://[]/a",
    "https://[v1.x]/a",
    "https://[::1]:/a",
    "https://[[::1]]/a",
    "https://aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.com/a",
    // Ports.
    "https://example.com:/a",
    "https://example.com:0/a",
    "https://example.com:00443/a",
    "https://example.com:65536/a",
    "https://example.com:-1/a",
    "https://example.com:+443/a",
    "https://example.com:443:80/a",
    "https://example.com:http/a",
    "https://example.com:4 43/a",
    // Buckets, containers and repositories.
    "s3:///key",
    "s3://ab/key",
    "s3://Bucket/key",
    "s3://buc_ket/key",
    "s3://-bucket/key",
    "s3://bucket-/key",
    "s3://bu..cket/key",
    "s3://bu.-cket/key",
    "s3://127.0.0.1/key",
    "s3://169.254.169.254/latest",
    "s3://bucket:9000/key",
    "gs://[::1]/key",
    "az://my.container/a",
    "az://my--container/a",
    "s3://../etc/passwd",
    "s3://bucket",
    "s3://bucket/",
    "hf://org",
    "hf://org/name",
    "hf://org/name@",
    "hf://org/@main",
    "hf:///name@main",
    "hf://org/name@../main",
    "hf://org/na..me@main",
    "hf://org/name@refs%2fpr%2f1",
    "hf://../../etc@main",
    "hf://org/name@main@evil",
    "hf://.org/name@main",
    "hf://org/name@main/",
    // Paths.
    "https://example.com",
    "https://example.com/",
    "https://example.com//a",
    "https://example.com/a//b",
    "https://example.com/a/",
    "https://example.com/../a",
    "https://example.com/a/./b",
];

#[test]
fn hostile_uris_are_refused_and_none_of_their_secrets_is_said() {
    assert!(HOSTILE.len() >= 120, "{}", HOSTILE.len());
    for text in HOSTILE {
        let error = DataUri::parse(text).expect_err(text);
        assert!(!error.to_string().contains("secret@"), "{text}");
    }
    let long = format!("https://example.com/{}", "a".repeat(2048));
    assert_eq!(DataUri::parse(&long), Err(UriError::TooLong));
    let key = format!("s3://bucket/{}", "a".repeat(1025));
    assert_eq!(DataUri::parse(&key), Err(UriError::Path));
}

/// Paths that leave their root, or may for some reader.
const HOSTILE_PATHS: &[&str] = &[
    "",
    "/",
    "//",
    ".",
    "..",
    "../",
    "/..",
    "../..",
    "../../etc/passwd",
    "a/..",
    "a/../b",
    "a/../../b",
    "a/b/../../..",
    "./a",
    "a/.",
    "a/./b",
    "/etc/passwd",
    "//etc/passwd",
    "a//b",
    "a/",
    "/a",
    "a/b/",
    "...",
    "..../a",
    "a/...",
    "a/....//b",
    "..a",
    "a/..b",
    "..;/a",
    "a/..;/b",
    "a;/b",
    "..\\a",
    "..\\..\\a",
    "a\\b",
    "\\\\host\\share",
    "C:\\a",
    "C:/a",
    "c:a",
    "a:b",
    "~",
    "~/a",
    "~root/a",
    "a/~b",
    "%2e%2e/a",
    "%2e%2e%2fa",
    "..%2fa",
    "..%5ca",
    "%2e./a",
    ".%2e/a",
    "a%2fb",
    "a%5cb",
    "a%00b",
    "%252e%252e/a",
    "%c0%ae%c0%ae/a",
    "..%c0%af",
    "..%ef%bc%8fa",
    "%u002e%u002e/a",
    "a%",
    "a%2",
    "a%zz",
    "a\0b",
    "a\nb",
    "a\rb",
    "a\tb",
    "a b",
    " a",
    "a ",
    "a\u{7f}b",
    "a\u{202e}b",
    "․․/a",
    "。。/a",
    "a∕b",
    "é",
    "a\"b",
    "a'b",
    "a`b",
    "a<b",
    "a>b",
    "a|b",
    "a^b",
    "a{b",
    "a}b",
    "$HOME/a",
    "a/$(id)",
    "a&b",
    "a!b",
    "a@b",
    "@a",
    "a/../",
    "a/b/..",
];

#[test]
fn hostile_paths_are_refused_alone_and_in_every_kind_of_uri() {
    assert!(HOSTILE_PATHS.len() >= 80, "{}", HOSTILE_PATHS.len());
    for path in HOSTILE_PATHS {
        assert!(check_path(path).is_err(), "{path:?}");
        for root in [
            "s3://bucket/",
            "gs://bucket/",
            "az://container/",
            "https://example.com/",
        ] {
            let text = format!("{root}{path}");
            assert!(DataUri::parse(&text).is_err(), "{text:?}");
        }
        if !path.is_empty() {
            let text = format!("hf://org/name@main/{path}");
            assert!(DataUri::parse(&text).is_err(), "{text:?}");
        }
    }
}

#[test]
fn a_redirect_leads_to_https_alone_and_is_read_like_a_first_uri() {
    let DataUri::Web(first) = DataUri::parse("https://example.com:444/a").unwrap() else {
        unreachable!("a web uri")
    };
    let same = first.redirected("/b/c").unwrap();
    assert_eq!(
        (same.uri.host.to_string(), same.uri.port, same.uri.path),
        ("example.com".into(), 444, "/b/c".into())
    );
    let other = first.redirected("https://10.0.0.1/b").unwrap();
    assert_eq!(other.uri.host, Host::Address([10, 0, 0, 1].into()));
    for location in HOSTILE {
        // A path on the same host and a signature are none of the hostile ones.
        if !matches!(
            *location,
            "/etc/passwd" | "https://example.com/a?X-Amz-Signature=x"
        ) {
            assert!(first.redirected(location).is_err(), "{location:?}");
        }
    }
    for location in [
        "s3://bucket/a",
        "hf://o/n@main",
        "b",
        "../b",
        "/../b",
        "/a%2f..%2fb",
        "/a%2f%2e%2e%2fb",
        "/a%2f%2fb",
        "/a%5cb",
        "/a%00b",
        "/a%252fb",
        "/a?",
        "/a?b#c",
        "/a#b",
        "http://example.com/a?b",
        "https://user@example.com/a?b",
        "/a%EF%BC%8Fb",
        "//evil.com/a",
    ] {
        assert!(first.redirected(location).is_err(), "{location:?}");
    }
}

#[test]
fn a_redirect_may_be_signed_and_its_signature_is_not_printed() {
    let DataUri::Web(first) = DataUri::parse("https://example.com/a").unwrap() else {
        unreachable!("a web uri")
    };
    let signed = format!(
        "https://cdn.example.org/b%2Fc?Signature={}",
        "x".repeat(3000)
    );
    let signed = first.redirected(&signed).unwrap();
    assert_eq!(signed.uri.path, "/b%2Fc");
    assert_eq!(signed.query.as_ref().map(String::len), Some(3010));
    assert!(!format!("{signed:?}").contains("Signature"));
    assert!(first.redirected("/a%2Bb%3Dc/%26d?e").is_ok());
    let same = first.redirected("/b?c=%2Fd").unwrap();
    assert_eq!(same.uri.endpoint(), first.endpoint());
    assert_eq!(same.query.as_deref(), Some("c=%2Fd"));
    let endless = format!("/a?{}", "x".repeat(9000));
    assert_eq!(first.redirected(&endless), Err(UriError::TooLong));
}

#[test]
fn an_endpoint_is_a_scheme_a_host_and_a_port() {
    for (text, expected) in [
        ("https://s3.example.com", Some("https://s3.example.com:443")),
        (
            "https://S3.example.com/",
            Some("https://s3.example.com:443"),
        ),
        ("http://10.1.2.3:9000", Some("http://10.1.2.3:9000")),
        ("http://[2a00::1]", Some("http://[2a00::1]:80")),
        ("https://s3.example.com/bucket", None),
        ("https://key:secret@s3.example.com", None),
        ("https://s3.example.com?x=1", None),
        ("http://127.1:9000", None),
        ("http://2130706433", None),
        ("ftp://s3.example.com", None),
        ("s3.example.com:9000", None),
        ("https://", None),
    ] {
        let read = Endpoint::parse(text).ok().map(|it| it.to_string());
        assert_eq!(read.as_deref(), expected, "{text}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,64}", scheme in "(s3|gs|az|https|hf)") {
        let _ = DataUri::parse(&text);
        let _ = DataUri::parse(&format!("{scheme}://{text}"));
    }

    #[test]
    fn no_key_leaves_its_bucket(key in "[a-z./%~]{0,16}") {
        if let Ok(DataUri::Object { key, .. }) = DataUri::parse(&format!("s3://bucket/{key}")) {
            prop_assert!(key.split('/').all(|part| !part.is_empty() && !part.starts_with("..")));
        }
    }
}

#[test]
fn a_host_that_stands_alone_is_a_name_or_an_address_and_nothing_that_readers_disagree_about() {
    for (text, expected) in [
        (
            "Warehouse.Databases.svc",
            Some(Host::Name("warehouse.databases.svc".to_owned())),
        ),
        ("10.1.2.3", Some(Host::Address([10, 1, 2, 3].into()))),
        ("::1", Some(Host::Address(IpAddr::V6(Ipv6Addr::LOCALHOST)))),
        ("127.1", None),
        ("0x7f.1", None),
        ("2130706433", None),
        ("[::1]", None),
        ("a,b", None),
        ("/var/run/postgresql", None),
        ("a b", None),
        ("", None),
    ] {
        assert_eq!(Host::parse(text).ok(), expected, "{text}");
    }
}
