//! graftwork-e2e
