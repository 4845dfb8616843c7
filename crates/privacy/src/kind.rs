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

/// How often each type was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<Kind, u64>);

impl Counts {
    /// One more of a type.
    pub fn add(&mut self, kind: Kind) {
        *self.0.entry(kind).or_default() += 1;
    }

    /// Adds what another text had.
    pub fn merge(&mut self, other: &Self) {
        for (kind, count) in &other.0 {
            *self.0.entry(*kind).or_default() += count;
        }
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The types that were found, with their counts, in the order of precedence.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, u64)> + '_ {
        self.0.iter().map(|(kind, count)| (*kind, *count))
    }

    /// Counts by the types' names.
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        self.iter()
            .map(|(kind, count)| (kind.name().to_owned(), count))
            .collect()
    }
}
