//! graftwork-e2e
fn main() {}
