//! What an error about a model's files asks of the caller.

use std::io;

/// What a failure asks of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// The volume did not give a file that should be there; the same call may succeed later.
    Transient,
    /// What is there, or is missing there, can't be used; repeating changes nothing.
    Invalid,
    /// A defect of ours.
    Bug,
}

impl Category {
    /// Of an error of the file system. What is not there, and what is there and is no UTF-8, is about
    /// the files. Everything else (an input/output error, a stale handle, a permission that is
    /// missing) is about the volume.
    pub(crate) fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidData => {
                Self::Invalid
            }
            _ => Self::Transient,
        }
    }
}
