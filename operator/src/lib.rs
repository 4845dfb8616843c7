//! graftwork-operator
