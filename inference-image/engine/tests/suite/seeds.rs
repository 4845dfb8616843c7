//! The fuzz target's seeds on stable Rust: what is called good is taken by an endpoint, and what is called bad by none.

#[path = "../../../../fuzz/src/request.rs"]
mod request;

use std::path::Path;

#[test]
fn seeds_of_requests_are_read_or_refused_by_name() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/request");
    let mut seen = 0;
    for seed in std::fs::read_dir(seeds).unwrap() {
        let seed = seed.unwrap();
        let name = seed.file_name().into_string().unwrap();
        let models = request::models(&std::fs::read(seed.path()).unwrap());
        assert_eq!(!models.is_empty(), name.starts_with("good-"), "{name}");
        let named = Some("a".to_owned());
        assert!(models.iter().all(|model| *model == named), "{models:?}");
        seen += 1;
    }
    assert!(seen > 10, "{seen} seeds");
}
