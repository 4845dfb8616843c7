//! A web server over TLS on the loopback that answers as a test says, and notes what it was asked: for web
//! servers, hubs, and the faults of stores that no real one shows on demand.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use graftwork_contract::dataset::SourceProvenance;
use graftwork_contract::remote::Remote;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::postgres::self_signed;
use super::sources::{gzip, parquet};
use super::*;

/// An answer.
#[derive(Debug, Clone, Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Ends the connection after so many bytes of the body.
    cut: Option<usize>,
}

impl Reply {
    fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            body: body.into(),
            ..Self::default()
        }
    }

    fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    fn redirect(location: impl Into<String>) -> Self {
        Self::status(302).header("Location", location)
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// The certificate of all servers of a test, with its key.
struct Certificate {
    key: Vec<u8>,
    pem: String,
}

impl Certificate {
    fn make(folder: &Path) -> Option<Self> {
        let (key, certificate) = self_signed(folder, "web")?;
        Some(Self {
            key: fs::read(key).unwrap(),
            pem: fs::read_to_string(certificate).unwrap(),
        })
    }

    fn config(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = vec![CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(&self.key).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Arc::new(config)
    }
}

/// A server that lives as long as the test's process.
struct Web {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    met: Arc<AtomicUsize>,
}

impl Web {
    /// Answers by path and query.
    fn start(
        certificate: &Certificate,
        answer: impl Fn(&str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        // On all addresses, so that nobody is turned away for want of a listener.
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let met = Arc::new(AtomicUsize::new(0));
        let (config, noted, answer) = (certificate.config(), asked.clone(), Arc::new(answer));
        let counted = Arc::clone(&met);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                let (config, noted) = (config.clone(), noted.clone());
                let answer = Arc::clone(&answer);
                // What a client does not like, it says in its own words.
                std::thread::spawn(move || {
                    let _ = serve(stream, config, &noted, &*answer);
                });
            }
        });
        Self { port, asked, met }
    }

    fn uri(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    /// The connections so far, whether anything was asked or not.
    fn met(&self) -> usize {
        self.met.load(Ordering::SeqCst)
    }

    /// The requests so far, each with its headers.
    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    noted: &Mutex<Vec<String>>,
    answer: &impl Fn(&str) -> Reply,
) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    noted.lock().unwrap().push(head);
    let reply = answer(&path);
    let length = reply.body.len();
    let mut text = format!(
        "HTTP/1.1 {} Said\r\nConnection: close\r\nContent-Length: {length}\r\n",
        reply.status
    );
    for (name, value) in &reply.headers {
        text.extend([*name, ": ", value.as_str(), "\r\n"]);
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes())?;
    stream.write_all(&reply.body[..reply.cut.unwrap_or(length)])?;
    if reply.cut.is_none() {
        stream.conn.send_close_notify();
    }
    stream.flush()
}

/// A build from one source on the network.
pub(super) fn bench(uri: &str, entries: &[(&str, &str)], allowed: &[&str]) -> Bench {
    let mut bench = Bench::new(Format::Completion);
    let secret = bench.dir.path().join("secret");
    fs::create_dir(&secret).unwrap();
    for (name, value) in entries {
        fs::write(secret.join(name), value).unwrap();
    }
    bench.config.allowed_hosts = allowed.iter().map(|it| (*it).to_owned()).collect();
    bench.config.sources = vec![Source {
        remote: Some(Remote {
            secret: (!entries.is_empty()).then(|| "corpus".to_owned()),
        }),
        ..source_at("faq", uri, &secret)
    }];
    bench
}

/// What the manifest says of the sources of a version.
pub(super) fn lineage(bench: &Bench, summary: &BuildSummary) -> Vec<SourceProvenance> {
    let digest = summary.digest.clone().unwrap();
    let manifest = rows::manifest(&bench.store(), "topics", &digest).unwrap();
    manifest.provenance.sources
}

const LOOPBACK: &[&str] = &["127.0.0.1/32"];

#[test]
fn files_of_a_web_server_are_read_by_their_content_and_their_state_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let Some(certificate) = Certificate::make(dir.path()) else {
        return;
    };
    let text = completions(0..100);
    for (what, body) in [
        ("lines", text.clone().into_bytes()),
        ("packed lines", gzip(text.as_bytes())),
        ("Parquet", parquet(0..100)),
    ] {
        let sent = body.clone();
        let server = Web::start(&certificate, move |_| {
            Reply::ok(sent.clone()).header("ETag", "\"one\"")
        });
        let uri = server.uri("/data/faq.bin");
        let bench = bench(&uri, &[("ca.crt", &certificate.pem)], LOOPBACK);
        let (code, summary) = bench.build();
        assert_eq!(code, 0, "{what}: {summary:?}");
        let [seen] = &lineage(&bench, &summary)[..] else {
            panic!("{what}: one file");
        };
        assert_eq!((&seen.uri, seen.size_bytes), (&uri, body.len() as u64));
        assert_eq!(seen.digest, Digest::of(&body), "{what}");
        assert_eq!(seen.etag.as_deref(), Some("\"one\""));
        assert_eq!(fs::read_dir(bench.scratch_dir()).unwrap().count(), 0);
    }
}

#[test]
fn a_redirect_is_followed_and_credentials_stay_with_the_first_server() {
    let dir = tempfile::tempdir().unwrap();
    let Some(certificate) = Certificate::make(dir.path()) else {
        return;
    };
    let text = completions(0..50);
    let elsewhere = Web::start(&certificate, move |_| Reply::ok(text.clone()));
    let signed = elsewhere.uri("/cdn%2Ffaq?X-Signature=hidden-4711");
    let server = Web::start(&certificate, move |path| match path {
        "/faq.jsonl" => Reply::redirect("/moved.jsonl"),
        _ => Reply::redirect(signed.clone()),
    });
    let entries = [("ca.crt", certificate.pem.as_str()), ("token", "t0ken")];
    let bench = bench(&server.uri("/faq.jsonl"), &entries, LOOPBACK);
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    assert_eq!(lineage(&bench, &summary)[0].uri, server.uri("/faq.jsonl"));
    let (first, second) = (server.asked(), elsewhere.asked());
    assert_eq!((first.len(), second.len()), (2, 1));
    let has_token = |head: &String| head.to_lowercase().contains("authorization: bearer t0ken");
    assert!(first.iter().all(has_token), "{first:?}");
    assert!(!second.iter().any(has_token), "{second:?}");
    assert!(second[0].starts_with("GET /cdn%2Ffaq?X-Signature=hidden-4711 "));
}

#[test]
fn a_redirect_to_where_nobody_may_go_is_refused_and_nothing_is_sent_there() {
    let dir = tempfile::tempdir().unwrap();
    let Some(certificate) = Certificate::make(dir.path()) else {
        return;
    };
    let inside = Web::start(&certificate, |_| Reply::ok(completions(0..50)));
    let port = inside.port;
    for (location, words) in [
        (format!("https://127.0.0.2:{port}/faq.jsonl"), "127.0.0.2"),
        (
            format!("https://127.0.0.2:{port}/x?hidden-4711"),
            "127.0.0.2",
        ),
        (
            "https://169.254.169.254/latest/meta-data".to_owned(),
            "metadata service",
        ),
        (
            "https://kubernetes.default.svc/api".to_owned(),
            "kubernetes.default.svc",
        ),
        (format!("http://127.0.0.1:{port}/x"), "another scheme"),
        (format!("https://ann:x@127.0.0.1:{port}/x"), "credentials"),
        ("/round".to_owned(), "more than 5 redirects"),
    ] {
        let to = location.clone();
        let server = Web::start(&certificate, move |_| Reply::redirect(to.clone()));
        let entries = [("ca.crt", certificate.pem.as_str())];
        let bench = bench(&server.uri("/faq.jsonl"), &entries, LOOPBACK);
        let (code, summary) = bench.build();
        let outcome = (code, summary.reason.as_str());
        assert_eq!(outcome, (64, "SourceDenied"), "{location}: {summary:?}");
        assert!(summary.message.contains(words), "{location}: {summary:?}");
        assert!(!summary.message.contains("hidden-4711"), "{summary:?}");
    }
    assert_eq!(inside.met(), 0);
    // Who may go there is met there: the zero says something.
    let entries = [("ca.crt", certificate.pem.as_str())];
    assert_eq!(
        bench(&inside.uri("/faq.jsonl"), &entries, LOOPBACK)
            .build()
            .0,
        0
    );
    assert!(inside.met() > 0);
}

#[test]
fn what_a_web_server_answers_decides_whether_it_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some(certificate) = Certificate::make(dir.path()) else {
        return;
    };
    let other = tempfile::tempdir().unwrap();
    let Some(foreign) = Certificate::make(other.path()) else {
        return;
    };
    let server = Web::start(&certificate, |path| match path {
        "/cut" => Reply {
            cut: Some(2000),
            ..Reply::ok(completions(0..200))
        },
        status => Reply::status(status[1..].parse().unwrap()),
    });
    let (own, not) = (certificate.pem.as_str(), foreign.pem.as_str());
    for (path, authority, allowed, expected, words) in [
        ("/401", own, LOOPBACK, (64, "SourceDenied"), "answers 401"),
        ("/403", own, LOOPBACK, (64, "SourceDenied"), "secretRef"),
        ("/404", own, LOOPBACK, (65, "SourceNotFound"), "answers 404"),
        (
            "/503",
            own,
            LOOPBACK,
            (69, "SourceUnavailable"),
            "answers 503",
        ),
        (
            "/cut",
            own,
            LOOPBACK,
            (69, "SourceUnavailable"),
            "bytes: the server went away",
        ),
        ("/200", not, LOOPBACK, (64, "SourceDenied"), "ca.crt"),
        (
            "/200",
            own,
            &[][..],
            (64, "SourceDenied"),
            "dataSources.allow",
        ),
    ] {
        let before = server.asked().len();
        let bench = bench(&server.uri(path), &[("ca.crt", authority)], allowed);
        let (code, summary) = bench.build();
        let outcome = (code, summary.reason.as_str());
        assert_eq!(outcome, expected, "{path}: {summary:?}");
        assert!(summary.message.contains("source faq"), "{summary:?}");
        assert!(summary.message.contains(words), "{path}: {summary:?}");
        assert!(bench.version(1).is_none());
        let asked = server.asked().len() - before;
        assert_eq!(asked, usize::from(authority == own && !allowed.is_empty()));
    }
}

#[test]
fn a_secret_of_a_source_that_is_not_there_is_waited_for_with_the_keys_that_it_needs() {
    let mut bench = bench("s3://corpus/faq.jsonl", &[], &[]);
    bench.config.sources[0].remote = Some(Remote {
        secret: Some("corpus".to_owned()),
    });
    let (code, summary) = bench.build();
    let outcome = (code, summary.reason.as_str());
    assert_eq!(outcome, (65, "SourceNotFound"), "{summary:?}");
    for words in [
        "spec.sources[faq].secretRef",
        "\"corpus\"",
        "AWS_ACCESS_KEY_ID",
    ] {
        assert!(summary.message.contains(words), "{summary:?}");
    }
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn files_of_a_hub_are_of_one_commit_whatever_the_branch_does_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let Some(certificate) = Certificate::make(dir.path()) else {
        return;
    };
    let storage = Web::start(&certificate, |_| Reply::ok(completions(50..100)));
    let large = storage.uri("/xet/b?Signature=hidden-4711");
    let own = Arc::new(Mutex::new(0_u16));
    let known = Arc::clone(&own);
    let hub = Web::start(&certificate, move |path| {
        let port = *known.lock().unwrap();
        let tree = format!("/api/datasets/org/faq/tree/{COMMIT}/data?recursive=true");
        let resolve = format!("/datasets/org/faq/resolve/{COMMIT}/data");
        let file = |name: &str, more: &str| {
            format!(
                r#"{{"type":"file","oid":"{name}1","size":7,"path":"data/{name}.jsonl"{more}}}"#
            )
        };
        if path == "/api/datasets/org/faq/revision/main" {
            Reply::ok(format!(r#"{{"sha":"{COMMIT}"}}"#))
        } else if path == tree {
            let next = format!("<https://127.0.0.1:{port}{tree}&cursor=x%3D>; rel=\"next\"");
            let folder = r#"{"type":"directory","oid":"d","path":"data/more"}"#;
            let body = format!("[{},{folder}]", file("a", ""));
            Reply::ok(body).header("Link", next)
        } else if path == format!("{tree}&cursor=x%3D") {
            let lfs = r#","lfs":{"oid":"b-sha256","size":7}"#;
            let (good, other) = (file("b", lfs), file("notes.txt", "").replace(".jsonl", ""));
            Reply::ok(format!("[{good},{other}]"))
        } else if path == format!("{resolve}/a.jsonl") {
            Reply::ok(completions(0..50))
        } else if path == format!("{resolve}/b.jsonl") {
            Reply::redirect(large.clone())
        } else {
            Reply::status(404)
        }
    });
    *own.lock().unwrap() = hub.port;
    let entries = [("ca.crt", certificate.pem.as_str()), ("HF_TOKEN", "t0ken")];
    let mut bench = bench("hf://org/faq@main/data/*.jsonl", &entries, LOOPBACK);
    bench.config.hub_endpoint = Some(hub.uri(""));
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let seen = lineage(&bench, &summary);
    let seen: Vec<(&str, Option<&str>)> = seen
        .iter()
        .map(|it| (it.uri.as_str(), it.etag.as_deref()))
        .collect();
    let uri = |name: &str| format!("hf://org/faq@{COMMIT}/data/{name}.jsonl");
    assert_eq!(
        seen,
        [
            (uri("a").as_str(), Some("a1")),
            (uri("b").as_str(), Some("b-sha256"))
        ]
    );
    let has_token = |head: &String| head.to_lowercase().contains("authorization: bearer t0ken");
    assert!(hub.asked().iter().all(has_token));
    assert!(!storage.asked().iter().any(has_token));

    let gone = web_bench_of_hub(&bench, "hf://org/faq@other/data/a.jsonl");
    let (code, summary) = gone.build();
    assert_eq!(
        (code, summary.reason.as_str()),
        (65, "SourceNotFound"),
        "{summary:?}"
    );
}

/// The same hub and Secret for another URI.
fn web_bench_of_hub(first: &Bench, uri: &str) -> Bench {
    let mut next = Bench::new(Format::Completion);
    next.config
        .allowed_hosts
        .clone_from(&first.config.allowed_hosts);
    next.config
        .hub_endpoint
        .clone_from(&first.config.hub_endpoint);
    next.config.sources.clone_from(&first.config.sources);
    uri.clone_into(&mut next.config.sources[0].uri);
    next
}

/// A store's list with these keys, each with its state.
fn listed(objects: &[(&str, &str)]) -> Reply {
    let contents: String = objects
        .iter()
        .map(|(key, etag)| {
            format!(
                "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{etag}&quot;</ETag><Size>7</Size></Contents>"
            )
        })
        .collect();
    Reply::ok(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult><Name>corpus</Name><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
    ))
}

fn error(status: u16, code: &str) -> Reply {
    let body = format!(
        "<Error><Code>{code}</Code><Message>no</Message><AWSAccessKeyId>AKIAHIDDEN</AWSAccessKeyId></Error>"
    );
    Reply {
        status,
        ..Reply::ok(body)
    }
}

#[test]
fn an_object_that_is_another_than_the_one_that_was_listed_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let Some(certificate) = Certificate::make(dir.path()) else {
        return;
    };
    for (now, expected) in [
        (
            Reply::ok(completions(0..50)).header("ETag", "\"one\""),
            (0, "Completed"),
        ),
        // A store that does not look at If-Match, and one that does.
        (
            Reply::ok(completions(0..50)).header("ETag", "\"two\""),
            (69, "BuildFailed"),
        ),
        (error(412, "PreconditionFailed"), (69, "BuildFailed")),
        // Gone since.
        (error(404, "NoSuchKey"), (65, "SourceNotFound")),
        // Half of it.
        (
            Reply {
                cut: Some(1000),
                ..Reply::ok(completions(0..50)).header("ETag", "\"one\"")
            },
            (69, "SourceUnavailable"),
        ),
        (error(403, "AccessDenied"), (64, "SourceDenied")),
    ] {
        let said = format!("{now:?}");
        let server = Web::start(&certificate, move |path| {
            if path.contains("list-type=2") {
                listed(&[("faq/a.jsonl", "one"), ("faq/notes.txt", "one")])
            } else {
                now.clone()
            }
        });
        let endpoint = server.uri("");
        let entries = [
            ("ca.crt", certificate.pem.as_str()),
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", "AKIAHIDDEN"),
            ("AWS_SECRET_ACCESS_KEY", "hidden-4711"),
        ];
        let bench = bench("s3://corpus/faq/*.jsonl", &entries, LOOPBACK);
        let (code, summary) = bench.build();
        let outcome = (code, summary.reason.as_str());
        assert_eq!(outcome, expected, "{said}: {summary:?}");
        for hidden in ["AKIAHIDDEN", "hidden-4711"] {
            assert!(!summary.message.contains(hidden), "{summary:?}");
        }
        let asked = server.asked();
        assert!(asked.iter().all(|head| head.contains("AWS4-HMAC-SHA256")));
        assert!(asked[0].contains("prefix=faq"), "{asked:?}");
        let condition = asked[1].to_lowercase();
        assert!(condition.contains("if-match: \"one\""), "{asked:?}");
        assert_eq!(bench.version(1).is_some(), code == 0);
    }
}

#[test]
fn buckets_of_google_are_read_by_the_key_of_a_service_account() {
    let dir = tempfile::tempdir().unwrap();
    let Some(certificate) = Certificate::make(dir.path()) else {
        return;
    };
    let server = Web::start(&certificate, |path| {
        if path.contains("list-type=2") {
            listed(&[("faq/a.jsonl", "one")])
        } else {
            Reply::ok(completions(0..50))
                .header("ETag", "\"one\"")
                .header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        }
    });
    let key = format!(
        r#"{{"private_key":"x","private_key_id":"x","client_email":"x","disable_oauth":true,"gcs_base_url":"{}"}}"#,
        server.uri("")
    );
    let entries = [
        ("ca.crt", certificate.pem.as_str()),
        ("GOOGLE_SERVICE_ACCOUNT_KEY", key.as_str()),
    ];
    let good = bench("gs://corpus/**/*.jsonl", &entries, LOOPBACK);
    let (code, summary) = good.build();
    assert_eq!(code, 0, "{summary:?}");
    assert_eq!(lineage(&good, &summary)[0].uri, "gs://corpus/faq/a.jsonl");

    // As Google hands keys out: each request is signed by it.
    let key = serde_json::json!({
        "type": "service_account",
        "private_key": String::from_utf8(certificate.key.clone()).unwrap(),
        "private_key_id": "key-1",
        "client_email": "reader@corpus.example",
        "gcs_base_url": server.uri(""),
    })
    .to_string();
    let entries = [
        ("ca.crt", certificate.pem.as_str()),
        ("GOOGLE_SERVICE_ACCOUNT_KEY", key.as_str()),
    ];
    let before = server.asked().len();
    let (code, summary) = bench("gs://corpus/**/*.jsonl", &entries, LOOPBACK).build();
    assert_eq!(code, 0, "{summary:?}");
    let asked = server.asked();
    assert!(asked.len() > before + 1, "a list and an object: {asked:?}");
    for head in &asked[before..] {
        let [header, claims] = signing::token(head, &certificate.pem, dir.path());
        assert_eq!(header["alg"], "RS256");
        assert_eq!(header["kid"], "key-1");
        assert_eq!(claims["iss"], "reader@corpus.example");
        assert_eq!(claims["sub"], claims["iss"]);
        // Which Cloud Storage takes as it takes its own, narrower ones.
        let scope = "https://www.googleapis.com/auth/cloud-platform";
        assert_eq!(claims["scope"], scope);
        let seconds = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
        assert!((60..=3600).contains(&seconds), "{claims}");
    }

    let entries = [("GOOGLE_SERVICE_ACCOUNT_KEY", "hidden-4711")];
    let (code, summary) = bench("gs://corpus/a.jsonl", &entries, LOOPBACK).build();
    assert_eq!((code, summary.reason.as_str()), (64, "SourceDenied"));
    assert!(
        summary.message.contains("GOOGLE_SERVICE_ACCOUNT_KEY"),
        "{summary:?}"
    );
    assert!(!summary.message.contains("hidden-4711"), "{summary:?}");
}

#[test]
fn containers_of_azure_are_read_with_an_accounts_key() {
    let dir = tempfile::tempdir().unwrap();
    let Some(certificate) = Certificate::make(dir.path()) else {
        return;
    };
    let server = Web::start(&certificate, |path| {
        if path.contains("comp=list") {
            // Its lists leave the quotes of a state out.
            let blob = "<Blob><Name>faq/a.jsonl</Name><Properties><Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT</Last-Modified><Content-Length>7</Content-Length><Content-Type>text/plain</Content-Type><Etag>0x8D</Etag></Properties></Blob>";
            Reply::ok(format!(
                "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults><Blobs>{blob}</Blobs><NextMarker /></EnumerationResults>"
            ))
        } else {
            Reply::ok(completions(0..50))
                .header("ETag", "\"0x8D\"")
                .header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        }
    });
    let endpoint = server.uri("");
    let account = ("AZURE_STORAGE_ACCOUNT", "corpus01");
    let entries = [
        ("ca.crt", certificate.pem.as_str()),
        account,
        ("AZURE_STORAGE_KEY", "aGlkZGVuLTQ3MTE="),
        ("AZURE_STORAGE_BLOB_ENDPOINT", endpoint.as_str()),
    ];
    let good = bench("az://corpus/faq/*.jsonl", &entries, LOOPBACK);
    let (code, summary) = good.build();
    assert_eq!(code, 0, "{summary:?}");
    assert_eq!(lineage(&good, &summary)[0].uri, "az://corpus/faq/a.jsonl");
    let asked = server.asked();
    assert!(asked.len() > 1, "{asked:?}");
    for head in &asked {
        let expected = signing::shared_key(head, "corpus01", "aGlkZGVuLTQ3MTE=");
        assert_eq!(signing::authorization(head), expected, "{head}");
    }

    let entries = [account, ("AZURE_STORAGE_KEY", "no base64: hidden-4711")];
    let (code, summary) = bench("az://corpus/a.jsonl", &entries, LOOPBACK).build();
    assert_eq!((code, summary.reason.as_str()), (64, "SourceDenied"));
    assert!(!summary.message.contains("hidden-4711"), "{summary:?}");
}
