//! Duplicates, splits and balance.

use std::collections::BTreeSet;

use graftwork_contract::dataset::Balance;

use super::*;

/// Rows of text with a class and a day, and for each tenth one that is the same but for its case.
fn diary(days: u32) -> Vec<String> {
    (0..days)
        .flat_map(|day| {
            let class = if day % 10 == 0 { "rare" } else { "common" };
            let row = |text: &str| {
                let seconds = day * 86_400;
                format!("{{\"text\": \"{text}\", \"class\": \"{class}\", \"day\": {seconds}}}")
            };
            let text = format!(
                "entry {day} of {}",
                u64::from(day).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            );
            let again = (day % 10 == 0).then(|| row(&text.to_uppercase()));
            std::iter::once(row(&text)).chain(again)
        })
        .collect()
}

fn built(bench: &Bench) -> VersionRecord {
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    bench.version(summary.version.unwrap()).unwrap()
}

/// The texts of a split, each as `part` takes it.
fn texts(bench: &Bench, digest: &Digest, split: Split, part: fn(&str) -> String) -> Vec<String> {
    let rows = bench.rows(digest, split).into_iter();
    rows.map(|row| match row {
        Row::Text { text } => part(&text),
        _ => panic!("another format"),
    })
    .collect()
}

#[test]
fn near_duplicates_across_splits_are_counted_where_they_stay() {
    let mut bench = Bench::new(Format::Text);
    let rows = (0..120_u32).fold(String::new(), |rows, n| {
        let hash = Digest::of(&(n / 2).to_be_bytes());
        let hash = hash.hex();
        // All but the last characters are the same: similar by 0.9 and more.
        rows + &format!(
            "{{\"text\": \"{hash} {0} {hash} {0} v{n}\"}}\n",
            hash.to_uppercase()
        )
    });
    bench.source("rows", &rows);
    let kept = built(&bench);
    assert_eq!((kept.leakage.validation, kept.leakage.test), (0, 0));
    bench.fingerprint("report");
    bench.config.validation.near_duplicates = NearDuplicates::Report;
    let (code, summary) = bench.build();
    assert_eq!(
        (code, summary.digest.as_ref()),
        (0, Some(&kept.digest)),
        "{summary:?}"
    );

    // The same rows are the same version; rows that were not built before tell it.
    bench.source("rows", &format!("{rows}{{\"text\": \"another one\"}}\n"));
    bench.fingerprint("more");
    let reported = built(&bench);
    let texts = |split| {
        texts(&bench, &reported.digest, split, |text| {
            text[..text.len().min(64)].to_owned()
        })
    };
    let trained: BTreeSet<String> = texts(Split::Train).into_iter().collect();
    let leaked = |split| {
        let texts = texts(split).into_iter();
        texts.filter(|text| trained.contains(text)).count() as u64
    };
    let expected = (leaked(Split::Validation), leaked(Split::Test));
    assert_eq!(
        (reported.leakage.validation, reported.leakage.test),
        expected
    );
    assert!(expected.0 + expected.1 > 5, "{expected:?}");
    assert_eq!(reported.rows.duplicates, 0);
}

#[test]
fn duplicates_across_splits_are_counted_and_go_where_the_spec_says_so() {
    let mut bench = Bench::new(Format::Text);
    bench.source("rows", &diary(200).join("\n"));
    let kept = built(&bench);
    assert_eq!(kept.rows.train + kept.rows.validation + kept.rows.test, 220);
    // Of the twenty that are there twice, those whose other one is trained on.
    let texts = |split| texts(&bench, &kept.digest, split, str::to_lowercase);
    let trained: BTreeSet<String> = texts(Split::Train).into_iter().collect();
    let leaked = |split| {
        let texts = texts(split).into_iter();
        texts.filter(|text| trained.contains(text)).count() as u64
    };
    let expected = (leaked(Split::Validation), leaked(Split::Test));
    assert_eq!((kept.leakage.validation, kept.leakage.test), expected);
    assert!(expected.0 + expected.1 > 0, "{kept:?}");

    bench.fingerprint("together");
    bench.config.validation.near_duplicates = NearDuplicates::Group;
    let together = built(&bench);
    assert_eq!(together.rows.duplicates, 0);
    assert_eq!(together.leakage.validation + together.leakage.test, 0);

    bench.fingerprint("dropped");
    bench.config.validation.near_duplicates = NearDuplicates::Keep;
    bench.config.validation.duplicates = Duplicates::Drop;
    let dropped = built(&bench);
    assert_eq!(dropped.rows.duplicates, 20);
    assert_eq!(dropped.leakage.validation + dropped.leakage.test, 0);

    bench.fingerprint("too few are left");
    bench.config.validation.minimum_rows = 201;
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (65, "DataError"));
    let words = "200 of 220 rows are valid and not one of 20 duplicates";
    assert!(summary.message.contains(words), "{}", summary.message);
}

#[test]
fn every_way_to_deal_gives_the_same_version_for_rows_in_another_order_and_in_other_sources() {
    for (near, method, column) in [
        (NearDuplicates::Drop, SplitMethod::Random, None),
        (NearDuplicates::Group, SplitMethod::Time, Some("day")),
        (NearDuplicates::Keep, SplitMethod::Time, Some("day")),
    ] {
        let mut bench = Bench::new(Format::Text);
        bench.config.validation.near_duplicates = near;
        bench.config.split.method = method;
        bench.config.split.time_column = column.map(str::to_owned);
        bench.config.balance = Some(Balance {
            column: "class".into(),
            maximum_upsample: 4,
        });
        let rows = diary(150);
        bench.source("rows", &rows.join("\n"));
        let first = built(&bench);
        bench.fingerprint("another order");
        let mut turned: Vec<&str> = rows.iter().map(String::as_str).rev().collect();
        turned.rotate_left(40);
        let (some, others) = turned.split_at(33);
        bench.source("rows", &some.join("\n"));
        bench.source("more", &others.join("\n"));
        let second = built(&bench);
        assert_eq!((first.version, second.version), (1, 1), "{method:?}");
        assert_eq!(first.digest, second.digest);
    }
}

#[test]
fn a_split_by_time_keeps_later_rows_out_of_train() {
    let mut bench = Bench::new(Format::Text);
    bench.config.split.method = SplitMethod::Time;
    bench.config.split.time_column = Some("day".into());
    let rows: Vec<String> = diary(101)
        .into_iter()
        .filter(|row| !row.contains("ENTRY"))
        .collect();
    bench.source("rows", &rows.join("\n"));
    let digest = built(&bench).digest;
    let days = |split: Split| -> Vec<u32> {
        let rows = bench.rows(&digest, split).into_iter();
        let day = |row| match row {
            Row::Text { text } => text.split(' ').nth(1).unwrap().parse().unwrap(),
            _ => panic!("another format"),
        };
        rows.map(day).collect()
    };
    let [train, validation, test] = Split::ALL.map(days);
    assert!(train.iter().max() < validation.iter().min());
    assert!(validation.iter().max() < test.iter().min());

    let mut bench = Bench::new(Format::Text);
    bench.config.split.method = SplitMethod::Time;
    bench.config.split.time_column = Some("day".into());
    bench.source("rows", "{\"text\": \"a\", \"day\": \"SECRET\"}");
    let (code, summary) = bench.build();
    assert_eq!(code, 65);
    let rule = "spec.split.column: day is not a time (RFC 3339, a date, or seconds since 1970)";
    assert_eq!(summary.rejected[0].rule, rule);
    assert!(!format!("{summary:?}").contains("SECRET"));
}

#[test]
fn rare_classes_are_repeated_in_train_alone() {
    let mut bench = Bench::new(Format::Text);
    bench.config.split.method = SplitMethod::Random;
    bench.source("rows", &diary(200).join("\n"));
    let plain = built(&bench);
    bench.fingerprint("balanced");
    bench.config.balance = Some(Balance {
        column: "class".into(),
        maximum_upsample: 3,
    });
    let balanced = built(&bench);
    assert!(balanced.rows.train > plain.rows.train);
    for split in [Split::Validation, Split::Test] {
        assert_eq!(
            bench.rows(&balanced.digest, split),
            bench.rows(&plain.digest, split)
        );
    }
}

#[test]
fn numbers_and_a_report_lie_beside_the_rows_and_hold_no_text_of_them() {
    let mut bench = Bench::new(Format::Text);
    let rows = format!(
        "{}\n{{\"text\": 1, \"class\": \"x\", \"day\": 1}}",
        diary(200).join("\n")
    );
    bench.source("rows", &rows);
    bench.config.balance = Some(Balance {
        column: "class".into(),
        maximum_upsample: 3,
    });
    let record = built(&bench);
    let folder = bench
        .store_dir()
        .join(paths::dataset("topics", &record.digest));
    let json = fs::read_to_string(folder.join("statistics.json")).unwrap();
    let numbers: serde_json::Value = serde_json::from_str(&json).unwrap();
    let train = &numbers["splits"]["train"];
    assert_eq!(train["rows"], record.rows.train);
    assert_eq!(numbers["rejectedByRule"][0]["rule"], "text is not a string");
    assert_eq!(numbers["leakage"]["test"], record.leakage.test);
    let sum = |counts: &serde_json::Value| -> u64 {
        let counts = counts.as_object().unwrap();
        counts.values().map(|count| count.as_u64().unwrap()).sum()
    };
    assert_eq!(sum(&train["rowsByCharactersBelow"]), record.rows.train);
    assert_eq!(sum(&train["rowsByClass"]), record.rows.train);
    let html = fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(html.contains("<svg") && html.contains("text is not a string"));
    for text in [json, html] {
        assert!(!text.contains("entry") && !text.contains("ENTRY"), "{text}");
    }
}

#[test]
fn rewards_stand_beside_the_rows_that_they_belong_to() {
    let mut bench = Bench::new(Format::Completion);
    let lines: String = (0..50)
        .map(|n| {
            let row =
                serde_json::json!({"prompt": format!("row {n}"), "completion": "a", "reward": n});
            format!("{row}\n")
        })
        .collect();
    bench.source(
        "rows",
        &format!("{lines}{{\"prompt\": \"x\", \"completion\": \"a\"}}\n"),
    );
    let without = built(&bench);
    bench.config.reward = true;
    bench.fingerprint("second");
    let record = built(&bench);
    assert_eq!(without.rows.rejected, 0);
    assert_eq!(record.rows.rejected, 1, "one has no reward");
    assert_ne!(record.schema_hash, without.schema_hash);
    let mut seen = 0;
    for split in Split::ALL {
        let rewards = rows::rewards(&bench.store(), "topics", &record.digest, split).unwrap();
        let rows = bench.rows(&record.digest, split);
        assert_eq!(rewards.len(), rows.len());
        for (row, reward) in rows.iter().zip(&rewards) {
            let Row::Completion { prompt, .. } = row else {
                panic!("{row:?}")
            };
            assert_eq!(*prompt, format!("row {reward}"));
            seen += 1;
        }
    }
    assert_eq!(seen, 50);
    let none = rows::rewards(&bench.store(), "topics", &without.digest, Split::Train).unwrap();
    assert!(none.is_empty());
}
