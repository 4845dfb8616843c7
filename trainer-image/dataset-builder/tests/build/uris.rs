//! Hostile URIs and paths, by the real binary: no byte is sent, no file outside of the root is opened, and nothing
//! is left in the store.

use std::net::TcpListener;
use std::path::{Component, Path, PathBuf};

use graftwork_contract::remote::Remote;

use super::*;

include!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../crates/contract/src/uri_hostile.rs"
));

/// What stands in a file that no path may lead to.
const CANARY: &str = "canary-4711";

/// Hosts that are written as they should be, and that not everybody reaches: the machine, its link, what hands out a
/// cloud's credentials, the cluster, private networks, and IPv4 addresses of these within IPv6.
const INSIDE: [&str; 46] = [
    "168.63.129.16",
    "169.254.170.23",
    "[fd00:ec2::23]",
    "[fd20:ce::254]",
    "127.0.0.1",
    "127.8.9.10",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "0.0.0.0",
    "[::]",
    "localhost",
    "a.localhost",
    "localhost.localdomain",
    "169.254.0.1",
    "[fe80::1]",
    "[::ffff:169.254.1.1]",
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "192.0.0.192",
    "[fd00:ec2::254]",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "metadata",
    "metadata.google.internal",
    "kubernetes",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "minio.storage.svc",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "[fc00::1]",
    "[::ffff:10.0.0.1]",
    "ip-10-0-0-1.ec2.internal",
    "printer.local",
    "router.lan",
    "wiki.corp",
    "224.0.0.1",
    "[ff02::1]",
    "255.255.255.255",
    "203.0.113.1",
];

/// Builds, which has to end without a version and without a word of what must not be said.
fn refused(bench: &Bench, what: &str) -> BuildSummary {
    let (code, summary) = bench.build();
    assert!(matches!(code, 64 | 65), "{what:?}: {code} {summary:?}");
    assert_eq!(bench.stored(), Vec::<String>::new(), "{what:?}");
    for secret in [CANARY, "secret@"] {
        assert!(!summary.message.contains(secret), "{what:?}: {summary:?}");
    }
    summary
}

/// Waits until a build connects, and ends it.
fn assert_comes(bench: &Bench, listener: &TcpListener) {
    let mut build = bench.start();
    while listener.accept().is_err() {
        let ended = build.try_wait().unwrap();
        assert_eq!(ended, None, "it ended without a connection");
        std::thread::yield_now();
    }
    build.kill().unwrap();
    build.wait().unwrap();
}

#[test]
fn no_hostile_uri_has_a_byte_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let mut bench = Bench::new(Format::Completion);
    let secret = bench.dir.path().join("secret");
    fs::create_dir(&secret).unwrap();
    let endpoint = format!("http://{address}");
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", "ann"),
        ("AWS_SECRET_ACCESS_KEY", CANARY),
        ("AWS_REGION", "eu-north-1"),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
    ] {
        fs::write(secret.join(name), value).unwrap();
    }
    // Who listens may be asked; only the URI itself forbids it.
    bench.config.allowed_hosts = vec!["127.0.0.0/8".into()];
    bench.config.hub_endpoint = Some(format!("https://{address}"));
    let mut source = Source {
        remote: Some(Remote {
            secret: Some("corpus".to_owned()),
        }),
        ..source_at("hostile", "", &secret)
    };
    let keys = HOSTILE_PATHS
        .iter()
        .map(|path| format!("s3://bucket/{path}"));
    let uris: Vec<String> = HOSTILE
        .iter()
        .map(|uri| (*uri).to_owned())
        .chain(keys)
        .collect();
    assert!(uris.len() >= 200, "{}", uris.len());
    for uri in &uris {
        source.uri.clone_from(uri);
        bench.config.sources = vec![source.clone()];
        let summary = refused(&bench, uri);
        assert!(
            summary.message.contains("spec.sources[hostile].uri"),
            "{uri:?}: {summary:?}"
        );
    }
    let met = listener.accept().map(|(_, from)| from);
    assert!(met.is_err(), "{met:?} came");
    // A good one does come: the silence says something.
    source.uri = "s3://bucket/rows.jsonl".to_owned();
    bench.config.sources = vec![source];
    assert_comes(&bench, &listener);
}

#[test]
fn nobody_inside_has_a_byte_sent_whoever_names_the_host() {
    // On all addresses of IPv4, and where the machine has IPv6 on its loopback, so that nobody is turned away for
    // want of a listener.
    let plain = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = plain.local_addr().unwrap().port();
    let beside = TcpListener::bind(("::1", port));
    let listeners: Vec<TcpListener> = std::iter::once(plain).chain(beside).collect();
    for listener in &listeners {
        listener.set_nonblocking(true).unwrap();
    }
    for host in INSIDE {
        let endpoint = format!("http://{host}:{port}");
        // The URI itself, a Secret's endpoint, and the chart's hub.
        let web = super::web::bench(&format!("https://{host}:{port}/rows.jsonl"), &[], &[]);
        let entries = [("AWS_ENDPOINT_URL", endpoint.as_str())];
        let store = super::web::bench("s3://corpus/rows.jsonl", &entries, &[]);
        let mut hub = super::web::bench("hf://org/name@main/rows.jsonl", &[], &[]);
        hub.config.hub_endpoint = Some(format!("https://{host}:{port}"));
        for (what, bench) in [("web", web), ("store", store), ("hub", hub)] {
            let summary = refused(&bench, host);
            assert_eq!(summary.reason, "SourceDenied", "{what} {host}: {summary:?}");
            for words in ["source faq", "dataSources.allow"] {
                assert!(
                    summary.message.contains(words),
                    "{what} {host}: {summary:?}"
                );
            }
        }
    }
    for listener in &listeners {
        let met = listener.accept().map(|(_, from)| from);
        assert!(met.is_err(), "{met:?} came");
    }
    // Where the chart allows it one does come: the silence says something.
    let uri = format!("https://127.0.0.1:{port}/rows.jsonl");
    assert_comes(
        &super::web::bench(&uri, &[], &["127.0.0.0/8"]),
        &listeners[0],
    );
}

/// Where a path leads without a look at the file system; none: no file can have it.
fn resolved(path: &Path) -> Option<PathBuf> {
    let mut resolved = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(resolved.pop()),
            part => resolved.push(part),
        }
    }
    (!path.as_os_str().as_encoded_bytes().contains(&0)).then_some(resolved)
}

/// Writes a file where none is, and where one may be.
fn plant(path: &Path, rows: &str) -> bool {
    let folder = path.parent().map(fs::create_dir_all);
    folder.is_some_and(|made| made.is_ok()) && !path.is_dir() && fs::write(path, rows).is_ok()
}

#[test]
fn no_hostile_path_opens_a_file_beside_its_root() {
    let mut bench = Bench::new(Format::Completion);
    // So deep that no path of the list leads out of the test's folder.
    let outside = bench.dir.path().join("o");
    let root = outside.join("p/q/r/s/claim");
    fs::create_dir_all(root.join("a/b")).unwrap();
    let rows = completions(0..50).replace("definition", CANARY);
    let source = |path: &str| Source {
        path: format!("{}/{path}", root.display()),
        root: Some(root.to_str().unwrap().into()),
        ..source_at("hostile", &format!("pvc://text/{path}"), &root)
    };
    let mut planted = 0;
    for path in HOSTILE_PATHS {
        for path in [(*path).to_owned(), format!("{path}/rows.jsonl")] {
            // What lies there are rows, wherever the file system lets them lie.
            let target = root.join(path.trim_start_matches('/'));
            let is_beside = resolved(&target).is_some_and(|it| {
                it.starts_with(&outside) && !it.starts_with(&root) && plant(&it, &rows)
            });
            planted += u32::from(is_beside);
            bench.config.sources = vec![source(&path)];
            refused(&bench, &path);
        }
    }
    assert!(planted >= 7, "{planted}");
    let link = root.join("link");
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    assert!(plant(&outside.join("rows.jsonl"), &rows));
    for path in ["link/rows.jsonl", "a/../link/rows.jsonl"] {
        bench.config.sources = vec![source(path)];
        refused(&bench, path);
    }
    // The same rows inside of the root are a source.
    fs::write(root.join("rows.jsonl"), &rows).unwrap();
    bench.config.sources = vec![source("rows.jsonl")];
    assert_eq!(bench.build().0, 0);
}
