//! A keeper whose store is in a bucket of a real S3 server.

use graftwork_objects::fixture;

use super::*;

#[tokio::test]
async fn a_store_in_a_bucket_is_kept_as_one_on_a_volume() {
    let s3 = tempfile::tempdir().unwrap();
    let Some(server) = fixture::Server::start(s3.path(), "store").unwrap() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let scratch = dir.path().join("store");
    fs::create_dir(&scratch).unwrap();
    let store = Store::open_at(Some(&server.config("s3://store/team")), scratch).unwrap();
    let mut bench = Bench::on(dir, store).await;

    assert!(
        bench
            .publish(APPROVED_PATH, APPROVED)
            .await
            .unwrap()
            .created
    );
    assert!(
        !bench
            .publish(APPROVED_PATH, APPROVED)
            .await
            .unwrap()
            .created
    );
    let other = APPROVED.replace("gate", "anna");
    let refused = bench.publish(APPROVED_PATH, &other).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    // The second answer is from what is known.
    for _ in 0..2 {
        let prefix = "adapters/expenses/versions/".to_owned();
        let listed = bench.client.list(ListRequest { prefix }).await.unwrap();
        let records = listed.into_inner().records;
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].path, APPROVED_PATH);
        assert_eq!(records[0].content, APPROVED.as_bytes());
    }

    let imported = bench.import("adapter", "").await.unwrap();
    assert_eq!(imported.problem, None);
    let verified = bench.verify(&imported.digest, "base").await.unwrap();
    assert_eq!(verified.problem, None);
    assert_eq!(verified.digest, imported.digest);
    let folder = format!(
        "team/adapters/expenses/{}",
        imported.digest.trim_start_matches("sha256:")
    );
    let weights = server.object(&format!("{folder}/adapter_model.safetensors"));
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let damaged = bench.verify(&imported.digest, "base").await.unwrap();
    assert_eq!(damaged.problem.unwrap().reason, "DigestMismatch");

    server.write_secret("wrong-hidden").unwrap();
    let refused = bench.get(APPROVED_PATH).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let message = refused.message();
    assert!(message.contains("SignatureDoesNotMatch"), "{message}");
    assert!(!message.contains("hidden"), "{message}");
}
