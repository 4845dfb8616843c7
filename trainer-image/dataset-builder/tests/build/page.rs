//! The report as people see it: in a browser, where there is one.

use graftwork_contract::dataset::Balance;

use super::*;

/// What opens the report.
const VIEWER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../e2e/clients/report.py");
/// Its exit code where there is no browser.
const LACKING: i32 = 3;

#[test]
fn a_browser_shows_the_report_asks_for_nothing_and_finds_every_chart_titled() {
    let mut bench = Bench::new(Format::Completion);
    let rows = (0..200).fold(String::new(), |rows, n| {
        let class = ["<script>alert(1)</script>", "\\\" onload=x", "plain"][n % 3];
        rows + &format!(
            "{{\"prompt\": \"What does ann{n}@example.com want to know today?\", \"completion\": \"an answer {n}\", \"class\": \"{class}\"}}\n"
        )
    });
    bench.source(
        "rows",
        &(rows + "{\"prompt\": null}\n{\"completion\": \"x\"}\nno row\n"),
    );
    bench.privacy(PrivacyMode::Redact, &["prompt"]);
    bench.config.balance = Some(Balance {
        column: "class".into(),
        maximum_upsample: 2,
    });
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let digest = summary.digest.unwrap();
    let folder = bench.store_dir().join(paths::dataset("topics", &digest));

    let logs =
        std::env::var("GRAFTWORK_LOGS").unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").into());
    fs::create_dir_all(&logs).unwrap();
    let picture = Path::new(&logs).join("dataset-report.png");
    let output = Command::new("python3")
        .arg(VIEWER)
        .args([&folder.join("report.html"), &picture])
        .output();
    let Ok(output) = output else {
        super::postgres::skipped("python3");
        return;
    };
    if output.status.code() == Some(LACKING) {
        super::postgres::skipped("Chromium");
        return;
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let titles = String::from_utf8_lossy(&output.stdout);
    for title in [
        "Characters by column",
        "Findings by type",
        "Rows by characters",
        "Rows by class",
        "Rows left out, by column",
    ] {
        assert!(titles.contains(title), "{title}: {titles}");
    }
    assert!(fs::metadata(&picture).unwrap().len() > 1000);
    println!("the report, as a browser shows it: {}", picture.display());
}
