//! The store's promises in a bucket of a real S3 server, versitygw, which each test starts for itself. Without one on
//! this machine (`e2e/run setup` builds it) they say that they were skipped.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::Duration;

use graftwork_artifacts::{Category, Error, MANIFEST_FILE, Put, Store};
use graftwork_contract::Digest;
use graftwork_contract::store::BucketStore;
use graftwork_objects::fixture::{self, KEY};
use serde_json::{Value, json};

use crate::{paths, publish};

/// A server with the bucket `store`, and a folder for what is on its way.
struct Server {
    dir: tempfile::TempDir,
    s3: fixture::Server,
}

impl Server {
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("scratch")).unwrap();
        let s3 = fixture::Server::start(dir.path(), "store").unwrap()?;
        Some(Self { dir, s3 })
    }

    fn write_secret(&self, key: &str) {
        self.s3.write_secret(key).unwrap();
    }

    fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    fn store(&self) -> Store {
        let config = self.s3.config("s3://store/ml/team");
        Store::open_at(Some(&config), self.scratch()).unwrap()
    }

    /// Where the server keeps an object of the store.
    fn object(&self, path: &str) -> PathBuf {
        self.s3.object(&format!("ml/team/{path}"))
    }
}

fn files_of(store: &Store, folder: &str) -> BTreeMap<String, Digest> {
    let manifest: Value = store
        .get_json(&format!("{folder}/{MANIFEST_FILE}"))
        .unwrap()
        .unwrap();
    serde_json::from_value(manifest["files"].clone()).unwrap()
}

fn is_empty(dir: &Path) -> bool {
    let mut sessions = fs::read_dir(dir.join(".tmp")).unwrap().flatten();
    sessions.all(|session| {
        // The lock is the session's own.
        fs::read_dir(session.path()).unwrap().count() <= 1
    })
}

#[test]
fn a_record_is_written_once_and_lies_below_the_prefix() {
    let Some(server) = Server::start() else {
        return;
    };
    let store = server.store();
    assert!(store.is_in_bucket());
    assert_eq!(store.get("a/b/c.json").unwrap(), None);
    assert_eq!(store.put_new("a/b/c.json", b"1").unwrap(), Put::Created);
    assert_eq!(store.put_new("a/b/c.json", b"1").unwrap(), Put::Existing);
    let error = store.put_new("a/b/c.json", b"2").unwrap_err();
    assert!(matches!(&error, Error::Conflict { path } if path == "a/b/c.json"));
    assert_eq!(store.get("a/b/c.json").unwrap().unwrap(), b"1");
    assert_eq!(fs::read(server.object("a/b/c.json")).unwrap(), b"1");
    let (part, size) = store.get_up_to("a/b/c.json", 0).unwrap().unwrap();
    assert_eq!((part.len(), size), (0, 1));
    store.remove("a/b/c.json").unwrap();
    store.remove("a/b/c.json").unwrap();
    assert_eq!(store.get("a/b/c.json").unwrap(), None);
}

#[test]
fn of_racing_writers_exactly_one_creates() {
    let Some(server) = Server::start() else {
        return;
    };
    for round in 0..5 {
        let path = format!("runs/r/fence/{round}.json");
        let barrier = Barrier::new(6);
        let store = server.store();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..6)
                .map(|writer| {
                    let (store, path, barrier) = (store.clone(), &path, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        store.put_new(path, format!("{writer}").as_bytes())
                    })
                })
                .collect();
            writers
                .into_iter()
                .map(|writer| writer.join().unwrap())
                .collect()
        });
        let created = outcomes.iter().filter(|it| matches!(it, Ok(Put::Created)));
        assert_eq!(created.count(), 1, "{outcomes:?}");
        let lost = outcomes
            .iter()
            .filter(|it| matches!(it, Err(Error::Conflict { .. })));
        assert_eq!(lost.count(), 5, "{outcomes:?}");
    }
}

#[test]
fn numbers_are_given_once() {
    let Some(server) = Server::start() else {
        return;
    };
    let store = server.store();
    let numbers: Vec<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4_u32)
            .map(|writer| {
                let store = store.clone();
                scope.spawn(move || {
                    let appended = store.append_numbered("f", |_, _| Some(writer)).unwrap();
                    assert_eq!(appended.record, writer);
                    appended.number
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [1, 2, 3, 4], "{numbers:?}");
}

#[test]
fn a_folder_appears_with_its_manifest_and_is_fetched_checked() {
    let Some(server) = Server::start() else {
        return;
    };
    let store = server.store();
    let digest = Digest::of(b"a");
    // More than one part.
    let large = vec![7_u8; 20 << 20];
    let files: [(&str, &[u8]); 2] = [("w.safetensors", &large), ("card.md", b"# A card")];
    assert!(!store.is_published("adapters/a/1").unwrap());
    assert_eq!(
        publish(&store, "adapters/a/1", &digest, &files),
        Put::Created
    );
    assert!(store.is_published("adapters/a/1").unwrap());
    let again: [(&str, &[u8]); 1] = [("card.md", b"# Another card")];
    assert_eq!(
        publish(&store, "adapters/a/1", &digest, &again),
        Put::Existing
    );
    let staged = store.stage("adapters/a/1").unwrap();
    staged.write("card.md", b"# Other").unwrap();
    let error = staged
        .publish(&json!({"digest": Digest::of(b"b"), "files": {}}))
        .unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");

    let files = files_of(&store, "adapters/a/1");
    store.verify("adapters/a/1", &files).unwrap();
    let fetched = store.fetch("adapters/a/1", &files).unwrap();
    assert_eq!(
        fs::read(fetched.path().join("w.safetensors")).unwrap(),
        large
    );
    assert_eq!(
        fs::read(fetched.path().join("card.md")).unwrap(),
        b"# A card"
    );
    drop(fetched);
    assert!(is_empty(&server.scratch()), "copies go");

    fs::write(server.object("adapters/a/1/card.md"), "# A cart").unwrap();
    for result in [
        store.verify("adapters/a/1", &files),
        store.fetch("adapters/a/1", &files).map(drop),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::DigestMismatch { path, .. } if path.ends_with("card.md")));
    }
    assert!(is_empty(&server.scratch()), "what was wrong goes");
}

#[test]
fn a_version_that_is_not_whole_is_published_anew_by_who_has_it() {
    let Some(server) = Server::start() else {
        return;
    };
    let store = server.store();
    let digest = Digest::of(b"a");
    let files: [(&str, &[u8]); 2] = [("w", b"weights"), ("card.md", b"# A card")];
    publish(&store, "adapters/a/1", &digest, &files);
    // Another writer of the same content overwrote a card, and was killed in front of its manifest.
    fs::write(server.object("adapters/a/1/card.md"), "# Of another day").unwrap();
    assert_eq!(
        publish(&store, "adapters/a/1", &digest, &files),
        Put::Created
    );
    let files = files_of(&store, "adapters/a/1");
    store.verify("adapters/a/1", &files).unwrap();

    fs::remove_file(server.object("adapters/a/1/w")).unwrap();
    let error = store.verify("adapters/a/1", &files).unwrap_err();
    assert!(matches!(&error, Error::Missing { path } if path == "adapters/a/1/w"));
    let new: [(&str, &[u8]); 2] = [("w", b"weights"), ("card.md", b"# New")];
    publish(&store, "adapters/a/1", &digest, &new);
    store
        .verify("adapters/a/1", &files_of(&store, "adapters/a/1"))
        .unwrap();
}

#[test]
fn a_look_takes_the_header_of_weights_and_not_the_weights() {
    let Some(server) = Server::start() else {
        return;
    };
    let store = server.store();
    let header = br#"{"w":{"dtype":"F32","shape":[1048576],"data_offsets":[0,4194304]}}"#;
    let mut tensors = (header.len() as u64).to_le_bytes().to_vec();
    tensors.extend(header);
    tensors.extend(vec![1_u8; 4 << 20]);
    let digest = Digest::of(b"a");
    let files: [(&str, &[u8]); 2] = [("w.safetensors", &tensors), ("c.json", b"{}")];
    publish(&store, "adapters/a/1", &digest, &files);
    let config = server.s3.config("s3://store/ml/team");
    let reader = Store::open_bucket_read_only(&config, server.scratch()).unwrap();
    let seen = reader
        .peek("adapters/a/1", &files_of(&store, "adapters/a/1"))
        .unwrap();
    let copy = seen.path().join("w.safetensors");
    assert_eq!(copy.metadata().unwrap().len(), tensors.len() as u64);
    let bytes = fs::read(&copy).unwrap();
    assert_eq!(bytes[..8 + header.len()], tensors[..8 + header.len()]);
    assert_eq!(bytes.last(), Some(&0), "the end was not read");
    assert_eq!(fs::read(seen.path().join("c.json")).unwrap(), b"{}");
    let time = |path: &Path| path.metadata().unwrap().modified().unwrap();
    let object = server.object("adapters/a/1/w.safetensors");
    let apart = time(&object)
        .duration_since(time(&copy))
        .unwrap_or_else(|error| error.duration());
    assert!(
        apart < Duration::from_secs(2),
        "the copy has the object's time"
    );

    let error = reader.put_new("x.json", b"1").unwrap_err();
    assert!(error.to_string().contains("opened for reading"), "{error}");
    assert!(!server.object("x.json").exists());
}

#[test]
fn a_prefix_is_text_and_what_is_listed_is_read_at_once() {
    let Some(server) = Server::start() else {
        return;
    };
    let store = server.store();
    for path in ["a/1.json", "a/10.json", "a/2/x.json", "ab.json", "b.json"] {
        store.put_new(path, path.as_bytes()).unwrap();
    }
    assert_eq!(paths(&store, "a/1"), ["a/1.json", "a/10.json"]);
    assert_eq!(paths(&store, "a/"), ["a/1.json", "a/10.json", "a/2/x.json"]);
    assert_eq!(paths(&store, "a").len(), 4);
    assert_eq!(
        paths(&store, "").len(),
        5,
        "the store's own files are not listed"
    );
    assert!(paths(&store, "none/").is_empty());
    assert!(store.list("../other").is_err());
    for _ in 0..2 {
        let entries = store.list("").unwrap();
        let read = store.get_listed(&entries, 100).unwrap();
        for (entry, read) in entries.iter().zip(read) {
            let (bytes, size) = read.unwrap();
            assert_eq!(
                (bytes.as_slice(), size),
                (entry.path.as_bytes(), entry.size)
            );
        }
    }
    let entries = store.list("b").unwrap();
    let short = store.get_listed(&entries, 2).unwrap();
    assert_eq!(short, [Some((b"b.".to_vec(), 6))]);
    store.remove_folder("a").unwrap();
    assert_eq!(paths(&store, ""), ["ab.json", "b.json"]);
    store.remove_folder("a").unwrap();
}

#[test]
fn paths_that_lead_elsewhere_are_refused_before_anything_is_asked() {
    let Some(server) = Server::start() else {
        return;
    };
    let store = server.store();
    for path in ["", "/a", "../a", "a/../b", "a//b", ".conditions", "a\\b"] {
        assert!(store.get(path).is_err(), "{path:?}");
        assert!(store.put_new(path, b"1").is_err(), "{path:?}");
        assert!(store.stage(path).is_err(), "{path:?}");
        assert!(store.remove_folder(path).is_err(), "{path:?}");
    }
    let inside = BTreeMap::from([("../x".to_owned(), Digest::of(b"a"))]);
    assert!(store.fetch("adapters/a", &inside).is_err());
    assert!(store.locate("a").is_err(), "nothing of it is on the disk");
}

#[test]
fn new_keys_are_used_without_a_new_process_and_wrong_ones_are_named() {
    let Some(server) = Server::start() else {
        return;
    };
    let store = server.store();
    store.put_new("a.json", b"1").unwrap();
    server.write_secret("wrong-hidden");
    let error = store.get("a.json").unwrap_err();
    assert_eq!(error.category(), Category::Transient);
    let text = error.to_string();
    for words in [
        "s3://store/ml/team/a.json",
        "SignatureDoesNotMatch",
        "store.secretName",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("hidden"), "{text}");
    fs::remove_dir_all(server.s3.secret()).unwrap();
    let text = store.get("a.json").unwrap_err().to_string();
    assert!(text.contains("there is no Secret keys"), "{text}");
    server.write_secret(KEY);
    assert_eq!(store.get("a.json").unwrap().unwrap(), b"1");
}

#[test]
fn a_bucket_that_is_not_there_is_no_empty_store() {
    let Some(server) = Server::start() else {
        return;
    };
    let config = server.s3.config("s3://absent/team");
    let store = Store::open_at(Some(&config), server.scratch()).unwrap();
    for error in [
        store.get("a.json").unwrap_err(),
        store.list("a/").unwrap_err(),
        store.put_new("a.json", b"1").unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.contains("NoSuchBucket"), "{text}");
        assert_eq!(error.category(), Category::Transient);
    }
}

#[test]
fn an_address_that_the_chart_does_not_allow_is_not_connected_to() {
    let Some(server) = Server::start() else {
        return;
    };
    let config = BucketStore {
        allowed_hosts: Vec::new(),
        ..server.s3.config("s3://store/ml/team")
    };
    let store = Store::open_at(Some(&config), server.scratch()).unwrap();
    let text = store.get("a.json").unwrap_err().to_string();
    assert!(text.contains("127.0.0.1"), "{text}");
    assert!(text.contains("store.allow"), "{text}");
}

#[test]
fn what_is_no_bucket_is_refused_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let config = BucketStore {
        url: "https://example.com/store".to_owned(),
        secret: None,
        path: String::new(),
        allowed_hosts: Vec::new(),
    };
    let error = Store::open_at(Some(&config), dir.path()).unwrap_err();
    assert!(
        error.to_string().contains("https://example.com/store"),
        "{error}"
    );
}

#[test]
fn a_store_can_be_asked_from_a_runtimes_threads_and_dropped_there() {
    let Some(server) = Server::start() else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let store = server.store();
    runtime.block_on(async move {
        tokio::spawn(async move {
            assert_eq!(store.put_new("a.json", b"1").unwrap(), Put::Created);
            drop(store);
        })
        .await
        .unwrap();
    });
}
