//! Rows measured in the base model's tokens, mixes of sources by weight, and lineage.

use std::collections::BTreeSet;

use graftwork_contract::dataset::{BaseModel, Share, TokenCounts};
use graftwork_model::fixture::{TinyShape, write_tiny_base};
use graftwork_model::tokenizer::TextTokenizer;
use serde_json::Value;

use super::*;

/// A bench whose rows are measured by a tiny base model: its folder.
pub(super) fn with_base(bench: &mut Bench) -> PathBuf {
    let folder = bench.dir.path().join("base");
    write_tiny_base(&folder, &TinyShape::default(), 1).unwrap();
    bench.config.base_model = Some(BaseModel {
        uri: "pvc://models/tiny".into(),
        path: folder.to_str().unwrap().into(),
    });
    folder
}

fn statistics(bench: &Bench, digest: &Digest) -> Value {
    let folder = bench.store_dir().join(paths::dataset("topics", digest));
    serde_json::from_slice(&fs::read(folder.join("statistics.json")).unwrap()).unwrap()
}

#[test]
fn rows_are_as_long_as_a_trainer_makes_them_and_long_ones_are_left_out_by_line() {
    let mut bench = Bench::new(Format::Completion);
    let folder = with_base(&mut bench);
    let long = "long ".repeat(100);
    let text = format!(
        "{}{{\"prompt\": \"{long}\", \"completion\": \"too {long}\"}}\n",
        completions(0..50)
    );
    bench.source("rows", &text);
    bench.config.validation.maximum_tokens_per_row = Some(100);
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let record = bench.version(1).unwrap();
    let rejected = &record.rejected[0];
    assert_eq!(
        (rejected.line, rejected.rule.as_str()),
        (51, "has more than 100 tokens")
    );

    let tokenizer = TextTokenizer::load(&folder).unwrap();
    let mut expected = TokenCounts::default();
    for split in Split::ALL {
        for row in bench.rows(&record.digest, split) {
            let Row::Completion { prompt, completion } = row else {
                panic!("another format")
            };
            let example = tokenizer.example_completion(&prompt, &completion).unwrap();
            let tokens = example.tokens.len() as u64;
            expected.longest_row = expected.longest_row.max(tokens);
            match split {
                Split::Train => expected.train += tokens,
                Split::Validation => expected.validation += tokens,
                Split::Test => expected.test += tokens,
            }
        }
    }
    assert!(expected.train > 0 && expected.longest_row <= 100);
    assert_eq!(record.tokens, Some(expected));
    let numbers = statistics(&bench, &record.digest);
    let train = &numbers["splits"]["train"];
    assert_eq!(train["tokens"], expected.train);
    let lengths = train["rowsByTokensBelow"].as_object().unwrap();
    let rows: u64 = lengths.values().filter_map(Value::as_u64).sum();
    assert_eq!(rows, record.rows.train);
    let manifest = rows::manifest(&bench.store(), "topics", &record.digest).unwrap();
    assert_eq!(
        manifest.provenance.tokenizer.unwrap().uri,
        "pvc://models/tiny"
    );

    // The length decides which rows are good, and nothing else: the digest is that of the rows.
    bench.fingerprint("without a model");
    bench.config.base_model = None;
    bench.config.validation.maximum_tokens_per_row = None;
    bench.source("rows", &completions(0..50));
    assert_eq!(bench.build().1.digest, Some(record.digest));
}

#[test]
fn the_longer_answer_of_a_preference_and_the_template_of_a_conversation_count() {
    let mut bench = Bench::new(Format::Preference);
    let folder = with_base(&mut bench);
    let tokenizer = TextTokenizer::load(&folder).unwrap();
    bench.source(
        "rows",
        r#"{"prompt": "a", "chosen": "b", "rejected": "cccccccc"}"#,
    );
    assert_eq!(bench.build().0, 0);
    let longer = tokenizer.example_completion("a", "cccccccc").unwrap();
    let longest =
        |bench: &Bench, number| bench.version(number).unwrap().tokens.unwrap().longest_row;
    assert_eq!(longest(&bench, 1), longer.tokens.len() as u64);

    bench.config.format = Format::Chat;
    bench.fingerprint("chat");
    bench.source(
        "rows",
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
    );
    assert_eq!(bench.build().0, 0);
    assert!(longest(&bench, 2) > 3, "the template's tokens count");
}

#[test]
fn a_model_that_is_not_there_or_can_not_be_used_is_named() {
    let mut bench = Bench::new(Format::Text);
    let folder = with_base(&mut bench);
    bench.source("rows", r#"{"text": "a"}"#);
    for (file, content, code, reason, words) in [
        (
            "tokenizer_config.json",
            Some("{}"),
            64,
            "BaseModelInvalid",
            "has no eos_token",
        ),
        (
            "tokenizer.json",
            Some("{"),
            64,
            "BaseModelInvalid",
            "tokenizer.json can't be used",
        ),
        (
            "tokenizer.json",
            None,
            65,
            "BaseModelNotFound",
            "tokenizer.json not found",
        ),
    ] {
        let path = folder.join(file);
        match content {
            Some(content) => fs::write(path, content).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        let (found, summary) = bench.build();
        assert_eq!(
            (found, summary.reason.as_str()),
            (code, reason),
            "{summary:?}"
        );
        for words in [words, "spec.baseModel (pvc://models/tiny)"] {
            assert!(summary.message.contains(words), "{}", summary.message);
        }
    }
    assert_eq!(bench.version(1), None);
}

/// Rows of a source whose texts begin with its name.
fn named(name: &str, count: u32) -> String {
    (0..count).fold(String::new(), |text, n| {
        text + &format!("{{\"text\": \"{name} {n}\"}}\n")
    })
}

/// Texts of a version that begin so.
fn texts(bench: &Bench, digest: &Digest, start: &str) -> BTreeSet<String> {
    let rows = Split::ALL.iter().flat_map(|it| bench.rows(digest, *it));
    let texts = rows.map(|row| match row {
        Row::Text { text } => text,
        _ => panic!("another format"),
    });
    texts.filter(|text| text.starts_with(start)).collect()
}

#[test]
fn a_source_with_less_weight_gives_its_share_of_rows_the_same_ones_in_any_order() {
    let mut bench = Bench::new(Format::Text);
    bench.source("all", &named("all", 300));
    bench.source("some", &format!("{}{{\"text\": 1}}\n", named("some", 400)));
    let mut built = |part: u64, reversed: bool| {
        bench.fingerprint(&format!("{part} {reversed}"));
        let share = Share { part, whole: 100 };
        for source in &mut bench.config.sources {
            source.share = (source.name == "some").then_some(share);
        }
        if reversed {
            bench.config.sources.reverse();
        }
        let (code, summary) = bench.build();
        assert_eq!(code, 0, "{summary:?}");
        let record = bench.version(summary.version.unwrap()).unwrap();
        let [all, some] = ["all", "some"].map(|start| texts(&bench, &record.digest, start));
        assert_eq!(all.len(), 300);
        assert_eq!(record.rows.beyond_weight, 400 - some.len() as u64);
        assert_eq!(record.rows.rejected, 1);
        (record, some)
    };
    let (quarter, few) = built(25, false);
    assert!((70..130).contains(&few.len()), "{}", few.len());
    let (half, more) = built(50, false);
    assert!(few.is_subset(&more) && more.len() > few.len());
    assert_eq!((quarter.parent, half.parent), (None, Some(1)));
    let (again, _) = built(25, true);
    assert_eq!(again.digest, quarter.digest);
    assert_eq!(
        (again.version, again.parent),
        (3, Some(2)),
        "what came before is older"
    );
}

#[test]
fn likely_languages_and_missing_values_stand_in_the_statistics() {
    let mut bench = Bench::new(Format::Text);
    let sentence = "The claim was approved because the receipt shows what was bought, when it was bought \
                    and how much was paid for it. The other one has to wait until somebody has found out.";
    let rows: String = (0..20)
        .map(|n| {
            // A column that no row keeps, and that rows have that are kept.
            let region = if n < 6 { "\"north\"" } else { "null" };
            format!("{{\"text\": \"{sentence} {n}\", \"region\": {region}}}\n")
        })
        .collect();
    bench.source("rows", &format!("{rows}{{\"text\": null}}\n"));
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let statistics = statistics(&bench, &summary.digest.unwrap());
    let english: u64 = ["train", "validation", "test"]
        .map(|split| {
            let languages = &statistics["splits"][split]["rowsByLanguage"];
            languages["eng"].as_u64().unwrap_or_default()
        })
        .iter()
        .sum();
    assert_eq!(english, 20);
    assert_eq!(statistics["nullsByColumn"]["text"], 1);
    let columns = &statistics["nullsBySourceColumn"]["rows"];
    assert_eq!(
        (&columns["text"], &columns["region"]),
        (&1.into(), &15.into())
    );
}
