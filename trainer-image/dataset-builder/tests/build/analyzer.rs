//! Builds that ask an analyser: a server on the loopback that finds the names it was told, as Presidio would.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use graftwork_contract::dataset::{Analyzer, Transform};
use serde_json::{Value, json};

use super::*;

/// The names that the analyser knows. One begins behind letters of two and four bytes.
const NAMES: [&str; 3] = ["Ann Lee", "Zo\u{eb}", "Bo"];

/// What the analyser answers to a question, by the question's number: a status and a body.
type Answer = fn(usize, &Value) -> (u16, String);

/// A server that lives as long as the test's process.
struct Server {
    port: u16,
    questions: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let questions = Arc::new(Mutex::new(Vec::new()));
        let (noted, number) = (questions.clone(), Arc::new(AtomicUsize::new(0)));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (noted, number) = (noted.clone(), number.clone());
                std::thread::spawn(move || while serve(&stream, &noted, &number, answer) {});
            }
        });
        Self { port, questions }
    }

    fn questions(&self) -> Vec<Value> {
        self.questions.lock().unwrap().clone()
    }
}

/// One exchange; false where the client said nothing more.
fn serve(
    mut stream: &TcpStream,
    noted: &Mutex<Vec<Value>>,
    number: &AtomicUsize,
    answer: Answer,
) -> bool {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    let mut first = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return false;
        }
        if first.is_empty() {
            first.clone_from(&line);
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    assert!(first.starts_with("POST /analyze HTTP/1.1"), "{first}");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let question: Value = serde_json::from_slice(&body).unwrap();
    noted.lock().unwrap().push(question.clone());
    let (status, body) = answer(number.fetch_add(1, Ordering::SeqCst), &question);
    let head = format!(
        "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).is_ok() && stream.write_all(body.as_bytes()).is_ok()
}

/// Finds the names, by Python's offsets, and what is not asked for.
fn found(question: &Value) -> String {
    let text = question["text"].as_str().unwrap();
    let mut entities =
        vec![json!({"entity_type": "DATE_TIME", "start": 0, "end": 1, "score": 0.9})];
    for name in NAMES {
        for (byte, _) in text.match_indices(name) {
            let start = text[..byte].chars().count();
            let end = start + name.chars().count();
            entities
                .push(json!({"entity_type": "PERSON", "start": start, "end": end, "score": 0.85}));
        }
    }
    Value::Array(entities).to_string()
}

/// A build of letters that names are in, which asks this server.
fn bench(port: u16, mode: PrivacyMode) -> Bench {
    let mut bench = Bench::new(Format::Completion);
    let rows = (0..300).fold(String::new(), |rows, n| {
        let name = NAMES[n % 3];
        rows + &format!(
            "{{\"prompt\": \"\u{1f600} I am {name} ({n}), ann@example.com\", \"completion\": \"Hello {name}\"}}\n"
        )
    });
    bench.source("rows", &rows);
    bench.privacy(mode, &["prompt", "completion"]);
    bench.config.allowed_hosts = vec!["127.0.0.0/8".into()];
    bench.config.privacy.as_mut().unwrap().analyzer = Some(Analyzer {
        url: format!("http://127.0.0.1:{port}"),
        language: "sv".into(),
        entities: vec!["LOCATION".into(), "PERSON".into()],
        minimum_score: "0.5".into(),
        timeout_seconds: 5,
    });
    bench
}

#[test]
fn names_are_masked_beside_our_own_types_counted_and_in_no_file() {
    let server = Server::start(|_, question| (200, found(question)));
    let bench = bench(server.port, PrivacyMode::Redact);
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let digest = summary.digest.unwrap();
    let mut rows = 0;
    for row in Split::ALL.iter().flat_map(|it| bench.rows(&digest, *it)) {
        let Row::Completion { prompt, completion } = row else {
            panic!("another format");
        };
        assert!(prompt.starts_with("\u{1f600} I am [PERSON] ("), "{prompt}");
        assert!(prompt.ends_with("), [EMAIL]"), "{prompt}");
        assert_eq!(completion, "Hello [PERSON]");
        rows += 1;
    }
    assert_eq!(rows, 300);
    let findings = bench.version(1).unwrap().findings;
    assert_eq!((findings["person"], findings["email"]), (600, 300));
    assert!(!findings.contains_key("dateTime"));
    let folder = bench.store_dir().join(paths::dataset("topics", &digest));
    for file in ["manifest.json", "statistics.json", "report.html"] {
        let text = fs::read_to_string(folder.join(file)).unwrap();
        assert!(
            !NAMES.iter().take(2).any(|name| text.contains(name)),
            "{file}"
        );
    }
    // Three answers, 300 questions; one that comes twice in a batch is asked about once.
    let questions = server.questions();
    assert!(
        (303..=306).contains(&questions.len()),
        "{}",
        questions.len()
    );
    assert!(questions.iter().all(|it| it["language"] == "sv"));
    assert_eq!(questions[0]["entities"], json!(["LOCATION", "PERSON"]));
    assert_eq!(questions[0]["score_threshold"], json!(0.5));
}

#[test]
fn rows_that_sql_makes_are_asked_about_to_the_last() {
    let server = Server::start(|_, question| (200, found(question)));
    let mut bench = bench(server.port, PrivacyMode::Redact);
    bench.config.transform = Some(Transform {
        sql: "SELECT prompt, completion FROM \"rows\"".into(),
        pseudonym_key: false,
        now: None,
    });
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let digest = summary.digest.unwrap();
    let rows: Vec<Row> = Split::ALL
        .iter()
        .flat_map(|split| bench.rows(&digest, *split))
        .collect();
    assert_eq!(rows.len(), 300);
    for row in rows {
        let Row::Completion { prompt, completion } = row else {
            panic!("another format");
        };
        assert!(prompt.contains("I am [PERSON] ("), "{prompt}");
        assert_eq!(completion, "Hello [PERSON]");
    }
    assert_eq!(bench.version(1).unwrap().findings["person"], 600);
}

#[test]
fn rows_with_names_are_refused_by_type_alone() {
    let server = Server::start(|_, question| (200, found(question)));
    let mut bench = bench(server.port, PrivacyMode::Reject);
    bench.source("plain", &completions(0..3000));
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    assert_eq!(summary.rows.unwrap().rejected, 300);
    let row = &summary.rejected[0];
    assert_eq!(row.rule, "prompt holds personal data (email, person)");
    assert_eq!((row.source.as_str(), row.line), ("rows", 1));
    assert_eq!(summary.rejected[1].line, 2);
}

#[test]
fn an_analyser_that_stumbles_is_asked_again_and_changes_nothing() {
    let steady = Server::start(|_, question| (200, found(question)));
    let stumbling = Server::start(|number, question| match number % 7 {
        3 => (503, "SECRET".to_owned()),
        _ => (200, found(question)),
    });
    let digests = [steady.port, stumbling.port].map(|port| {
        let (code, summary) = bench(port, PrivacyMode::Redact).build();
        assert_eq!(code, 0, "{summary:?}");
        summary.digest.unwrap()
    });
    assert_eq!(digests[0], digests[1]);
    assert!(stumbling.questions().len() > steady.questions().len());
}

#[test]
fn an_analyser_that_refuses_or_is_away_ends_the_build_and_no_row_passes_unasked() {
    let away: Answer = |_, _| (500, "SECRET".to_owned());
    let refuses: Answer = |_, _| (401, "SECRET".to_owned());
    let moved: Answer = |_, _| (302, String::new());
    let nonsense: Answer = |_, _| (200, r#"{"SECRET": 1}"#.to_owned());
    let outside: Answer = |_, _| {
        (
            200,
            r#"[{"entity_type": "PERSON", "start": 0, "end": 9999, "score": 1}]"#.into(),
        )
    };
    for (answer, expected) in [
        (away, (69, "SourceUnavailable")),
        (refuses, (64, "SourceDenied")),
        (moved, (64, "SourceDenied")),
        (nonsense, (65, "DataError")),
        (outside, (65, "DataError")),
    ] {
        let server = Server::start(answer);
        let bench = bench(server.port, PrivacyMode::Redact);
        let (code, summary) = bench.build();
        assert_eq!((code, summary.reason.as_str()), expected, "{summary:?}");
        assert!(
            summary.message.starts_with("spec.privacy.analyzer"),
            "{summary:?}"
        );
        assert!(!summary.message.contains("SECRET"), "{summary:?}");
        assert!(bench.version(1).is_none());
        assert!(!server.questions().is_empty());
    }
}

#[test]
fn nobody_is_asked_whom_the_installation_does_not_name() {
    let server = Server::start(|_, question| (200, found(question)));
    for allowed in [vec![], vec!["10.0.0.0/8".to_owned()]] {
        let mut bench = bench(server.port, PrivacyMode::Redact);
        bench.config.allowed_hosts = allowed;
        let (code, summary) = bench.build();
        assert_eq!((code, summary.reason.as_str()), (64, "SourceDenied"));
        assert!(summary.message.contains("dataSources.allow"), "{summary:?}");
    }
    let mut public = bench(server.port, PrivacyMode::Redact);
    let analyzer = public.config.privacy.as_mut().unwrap().analyzer.as_mut();
    analyzer.unwrap().url = "https://analyzer.example.com".into();
    let (code, summary) = public.build();
    assert_eq!((code, summary.reason.as_str()), (64, "SourceDenied"));
    assert!(server.questions().is_empty());
}
