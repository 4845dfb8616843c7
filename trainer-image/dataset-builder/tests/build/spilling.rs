//! Queries whose rows don't fit in memory: what can spills, what can't is named, and the digest is the same.

use graftwork_contract::dataset::Share;

use super::transform::sql;
use super::*;

/// 24 MB of rows in another order than that of their texts.
fn many() -> String {
    (0..80_000_u32).fold(String::new(), |text, n| {
        let hash = Digest::of(&n.to_be_bytes());
        let words = format!("{0} {0} {0} {0}", hash.hex());
        text + &format!("{{\"text\": \"{words}\", \"n\": {n}}}\n")
    })
}

/// Bytes of memory that hold none of these rows' sorts.
const LITTLE: u64 = 28 << 20;

/// Builds, and reads in the log how many files the query spilled.
fn built(bench: &Bench) -> (BuildSummary, u64) {
    let mut command = bench.command();
    let output = command
        .env("RUST_LOG", "info")
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    let summary = read_summary(&bench.summary_file());
    assert!(output.status.success(), "{summary:?}");
    let log = String::from_utf8(output.stdout).unwrap();
    let spilled = log.lines().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line["fields"]["spilled_files"].as_u64()
    });
    (
        summary,
        spilled.expect("the log has the files that were spilled"),
    )
}

#[test]
fn sorts_joins_and_groups_spill_and_end_with_the_same_rows() {
    let mut bench = Bench::new(Format::Text);
    bench.source("many", &many());
    for (index, text) in [
        "SELECT text || ' ' || CAST(row_number() OVER (ORDER BY text) AS VARCHAR) AS text FROM many",
        "SELECT a.text FROM many a JOIN many b ON a.n = b.n + 1 ORDER BY b.text",
        "SELECT text FROM many GROUP BY text",
    ]
    .into_iter()
    .enumerate()
    {
        sql(&mut bench, text);
        let [(whole, few), (spilled, many)] = [None, Some(LITTLE)].map(|memory| {
            bench.query_memory = memory;
            bench.fingerprint(&format!("{index} {memory:?}"));
            built(&bench)
        });
        // The sorts of a join share what every query has, and put a file or two aside even there.
        assert!(many > few, "{text}: {few} and {many} files");
        assert_eq!(whole.digest, spilled.digest, "{text}");
        let left = fs::read_dir(bench.scratch_dir()).unwrap().count();
        assert_eq!(left, 0, "{text} left files on the scratch volume");
    }
}

/// 26 MB of rows of 15,000 groups, each with four fractions whose sum follows from their order.
fn fractions() -> String {
    (0..60_000_u32).fold(String::new(), |text, n| {
        let hash = Digest::of(&(n % 15_000).to_be_bytes());
        let fraction = f64::from(n * 7919 % 80_021) / 7.0
            * 10_f64.powi(i32::try_from(n / 15_000).unwrap() * 3);
        let words = [hash.hex(); 6].join(" ");
        text + &format!("{{\"text\": \"{words}\", \"x\": {fraction}}}\n")
    })
}

#[test]
fn sums_of_fractions_ties_and_limits_are_the_same_whatever_the_machines_memory() {
    let mut bench = Bench::new(Format::Text);
    bench.source("fractions", &fractions());
    let sums = "SELECT text || ' ' || CAST(sum(x) AS VARCHAR) || ' ' || CAST(stddev(x) AS VARCHAR) AS text FROM fractions GROUP BY text LIMIT 9000";
    let ties =
        "SELECT text || ' ' || CAST(x AS VARCHAR) AS text FROM fractions ORDER BY text LIMIT 5001";
    let pairs = "SELECT a.text || ' ' || CAST(b.x AS VARCHAR) AS text FROM fractions a JOIN fractions b ON a.text = b.text LIMIT 9999";
    let little = Some(6 << 20);
    // As every build has it, and so little that the query spills: a small machine is like a large one. What the
    // first so many rows are is kept in memory.
    for (text, query_memory) in [(sums, None), (sums, little), (ties, None), (pairs, little)] {
        sql(&mut bench, text);
        bench.query_memory = query_memory;
        let digests = [None, Some(8 << 20)].map(|memory| {
            bench.memory = memory;
            bench.fingerprint(&format!("{text} {query_memory:?} {memory:?}"));
            built(&bench).0.digest
        });
        assert_eq!(digests[0], digests[1], "{text} {query_memory:?}");
    }
}

#[test]
fn an_operator_that_can_not_spill_is_named_with_its_limit() {
    let mut bench = Bench::new(Format::Text);
    bench.source("many", &many());
    bench.query_memory = Some(LITTLE / 2);
    let limit = format!("{} KiB", LITTLE / 2 / 1024);
    for (text, what) in [
        (
            "SELECT a.text || b.text AS text FROM many a CROSS JOIN (SELECT text FROM many LIMIT 5) b",
            "a join without a condition",
        ),
        (
            "SELECT text || CAST(sum(n) OVER (PARTITION BY n % 7) AS VARCHAR) AS text FROM many",
            "a window function",
        ),
        (
            "SELECT text || CAST(ntile(9) OVER (ORDER BY text) AS VARCHAR) AS text FROM many",
            "a window function",
        ),
        (
            "SELECT text || CAST(count(*) OVER (ORDER BY n / 80000) AS VARCHAR) AS text FROM many",
            "a window function",
        ),
    ] {
        sql(&mut bench, text);
        bench.fingerprint(text);
        let (code, summary) = bench.build();
        assert_eq!(
            (code, summary.reason.as_str()),
            (64, "QueryFailed"),
            "{summary:?}"
        );
        for words in [what, "can't spill", &limit] {
            assert!(summary.message.contains(words), "{words}: {summary:?}");
        }
    }
}

/// Builds with other numbers of threads and cores: the digest.
fn on(bench: &Bench, cores: &[&str], threads: Option<&str>) -> Option<Digest> {
    let inner = bench.command();
    let mut command = match cores {
        [] => Command::new(inner.get_program()),
        cores => {
            let mut command = Command::new(cores[0]);
            command.args(&cores[1..]).arg(inner.get_program());
            command
        }
    };
    command.args(inner.get_args());
    for variable in ["TOKIO_WORKER_THREADS", "RAYON_NUM_THREADS"] {
        match threads {
            Some(threads) => command.env(variable, threads),
            None => command.env_remove(variable),
        };
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().unwrap();
    let summary = read_summary(&bench.summary_file());
    assert!(status.success(), "{cores:?} {threads:?}: {summary:?}");
    summary.digest
}

#[test]
fn the_digest_is_the_same_on_one_core_and_on_many_and_with_any_number_of_threads() {
    let mut bench = Bench::new(Format::Text);
    bench.source("fractions", &fractions());
    sql(
        &mut bench,
        "SELECT text || ' ' || CAST(sum(x) AS VARCHAR) || ' ' || CAST(avg(x) OVER (ORDER BY text) AS VARCHAR) AS text \
         FROM fractions GROUP BY text, x LIMIT 3000",
    );
    bench.config.validation.near_duplicates = NearDuplicates::Group;
    bench.config.split.method = SplitMethod::Random;
    let mut digests = Vec::new();
    let all: &[&str] = &[];
    let one: &[&str] = &["taskset", "-c", "0"];
    let machines = [(all, None), (one, None), (all, Some("1")), (all, Some("4"))];
    for (index, (cores, threads)) in machines.into_iter().enumerate() {
        bench.fingerprint(&format!("machine {index}"));
        digests.push(on(&bench, cores, threads));
    }
    assert!(digests[0].is_some());
    assert!(
        digests.windows(2).all(|two| two[0] == two[1]),
        "{digests:?}"
    );
}

#[test]
fn rows_that_are_judged_on_several_threads_become_the_same_version() {
    let rows = (0..30_000_u32).fold(String::new(), |text, n| match n % 1000 {
        13 => text + "{\"text\": \"cut\n",
        14 => text + "{\"text\": null}\n",
        _ => {
            let row = format!("Row {n} is of a{n}@example.com, {}", n % 29);
            text + &format!("{{\"text\": \"{row}\", \"n\": {n}}}\n")
        }
    });
    let made = ["1", "2", "8"].map(|threads| {
        let mut bench = Bench::new(Format::Text);
        bench.source("rows", &rows);
        bench.source("others", &rows.replace("Row", "Another"));
        bench.config.sources[1].share = Some(Share { part: 1, whole: 3 });
        bench.privacy(PrivacyMode::Redact, &["text"]);
        bench.config.validation.duplicates = Duplicates::Drop;
        let status = bench.command().env("RAYON_NUM_THREADS", threads).status();
        let summary = read_summary(&bench.summary_file());
        assert!(status.unwrap().success(), "{threads}: {summary:?}");
        let folder = paths::dataset("topics", summary.digest.as_ref().unwrap());
        let read = |name: &str| fs::read(bench.store_dir().join(&folder).join(name)).unwrap();
        let files = ["train.parquet", "test.parquet", "statistics.json"].map(read);
        (summary, bench.version(1).unwrap().findings, files)
    });
    let (summary, findings, _) = &made[0];
    assert_eq!(summary.rejected.len(), 20);
    assert_eq!(summary.rows.unwrap().rejected, 120);
    assert_eq!(findings["email"], 2 * (30_000 - 60));
    assert!(made.windows(2).all(|two| two[0] == two[1]), "{summary:?}");
}
