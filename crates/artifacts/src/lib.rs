//! The artifact store of one namespace: a folder on a mounted volume, or a bucket, written so that what is
//! there is whole.
//!
//! - Records are create-only ([`Store::put_new`]): of racing writers exactly one wins, and nobody
//!   ever sees half a record.
//! - Folders appear at once with all their files ([`Store::stage`], [`Staged::publish`]), the
//!   manifest among them: a folder without `manifest.json` does not exist.
//! - Everything is synced to the disk, files before names, before a call returns. Into a bucket, files go before
//!   the manifest, which is put there if none is ([`Store::open_at`]); its server has to keep that condition.
//! - Readers check SHA-256 before use ([`Store::verify`], [`Store::get_verified`]).
//! - No path leaves the store's folder.
//!
//! With the feature `rows`, the module `rows` reads and writes the rows of datasets as Parquet.
//!
//! This crate does not know what records mean (that is the contract crate), deletes nothing by itself but the
//! leftovers of killed writers, and shows no asynchronous half: callers on a runtime use their blocking threads.

#![forbid(unsafe_code)]

mod bucket;
mod clock;
mod code;
pub mod content;
mod error;
mod fetched;
mod folder;
mod known;
mod numbered;
mod objects;
pub mod panics;
mod path;
#[cfg(feature = "rows")]
pub mod rows;
mod staging;
mod store;
mod verify;
mod volume;

pub use code::code_version;
pub use error::{Category, Error, Result};
pub use fetched::Fetched;
pub use numbered::Appended;
pub use staging::{MANIFEST_FILE, Staged, StagedFiles};
pub use store::{Entry, Put, Store};
pub use verify::digest_of_file;
pub use volume::Volume;
