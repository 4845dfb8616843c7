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

/// Linux's ELOOP, a link to itself: its `ErrorKind` is not stable yet.
const LINK_LOOP: i32 = 40;

impl Category {
    /// Of an error of the file system. What somebody has to change is about the files: one that is not
    /// there, that may not be read, that is a folder or a link to itself, or that is no UTF-8.
    /// Everything else (an input/output error, a stale handle, a time-out) is about the volume.
    pub(crate) fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidData => Self::Invalid,
            _ if error.raw_os_error() == Some(LINK_LOOP) => Self::Invalid,
            _ => Self::Transient,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_has_to_change_is_invalid_and_what_may_pass_is_not() {
        for (name, number, category) in [
            ("EPERM", 1, Category::Invalid),
            ("ENOENT", 2, Category::Invalid),
            ("EIO", 5, Category::Transient),
            ("EACCES", 13, Category::Invalid),
            ("ENOTDIR", 20, Category::Invalid),
            ("EISDIR", 21, Category::Invalid),
            ("ENAMETOOLONG", 36, Category::Invalid),
            ("ELOOP", 40, Category::Invalid),
            ("ETIMEDOUT", 110, Category::Transient),
            ("ESTALE", 116, Category::Transient),
        ] {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(Category::of_io(&error), category, "{name}");
        }
    }
}
