//! graftwork-operator-core
