//! Queries to a real PostgreSQL server, which each test starts for itself. Without one on this machine
//! they say that they were skipped.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use dataset_builder::failure::Failure;
use dataset_builder::query::{self, Database};
use graftwork_contract::dataset::{DatabaseKind, Query};
use graftwork_objects::fixture;
use serde_json::{Value, json};

use super::*;

/// The user that PostgreSQL runs as where we are root, which it refuses.
const NOBODY: u32 = 65534;
const PASSWORD: &str = "p@ss/word?";
/// The same within a URI.
const ENCODED: &str = "p%40ss%2Fword%3F";

/// A server of this test's own on the loopback.
struct Server {
    dir: tempfile::TempDir,
    programs: PathBuf,
    port: u16,
    root: bool,
}

/// Says that a test proves nothing here; past the harness, which keeps what is printed.
pub(super) fn skipped(what: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "skipped: no {what} ({test})");
}

/// Debian's newest PostgreSQL.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    versions
        .filter_map(|entry| {
            let folder = entry.ok()?.path();
            let number: u32 = folder.file_name()?.to_str()?.parse().ok()?;
            Some((number, folder.join("bin")))
        })
        .filter(|(_, bin)| bin.join("initdb").exists() && bin.join("psql").exists())
        .max()
        .map(|(_, bin)| bin)
}

impl Server {
    /// With these lines more in its configuration; none where there is no PostgreSQL.
    fn start(settings: &str, files: &[&Path]) -> Option<Self> {
        let Some(programs) = programs() else {
            skipped("PostgreSQL");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let root = fs::metadata(dir.path()).unwrap().uid() == 0;
        let port = fixture::free_port().unwrap();
        let server = Self {
            dir,
            programs,
            port,
            root,
        };
        fs::write(server.path("password"), PASSWORD).unwrap();
        server.give("");
        server.give("password");
        server.run(
            "initdb",
            &[
                "-D",
                "data",
                "-U",
                "ann",
                "-A",
                "scram-sha-256",
                "--pwfile=password",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ],
        );
        for file in files {
            let name = file.file_name().unwrap().to_str().unwrap();
            fs::copy(file, server.path("data").join(name)).unwrap();
            server.give(&format!("data/{name}"));
        }
        let mut configuration = fs::OpenOptions::new()
            .append(true)
            .open(server.path("data/postgresql.conf"))
            .unwrap();
        writeln!(
            configuration,
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n{settings}"
        )
        .unwrap();
        server.run("pg_ctl", &["-D", "data", "-l", "log", "-w", "start"]);
        Some(server)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a file PostgreSQL's own.
    fn give(&self, name: &str) {
        if self.root {
            chown(self.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env("PGPASSWORD", PASSWORD)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if self.root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let status = self.command(program, arguments).status().unwrap();
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        assert!(status.success(), "{program} {arguments:?}: {status}\n{log}");
    }

    /// What psql connects to; its password stands in the environment.
    fn psql_url(&self) -> String {
        format!("postgresql://ann@127.0.0.1:{}/postgres", self.port)
    }

    fn sql(&self, text: &str) {
        let url = self.psql_url();
        self.run("psql", &[&url, "-q", "-v", "ON_ERROR_STOP=1", "-c", text]);
    }

    /// What somebody else asks, as text.
    fn answer(&self, text: &str) -> String {
        let url = self.psql_url();
        let mut command = self.command("psql", &[&url, "-Atc", text]);
        let output = command.stdout(Stdio::piped()).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn uri(&self, rest: &str) -> String {
        format!(
            "postgresql://ann:{ENCODED}@127.0.0.1:{}/postgres{rest}",
            self.port
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stop = ["-D", "data", "-m", "immediate", "-w", "stop"];
        let _ = self.command("pg_ctl", &stop).status();
    }
}

const PLAIN: &str = "?sslmode=disable";

impl Bench {
    /// A source of a query, with a Secret of these entries.
    fn query(&mut self, entries: &[(&str, &str)], text: &str) {
        let secret = self.dir.path().join("secret");
        let _ = fs::remove_dir_all(&secret);
        fs::create_dir(&secret).unwrap();
        for (name, value) in entries {
            fs::write(secret.join(name), value).unwrap();
        }
        self.config.allowed_hosts = vec!["127.0.0.0/8".into()];
        self.config.sources = vec![Source {
            query: Some(Query {
                database: DatabaseKind::Postgres,
                text: text.into(),
                timeout_seconds: 60,
                maximum_rows: 1000,
            }),
            ..source_at("decisions", "secret://warehouse/url", &secret)
        }];
    }

    fn limits(&mut self, timeout_seconds: u32, maximum_rows: u64) {
        let query = self.config.sources[0].query.as_mut().unwrap();
        query.timeout_seconds = timeout_seconds;
        query.maximum_rows = maximum_rows;
    }

    fn database(&self) -> Box<dyn Database> {
        let source = &self.config.sources[0];
        query::open(source, DatabaseKind::Postgres, &self.config.allowed_hosts).unwrap()
    }
}

#[test]
fn now_in_sql_over_a_query_is_the_time_of_its_snapshot() {
    let Some(server) = Server::start("", &[]) else {
        return;
    };
    server.sql(DECISIONS);
    let mut bench = Bench::new(Format::Completion);
    bench.query(
        &[("uri", server.uri(PLAIN).as_str())],
        "SELECT prompt, completion FROM decisions",
    );
    super::transform::sql(
        &mut bench,
        "SELECT prompt, CAST(now() AS VARCHAR) AS completion FROM decisions",
    );
    // The database's clock counts, and neither the decision's nor the builder's.
    let decided = "2001-01-01T00:00:00Z".to_owned();
    bench.config.transform.as_mut().unwrap().now = Some(decided);
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let digest = summary.digest.unwrap();
    let manifest = rows::manifest(&bench.store(), "topics", &digest).unwrap();
    let query = manifest.provenance.sources[0].query.as_ref().unwrap();
    let snapshot: jiff::Timestamp = query.snapshot_time.parse().unwrap();
    let told = manifest.provenance.transform.unwrap().now;
    assert_eq!(told.parse::<jiff::Timestamp>().unwrap(), snapshot);
    let mut times = bench.answers(&digest);
    times.dedup();
    assert_eq!(times.len(), 1, "{times:?}");
    let time: jiff::Timestamp = format!("{}Z", times[0]).parse().unwrap();
    assert_eq!(time, snapshot);
}

const DECISIONS: &str = "CREATE TABLE decisions (prompt text, completion varchar(40), claim bigint, secret bytea);
    INSERT INTO decisions SELECT 'definition ' || n, 'topic ' || n % 5, n % 50, 'x' FROM generate_series(1, 200) n";

#[test]
fn rows_of_a_query_become_a_version_and_the_same_rows_no_second_one() {
    let Some(server) = Server::start("", &[]) else {
        return;
    };
    server.sql(DECISIONS);
    let mut bench = Bench::new(Format::Completion);
    bench.config.split.group_column = Some("claim".into());
    let text = "SELECT prompt, completion, claim FROM decisions;";
    bench.query(&[("uri", server.uri(PLAIN).as_str())], text);
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let digest = summary.digest.unwrap();
    let rows: usize = Split::ALL
        .iter()
        .map(|split| bench.rows(&digest, *split).len())
        .sum();
    assert_eq!(rows, 200);
    let manifest = rows::manifest(&bench.store(), "topics", &digest).unwrap();
    let seen = &manifest.provenance.sources[0];
    let lineage = seen.query.as_ref().unwrap();
    assert_eq!(seen.uri, "secret://warehouse/url");
    assert_eq!(lineage.digest, Digest::of(text.as_bytes()));
    assert_eq!(lineage.rows, 200);
    assert!(lineage.snapshot_time.parse::<jiff::Timestamp>().is_ok());
    let written = serde_json::to_string(&manifest).unwrap();
    assert!(!written.contains(PASSWORD) && !written.contains(ENCODED));

    // The same rows in another order, read by the parts of the Secret.
    let port = server.port.to_string();
    let entries = [
        ("host", "127.0.0.1"),
        ("port", port.as_str()),
        ("username", "ann"),
        ("password", PASSWORD),
        ("dbname", "postgres"),
        ("sslmode", "disable"),
    ];
    bench.query(
        &entries,
        &format!("{} ORDER BY claim DESC", &text[..text.len() - 1]),
    );
    bench.fingerprint("again");
    let (code, summary) = bench.build();
    assert_eq!((code, summary.version), (0, Some(1)), "{summary:?}");
    assert!(bench.version(2).is_none());

    server.sql("INSERT INTO decisions VALUES ('one more', 'topic 1', 51)");
    bench.fingerprint("more");
    let (_, summary) = bench.build();
    assert_eq!(summary.version, Some(2), "{summary:?}");
}

#[test]
fn values_of_every_type_arrive_as_the_server_has_them() {
    let Some(server) = Server::start("", &[]) else {
        return;
    };
    server.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
    );
    let mut bench = Bench::new(Format::Text);
    bench.query(&[("uri", server.uri(PLAIN).as_str())], "");
    let text = "SELECT
        true AS yes, 7::int2 AS small, -7 AS four, 9223372036854775807 AS eight,
        0.1::float4 AS single, 0.1::float8 AS double,
        12345678901234567890.0123456789::numeric AS exact, 1000000::numeric AS round, -0.00012::numeric(9,6) AS tiny,
        'é'::text AS words, 'ab'::char(4) AS padded, 'v'::varchar AS short, 'x' AS literal,
        '{\"a\": [1, null]}'::json AS document, '{\"b\": 0.5}'::jsonb AS binary,
        '2026-11-20 02:01:01.5+01'::timestamptz AS at, '2026-11-20 01:01:01'::timestamp AS naive,
        '2026-11-20'::date AS day, '01:02:03.5'::time AS clock,
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid AS id,
        ARRAY['a', NULL, 'c'] AS list, ARRAY[[1, 2], [3, 4]] AS square, '{}'::int[] AS empty,
        ARRAY[1.50]::numeric[] AS prices, 'ok'::mood AS mood, ARRAY['sad']::mood[] AS moods,
        5::positive AS positive, NULL::text AS nothing, now()::text LIKE '%+00' AS utc,
        current_setting('transaction_isolation') AS isolation, current_setting('transaction_read_only') AS readonly,
        current_setting('statement_timeout') AS longest";
    let query = Query {
        text: text.into(),
        ..bench.config.sources[0].query.clone().unwrap()
    };
    let mut rows = Vec::new();
    let mut take = |row: query::Record| -> Result<(), Failure> {
        rows.push(row);
        Ok(())
    };
    bench.database().ask(&query, &mut take).unwrap();
    let expected = json!({
        "yes": true, "small": 7, "four": -7, "eight": 9_223_372_036_854_775_807_i64,
        "single": 0.1, "double": 0.1,
        "exact": "12345678901234567890.0123456789", "round": "1000000", "tiny": "-0.000120",
        "words": "é", "padded": "ab  ", "short": "v", "literal": "x",
        "document": {"a": [1, null]}, "binary": {"b": 0.5},
        "at": "2026-11-20T01:01:01.5Z", "naive": "2026-11-20T01:01:01Z",
        "day": "2026-11-20", "clock": "01:02:03.500000",
        "id": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "list": ["a", null, "c"], "square": [[1, 2], [3, 4]], "empty": [],
        "prices": ["1.50"], "mood": "ok", "moods": ["sad"],
        "positive": 5, "nothing": null, "utc": true,
        // One snapshot, in which nothing can be changed, for as long as the source says.
        "isolation": "repeatable read", "readonly": "on", "longest": "1min",
    });
    assert_eq!(rows.len(), 1);
    let row = Value::Object(rows.remove(0).unwrap());
    assert_eq!(row, expected);
}

const GOOD: &str = "SELECT prompt, completion FROM decisions";

/// Whose login, the query, the reason, and words of the message.
const REFUSED: [(&str, &str, &str, &[&str]); 15] = [
    (
        "ann",
        "SELECT prompt,\n  completio\nFROM decisions",
        "QueryFailed",
        &[
            "spec.sources[decisions].postgres.query, line 2, column 3 (completio)",
            "column \"completio\" does not exist",
            "42703",
        ],
    ),
    (
        "ann",
        "SELEC 1",
        "QueryFailed",
        &["line 1, column 1 (SELEC 1)", "syntax error", "42601"],
    ),
    (
        "ann",
        "SELECT * FROM nowhere",
        "QueryFailed",
        &["relation \"nowhere\" does not exist"],
    ),
    (
        "ann",
        "SELECT * FROM decisions",
        "QueryFailed",
        &["column secret of type bytea"],
    ),
    (
        "ann",
        "SELECT now() - now() AS age",
        "QueryFailed",
        &["column age of type interval"],
    ),
    (
        "ann",
        "SELECT 1 AS a, 2 AS a",
        "QueryFailed",
        &["two columns named a"],
    ),
    (
        "ann",
        "SELECT $1::text AS prompt",
        "QueryFailed",
        &["parameters"],
    ),
    ("ann", "COMMIT", "QueryFailed", &["has no columns"]),
    (
        "ann",
        "SELECT 1; DROP TABLE decisions",
        "QueryFailed",
        &["multiple commands"],
    ),
    (
        "ann",
        "INSERT INTO numbers VALUES ('x') RETURNING prompt",
        "QueryFailed",
        &["read-only transaction"],
    ),
    (
        "ann",
        "SELECT prompt::int AS prompt FROM numbers",
        "QueryFailed",
        &["22P02", "the database's log"],
    ),
    (
        "wrong",
        GOOD,
        "SourceDenied",
        &["user and password", "secretRef", "28P01"],
    ),
    (
        "nowhere",
        GOOD,
        "SourceDenied",
        &["no such database", "3D000"],
    ),
    (
        "bob",
        GOOD,
        "SourceDenied",
        &["permission denied for table decisions"],
    ),
    ("tls", GOOD, "SourceDenied", &["does not support TLS"]),
];

#[test]
fn what_can_not_be_answered_is_named_and_leaves_no_version() {
    let Some(server) = Server::start("", &[]) else {
        return;
    };
    server.sql(DECISIONS);
    server.sql("CREATE USER bob PASSWORD 'bob'; CREATE TABLE numbers (prompt text); INSERT INTO numbers VALUES ('ann@example.com')");
    let ann = server.uri(PLAIN);
    for (login, text, reason, words) in REFUSED {
        let uri = match login {
            "wrong" => ann.replace(ENCODED, "wrong"),
            "nowhere" => ann.replace("/postgres?", "/nowhere?"),
            "bob" => ann.replace(&format!("ann:{ENCODED}"), "bob:bob"),
            "tls" => server.uri(""),
            _ => ann.clone(),
        };
        let mut bench = Bench::new(Format::Completion);
        bench.query(&[("uri", uri.as_str())], text);
        let (code, summary) = bench.build();
        assert_eq!(
            (code, summary.reason.as_str()),
            (64, reason),
            "{text}: {summary:?}"
        );
        for word in words.iter().chain(&["source decisions"]) {
            assert!(
                summary.message.contains(word),
                "{word}: {}",
                summary.message
            );
        }
        for hidden in [PASSWORD, ENCODED, "wrong", "ann@example.com", "bob"] {
            assert!(!summary.message.contains(hidden), "{}", summary.message);
        }
        assert!(bench.version(1).is_none());
    }
    assert_eq!(server.answer("SELECT count(*) FROM numbers"), "1");
}

#[test]
fn more_rows_or_time_than_allowed_end_a_build_and_leave_the_version_before() {
    let Some(server) = Server::start("", &[]) else {
        return;
    };
    server.sql(DECISIONS);
    let ann = server.uri(PLAIN);
    let mut bench = Bench::new(Format::Completion);
    bench.query(&[("uri", ann.as_str())], GOOD);
    bench.limits(60, 199);
    let (_, summary) = bench.build();
    assert!(
        summary.message.contains("more than 199 rows"),
        "{summary:?}"
    );
    bench.limits(60, 200);
    assert_eq!(bench.build().0, 0);

    bench.fingerprint("slow");
    let slow = format!("{GOOD} WHERE pg_sleep(30) IS NOT NULL");
    bench.query(&[("uri", ann.as_str())], &slow);
    bench.limits(1, 200);
    let (code, summary) = bench.build();
    assert_eq!(
        (code, summary.reason.as_str()),
        (64, "QueryFailed"),
        "{summary:?}"
    );
    let limit = "longer than 1 s, which is spec.sources[decisions].timeoutSeconds";
    assert!(summary.message.contains(limit), "{summary:?}");
    assert!(bench.version(2).is_none() && bench.version(1).is_some());
}

#[test]
fn a_server_that_dies_in_the_middle_leaves_no_version_and_is_asked_again() {
    let Some(server) = Server::start("", &[]) else {
        return;
    };
    let mut bench = Bench::new(Format::Completion);
    // A thousand rows, each a moment after the other.
    bench.query(
        &[("uri", server.uri(PLAIN).as_str())],
        "SELECT CASE WHEN pg_sleep(0.05) IS NULL THEN '' ELSE 'definition ' || n END AS prompt, repeat('long ', 200) AS completion FROM generate_series(1, 1000) n",
    );
    let _ = fs::remove_file(bench.summary_file());
    let mut child = bench.start();
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'graftwork' AND query LIKE '%pg_sleep%' AND state = 'active' AND now() - query_start > interval '2 s'";
    let mut waited = 0;
    while server.answer(asked) != "1" {
        assert!(waited < 300, "the builder did not ask");
        waited += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    server.run("pg_ctl", &["-D", "data", "-m", "immediate", "-w", "stop"]);
    let code = child.wait().unwrap().code().unwrap();
    let summary = read_summary(&bench.summary_file());
    assert_eq!(
        (code, summary.reason.as_str()),
        (69, "SourceUnavailable"),
        "{summary:?}"
    );
    let (_, after) = summary
        .message
        .split_once("source decisions: the database went away")
        .unwrap_or_else(|| panic!("{summary:?}"));
    // Forty rows of a thousand bytes were sent by then, in pieces of some kilobytes.
    let (_, after) = after.split_once(" after ").unwrap();
    let (rows, _) = after.split_once(" rows").unwrap();
    let rows: u32 = rows.parse().unwrap();
    assert!((1..1000).contains(&rows), "{summary:?}");
    assert!(bench.version(1).is_none());
}

/// A certificate for 127.0.0.1 that nobody signed but itself, with its key; none without openssl.
pub(super) fn self_signed(folder: &Path, name: &str) -> Option<(PathBuf, PathBuf)> {
    let (key, certificate) = (folder.join("server.key"), folder.join("server.crt"));
    fs::create_dir_all(folder).unwrap();
    let subject = format!("/CN={name}");
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", &subject,
        ])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args([Path::new("-keyout"), &key, Path::new("-out"), &certificate])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        skipped("openssl");
        return None;
    }
    Some((key, certificate))
}

#[test]
fn a_certificate_is_checked_as_the_secret_asks() {
    let dir = tempfile::tempdir().unwrap();
    let Some((key, certificate)) = self_signed(&dir.path().join("ours"), "warehouse") else {
        return;
    };
    let Some((_, other)) = self_signed(&dir.path().join("other"), "somebody") else {
        return;
    };
    let settings = "ssl = on\nlisten_addresses = '127.0.0.1,127.0.0.2'";
    let Some(server) = Server::start(settings, &[&key, &certificate]) else {
        return;
    };
    server.sql(DECISIONS);
    let ours = fs::read_to_string(certificate).unwrap();
    let other = fs::read_to_string(other).unwrap();
    let (require, verify) = ("?sslmode=require", "?sslmode=verify-full");
    let (own, foreign) = (Some(ours.as_str()), Some(other.as_str()));
    for (host, mode, authority, good) in [
        ("127.0.0.1", require, None, true),
        ("127.0.0.1", require, own, true),
        ("127.0.0.1", verify, own, true),
        ("127.0.0.1", require, foreign, false),
        ("127.0.0.1", verify, foreign, false),
        ("127.0.0.1", verify, None, false),
        // The same server at an address that its certificate does not name.
        ("127.0.0.2", verify, own, false),
    ] {
        let uri = server.uri(mode).replace("127.0.0.1", host);
        let authority = authority.map(|pem| ("ca.crt", pem));
        let entries: Vec<_> = authority
            .into_iter()
            .chain([("uri", uri.as_str())])
            .collect();
        let mut bench = Bench::new(Format::Completion);
        bench.query(&entries, "SELECT prompt, completion FROM decisions");
        let (code, summary) = bench.build();
        let expected = if good { 0 } else { 64 };
        assert_eq!(code, expected, "{host} {mode}: {summary:?}");
        if !good {
            assert_eq!(summary.reason, "SourceDenied", "{summary:?}");
            assert!(summary.message.contains("certificate"), "{summary:?}");
        }
    }
}

#[test]
fn without_a_word_of_the_chart_a_server_on_the_machine_is_not_asked() {
    let Some(server) = Server::start("log_connections = on", &[]) else {
        return;
    };
    let mut bench = Bench::new(Format::Completion);
    bench.query(&[("uri", server.uri(PLAIN).as_str())], "SELECT 1");
    bench.config.allowed_hosts.clear();
    let (code, summary) = bench.build();
    assert_eq!(
        (code, summary.reason.as_str()),
        (64, "SourceDenied"),
        "{summary:?}"
    );
    assert!(summary.message.contains("dataSources.allow"), "{summary:?}");
    let log = fs::read_to_string(server.path("log")).unwrap();
    assert!(
        !log.contains("connection received: host=127.0.0.1"),
        "{log}"
    );
}

#[test]
fn a_secret_that_is_not_there_is_waited_for() {
    let mut bench = Bench::new(Format::Completion);
    bench.query(&[], "SELECT 1");
    let (code, summary) = bench.build();
    assert_eq!(
        (code, summary.reason.as_str()),
        (65, "SourceNotFound"),
        "{summary:?}"
    );
    assert!(
        summary
            .message
            .contains("spec.sources[decisions].postgres.secretRef"),
        "{summary:?}"
    );
}
