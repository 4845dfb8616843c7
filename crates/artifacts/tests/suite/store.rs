//! The store's promises: whole or absent, written once, exactly one winner.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Barrier;

use graftwork_artifacts::{Category, Error, MANIFEST_FILE, Put, Store};
use graftwork_contract::Digest;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{paths, publish};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn a_record_is_written_once() {
    let (_dir, store) = store();
    assert_eq!(store.put_new("a/b/c.json", b"1").unwrap(), Put::Created);
    assert_eq!(store.put_new("a/b/c.json", b"1").unwrap(), Put::Existing);
    let error = store.put_new("a/b/c.json", b"2").unwrap_err();
    assert!(matches!(&error, Error::Conflict { path } if path == "a/b/c.json"));
    assert_eq!(error.category(), Category::Invalid);
    assert_eq!(store.get("a/b/c.json").unwrap().unwrap(), b"1");
}

#[test]
fn of_racing_writers_exactly_one_creates() {
    let (_dir, store) = store();
    for round in 0..20 {
        let path = format!("runs/r/fence/{round}.json");
        let barrier = Barrier::new(8);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|writer| {
                    let (path, barrier) = (&path, &barrier);
                    // Each with a session of its own, as separate processes have.
                    let store = Store::open(store.root()).unwrap();
                    scope.spawn(move || {
                        barrier.wait();
                        store.put_new_json(path, &json!({ "writer": writer }))
                    })
                })
                .collect();
            writers
                .into_iter()
                .map(|writer| writer.join().unwrap())
                .collect()
        });
        let winners: Vec<usize> = (0..8)
            .filter(|writer| matches!(outcomes[*writer], Ok(Put::Created)))
            .collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        let record: Value = store.get_json(&path).unwrap().unwrap();
        assert_eq!(record["writer"], json!(winners[0]));
    }
}

#[test]
fn racing_appends_take_each_number_once() {
    let (_dir, store) = store();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for turn in 0..5 {
                    let appended = store
                        .append_numbered("datasets/d/versions", |number, _: Option<&Value>| {
                            Some(json!({"version": number, "writer": writer, "turn": turn}))
                        })
                        .unwrap();
                    assert!(appended.created);
                    assert_eq!(appended.record["version"], json!(appended.number));
                }
            });
        }
    });
    assert_eq!(store.list("datasets/d/versions/").unwrap().len(), 20);
    let (newest, _) = store
        .latest_numbered::<Value>("datasets/d/versions")
        .unwrap()
        .unwrap();
    assert_eq!(newest, 20);
}

#[test]
fn an_append_that_declines_keeps_the_latest() {
    let (_dir, store) = store();
    let append = |wanted: u32| {
        store
            .append_numbered("v", |_, latest: Option<&u32>| {
                (latest != Some(&wanted)).then_some(wanted)
            })
            .unwrap()
    };
    assert!(append(7).created);
    let again = append(7);
    assert_eq!((again.number, again.created), (1, false));
    let other = append(8);
    assert_eq!((other.number, other.created), (2, true));
}

#[test]
fn a_folder_appears_whole_and_once() {
    let (_dir, store) = store();
    let digest = Digest::of(b"content");
    let path = "adapters/a/1";
    assert_eq!(
        publish(&store, path, &digest, &[("w", b"weights"), ("c", b"{}")]),
        Put::Created
    );
    assert_eq!(
        publish(&store, path, &digest, &[("w", b"weights"), ("c", b"{}")]),
        Put::Existing
    );
    assert_eq!(
        paths(&store, "adapters/"),
        [
            "adapters/a/1/c",
            "adapters/a/1/manifest.json",
            "adapters/a/1/w"
        ]
    );

    let staged = store.stage(path).unwrap();
    staged.write("w", b"other").unwrap();
    let manifest =
        json!({"digest": Digest::of(b"other"), "files": staged.files().unwrap().digests});
    assert!(matches!(
        staged.publish(&manifest),
        Err(Error::Conflict { .. })
    ));
    assert_eq!(store.get("adapters/a/1/w").unwrap().unwrap(), b"weights");
}

#[test]
fn a_copy_is_hashed_on_the_way_and_ends_at_its_limit() {
    let (_dir, store) = store();
    let elsewhere = tempfile::tempdir().unwrap();
    let from = elsewhere.path().join("w");
    // More than one piece.
    let bytes = vec![7; 300_000];
    fs::write(&from, &bytes).unwrap();
    let mut staged = store.stage("adapters/a/1").unwrap();
    let error = staged.copy("short", &from, 299_999).unwrap_err();
    assert!(
        matches!(&error, Error::TooLarge { limit: 299_999, .. }),
        "{error}"
    );
    assert_eq!(error.category(), Category::Invalid);

    let mut staged = store.stage("adapters/a/1").unwrap();
    staged.copy("w", &from, 300_000).unwrap();
    staged.write("c", b"card").unwrap();
    let files = staged.files().unwrap();
    assert_eq!(files.size_bytes, 300_004);
    assert_eq!(files.digests["w"], Digest::of(&bytes));
    assert_eq!(files.digests["c"], Digest::of(b"card"));
    staged
        .publish(&json!({"digest": Digest::of(b"x"), "files": files.digests}))
        .unwrap();
    assert_eq!(store.get("adapters/a/1/w").unwrap().unwrap(), bytes);
}

#[test]
fn a_damaged_folder_is_never_taken_for_the_same() {
    let (dir, store) = store();
    let digest = Digest::of(b"content");
    publish(&store, "adapters/a/1", &digest, &[("w", b"weights")]);
    fs::write(dir.path().join("adapters/a/1/w"), b"weightz").unwrap();
    let staged = store.stage("adapters/a/1").unwrap();
    staged.write("w", b"weights").unwrap();
    let manifest = json!({"digest": digest, "files": staged.files().unwrap().digests});
    let error = staged.publish(&manifest).unwrap_err();
    assert!(
        matches!(&error, Error::DigestMismatch { path, .. } if path == "adapters/a/1/w"),
        "{error}"
    );
}

#[test]
fn every_wrong_or_missing_file_is_named() {
    let (dir, store) = store();
    let files = BTreeMap::from([
        ("a".to_owned(), Digest::of(b"A")),
        ("b".to_owned(), Digest::of(b"B")),
    ]);
    publish(&store, "f", &Digest::of(b""), &[("a", b"A"), ("b", b"B")]);
    store.verify("f", &files).unwrap();
    assert_eq!(store.get_verified("f/a", &files["a"]).unwrap(), b"A");
    fs::write(dir.path().join("f/b"), "").unwrap();
    let error = store.verify("f", &files).unwrap_err().to_string();
    assert!(error.starts_with("f/b has digest"), "{error}");
    fs::remove_file(dir.path().join("f/b")).unwrap();
    let error = store.verify("f", &files).unwrap_err().to_string();
    assert_eq!(error, "f/b does not exist in the store");
    let error = store
        .get_verified("f/a", &files["b"])
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("f/a has digest"), "{error}");
}

#[test]
fn a_removed_folder_is_gone_and_removing_nothing_is_fine() {
    let (_dir, store) = store();
    publish(
        &store,
        "runs/r/checkpoints/1/10",
        &Digest::of(b"x"),
        &[("s", b"state")],
    );
    store.remove_folder("runs/r/checkpoints/1/10").unwrap();
    store.remove_folder("runs/r/checkpoints/1/10").unwrap();
    assert!(store.list("").unwrap().is_empty());
}

#[test]
fn a_prefix_is_text_and_a_slash_makes_it_a_folder() {
    let (_dir, store) = store();
    for path in ["a/versions/1.json", "a/versions/10.json", "a/version", "b"] {
        store.put_new(path, b"{}").unwrap();
    }
    assert_eq!(
        paths(&store, "a/versions/"),
        ["a/versions/1.json", "a/versions/10.json"]
    );
    assert_eq!(paths(&store, "a/versions/1."), ["a/versions/1.json"]);
    assert_eq!(paths(&store, "a/version").len(), 3);
    assert_eq!(paths(&store, "").len(), 4);
    assert!(paths(&store, "nothing/").is_empty());
    assert!(store.list("../").is_err());
    assert!(store.list("/etc/").is_err());
}

#[test]
fn a_missing_store_is_worth_another_try() {
    let error = Store::open("/nonexistent/store").unwrap_err();
    assert_eq!(error.category(), Category::Transient);
    assert!(error.to_string().contains("/nonexistent/store"), "{error}");
}

#[test]
fn no_store_is_made_where_one_has_gone() {
    let (dir, store) = store();
    store.put_new("a", b"1").unwrap();
    let root = store.root().to_path_buf();
    let away = dir.path().with_extension("away");
    fs::rename(&root, &away).unwrap();
    let error = store.put_new("b", b"2").unwrap_err();
    assert_eq!(error.category(), Category::Transient);
    assert!(store.stage("c").is_err());
    assert!(!root.exists());
    fs::rename(&away, &root).unwrap();
    store.put_new("b", b"2").unwrap();
}

#[test]
fn a_long_record_is_cut_where_the_reader_asks() {
    let (_dir, store) = store();
    store.put_new("a", b"0123456789").unwrap();
    assert_eq!(
        store.get_up_to("a", 4).unwrap().unwrap(),
        (b"0123".to_vec(), 10)
    );
    assert_eq!(store.get_up_to("b", 4).unwrap(), None);
}

/// What a writer had done when it was killed.
#[derive(Debug, Clone)]
enum Died {
    WhileStaging { files: usize },
    BeforeTheRename,
    BesideAStrayFolder,
}

fn died() -> impl Strategy<Value = Died> {
    prop_oneof![
        (0..4_usize).prop_map(|files| Died::WhileStaging { files }),
        Just(Died::BeforeTheRename),
        Just(Died::BesideAStrayFolder),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_killed_writer_leaves_nothing_to_see_and_the_next_one_ends_the_same(
        deaths in prop::collection::vec(died(), 0..4),
        content in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = "datasets/d/0";
        let names = ["train", "validation", "test"];
        for death in deaths {
            // A killed process runs no destructor: forgetting does the same.
            let store = Store::open(dir.path()).unwrap();
            let staged = store.stage(path).unwrap();
            match death {
                Died::WhileStaging { files } => {
                    for name in names.iter().take(files) {
                        staged.write(name, &content).unwrap();
                    }
                }
                Died::BeforeTheRename => {
                    for name in names {
                        staged.write(name, &content).unwrap();
                    }
                    staged.write(MANIFEST_FILE, b"{}").unwrap();
                }
                Died::BesideAStrayFolder => {
                    fs::create_dir_all(dir.path().join(path)).unwrap();
                    fs::write(dir.path().join(path).join("train"), &content).unwrap();
                }
            }
            std::mem::forget(staged);
            std::mem::forget(store);
            let reader = Store::open_read_only(dir.path()).unwrap();
            let manifest = reader.get(&format!("{path}/{MANIFEST_FILE}")).unwrap();
            prop_assert_eq!(manifest, None, "a folder without a manifest does not exist");
        }
        let store = Store::open(dir.path()).unwrap();
        let files = names.map(|name| (name, content.as_slice()));
        prop_assert_eq!(publish(&store, path, &Digest::of(&content), &files), Put::Created);
        prop_assert_eq!(paths(&store, "datasets/").len(), 4);
        let expected = names.map(|name| (name.to_owned(), Digest::of(&content)));
        store.verify(path, &expected.into_iter().collect()).unwrap();
    }
}

#[test]
fn a_writer_whose_folder_was_taken_for_a_killed_ones_writes_on() {
    let (dir, store) = store();
    store.put_new("a.json", b"1").unwrap();
    fs::remove_dir_all(dir.path().join(".tmp")).unwrap();
    assert_eq!(store.put_new("b.json", b"2").unwrap(), Put::Created);
    assert_eq!(paths(&store, ""), ["a.json", "b.json"]);
}
