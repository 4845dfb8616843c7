//! A kill at any instant changes nothing.

use std::time::Duration;

use super::*;

/// Every file of the store with its digest, apart from those that hold times.
fn state(bench: &Bench) -> Vec<(String, Option<Digest>)> {
    let store = bench.store();
    let entries = store.list("").unwrap();
    entries
        .into_iter()
        .map(|entry| {
            let timed = entry.path.ends_with("manifest.json") || entry.path.contains("/versions/");
            let bytes = store.get(&entry.path).unwrap().unwrap();
            (entry.path, (!timed).then(|| Digest::of(&bytes)))
        })
        .collect()
}

#[test]
fn a_build_that_is_killed_at_any_instant_ends_the_same_when_it_is_repeated() {
    let text = completions(0..4000);
    let bench = || {
        let mut bench = Bench::new(Format::Completion);
        bench.source("rows", &text);
        bench
    };
    let calm = bench();
    let started = std::time::Instant::now();
    assert_eq!(calm.build().0, 0);
    let whole = started.elapsed();
    let expected = state(&calm);
    assert_eq!(expected.len(), 8, "{expected:?}");
    let mut killed = 0;
    for round in 0..12_u32 {
        let bench = bench();
        // Two kills, spread over the whole build and a little beyond.
        for part in [round, round + 1] {
            let mut child = bench.start();
            std::thread::sleep(whole * part / 12 + Duration::from_micros(u64::from(round) * 137));
            child.kill().unwrap();
            killed += u32::from(child.wait().unwrap().code().is_none());
        }
        let store = bench.store();
        let versions = store.list("datasets/topics/versions/").unwrap();
        for entry in &versions {
            let record: VersionRecord = store.get_json(&entry.path).unwrap().unwrap();
            rows::read(&store, "topics", &record.digest, Split::Train).unwrap();
        }
        let (code, summary) = bench.build();
        assert_eq!((code, summary.version), (0, Some(1)), "{summary:?}");
        assert_eq!(state(&bench), expected, "round {round}");
    }
    assert!(killed > 4, "only {killed} builds were caught alive");
}
