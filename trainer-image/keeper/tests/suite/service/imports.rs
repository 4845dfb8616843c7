//! Adapters from claims: what is imported, what is refused, and how an import is verified.

use graftwork_contract::adapter::{Manifest, Provenance};

use super::*;

#[tokio::test]
async fn an_import_is_whole_verified_and_repeatable() {
    let mut bench = Bench::start().await;
    fs::write(bench.claim().join("adapter/README.md"), "# Expenses\n").unwrap();
    let first = bench.import("adapter", "").await.unwrap();
    assert_eq!(
        (first.problem, first.rank, first.pod_uid.as_str()),
        (None, 4, "pod")
    );
    assert_eq!(first.target_modules, ["q_proj", "v_proj"]);
    let folder = format!(
        "adapters/expenses/{}",
        first.digest.trim_start_matches("sha256:")
    );
    let manifest: Manifest = bench
        .store()
        .get_json(&format!("{folder}/manifest.json"))
        .unwrap()
        .unwrap();
    assert_eq!(manifest.digest.as_str(), first.digest);
    assert_eq!(manifest.size_bytes, first.size_bytes);
    assert_eq!(
        manifest.files.keys().collect::<Vec<_>>(),
        [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors"
        ]
    );
    bench.store().verify(&folder, &manifest.files).unwrap();
    let bytes = |name: &String| {
        let file = bench.store().root().join(&folder).join(name);
        fs::metadata(file).unwrap().len()
    };
    assert_eq!(
        first.size_bytes,
        manifest.files.keys().map(bytes).sum::<u64>()
    );
    let Provenance::Imported { uri, .. } = manifest.provenance else {
        panic!("not an import");
    };
    assert_eq!(uri, "pvc://models/adapter");

    let before = bench.store().list("").unwrap();
    let again = bench.import("adapter", &first.digest).await.unwrap();
    assert_eq!((again.problem, &again.digest), (None, &first.digest));
    assert_eq!(bench.store().list("").unwrap(), before);
    let verified = bench.verify(&first.digest, "base").await.unwrap();
    assert_eq!(verified.size_bytes, first.size_bytes);
    assert_eq!((verified.problem, verified.digest), (None, first.digest));
}

#[tokio::test]
async fn what_can_not_be_imported_is_named_and_leaves_nothing() {
    let mut bench = Bench::start().await;
    let claim = bench.claim();
    let copy = |name: &str| {
        fs::create_dir(claim.join(name)).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(
                claim.join("adapter").join(file),
                claim.join(name).join(file),
            )
            .unwrap();
        }
        claim.join(name)
    };
    let pickle = copy("pickle");
    fs::write(pickle.join("training_args.bin"), b"\x80\x04\x95").unwrap();
    let disguised = copy("disguised");
    fs::write(
        disguised.join("adapter_model.safetensors"),
        b"\x7fELF\x02\x01\x01",
    )
    .unwrap();
    let cut = copy("cut");
    let bytes = fs::read(cut.join("adapter_model.safetensors")).unwrap();
    fs::write(
        cut.join("adapter_model.safetensors"),
        &bytes[..bytes.len() - 4],
    )
    .unwrap();
    let nan = copy("nan");
    let mut bytes = bytes.clone();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(nan.join("adapter_model.safetensors"), bytes).unwrap();
    let linked = copy("linked");
    fs::remove_file(linked.join("adapter_config.json")).unwrap();
    let secret = bench.dir.path().join("config.json");
    std::os::unix::fs::symlink(secret, linked.join("adapter_config.json")).unwrap();
    let wide = TinyShape {
        hidden: 2 * shape().hidden,
        ..shape()
    };
    let other = write_tiny_base(&claim.join("wide"), &wide, 1).unwrap();
    random_adapter(&other, &lora(), 1)
        .save(&claim.join("other"))
        .unwrap();
    fs::create_dir(claim.join("empty")).unwrap();

    let zeros = format!("sha256:{}", "0".repeat(64));
    for (path, digest, reason, word) in [
        ("absent", "", "ImportFailed", "pvc://models/absent"),
        ("../base", "", "ImportFailed", "not a path within a claim"),
        ("empty", "", "ImportFailed", "adapter_config.json"),
        ("linked", "", "ImportFailed", "adapter_config.json"),
        (
            "pickle",
            "",
            "FileTypeRefused",
            "training_args.bin is pickled Python",
        ),
        (
            "disguised",
            "",
            "FileTypeRefused",
            "adapter_model.safetensors is an ELF program",
        ),
        ("cut", "", "AdapterInvalid", "adapter_model.safetensors"),
        ("nan", "", "AdapterInvalid", "not finite"),
        ("other", "", "AdapterIncompatible", "has shape"),
        ("adapter", zeros.as_str(), "DigestMismatch", zeros.as_str()),
    ] {
        let (got, message) = bench.refused_import(path, digest).await;
        assert_eq!(got, reason, "{path}: {message}");
        assert!(message.contains(word), "{path}: {message}");
    }
    assert!(bench.store().list("").unwrap().is_empty());
}

#[tokio::test]
async fn a_huge_or_malformed_file_is_refused_before_a_byte_is_copied() {
    let mut bench = Bench::start().await;
    // No copy can begin: where one would, the answer is that the store is unavailable.
    fs::write(bench.dir.path().join("store/.tmp"), "").unwrap();
    let copied = bench.import("adapter", "").await.unwrap_err();
    assert_eq!(copied.code(), Code::Unavailable, "{copied}");

    let adapter = bench.claim().join("adapter");
    let weights = fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    let config = fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
    let header = br#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    let mut of_another = (header.len() as u64).to_le_bytes().to_vec();
    of_another.extend(header);
    of_another.extend([0_u8; 16]);
    let integers = {
        let text = String::from_utf8_lossy(header).replace("F32", "I32");
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.bytes());
        bytes.extend([0_u8; 16]);
        bytes
    };
    let dora = config.replace("\"use_dora\": false", "\"use_dora\": true");
    assert_ne!(dora, config);
    let cases: [(&str, &[u8], u64, &str, &str); 7] = [
        // A hole of a terabyte after a header that says nothing of it.
        (
            "adapter_model.safetensors",
            &weights,
            1 << 40,
            "AdapterInvalid",
            "header says",
        ),
        (
            "adapter_config.json",
            b"{",
            1 << 40,
            "AdapterInvalid",
            "more than 1048576 bytes",
        ),
        (
            "README.md",
            b"# Card",
            1 << 40,
            "AdapterInvalid",
            "more than 1048576 bytes",
        ),
        (
            "notes.txt",
            b"words",
            1 << 40,
            "AdapterInvalid",
            "more than 67108864 bytes",
        ),
        (
            "adapter_config.json",
            dora.as_bytes(),
            0,
            "AdapterInvalid",
            "use_dora",
        ),
        (
            "adapter_model.safetensors",
            &of_another,
            0,
            "AdapterIncompatible",
            "not found",
        ),
        (
            "adapter_model.safetensors",
            &integers,
            0,
            "AdapterInvalid",
            "dtype I32",
        ),
    ];
    for (index, (file, bytes, length, reason, word)) in cases.into_iter().enumerate() {
        let name = format!("case-{index}");
        let folder = bench.claim().join(&name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("adapter_model.safetensors"), &weights).unwrap();
        fs::write(folder.join("adapter_config.json"), &config).unwrap();
        fs::write(folder.join(file), bytes).unwrap();
        if length > 0 {
            let open = fs::File::options().write(true).open(folder.join(file));
            open.unwrap().set_len(length).unwrap();
        }
        let (got, message) = bench.refused_import(&name, "").await;
        assert_eq!(got, reason, "{file}: {message}");
        assert!(
            message.contains(file) && message.contains(word),
            "{message}"
        );
    }
}

#[tokio::test]
async fn a_verification_blames_the_adapter_for_its_own_faults_only() {
    let mut bench = Bench::start().await;
    let digest = bench.import("adapter", "").await.unwrap().digest;
    // The base is not there: nothing is known about the adapter, so nobody may reject it.
    let no_base = bench.verify(&digest, "absent").await.unwrap_err();
    assert_eq!(no_base.code(), Code::FailedPrecondition);
    assert!(no_base.message().contains("BaseModelNotFound"), "{no_base}");

    let folder = format!("adapters/expenses/{}", digest.trim_start_matches("sha256:"));
    let weights = bench
        .store()
        .root()
        .join(folder)
        .join("adapter_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let problem = bench
        .verify(&digest, "base")
        .await
        .unwrap()
        .problem
        .unwrap();
    assert_eq!(problem.reason, "DigestMismatch", "{}", problem.message);
    assert!(
        problem.message.contains("adapter_model.safetensors"),
        "{}",
        problem.message
    );

    let absent = format!("sha256:{}", "0".repeat(64));
    let problem = bench
        .verify(&absent, "base")
        .await
        .unwrap()
        .problem
        .unwrap();
    assert_eq!(problem.reason, "AdapterNotFound");
}
