//! What becomes of personal data.

use graftwork_contract::dataset::{Classification, SecretKey};

use super::*;

/// Rows in which everybody has an address, and asks for the same.
fn letters(count: u32) -> String {
    (0..count).fold(String::new(), |text, n| {
        let person = n % 7;
        text + &format!(
            "{{\"prompt\": \"I am p{person}@example.com ({n})\", \"completion\": \"Hello p{person}@example.com\"}}\n"
        )
    })
}

/// All texts of a version.
fn texts(bench: &Bench, digest: &Digest) -> Vec<String> {
    let rows = Split::ALL
        .iter()
        .flat_map(|split| bench.rows(digest, *split));
    rows.flat_map(|row| match row {
        Row::Completion { prompt, completion } => [prompt, completion],
        _ => panic!("another format"),
    })
    .collect()
}

#[test]
fn personal_data_is_masked_counted_and_in_no_file() {
    let mut bench = Bench::new(Format::Completion);
    bench.source("rows", &letters(50));
    bench.config.classification = Some(Classification::Restricted);
    bench.privacy(PrivacyMode::Redact, &["prompt", "completion"]);
    // Column names are data, too.
    let path = bench.dir.path().join("rows.jsonl");
    let named = fs::read_to_string(&path).unwrap();
    let named = named.replace("{\"prompt\"", "{\"p8@example.com\": 1, \"prompt\"");
    fs::write(
        &path,
        format!("{named}{{\"prompt\": \"p9@example.com\"}}\n"),
    )
    .unwrap();
    let mut command = bench.command();
    let command = command
        .env("RUST_LOG", "debug")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = command.output().unwrap();
    let summary = read_summary(&bench.summary_file());
    assert!(output.status.success(), "{summary:?}");
    let digest = summary.digest.clone().unwrap();
    // The store, the log, and what the pod ends with.
    let mut left: Vec<(String, Vec<u8>)> = vec![
        ("log".to_owned(), [output.stdout, output.stderr].concat()),
        (
            "summary".to_owned(),
            fs::read(bench.summary_file()).unwrap(),
        ),
    ];
    let store = bench.store();
    for entry in store.list("").unwrap() {
        let bytes = store.get(&entry.path).unwrap().unwrap();
        left.push((entry.path, bytes));
    }
    assert!(left.len() >= 9, "{}", left.len());
    for (name, bytes) in left {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("@example"), "{name} holds an address");
    }
    for text in texts(&bench, &digest) {
        assert!(text.contains("[EMAIL]") && !text.contains('@'), "{text}");
    }
    assert_eq!(bench.version(1).unwrap().findings["email"], 100);
    let manifest = rows::manifest(&bench.store(), "topics", &digest).unwrap();
    assert_eq!(manifest.findings["email"], 100);
    assert_eq!(manifest.provenance.privacy, bench.config.privacy);
    assert_eq!(manifest.classification, Some(Classification::Restricted));
    let folder = bench.store_dir().join(paths::dataset("topics", &digest));
    let numbers = fs::read_to_string(folder.join("statistics.json")).unwrap();
    assert!(
        numbers.contains(r#""classification": "Restricted""#),
        "{numbers}"
    );
}

#[test]
fn pseudonyms_follow_the_person_and_the_key() {
    let mut bench = Bench::new(Format::Completion);
    bench.source("rows", &letters(50));
    bench.privacy(PrivacyMode::Pseudonymise, &["prompt", "completion"]);
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (65, "SourceNotFound"));
    assert!(summary.message.contains("spec.privacy.pseudonymKeyRef"));
    bench.config.pseudonym_key = Some(SecretKey {
        name: "pseudonyms".to_owned(),
        key: "current".to_owned(),
    });
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (65, "SourceNotFound"));
    let words = "there is no Secret \"pseudonyms\", or it has no key \"current\"; create it";
    assert!(summary.message.contains(words), "{summary:?}");

    bench.key("a key of some length");
    let (_, first) = bench.build();
    let first = first.digest.unwrap();
    let mut people: Vec<String> = texts(&bench, &first)
        .iter()
        .map(|text| {
            let (_, rest) = text.split_once("[EMAIL-").unwrap();
            rest.split_once(']').unwrap().0.to_owned()
        })
        .collect();
    people.sort();
    people.dedup();
    assert_eq!(people.len(), 7);

    bench.fingerprint("the same key");
    assert_eq!(bench.build().1.digest.unwrap(), first);
    bench.fingerprint("another key");
    bench.key("another key of some length");
    assert_ne!(bench.build().1.digest.unwrap(), first);
}

#[test]
fn rows_with_personal_data_are_refused_without_saying_what_they_hold() {
    let mut bench = Bench::new(Format::Completion);
    bench.source("rows", &format!("{}{}", completions(0..95), letters(5)));
    bench.privacy(PrivacyMode::Reject, &["prompt"]);
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    assert_eq!(summary.rows.unwrap().rejected, 5);
    let rule = &summary.rejected[0].rule;
    assert_eq!(rule, "prompt holds personal data (email)");

    bench.fingerprint("none allowed");
    bench.config.validation.maximum_invalid_percent = "0".into();
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (65, "DataError"));
    assert!(!format!("{summary:?}").contains("example.com"));
}

#[test]
fn restricted_data_is_not_built_as_it_is() {
    let mut bench = Bench::new(Format::Completion);
    bench.source("rows", &letters(5));
    bench.config.classification = Some(Classification::Restricted);
    for mode in [None, Some(PrivacyMode::Allow)] {
        if let Some(mode) = mode {
            bench.privacy(mode, &["prompt"]);
        }
        let (code, summary) = bench.build();
        assert_eq!((code, summary.reason.as_str()), (64, "InvalidSpec"));
        assert!(
            summary
                .message
                .contains("spec.classification is Restricted")
        );
    }
}

#[test]
fn a_masked_group_keeps_its_rows_together() {
    let mut bench = Bench::new(Format::Text);
    bench.config.split.group_column = Some("who".into());
    bench.config.split.train_percent = 50;
    bench.config.split.test_percent = 40;
    let text = (0..200).fold(String::new(), |text, n| {
        text + &format!(
            "{{\"text\": \"t{n}\", \"who\": \"p{}@example.com\"}}\n",
            n % 20
        )
    });
    bench.source("rows", &text);
    bench.privacy(PrivacyMode::Redact, &["text", "who"]);
    let (_, summary) = bench.build();
    let counts = summary.rows.unwrap();
    assert!(
        counts.train > 0 && counts.test > 0,
        "{counts:?}: not all in one split"
    );
    let digest = summary.digest.unwrap();
    for split in Split::ALL {
        for row in bench.rows(&digest, split) {
            let Row::Text { text } = row else {
                panic!("another format");
            };
            let person = text[1..].parse::<u32>().unwrap() % 20;
            let key = format!("p{person}@example.com");
            let key = Digest::of(key.as_bytes());
            assert_eq!(bench.config.split.split_of(key.hex()), split);
        }
    }
}
