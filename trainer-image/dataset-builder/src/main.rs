//! dataset-builder
fn main() {}
