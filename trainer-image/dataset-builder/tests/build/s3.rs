//! Objects of a real S3 server, versitygw, which each test starts for itself. Without one on this machine
//! (`e2e/run setup` builds it) they say that they were skipped.

use std::net::TcpListener;

use graftwork_objects::fixture::{self, KEY, KEY_ID, NETWORK, REGION};

use super::sources::{gzip, parquet};
use super::web::{bench, lineage};
use super::*;

const LOOPBACK: &[&str] = &[NETWORK];

/// A server with the bucket `corpus`.
struct Server {
    s3: fixture::Server,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let s3 = fixture::Server::start(dir.path(), "corpus").unwrap()?;
        Some(Self { s3, _dir: dir })
    }

    /// Puts an object as a client does.
    fn put(&self, key: &str, bytes: &[u8]) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        let status = Command::new("curl")
            .args(["-sf", "--aws-sigv4", &format!("aws:amz:{REGION}:s3")])
            .args(["--user", &format!("{KEY_ID}:{KEY}")])
            .arg("-H")
            .arg(format!("x-amz-content-sha256: {}", Digest::of(bytes).hex()))
            .arg("-T")
            .arg(file.path())
            .arg(format!("{}/corpus/{key}", self.endpoint()))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "put {key}: {status}");
    }

    /// Lays a file where the server keeps its objects.
    fn lay(&self, key: &str, text: &str) {
        let path = self.s3.object(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn endpoint(&self) -> String {
        self.s3.endpoint()
    }

    fn bench(&self, uri: &str) -> Bench {
        let endpoint = self.endpoint();
        let entries = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", KEY),
        ];
        bench(uri, &entries, LOOPBACK)
    }
}

#[test]
fn objects_of_a_bucket_are_the_same_version_as_files_of_a_volume() {
    let Some(server) = Server::start() else {
        return;
    };
    let files = [
        ("faq/a.jsonl", completions(0..40).into_bytes()),
        ("faq/b.jsonl.gz", gzip(completions(40..70).as_bytes())),
        ("faq/deep/c.parquet", parquet(70..100)),
    ];
    for (key, bytes) in &files {
        server.put(key, bytes);
    }
    server.put("faq.jsonl", completions(100..110).as_bytes());
    let bench = server.bench("s3://corpus/faq/**/*");
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");

    let mut volume = Bench::new(Format::Completion);
    volume.volume("faq/**/*", &files);
    let (_, same) = volume.build();
    assert_eq!(summary.digest, same.digest);

    let seen = lineage(&bench, &summary);
    assert_eq!(seen.len(), 3);
    for (seen, (key, bytes)) in seen.iter().zip(&files) {
        assert_eq!(seen.uri, format!("s3://corpus/{key}"));
        assert_eq!(seen.digest, Digest::of(bytes));
        assert_eq!(seen.size_bytes, bytes.len() as u64);
        let etag = seen.etag.as_deref().unwrap();
        assert!(etag.trim_matches('"').len() == 32, "{etag}");
    }
    assert_eq!(fs::read_dir(bench.scratch_dir()).unwrap().count(), 0);
}

#[test]
fn a_list_of_more_than_one_page_is_read_to_its_end() {
    let Some(server) = Server::start() else {
        return;
    };
    for number in 0..1100 {
        // Laid there behind the server's back: it knows no state of them.
        server.lay(
            &format!("many/{number}.jsonl"),
            &completions(number..number + 1),
        );
    }
    let bench = server.bench("s3://corpus/many/*.jsonl");
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let rows = summary.rows.unwrap();
    assert_eq!(rows.train + rows.validation + rows.test, 1100);
    let seen = lineage(&bench, &summary);
    assert!(seen.len() == 1100 && seen.iter().all(|it| it.etag.is_none()));
}

#[test]
fn one_object_is_read_without_a_list() {
    let Some(server) = Server::start() else {
        return;
    };
    server.put("faq/a.jsonl", completions(0..40).as_bytes());
    let bench = server.bench("s3://corpus/faq/a.jsonl");
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let seen = lineage(&bench, &summary);
    assert_eq!(seen[0].uri, "s3://corpus/faq/a.jsonl");
    assert!(seen[0].etag.is_some());
}

#[test]
fn what_is_wrong_with_a_bucket_is_said_by_name_and_without_its_keys() {
    let Some(server) = Server::start() else {
        return;
    };
    server.put("faq/a.jsonl", completions(0..40).as_bytes());
    let endpoint = server.endpoint();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let denied = (64, "SourceDenied");
    let absent = (65, "SourceNotFound");
    let object = "s3://corpus/faq/a.jsonl";
    let pattern = "s3://corpus/faq/*.jsonl";
    for (uri, change, expected, words) in [
        (
            object,
            ("AWS_SECRET_ACCESS_KEY", "wrong-hidden"),
            denied,
            "SignatureDoesNotMatch",
        ),
        (
            pattern,
            ("AWS_SECRET_ACCESS_KEY", "wrong-hidden"),
            denied,
            "SignatureDoesNotMatch",
        ),
        (
            pattern,
            ("AWS_REGION", "us-east-1"),
            denied,
            "AuthorizationHeaderMalformed",
        ),
        (
            object,
            ("AWS_ACCESS_KEY_ID", ""),
            denied,
            "has only one of AWS_ACCESS_KEY_ID",
        ),
        (
            object,
            ("AWS_ENDPOINT_URL", "http://127.1:9000"),
            denied,
            "AWS_ENDPOINT_URL has no plain host",
        ),
        (
            object,
            ("AWS_ENDPOINT_URL", "http://169.254.169.254"),
            denied,
            "metadata service",
        ),
        (
            object,
            ("AWS_ENDPOINT_URL", nobody.as_str()),
            (69, "SourceUnavailable"),
            "no connection to host 127.0.0.1",
        ),
        ("s3://absent/a.jsonl", ("-", ""), absent, "NoSuchBucket"),
        ("s3://absent/*.jsonl", ("-", ""), absent, "NoSuchBucket"),
        ("s3://corpus/none.jsonl", ("-", ""), absent, "NoSuchKey"),
        (
            "s3://corpus/none/*.jsonl",
            ("-", ""),
            absent,
            "nothing matches",
        ),
    ] {
        let mut entries = BTreeMap::from([
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", KEY),
        ]);
        entries.insert(change.0, change.1);
        entries.remove("-");
        let entries: Vec<(&str, &str)> = entries.into_iter().collect();
        let bench = bench(uri, &entries, LOOPBACK);
        let (code, summary) = bench.build();
        let outcome = (code, summary.reason.as_str());
        assert_eq!(outcome, expected, "{uri} {change:?}: {summary:?}");
        assert!(summary.message.contains(words), "{uri}: {summary:?}");
        for words in ["source faq (", "s3://", "spec.sources[faq]"] {
            assert!(summary.message.contains(words), "{summary:?}");
        }
        for hidden in [KEY_ID, KEY, "wrong-hidden"] {
            assert!(!summary.message.contains(hidden), "{summary:?}");
        }
        assert!(bench.version(1).is_none());
    }
}

#[test]
fn a_bucket_without_a_secret_is_asked_by_nobody_and_not_at_all_where_the_chart_is_silent() {
    let Some(server) = Server::start() else {
        return;
    };
    server.put("faq/a.jsonl", completions(0..40).as_bytes());
    let endpoint = server.endpoint();
    let entries = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_REGION", REGION),
    ];
    for (allowed, words) in [(LOOPBACK, "AccessDenied"), (&[][..], "dataSources.allow")] {
        let (code, summary) = bench("s3://corpus/faq/a.jsonl", &entries, allowed).build();
        let outcome = (code, summary.reason.as_str());
        assert_eq!(outcome, (64, "SourceDenied"), "{summary:?}");
        assert!(summary.message.contains(words), "{summary:?}");
    }
}

#[test]
fn a_version_in_a_bucket_is_the_one_on_a_volume() {
    let Some(server) = Server::start() else {
        return;
    };
    let mut bench = Bench::new(Format::Completion);
    bench.source("faq", &completions(0..60));
    let (_, there) = bench.build();
    let config = server.s3.config("s3://corpus/ml/team");
    bench.config.store = Some(config.clone());
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    assert_eq!((&summary.digest, summary.version), (&there.digest, Some(1)));
    bench.fingerprint("second");
    let (code, again) = bench.build();
    assert_eq!((code, again.version), (0, Some(1)), "{again:?}");

    let digest = summary.digest.unwrap();
    let store = Store::open_at(Some(&config), bench.scratch_dir()).unwrap();
    for split in Split::ALL {
        let rows = rows::read(&store, "topics", &digest, split).unwrap();
        let same = rows::read(&bench.store(), "topics", &digest, split).unwrap();
        assert_eq!(rows, same);
    }
    drop(store);
    for record in [
        "datasets/topics/versions/1.json",
        "datasets/topics/versions/2.json",
    ] {
        let is_there = server.s3.object(&format!("ml/team/{record}")).exists();
        assert_eq!(is_there, record.ends_with("1.json"), "{record}");
    }

    server.s3.write_secret("wrong-hidden").unwrap();
    bench.fingerprint("third");
    let (code, summary) = bench.build();
    let outcome = (code, summary.reason.as_str());
    assert_eq!(outcome, (69, "StorageUnavailable"), "{summary:?}");
    assert!(
        summary.message.contains("SignatureDoesNotMatch"),
        "{summary:?}"
    );
    assert!(!summary.message.contains("hidden"), "{summary:?}");
}
