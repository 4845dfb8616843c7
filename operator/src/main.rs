//! graftwork-operator
fn main() {}
