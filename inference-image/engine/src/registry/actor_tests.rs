//! What the actor does beside the rules of its state.

use graftwork_contract::Digest;
use graftwork_contract::signing::Addressee;
use graftwork_model::fixture::TinyShape;

use super::*;

/// An actor with one version, whose files the storage did not give.
fn actor(store: &std::path::Path, commands: &mpsc::Sender<Command>) -> Actor {
    let base = Digest::of(b"base");
    let me = Addressee {
        pod_uid: "pod".into(),
        owner_uid: "endpoint".into(),
    };
    let settings = Settings {
        guard: Guard::new(me, &[]).unwrap(),
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
    let source = Source {
        digest: Digest::of(b"adapter"),
        folder: "adapters/one".into(),
    };
    let version = Version {
        name: "one".into(),
        number: 1,
        source: source.clone(),
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
    actor.handle(Command::Headers(vec![(source, unread)], None));
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
