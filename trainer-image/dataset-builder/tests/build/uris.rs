//! Hostile URIs and paths, by the real binary: no byte is sent, no file outside of the root is opened, and nothing
//! is left in the store.

use std::net::TcpListener;

use graftwork_contract::remote::Remote;

use super::*;

include!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../crates/contract/src/uri_hostile.rs"
));

/// What stands in a file that no path may lead to.
const CANARY: &str = "canary-4711";

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
fn no_hostile_path_opens_a_file_beside_its_root() {
    let mut bench = Bench::new(Format::Completion);
    let root = bench.dir.path().join("claim");
    fs::create_dir_all(root.join("a/b")).unwrap();
    let rows = completions(0..50).replace("definition", CANARY);
    for beside in ["rows.jsonl", "etc/passwd", "host/share"] {
        let path = bench.dir.path().join(beside);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &rows).unwrap();
    }
    let source = |path: &str| Source {
        path: format!("{}/{path}", root.display()),
        root: Some(root.to_str().unwrap().into()),
        ..source_at("hostile", &format!("pvc://text/{path}"), &root)
    };
    for path in HOSTILE_PATHS {
        for path in [(*path).to_owned(), format!("{path}/rows.jsonl")] {
            bench.config.sources = vec![source(&path)];
            refused(&bench, &path);
        }
    }
    // The same rows inside of the root are a source.
    fs::write(root.join("rows.jsonl"), &rows).unwrap();
    bench.config.sources = vec![source("rows.jsonl")];
    assert_eq!(bench.build().0, 0);
}
