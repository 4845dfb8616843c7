//! The fuzz targets' seeds on stable Rust: what is called good is taken, and what is called bad is refused.

#[path = "../../../../fuzz/src/adapter.rs"]
mod adapter;
#[path = "../../../../fuzz/src/template.rs"]
mod template;

use std::path::Path;

fn every_seed_is_what_its_name_says(target: &str, takes: impl Fn(&[u8]) -> bool) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    let mut taken = [0, 0];
    for seed in std::fs::read_dir(seeds.join(target)).unwrap() {
        let seed = seed.unwrap();
        let name = seed.file_name().into_string().unwrap();
        let is_taken = takes(&std::fs::read(seed.path()).unwrap());
        assert_eq!(is_taken, name.starts_with("good-"), "{target}/{name}");
        taken[usize::from(is_taken)] += 1;
    }
    assert!(taken.iter().all(|count| *count > 2), "{taken:?}");
}

#[test]
fn seeds_of_adapters_are_loaded_or_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    every_seed_is_what_its_name_says("adapter", |bytes| adapter::load(dir.path(), bytes));
}

#[test]
fn seeds_of_templates_are_rendered_or_refused_by_name() {
    every_seed_is_what_its_name_says("template", template::render);
}
