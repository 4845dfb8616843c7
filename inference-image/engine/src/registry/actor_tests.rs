//! What the actor does beside the rules of its state.

use ed25519_dalek::SigningKey;
use graftwork_contract::Digest;
use graftwork_contract::signing::{Addressee, print_key, sign};
use graftwork_model::fixture::TinyShape;

use super::*;

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn me() -> Addressee {
    Addressee {
        pod_uid: "pod".into(),
        owner_uid: "endpoint".into(),
    }
}

/// The files of the one version.
fn source() -> Source {
    Source {
        digest: Digest::of(b"adapter"),
        folder: "adapters/one".into(),
    }
}

/// An actor with one version, whose files the storage did not give.
fn actor(store: &std::path::Path, commands: &mpsc::Sender<Command>) -> Actor {
    let base = Digest::of(b"base");
    let settings = Settings {
        guard: Guard::new(me(), &[print_key(&key().verifying_key())]).unwrap(),
        boot_id: "boot".into(),
        base_digest: base.to_string(),
        budget: Budget {
            adapters: 1,
            bytes: u64::MAX,
        },
        files: AdapterFiles::new(store.into(), base, Arc::new(TinyShape::default().config())),
        metrics: Metrics::new(None).unwrap(),
    };
    let (released, _) = mpsc::unbounded_channel();
    let mut actor = Actor::new(settings, commands.downgrade(), released);
    let version = Version {
        name: "one".into(),
        number: 1,
        source: source(),
        is_default: true,
    };
    let _ = actor.registry.replace(vec![version]);
    let refusal = Refusal {
        reason: files::REASON_UNREADABLE,
        message: "input/output error".into(),
        may_pass: true,
    };
    let unread = HeaderRead {
        fingerprint: Vec::new(),
        result: Err(refusal),
    };
    actor.handle(Command::Headers(vec![(source(), unread)], None));
    actor
}

#[tokio::test]
async fn a_push_ends_no_look_at_refused_files_and_one_that_breaks_ends_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (commands, mut inbox) = mpsc::channel(COMMANDS);
    let mut actor = actor(dir.path(), &commands);

    actor.look_again();
    assert_eq!(actor.looks.available_permits(), 0);
    actor.handle(Command::Headers(Vec::new(), None));
    assert_eq!(actor.looks.available_permits(), 0, "it still looks");
    let found = inbox.recv().await.unwrap();
    actor.handle(found);
    assert_eq!(actor.looks.available_permits(), 1);

    actor.look_again();
    // It never says what it found.
    drop(inbox.recv().await.unwrap());
    assert_eq!(actor.looks.available_permits(), 1);
}

#[tokio::test]
async fn where_nothing_was_refused_nothing_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let (commands, mut inbox) = mpsc::channel(COMMANDS);
    let mut actor = actor(dir.path(), &commands);
    let _ = actor.registry.replace(Vec::new());
    actor.look_again();
    assert_eq!(actor.looks.available_permits(), 1);
    assert!(inbox.try_recv().is_err());
}

/// A signed list with the one version.
fn push(generation: u64) -> SignedCall {
    let Source { digest, folder } = source();
    let list = proto::SyncRequest {
        adapters: vec![proto::AdapterVersion {
            name: "one".into(),
            version: 1,
            digest: digest.to_string(),
            folder,
            is_default: true,
        }],
    };
    let fence = Fence {
        lease_epoch: 0,
        generation,
    };
    let body = prost::Message::encode_to_vec(&list);
    sign(
        &key(),
        SYNC_METHOD,
        body,
        &me(),
        fence,
        clock::unix_seconds(),
    )
}

/// What the actor answers at once.
fn sync(actor: &mut Actor, call: &SignedCall) -> proto::SyncReply {
    let (reply, mut answer) = oneshot::channel();
    actor.handle(Command::Sync(Box::new(call.clone()), reply));
    actor.answer_read();
    answer.try_recv().unwrap().unwrap()
}

#[tokio::test]
async fn a_push_that_is_sent_again_is_answered_and_takes_no_list() {
    let dir = tempfile::tempdir().unwrap();
    let (commands, _inbox) = mpsc::channel(COMMANDS);
    let mut actor = actor(dir.path(), &commands);
    let first = push(0);
    assert_eq!(sync(&mut actor, &first).adapters.len(), 1);

    // Whether a list is taken shows in an emptied registry.
    let _ = actor.registry.replace(Vec::new());
    let reply = sync(&mut actor, &first);
    assert_eq!((reply.generation, reply.adapters.len()), (0, 0));

    let (reply, _answer) = oneshot::channel();
    actor.handle(Command::Sync(Box::new(push(1)), reply));
    assert_eq!(actor.registry.standings().count(), 1);
    assert_eq!(actor.status().generation, 1);
}

#[test]
fn a_version_or_a_default_that_stands_in_a_list_twice_is_refused_by_its_place() {
    let entry = |name: &str, version, is_default| proto::AdapterVersion {
        name: name.into(),
        version,
        digest: source().digest.to_string(),
        folder: source().folder,
        is_default,
    };
    let read = |adapters| read_list(proto::SyncRequest { adapters });
    let fine = vec![
        entry("a", 1, false),
        entry("b", 1, true),
        entry("a", 2, true),
        entry("a", 3, false),
    ];
    assert_eq!(read(fine.clone()).unwrap().len(), 4);
    let refused = |last| {
        let list = fine.iter().cloned().chain([last]).collect();
        read(list).unwrap_err().to_string()
    };
    assert_eq!(
        refused(entry("a", 1, false)),
        "adapters[4]: a version 1 stands in the list twice"
    );
    assert_eq!(
        refused(entry("a", 4, true)),
        "adapters[4]: a has two default versions, 2 and 4"
    );
}
