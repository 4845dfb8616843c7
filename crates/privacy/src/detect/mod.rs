//! One module for each type. Each gives the spans of its own type, which may overlap others'.

mod email;
mod iban;
mod ip_address;
mod national_id;
mod payment_card;
mod phone;
mod secret;

use crate::kind::Kind;

/// From and to, in bytes.
pub type Span = (usize, usize);

/// Finds what one type has in a text.
type Detect = fn(&str) -> Vec<Span>;

/// Every type with its detector.
pub const ALL: [(Kind, Detect); 7] = [
    (Kind::Secret, secret::find),
    (Kind::Email, email::find),
    (Kind::Iban, iban::find),
    (Kind::PaymentCard, payment_card::find),
    (Kind::NationalId, national_id::find),
    (Kind::IpAddress, ip_address::find),
    (Kind::Phone, phone::find),
];

/// The texts that a detector finds.
#[cfg(test)]
pub fn texts(detect: Detect, text: &str) -> Vec<&str> {
    detect(text)
        .into_iter()
        .map(|(start, end)| &text[start..end])
        .collect()
}
