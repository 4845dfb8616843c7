//! Rows of other formats.

use super::*;

#[test]
fn conversations_are_built_too() {
    let mut bench = Bench::new(Format::Chat);
    let row = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}"#;
    bench.config.split.train_percent = 100;
    bench.config.split.validation_percent = 0;
    bench.config.split.test_percent = 0;
    bench.source("rows", &format!("{row}\n{row}\n"));
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let rows = bench.rows(&summary.digest.unwrap(), Split::Train);
    assert_eq!(rows.len(), 2, "equal rows stay");
    assert!(matches!(&rows[0], Row::Chat { messages } if messages[1].content == "ho"));
}

#[test]
fn preferences_are_built_with_both_answers_and_columns_of_another_name() {
    let mut bench = Bench::new(Format::Preference);
    let text = (0..40).fold(String::new(), |text, n| {
        text + &format!(
            "{{\"question\": \"q{n}\", \"chosen\": \"c{n}\", \"rejected\": \"r{n}\"}}\n"
        )
    });
    bench.source("rows", &text);
    bench.config.sources[0].columns = [("prompt".into(), "question".into())].into();
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let digest = summary.digest.unwrap();
    let rows = Split::ALL
        .iter()
        .flat_map(|split| bench.rows(&digest, *split));
    let mut count = 0;
    for row in rows {
        let Row::Preference {
            prompt,
            chosen,
            rejected,
        } = row
        else {
            panic!("another format");
        };
        let number = &prompt[1..];
        assert_eq!(
            (chosen, rejected),
            (format!("c{number}"), format!("r{number}"))
        );
        count += 1;
    }
    assert_eq!(count, 40);
}
