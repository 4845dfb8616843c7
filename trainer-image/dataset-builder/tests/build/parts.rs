//! Builds in parts, each a process of its own: what comes out is what one process makes.

use graftwork_contract::dataset::{Balance, Classification, PartManifest, Share, Transform};

use super::sources::{gzip, parquet};
use super::*;

impl Bench {
    /// Makes a part, by its number from 0.
    fn part(&self, index: u32) -> (i32, BuildSummary) {
        let path = self.dir.path().join("config.json");
        fs::write(&path, serde_json::to_vec(&self.config).unwrap()).unwrap();
        let mut command = command(&path, &self.store_dir(), &self.summary_file());
        command.args([Path::new("--scratch"), self.scratch_dir().as_path()]);
        command.args(["--memory-bytes", "20000", "--part", &index.to_string()]);
        let code = command.status().unwrap().code().unwrap();
        (code, read_summary(&self.summary_file()))
    }

    /// Builds in so many parts; with one, by one process.
    fn in_parts(&mut self, count: u32) -> (i32, BuildSummary) {
        self.config.shards = (count > 1).then_some(count);
        for index in 0..self.config.shards.unwrap_or(0) {
            let (code, summary) = self.part(index);
            assert_eq!(code, 0, "{summary:?}");
            assert!(
                summary
                    .message
                    .starts_with(&format!("part {} of {count}: ", index + 1))
            );
        }
        self.build()
    }

    fn parts_dir(&self) -> PathBuf {
        self.store_dir().join(paths::dataset_parts("topics"))
    }

    /// The files of all parts of this very build.
    fn parts_of_the_build(&self) -> Vec<String> {
        let fingerprint = self.config.fingerprint.hex();
        let folder = format!("{}/{fingerprint}/", paths::dataset_parts("topics"));
        let files = self.stored().into_iter();
        files.filter(|path| path.starts_with(&folder)).collect()
    }

    fn part_folder(&self, number: u32, count: u32) -> PathBuf {
        let fingerprint = &self.config.fingerprint;
        self.store_dir()
            .join(paths::dataset_part("topics", fingerprint, number, count))
    }
}

/// Rows of one file and of several, plain, packed and Parquet, with bad rows, duplicates and personal data.
fn mixed() -> Bench {
    let mut bench = Bench::new(Format::Completion);
    let row = |n: u32| {
        format!(
            "{{\"prompt\": \"p{n} of ann{n}@example.com\", \"completion\": \"c{}\", \"topic\": \"t{}\"}}\n",
            n % 3,
            n % 4 % 3
        )
    };
    let rows = |range: std::ops::Range<u32>| range.map(row).collect::<String>();
    let bad = "{\"prompt\": 1}\n{\"completion\": \"x\"}\nnonsense\n";
    bench.volume(
        "many/*",
        &[
            ("many/a.jsonl", (rows(0..50) + bad).into_bytes()),
            ("many/b.jsonl.gz", gzip((rows(40..90) + bad).as_bytes())),
            ("many/c.jsonl", (bad.to_owned() + &rows(0..10)).into_bytes()),
        ],
    );
    bench.source("one", &(rows(100..180) + bad + "\n\n" + &rows(60..70)));
    bench.bytes("columns", &parquet(0..30));
    bench.privacy(PrivacyMode::Redact, &["prompt"]);
    let config = &mut bench.config;
    config.validation.maximum_invalid_percent = "20".into();
    config.validation.duplicates = Duplicates::Drop;
    config.split.method = SplitMethod::Random;
    bench
}

/// What stands in the store of a version, but for the times.
fn content(bench: &Bench) -> (VersionRecord, serde_json::Value, Vec<Vec<Row>>, String) {
    let mut record = bench.version(1).unwrap();
    record.created_time.clear();
    record.provenance_digest = Digest::of(b"has times");
    let manifest = rows::manifest(&bench.store(), "topics", &record.digest).unwrap();
    let mut provenance = serde_json::to_value(&manifest.provenance).unwrap();
    provenance.as_object_mut().unwrap().remove("createdTime");
    let rows = Split::ALL.map(|split| bench.rows(&record.digest, split));
    let folder = bench
        .store_dir()
        .join(paths::dataset("topics", &record.digest));
    let statistics = fs::read_to_string(folder.join("statistics.json")).unwrap();
    record.size_bytes = 0;
    (record, provenance, rows.to_vec(), statistics)
}

#[test]
fn any_number_of_parts_makes_the_same_version() {
    let mut versions = Vec::new();
    for count in [1, 2, 5] {
        let mut bench = mixed();
        let (code, summary) = bench.in_parts(count);
        assert_eq!(code, 0, "{summary:?}");
        assert!(
            !bench.parts_dir().exists(),
            "{count} parts leave nothing behind"
        );
        versions.push(content(&bench));
    }
    // Sources lie in folders of their own, whose names are in no content.
    assert_eq!(versions[0], versions[1]);
    assert_eq!(versions[0], versions[2]);
    let record = &versions[0].0;
    assert_eq!(record.rows.rejected, 12);
    assert!(record.rows.duplicates > 0 && record.findings["email"] > 0);
    assert_eq!(record.rejected.len(), 12);
    let places: Vec<_> = record
        .rejected
        .iter()
        .map(|row| (row.source != "bulk", row.file.clone(), row.line))
        .collect();
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn a_killed_part_is_made_again_and_one_that_is_whole_is_not() {
    let mut bench = mixed();
    bench.config.shards = Some(3);
    assert_eq!(bench.part(0).0, 0);
    assert_eq!(bench.part(1).0, 0);
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (69, "StorageUnavailable"));
    assert!(summary.message.starts_with("part 3 of 3: "), "{summary:?}");
    // Whole parts stay, a damaged one goes.
    let whole = bench.part_folder(1, 3).join("rows.bin");
    let written = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let before = written(&whole);
    let damaged = bench.part_folder(2, 3).join("rows.bin");
    fs::write(&damaged, b"half").unwrap();
    for index in 0..3 {
        assert_eq!(bench.part(index).0, 0);
    }
    assert_eq!(written(&whole), before);
    let (code, summary) = bench.build();
    assert_eq!(code, 0, "{summary:?}");
    let mut alone = mixed();
    alone.in_parts(1);
    assert_eq!(content(&alone), content(&bench));
}

#[test]
fn parts_of_builds_that_nobody_asks_for_any_more_go() {
    let mut bench = mixed();
    bench.config.shards = Some(2);
    bench.part(1);
    let old = bench.part_folder(2, 2);
    assert!(old.join("manifest.json").exists());
    bench.fingerprint("another");
    bench.part(0);
    assert!(!old.exists());
    assert!(bench.part_folder(1, 2).exists());
}

#[test]
fn a_source_that_changes_between_parts_gives_no_version_and_the_next_attempt_one() {
    let mut bench = mixed();
    bench.config.shards = Some(2);
    bench.part(0);
    let claim = bench.dir.path().join("claim/many/d.jsonl");
    fs::write(&claim, completions(0..9)).unwrap();
    bench.part(1);
    let (code, summary) = bench.build();
    assert_eq!(code, 69, "{summary:?}");
    assert!(summary.message.contains("has other files"), "{summary:?}");
    assert!(bench.version(1).is_none() && !bench.parts_dir().exists());
    assert_eq!(bench.in_parts(2).0, 0);

    // One file, of which all parts read all.
    bench.fingerprint("again");
    bench.part(0);
    fs::write(bench.dir.path().join("one.jsonl"), completions(0..20)).unwrap();
    bench.part(1);
    let (code, summary) = bench.build();
    assert_eq!(code, 69, "{summary:?}");
    assert!(
        summary.message.contains("changed while parts read it"),
        "{summary:?}"
    );
    assert!(bench.version(2).is_none());
}

#[test]
fn a_part_that_fails_is_named_with_its_source() {
    let mut bench = mixed();
    bench.config.shards = Some(2);
    assert_eq!(bench.part(0).0, 0);
    bench.bytes("broken", b"PAR1 and nothing else");
    assert!(bench.parts_dir().exists());
    let (code, summary) = bench.part(1);
    assert_eq!((code, summary.reason.as_str()), (65, "DataError"));
    let message = &summary.message;
    assert!(
        message.starts_with("part 2 of 2: source broken: "),
        "{message}"
    );
    assert_eq!(
        bench.parts_of_the_build(),
        Vec::<String>::new(),
        "nobody asks for the other part"
    );
    let (code, summary) = bench.part(2);
    assert_eq!((code, summary.reason.as_str()), (64, "InvalidSpec"));
}

#[test]
fn parts_are_dealt_and_balanced_measured_and_mixed_as_one_process_does_it() {
    let rows = |range: std::ops::Range<u32>| {
        range.fold(String::new(), |text, n| {
            let hash = Digest::of(&(n / 3).to_be_bytes());
            let class = if n % 9 == 0 { "rare" } else { "common" };
            let long = if n % 20 == 0 { "long ".repeat(60) } else { String::new() };
            // Three in a row are nearly the same.
            text + &format!(
                "{{\"text\": \"{hash} {hash} v{n} {long}\", \"class\": \"{class}\", \"day\": {}}}\n",
                n * 86_400,
                hash = hash.hex()
            )
        })
    };
    for method in [SplitMethod::Time, SplitMethod::Random, SplitMethod::Hash] {
        let mut versions = Vec::new();
        for count in [1, 2, 3, 7] {
            let mut bench = Bench::new(Format::Text);
            bench.volume(
                "many/*",
                &[
                    ("many/a.jsonl", rows(0..80).into_bytes()),
                    ("many/b.jsonl.gz", gzip(rows(60..160).as_bytes())),
                    ("many/c.jsonl", rows(150..200).into_bytes()),
                ],
            );
            bench.source("some", &rows(190..330));
            for source in &mut bench.config.sources {
                let share = Share { part: 1, whole: 3 };
                source.share = (source.name == "some").then_some(share);
            }
            super::measured::with_base(&mut bench);
            let config = &mut bench.config;
            config.validation.maximum_invalid_percent = "20".into();
            config.validation.maximum_tokens_per_row = Some(250);
            config.validation.duplicates = Duplicates::Drop;
            config.validation.near_duplicates = NearDuplicates::Drop;
            config.split.method = method;
            config.split.time_column = (method == SplitMethod::Time).then(|| "day".into());
            config.balance = Some(Balance {
                column: "class".into(),
                maximum_upsample: 4,
            });
            let (code, summary) = bench.in_parts(count);
            assert_eq!(code, 0, "{method:?}, {count} parts: {summary:?}");
            let mut version = content(&bench);
            // Of the base model's folder, too, which is another one for each of them.
            version.1.as_object_mut().unwrap().remove("specDigest");
            versions.push(version);
        }
        let record = &versions[0].0;
        assert!(record.rows.duplicates > 100, "{:?}", record.rows);
        assert!(record.rows.rejected > 0 && record.rows.beyond_weight > 0);
        assert!(record.tokens.is_some());
        for (version, count) in versions.iter().zip([1, 2, 3, 7]) {
            assert_eq!(*version, versions[0], "{method:?}, {count} parts");
        }
    }
}

#[test]
fn too_many_bad_rows_are_seen_over_all_parts_and_the_parts_go() {
    let mut bench = mixed();
    bench.config.validation.maximum_invalid_percent = "1".into();
    let (code, summary) = bench.in_parts(2);
    assert_eq!((code, summary.reason.as_str()), (65, "DataError"));
    assert_eq!(summary.rows.unwrap().rejected, 12);
    assert!(!bench.parts_dir().exists());
}

#[test]
fn sql_over_all_rows_is_not_for_parts() {
    let mut bench = mixed();
    bench.config.shards = Some(2);
    bench.config.transform = Some(Transform {
        sql: "SELECT prompt, completion FROM one".into(),
        pseudonym_key: false,
        now: None,
    });
    let (code, summary) = bench.part(0);
    assert_eq!((code, summary.reason.as_str()), (64, "InvalidSpec"));
    for words in ["spec.shards: ", "spec.transform"] {
        assert!(summary.message.contains(words), "{summary:?}");
    }
    assert!(!bench.parts_dir().exists());
}

#[test]
fn a_part_holds_nothing_that_is_masked() {
    let mut bench = mixed();
    bench.config.shards = Some(2);
    bench.part(0);
    let folder = bench.part_folder(1, 2);
    let manifest: PartManifest =
        serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    assert!(manifest.good > 0 && manifest.findings["email"] > 0);
    for file in ["rows.bin", "manifest.json"] {
        let bytes = fs::read(folder.join(file)).unwrap();
        assert!(
            !String::from_utf8_lossy(&bytes).contains("@example"),
            "{file}"
        );
    }
    // Of a group that is masked the hash deals the rows.
    bench.config.split.group_column = Some("prompt".into());
    bench.fingerprint("grouped");
    assert_eq!(bench.part(0).0, 0);
    let rows = fs::read(bench.part_folder(1, 2).join("rows.bin")).unwrap();
    let rows = String::from_utf8_lossy(&rows);
    assert!(rows.contains("[EMAIL]") && !rows.contains("@example"));
    bench.config.split.group_column = None;
    // Classes are named as the source has them: they may not be masked elsewhere.
    bench.config.balance = Some(Balance {
        column: "prompt".into(),
        maximum_upsample: 2,
    });
    let (code, summary) = bench.part(0);
    assert_eq!((code, summary.reason.as_str()), (64, "InvalidSpec"));
    assert!(summary.message.starts_with("spec.shards: "), "{summary:?}");
}

#[test]
fn a_masked_group_is_dealt_the_same_by_one_process_and_by_several() {
    let digests = [1, 2, 5].map(|count| {
        let mut bench = mixed();
        bench.config.classification = Some(Classification::Restricted);
        bench.config.split.group_column = Some("prompt".into());
        let (code, summary) = bench.in_parts(count);
        assert_eq!(code, 0, "{summary:?}");
        summary.digest.unwrap()
    });
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
}
