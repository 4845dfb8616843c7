//! Rows that SQL makes of the sources: what it may do, what it may not, and that its outcome is the same
//! whatever order, memory and machine.

use graftwork_contract::dataset::{BaseModel, Share, Transform};
use graftwork_model::fixture::{TinyShape, write_tiny_base};
use graftwork_model::tokenizer::TextTokenizer;

use super::*;

pub(super) fn sql(bench: &mut Bench, text: &str) {
    bench.config.transform = Some(Transform {
        sql: text.to_owned(),
        pseudonym_key: false,
        now: None,
    });
}

/// Claims with a category by its code, and the codes' titles.
fn claims() -> Bench {
    let mut bench = Bench::new(Format::Completion);
    let claims = (0..60).fold(String::new(), |text, n| {
        let (code, cents) = (n % 3, n * 25);
        text + &format!(
            "{{\"claim\": \"claim {n} of p{n}@example.com\", \"code\": {code}, \"amount\": {cents}.5, \"tags\": [\"t{n}\"]}}\n"
        )
    });
    bench.source("claims", &claims);
    bench.source("categories", "code,title\n0,meals\n1,travel\n2,other\n");
    bench
}

/// The texts of all rows of a version, in order.
fn pairs(bench: &Bench, digest: &Digest) -> Vec<(String, String)> {
    let rows = Split::ALL
        .iter()
        .flat_map(|split| bench.rows(digest, *split));
    let mut pairs: Vec<(String, String)> = rows
        .map(|row| match row {
            Row::Completion { prompt, completion } => (prompt, completion),
            Row::Text { text } => (text, String::new()),
            _ => panic!("another format"),
        })
        .collect();
    pairs.sort();
    pairs
}

/// Builds SQL that is good: the rows.
fn built(bench: &mut Bench, text: &str) -> Vec<(String, String)> {
    bench.fingerprint(text);
    sql(bench, text);
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{text}: {summary:?}");
    pairs(bench, &summary.digest.unwrap())
}

#[test]
fn sources_are_joined_filtered_and_counted_and_the_sql_is_in_the_manifest() {
    let mut bench = claims();
    let text = "SELECT redact(c.claim) AS prompt, k.title AS completion, c.code \
                FROM claims c JOIN categories k ON k.code = CAST(c.code AS VARCHAR) \
                WHERE c.amount > 100";
    bench.config.split.group_column = Some("code".into());
    let rows = built(&mut bench, text);
    assert_eq!(rows.len(), 56);
    assert_eq!(
        rows[0],
        ("claim 10 of [EMAIL]".to_owned(), "travel".to_owned())
    );
    let record = bench.version(1).unwrap();
    let manifest = rows::manifest(&bench.store(), "topics", &record.digest).unwrap();
    let transform = manifest.provenance.transform.unwrap();
    assert_eq!(transform.text, text);
    assert_eq!(transform.digest, Digest::of(text.as_bytes()));
    let names: Vec<&str> = manifest
        .provenance
        .sources
        .iter()
        .map(|source| source.name.as_str())
        .collect();
    assert_eq!(names, ["claims", "categories"]);

    bench.config.split.group_column = None;
    let sums = built(
        &mut bench,
        "SELECT title AS prompt, CAST(count(*) AS VARCHAR) || ' ' || CAST(sum(amount) AS VARCHAR) AS completion \
         FROM claims JOIN categories ON categories.code = CAST(claims.code AS VARCHAR) GROUP BY title ORDER BY title",
    );
    let expected = [
        ("meals", "20 14260.0"),
        ("other", "20 15260.0"),
        ("travel", "20 14760.0"),
    ]
    .map(|(title, sum)| (title.to_owned(), sum.to_owned()));
    assert_eq!(sums, expected);
}

#[test]
fn the_order_in_which_rows_arrive_decides_nothing() {
    // What a LIMIT keeps, which row is first and how fractions are summed depend on the order of a table.
    let text = "SELECT claim AS prompt, CAST(sum(amount * 0.1) OVER () AS VARCHAR) AS completion \
                FROM (SELECT * FROM claims LIMIT 17) a";
    let mut bench = claims();
    let first = built(&mut bench, text);
    assert_eq!(first.len(), 17);
    let path = bench.dir.path().join("claims.jsonl");
    let lines = fs::read_to_string(&path).unwrap();
    let reversed: Vec<&str> = lines.lines().rev().collect();
    bench.source("claims", &reversed.join("\n"));
    bench.fingerprint("reversed");
    let (code, summary) = bench.build();
    assert_eq!((code, summary.version), (0, Some(1)), "{summary:?}");
    assert_eq!(pairs(&bench, &summary.digest.unwrap()), first);
}

#[test]
fn functions_of_our_own_do_what_the_build_does() {
    let mut bench = claims();
    let folder = bench.dir.path().join("base");
    write_tiny_base(&folder, &TinyShape::default(), 1).unwrap();
    bench.config.base_model = Some(BaseModel {
        uri: "pvc://models/tiny".into(),
        path: folder.to_str().unwrap().into(),
    });
    let rows = built(
        &mut bench,
        "SELECT claim AS prompt, sha256_hex(claim) || ' ' || CAST(token_count(claim) AS VARCHAR) AS completion FROM claims",
    );
    let tokenizer = TextTokenizer::load(&folder).unwrap();
    for (claim, answer) in rows {
        let tokens = tokenizer.encode(&claim, false).unwrap().len();
        let hash = Digest::of(claim.as_bytes());
        assert_eq!(answer, format!("{} {tokens}", hash.hex()));
    }

    bench.key("a key of more than sixteen bytes");
    let text = "SELECT pseudonymise(claim) AS prompt, coalesce(redact(NULL), 'null') AS completion FROM claims";
    sql(&mut bench, text);
    bench.fingerprint(text);
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (64, "QueryFailed"));
    assert!(
        summary.message.contains("spec.privacy.pseudonymKeyRef"),
        "{summary:?}"
    );
    bench.config.transform.as_mut().unwrap().pseudonym_key = true;
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    for (prompt, completion) in pairs(&bench, &summary.digest.unwrap()) {
        assert!(
            prompt.contains("[EMAIL-") && !prompt.contains('@'),
            "{prompt}"
        );
        assert_eq!(completion, "null");
    }
}

#[test]
fn now_is_one_time_that_the_manifest_names() {
    let mut bench = claims();
    let rows = built(
        &mut bench,
        "SELECT claim AS prompt, CAST(now() AS VARCHAR) || ' ' || CAST(current_timestamp = now() AS VARCHAR) AS completion FROM claims",
    );
    let record = bench.version(1).unwrap();
    let manifest = rows::manifest(&bench.store(), "topics", &record.digest).unwrap();
    let now = manifest.provenance.transform.unwrap().now;
    let expected = format!("{} true", now.trim_end_matches('Z'));
    for (_, time) in rows {
        assert_eq!(time, expected);
    }
}

#[test]
fn now_is_the_time_of_the_decision_in_every_attempt() {
    let mut bench = claims();
    let text = "SELECT claim AS prompt, CAST(now() AS VARCHAR) AS completion FROM claims";
    let mut digests = Vec::new();
    for attempt in ["first", "second"] {
        sql(&mut bench, text);
        bench.config.transform.as_mut().unwrap().now = Some("2026-11-20T01:00:00Z".to_owned());
        bench.fingerprint(attempt);
        let (code, summary) = bench.build();
        assert_eq!(code, 0, "{summary:?}");
        digests.push(summary.digest.unwrap());
    }
    assert_eq!(digests[0], digests[1]);
    for (_, time) in pairs(&bench, &digests[0]) {
        assert_eq!(time, "2026-11-20T01:00:00");
    }
}

#[test]
fn nested_values_go_through_and_conversations_are_rows() {
    let mut bench = Bench::new(Format::Chat);
    bench.source(
        "talks",
        &(0..20).fold(String::new(), |text, n| {
            text + &format!(
                "{{\"messages\": [{{\"role\": \"user\", \"content\": \"q{n}\"}}, {{\"role\": \"assistant\", \"content\": \"a{n}\"}}], \"stars\": {}}}\n",
                n % 5
            )
        }),
    );
    sql(&mut bench, "SELECT messages FROM talks WHERE stars >= 3");
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    assert_eq!(
        summary.rows.unwrap().train + summary.rows.unwrap().test + summary.rows.unwrap().validation,
        8
    );
}

#[test]
fn bad_lines_of_sources_and_bad_rows_of_the_result_are_named() {
    let mut bench = claims();
    let path = bench.dir.path().join("claims.jsonl");
    let lines = fs::read_to_string(&path).unwrap();
    bench.source("claims", &format!("{lines}no JSON\n"));
    bench.config.validation.maximum_invalid_percent = "50".into();
    let rows = built(
        &mut bench,
        "SELECT claim AS prompt, CASE WHEN code = 0 THEN '' ELSE 'x' END AS completion FROM claims",
    );
    assert_eq!(rows.len(), 40);
    let record = bench.version(1).unwrap();
    assert_eq!(record.rows.rejected, 21);
    let named: Vec<(&str, u64)> = record
        .rejected
        .iter()
        .map(|row| (row.source.as_str(), row.line))
        .collect();
    assert_eq!(named[0], ("claims", 61));
    assert_eq!(named[1].0, "transform");
    assert_eq!(record.rejected[1].rule, "completion is empty");
}

#[test]
fn a_sources_share_is_taken_of_its_rows_before_the_sql() {
    let mut bench = claims();
    bench.config.sources[0].share = Some(Share { part: 1, whole: 2 });
    let rows = built(
        &mut bench,
        "SELECT claim AS prompt, 'x' AS completion FROM claims",
    );
    let record = bench.version(1).unwrap();
    assert!((15..45).contains(&rows.len()), "{}", rows.len());
    assert_eq!(record.rows.beyond_weight, 60 - rows.len() as u64);
}

#[test]
fn sql_that_can_not_be_used_is_refused_by_name_and_place() {
    for (text, words) in [
        (
            "SELECT claim AS prompt FROM claims WHERE )",
            vec!["line 1, column 42"],
        ),
        (
            "SELECT claim AS prompt,\n       titel AS completion FROM claims",
            vec![
                "there is no column titel",
                "line 2, column 8",
                "claims.claim",
            ],
        ),
        (
            "SELECT clam AS prompt, 'x' AS completion FROM claims",
            vec!["did you mean claim?", "line 1, column 8"],
        ),
        (
            "SELECT claim AS prompt, 'x' AS completion FROM claim",
            vec![
                "there is no source claim",
                "did you mean claims?",
                "categories",
            ],
        ),
        (
            "SELECT redct(claim) AS prompt, 'x' AS completion FROM claims",
            vec!["redct", "redact"],
        ),
        (
            "SELECT claim AS prompt FROM claims",
            vec!["returns no column completion", "it returns prompt"],
        ),
        (
            "SELECT claim AS prompt, claim AS completion, code AS prompt FROM claims",
            vec!["prompt"],
        ),
        (
            "SELECT claim AS prompt, CAST(random() AS VARCHAR) AS completion FROM claims",
            vec!["random()", "another one each time"],
        ),
        (
            "SELECT claim AS prompt, 'x' AS completion FROM claims WHERE code IN (SELECT CAST(random() AS BIGINT))",
            vec!["random()"],
        ),
        (
            "SELECT uuid() AS prompt, claim AS completion FROM claims",
            vec!["uuid()"],
        ),
        (
            "SELECT claim AS prompt, CAST(token_count(claim) AS VARCHAR) AS completion FROM claims",
            vec!["spec.baseModel"],
        ),
        ("", vec!["no statement"]),
        ("SELECT 1; SELECT 2", vec!["several statements"]),
        ("CREATE TABLE x AS SELECT * FROM claims", vec!["no SELECT"]),
        (
            "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
            vec!["no SELECT"],
        ),
        ("COPY claims TO '/tmp/out.csv'", vec!["no SELECT"]),
        ("INSERT INTO claims VALUES (1)", vec!["no SELECT"]),
        ("SET datafusion.execution.batch_size = 1", vec!["no SELECT"]),
        ("EXPLAIN SELECT * FROM claims", vec!["no SELECT"]),
        ("DROP TABLE claims", vec!["no SELECT"]),
        (
            "SELECT column_1 AS prompt, 'x' AS completion FROM '/etc/passwd'",
            vec!["there is no source"],
        ),
        (
            "SELECT prompt, completion FROM 'https://example.com/rows.csv'",
            vec!["there is no source"],
        ),
        (
            "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT 'a' AS prompt, 'b' AS completion FROM n",
            vec!["ecursive"],
        ),
    ] {
        refused(text, &words);
    }
}

#[test]
fn tables_out_of_nothing_are_refused() {
    for (text, words) in [
        (
            "SELECT 'a' AS prompt, CAST(value AS VARCHAR) AS completion FROM generate_series(1, 9000000000000)",
            "generate_series",
        ),
        (
            "SELECT claim AS prompt, CAST(value AS VARCHAR) AS completion FROM claims, range(9000000000000)",
            "range",
        ),
    ] {
        refused(text, &[words]);
    }
}

/// That the claims can't be asked so, for a reason in these words.
fn refused(text: &str, words: &[&str]) {
    let mut bench = claims();
    sql(&mut bench, text);
    let (code, summary) = bench.build();
    assert_eq!(
        (code, summary.reason.as_str()),
        (64, "QueryFailed"),
        "{text}: {summary:?}"
    );
    assert!(summary.message.starts_with("spec.transform"), "{summary:?}");
    for word in words {
        assert!(
            summary.message.contains(word),
            "{word}: {}",
            summary.message
        );
    }
    assert_eq!(bench.version(1), None);
    let left = fs::read_dir(bench.scratch_dir()).unwrap().count();
    assert_eq!(left, 0, "{text} left files on the scratch volume");
}

#[test]
fn a_row_that_breaks_the_query_is_bad_data_and_is_not_quoted() {
    for (text, words) in [
        (
            "SELECT claim AS prompt, CAST(CAST(claim AS BIGINT) AS VARCHAR) AS completion FROM claims",
            "CAST to Int64",
        ),
        (
            "SELECT claim AS prompt, CAST(1 / code AS VARCHAR) AS completion FROM claims",
            "divides by zero",
        ),
    ] {
        let mut bench = claims();
        sql(&mut bench, text);
        let (code, summary) = bench.build();
        assert_eq!(
            (code, summary.reason.as_str()),
            (65, "DataError"),
            "{summary:?}"
        );
        assert!(summary.message.contains(words), "{summary:?}");
        assert!(!summary.message.contains("example.com"), "{summary:?}");
    }
}

#[test]
fn fractions_that_would_lose_digits_end_the_build_where_the_query_asks_for_them() {
    let mut bench = claims();
    let rows = (0..60).fold(String::new(), |text, n| {
        let amount = match n {
            // 2^53 + 1, and what the others hold.
            41 | 50 => "9007199254740993".to_owned(),
            _ => format!("{n}.5"),
        };
        text + &format!("{{\"claim\": \"claim {n}\", \"code\": {n}, \"amount\": {amount}}}\n")
    });
    bench.source("claims", &rows);
    let others = "SELECT claim AS prompt, CAST(code AS VARCHAR) AS completion FROM claims";
    assert_eq!(built(&mut bench, others).len(), 60);
    for text in [
        "SELECT claim AS prompt, CAST(amount AS VARCHAR) AS completion FROM claims",
        "SELECT claim AS prompt, 'x' AS completion FROM claims WHERE amount > 1",
        "SELECT a.claim AS prompt, 'x' AS completion FROM (SELECT * FROM claims) a ORDER BY a.amount LIMIT 9",
    ] {
        bench.fingerprint(text);
        sql(&mut bench, text);
        let (code, summary) = bench.build();
        assert_eq!(
            (code, summary.reason.as_str()),
            (65, "DataError"),
            "{text}: {summary:?}"
        );
        for words in ["source claims line 42: column amount is DOUBLE", "DECIMAL"] {
            assert!(summary.message.contains(words), "{text}: {summary:?}");
        }
        assert!(!summary.message.contains("9007"), "{summary:?}");
    }
    // Whole numbers alone, and texts, keep every digit.
    let whole = rows.replace(".5", "");
    let texts = rows.replace("9007199254740993", "\"9007199254740993\"");
    for (name, rows) in [("whole", whole), ("texts", texts)] {
        bench.source("claims", &rows);
        let text = format!(
            "SELECT claim AS prompt, CAST(CAST(amount AS DECIMAL(38, 4)) AS VARCHAR) AS completion FROM claims /* {name} */"
        );
        let pairs = built(&mut bench, &text);
        let expected = "9007199254740993.0000".to_owned();
        assert!(
            pairs.contains(&("claim 41".to_owned(), expected)),
            "{pairs:?}"
        );
    }
}

#[test]
fn a_source_without_rows_is_bad_data_and_not_wrong_sql() {
    let mut bench = claims();
    bench.source("claims", "");
    sql(
        &mut bench,
        "SELECT claim AS prompt, 'x' AS completion FROM claims",
    );
    let (code, summary) = bench.build();
    assert_eq!(
        (code, summary.reason.as_str()),
        (65, "DataError"),
        "{summary:?}"
    );
    assert!(
        summary.message.contains("source claims has no rows"),
        "{summary:?}"
    );
}

#[test]
fn a_column_that_changes_its_type_overnight_ends_the_build_and_one_that_holds_less_keeps_it() {
    let mut bench = claims();
    let text = "SELECT claim AS prompt, CAST(amount AS VARCHAR) AS completion FROM claims";
    built(&mut bench, text);
    let path = bench.dir.path().join("claims.jsonl");
    let lines = |amount: &dyn Fn(u32) -> String| {
        (0..30).fold(String::new(), |lines, n| {
            let amount = amount(n);
            lines + &format!("{{\"claim\": \"night {n}\", \"code\": 1, \"amount\": {amount}}}\n")
        })
    };
    // Whole numbers alone would be BIGINT, and read otherwise.
    fs::write(&path, lines(&|n| n.to_string())).unwrap();
    bench.fingerprint("whole");
    let (code, summary) = bench.build();
    assert_eq!((code, summary.version), (0, Some(2)), "{summary:?}");
    for (prompt, amount) in pairs(&bench, &summary.digest.unwrap()) {
        assert!(amount.ends_with(".0"), "{prompt}: {amount}");
    }

    // Nor is it gone where no row has it, or there is none.
    fs::write(&path, "{\"claim\": \"night 0\", \"code\": 1}\n").unwrap();
    bench.fingerprint("without it");
    let (code, summary) = bench.build();
    assert_eq!(code, 65, "{summary:?}");
    assert!(!summary.message.contains("no column"), "{summary:?}");
    fs::write(&path, "").unwrap();
    bench.fingerprint("without rows");
    let (code, summary) = bench.build();
    assert_eq!(code, 65, "{summary:?}");
    assert!(!summary.message.contains("no columns"), "{summary:?}");

    let before = bench.version(2).unwrap();
    fs::write(&path, lines(&|n| format!("\"{n} EUR\""))).unwrap();
    bench.fingerprint("texts");
    let (code, summary) = bench.build();
    assert_eq!(
        (code, summary.reason.as_str()),
        (65, "DataError"),
        "{summary:?}"
    );
    let words = "source claims: column amount was DOUBLE in version 2 and is TEXT";
    assert!(summary.message.contains(words), "{summary:?}");
    assert_eq!(bench.version(3), None);
    assert_eq!(bench.version(2), Some(before));
    bench.config.description = Some("Amounts with their currency".to_owned());
    let (code, summary) = bench.build();
    assert_eq!((code, summary.version), (0, Some(3)), "{summary:?}");
}

#[test]
fn a_type_is_pinned_under_a_changed_spec_too_whose_rows_are_those_of_the_version_before() {
    let mut bench = claims();
    let text = "SELECT claim AS prompt, CAST(amount AS VARCHAR) AS completion FROM claims";
    built(&mut bench, text);
    bench.config.description = Some("The same claims in other words".to_owned());
    bench.fingerprint("described");
    let (code, summary) = bench.build();
    assert_eq!((code, summary.version), (0, Some(1)), "{summary:?}");

    let lines = (0..30).fold(String::new(), |lines, n| {
        lines + &format!("{{\"claim\": \"night {n}\", \"code\": 1, \"amount\": \"{n} EUR\"}}\n")
    });
    fs::write(bench.dir.path().join("claims.jsonl"), lines).unwrap();
    bench.fingerprint("texts");
    let (code, summary) = bench.build();
    assert_eq!(code, 65, "{summary:?}");
    let words = "source claims: column amount was DOUBLE in version 1 and is TEXT";
    assert!(summary.message.contains(words), "{summary:?}");
}
