//! What a build leaves, and when it is another version.

use graftwork_contract::dataset::BuildRecord;

use super::*;

#[test]
fn a_build_leaves_rows_manifest_version_and_record() {
    let mut bench = Bench::new(Format::Completion);
    bench.source(
        "rows",
        &format!("{}{{\"prompt\": 1}}\n\n", completions(0..200)),
    );
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    assert_eq!(
        (summary.reason.as_str(), summary.version),
        ("Completed", Some(1))
    );
    let digest = summary.digest.unwrap();

    let counts = summary.rows.unwrap();
    assert_eq!(
        (
            counts.train + counts.validation + counts.test,
            counts.rejected
        ),
        (200, 1)
    );
    for (split, count) in Split::ALL
        .iter()
        .zip([counts.train, counts.validation, counts.test])
    {
        let rows = bench.rows(&digest, *split);
        assert_eq!(rows.len() as u64, count);
        for row in rows {
            let Row::Completion { prompt, completion } = row else {
                panic!("another format");
            };
            let key = format!(r#"{{"completion":"{completion}","prompt":"{prompt}"}}"#);
            assert_eq!(bench.config.split.split_of(&key), *split, "{key}");
        }
    }
    let manifest = rows::manifest(&bench.store(), "topics", &digest).unwrap();
    let source = fs::read(bench.dir.path().join("rows.jsonl")).unwrap();
    assert_eq!(manifest.provenance.sources[0].digest, Digest::of(&source));
    assert_eq!(manifest.provenance.description, bench.config.description);
    let folder = bench.store_dir().join(paths::dataset("topics", &digest));
    let report = fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(report.contains("<p>What was asked &amp; answered</p>"));
    assert_eq!(manifest.files.len(), 5);
    let record = bench.version(1).unwrap();
    assert_eq!(record.digest, digest);
    assert_eq!(
        record.provenance_digest,
        Digest::of_json(&manifest.provenance).unwrap()
    );
    assert_eq!(record.rejected[0].line, 201);
    assert_eq!(record.rejected[0].rule, "prompt is not a string");
    let done: BuildRecord = bench
        .store()
        .get_json(&paths::dataset_build("topics", &bench.config.fingerprint))
        .unwrap()
        .unwrap();
    assert_eq!((done.version, done.digest), (1, digest));
}

#[test]
fn the_same_rows_in_another_order_or_in_two_sources_are_the_same_version() {
    let mut bench = Bench::new(Format::Completion);
    bench.source("rows", &completions(0..100));
    let (_, first) = bench.build();

    bench.fingerprint("reversed");
    let text = completions(0..60);
    let reversed: Vec<&str> = text.lines().rev().collect();
    bench.source("rows", &reversed.join("\r\n"));
    bench.source("more", &completions(60..100));
    let (code, second) = bench.build();
    assert_eq!(
        (code, second.version, &second.digest),
        (0, Some(1), &first.digest)
    );
    assert_eq!(bench.version(2), None);
    let record = paths::dataset_build("topics", &bench.config.fingerprint);
    assert!(bench.store().get(&record).unwrap().is_some());

    bench.fingerprint("changed");
    bench.source("more", &completions(60..101));
    let (_, third) = bench.build();
    assert_eq!(third.version, Some(2));
    assert_ne!(third.digest, first.digest);
    let manifest = rows::manifest(&bench.store(), "topics", &third.digest.unwrap()).unwrap();
    assert_eq!(manifest.provenance.parent, Some(1));

    bench.fingerprint("back");
    bench.source("more", &completions(60..100));
    let (_, fourth) = bench.build();
    assert_eq!((fourth.version, &fourth.digest), (Some(3), &first.digest));
}

#[test]
fn rows_of_a_group_stay_together_and_another_seed_is_another_version() {
    let mut bench = Bench::new(Format::Text);
    bench.config.split.group_column = Some("id".into());
    bench.config.split.train_percent = 50;
    bench.config.split.test_percent = 40;
    let text = (0..300).fold(String::new(), |text, n| {
        text + &format!("{{\"text\": \"t{n}\", \"id\": {}}}\n", n % 30)
    });
    bench.source("rows", &text);
    let (_, first) = bench.build();
    let digest = first.digest.unwrap();
    for split in Split::ALL {
        for row in bench.rows(&digest, split) {
            let Row::Text { text } = row else {
                panic!("another format");
            };
            let id = text[1..].parse::<u32>().unwrap() % 30;
            assert_eq!(bench.config.split.split_of(id.to_string()), split);
        }
    }
    bench.fingerprint("seed");
    bench.config.split.seed = 8;
    let (_, second) = bench.build();
    assert_ne!(second.digest.unwrap(), digest);
}

/// Rows that every format can read, with two columns to group by.
fn any_format(numbers: std::ops::Range<u32>) -> String {
    numbers.fold(String::new(), |text, n| {
        let messages = format!(r#"[{{"role": "assistant", "content": "{n}"}}]"#);
        text + &format!(
            "{{\"text\": \"{n}\", \"prompt\": \"{n}\", \"completion\": \"{n}\", \
             \"messages\": {messages}, \"id\": {n}, \"kind\": \"k{n}\"}}\n"
        )
    })
}

#[test]
fn the_schema_hash_changes_with_the_schema_and_with_nothing_else() {
    let build = |format, group_column: Option<&str>, rows: u32, seed| {
        let mut bench = Bench::new(format);
        bench.config.split.group_column = group_column.map(str::to_owned);
        bench.config.split.seed = seed;
        bench.source("rows", &any_format(0..rows));
        let (code, summary) = bench.build();
        assert_eq!(code, 0, "{summary:?}");
        let record = bench.version(1).unwrap();
        let manifest = rows::manifest(&bench.store(), "topics", &record.digest).unwrap();
        assert_eq!(manifest.schema_hash, record.schema_hash);
        (
            rows::schema(format, rows::Beside::grouped(group_column)),
            record.schema_hash,
            record.digest,
        )
    };
    let built = [
        build(Format::Text, None, 20, 7),
        // Other rows, another seed, a group column that is one of the format's: the same columns.
        build(Format::Text, None, 30, 7),
        build(Format::Text, None, 20, 8),
        build(Format::Text, Some("text"), 20, 7),
        build(Format::Text, Some("id"), 20, 7),
        build(Format::Text, Some("kind"), 20, 7),
        build(Format::Completion, None, 20, 7),
        build(Format::Completion, Some("id"), 20, 7),
        build(Format::Chat, None, 20, 7),
    ];
    for (index, one) in built.iter().enumerate() {
        for (other_index, other) in built.iter().enumerate() {
            assert_eq!(one.1 == other.1, one.0 == other.0, "{index} {other_index}");
        }
    }
    let hashes: std::collections::BTreeSet<&str> =
        built.iter().map(|(_, hash, _)| hash.as_str()).collect();
    assert_eq!(hashes.len(), 6);
    assert_ne!(built[0].2, built[1].2, "other rows are another version");
}

#[test]
fn the_size_of_a_version_is_that_of_its_files() {
    let mut bench = Bench::new(Format::Completion);
    let mut sizes = Vec::new();
    for (number, rows) in [(1, 50), (2, 500)] {
        bench.fingerprint(&rows.to_string());
        bench.source("rows", &completions(0..rows));
        assert_eq!(bench.build().0, 0);
        let record = bench.version(number).unwrap();
        let manifest = rows::manifest(&bench.store(), "topics", &record.digest).unwrap();
        let folder = bench
            .store_dir()
            .join(paths::dataset("topics", &record.digest));
        let bytes: u64 = fs::read_dir(folder)
            .unwrap()
            .map(Result::unwrap)
            .filter(|entry| entry.file_name() != "manifest.json")
            .map(|entry| entry.metadata().unwrap().len())
            .sum();
        assert_eq!(record.size_bytes, bytes);
        assert_eq!(manifest.size_bytes, bytes);
        sizes.push(bytes);
    }
    assert!(sizes[0] < sizes[1], "{sizes:?}");
}
