//! graftwork-artifacts
