//! The types of personal data, and how often each was found.

use std::collections::BTreeMap;
use std::fmt;

/// A type of personal data. The order is the order of precedence where two overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A key, a token, or a password beside its name.
    Secret,
    /// An e-mail address.
    Email,
    /// An international bank account number (ISO 13616).
    Iban,
    /// A payment card's number.
    PaymentCard,
    /// A national identity, tax or social security number.
    NationalId,
    /// An IPv4 or IPv6 address.
    IpAddress,
    /// A phone number.
    Phone,
}

impl Kind {
    /// All, in the order of precedence.
    pub const ALL: [Self; 7] = [
        Self::Secret,
        Self::Email,
        Self::Iban,
        Self::PaymentCard,
        Self::NationalId,
        Self::IpAddress,
        Self::Phone,
    ];

    /// The name in manifests and status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Email => "email",
            Self::Iban => "iban",
            Self::PaymentCard => "paymentCard",
            Self::NationalId => "nationalId",
            Self::IpAddress => "ipAddress",
            Self::Phone => "phone",
        }
    }

    /// The word that stands in masked text.
    pub const fn placeholder(self) -> &'static str {
        match self {
            Self::Secret => "SECRET",
            Self::Email => "EMAIL",
            Self::Iban => "IBAN",
            Self::PaymentCard => "PAYMENT_CARD",
            Self::NationalId => "NATIONAL_ID",
            Self::IpAddress => "IP_ADDRESS",
            Self::Phone => "PHONE",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How often each type was found, those that others than [`find`](crate::find()) know by their own names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    own: BTreeMap<Kind, u64>,
    others: BTreeMap<String, u64>,
}

impl Counts {
    /// One more of a type.
    pub fn add(&mut self, kind: Kind) {
        *self.own.entry(kind).or_default() += 1;
    }

    /// So many more of a type that is named.
    pub fn add_named(&mut self, name: &str, count: u64) {
        let known = self.others.entry(name.to_owned()).or_default();
        *known = known.saturating_add(count);
    }

    /// Adds what another text had.
    pub fn merge(&mut self, other: &Self) {
        for (kind, count) in &other.own {
            *self.own.entry(*kind).or_default() += count;
        }
        for (name, count) in &other.others {
            self.add_named(name, *count);
        }
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.others.is_empty()
    }

    /// Counts by the types' names.
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let mut counts = self.others.clone();
        for (kind, count) in &self.own {
            *counts.entry(kind.name().to_owned()).or_default() += count;
        }
        counts
    }
}
