//! Personal data in text: where it stands, and the text without it.
//!
//! [`find()`] names e-mail addresses, phone numbers, payment cards, IBANs, IP addresses, national
//! identity numbers, and keys and tokens, each by its own rules: check digits where there are any,
//! the words before a number where there are none. [`mask`] replaces them, by their type or by a
//! keyed pseudonym. Every scan takes time linear in the text.
//!
//! It does no I/O, and nothing that it returns but the masked text holds a character of the data:
//! findings are a type and two offsets, errors and `Debug` output say neither text nor key.
//!
//! It does not know names of people, addresses or birthdays (what another analyser finds, [`mask_with`]
//! masks beside its own), numbers that are written in words, nor
//! what a picture shows. docs/datasets.md has the list of what it promises.

#![forbid(unsafe_code)]

mod check_digits;
mod context;
mod detect;
mod find;
mod fold;
mod hmac;
mod kind;
mod mask;
mod others;
mod surroundings;

pub use find::{Finding, find};
pub use kind::{Counts, Kind};
pub use mask::{Key, KeyTooShort, MINIMUM_KEY_BYTES, Masker, mask, mask_with};
pub use others::{Other, beside};
