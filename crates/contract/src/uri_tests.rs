//! Tables of good and hostile URIs.

use proptest::prelude::*;

use super::*;

include!("uri_hostile.rs");

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
