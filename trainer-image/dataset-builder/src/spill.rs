//! What does not fit in memory, on the scratch volume: sorted records, and numbers by row.
//!
//! Files of the scratch volume have no name: the kernel frees them with the process, however it ends.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

pub mod numbers;
pub mod runs;
pub mod sorter;
pub mod texts;

/// Bytes that are held in memory at most, unless the command line says otherwise (512 MiB). What else a
/// build needs (decoders, row groups of Parquet, long rows) comes on top.
pub const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;
/// What the container may hold, in bytes, or `max` (cgroup v2).
const LIMIT_FILE: &str = "/sys/fs/cgroup/memory.max";
/// Bytes that a query over the sources holds at most (300 MiB), on every machine: when an operator spills, the
/// order of equal rows and the last bits of sums of fractions may follow from it, and with them the digest.
pub const QUERY_BYTES: u64 = 300 << 20;
/// The least that a container may hold where there is such a query (1 GiB).
const QUERY_CONTAINER_BYTES: u64 = 1 << 30;
/// The least that is held (4 KiB); with less nothing could be sorted.
const MINIMUM_MEMORY_BYTES: u64 = 4 << 10;
/// Sorts and tables that hold something at the same time, at most: rows, which have two of the shares, two tables,
/// and the sort that follows another.
const SHARES: u64 = 6;
/// Shares of the rows: they are read several times, which from the volume takes longer.
const ROW_SHARES: u64 = 2;

/// Bytes that are held in memory where nobody says otherwise: a quarter of what the container may hold, and
/// at most [`DEFAULT_MEMORY_BYTES`].
pub fn default_memory_bytes() -> u64 {
    part_of_limit(std::fs::read_to_string(LIMIT_FILE).ok().as_deref())
}

fn part_of_limit(limit: Option<&str>) -> u64 {
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    limit.map_or(DEFAULT_MEMORY_BYTES, |bytes| {
        (bytes / 4).min(DEFAULT_MEMORY_BYTES)
    })
}

/// Whether the container is large enough for a query over the sources.
///
/// # Errors
/// One that may hold too little, with what it may and what to do.
pub fn check_room_for_query() -> Result<(), Failure> {
    check_query_limit(std::fs::read_to_string(LIMIT_FILE).ok().as_deref())
}

fn check_query_limit(limit: Option<&str>) -> Result<(), Failure> {
    match limit.and_then(|text| text.trim().parse::<u64>().ok()) {
        Some(bytes) if bytes < QUERY_CONTAINER_BYTES => Err(Failure::query_failed(format!(
            "spec.transform: the builder's container has {} of memory and a query takes {}, the same everywhere so that the rows are; raise datasetBuilder.resources.limits.memory of the chart to {} or more",
            mebibytes(bytes),
            mebibytes(QUERY_BYTES),
            mebibytes(QUERY_CONTAINER_BYTES)
        ))),
        _ => Ok(()),
    }
}

/// The scratch volume, and how much may be held in memory before it is used. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Scratch {
    dir: PathBuf,
    memory_bytes: u64,
    query_bytes: u64,
}

impl Scratch {
    /// Scratch space in `dir`. Nothing is created there until the memory is full.
    pub fn new(dir: &Path, memory_bytes: u64) -> Self {
        Self {
            dir: dir.to_path_buf(),
            memory_bytes: memory_bytes.max(MINIMUM_MEMORY_BYTES),
            query_bytes: QUERY_BYTES,
        }
    }

    /// The same with another size for queries than every build has: for tests, which can't fill that one.
    #[must_use]
    pub fn with_query_bytes(self, query_bytes: u64) -> Self {
        Self {
            query_bytes: query_bytes.max(MINIMUM_MEMORY_BYTES),
            ..self
        }
    }

    /// Bytes that one sort or table may hold.
    pub fn share_bytes(&self) -> usize {
        usize::try_from(self.memory_bytes / SHARES).unwrap_or(usize::MAX)
    }

    /// Bytes that the rows of a version may hold.
    pub fn row_bytes(&self) -> usize {
        usize::try_from(self.memory_bytes / SHARES * ROW_SHARES).unwrap_or(usize::MAX)
    }

    /// Bytes that a query may hold.
    pub fn query_bytes(&self) -> usize {
        usize::try_from(self.query_bytes).unwrap_or(usize::MAX)
    }

    /// A new file that nobody else can see.
    ///
    /// # Errors
    /// A volume that is full, is not there, or can't be written.
    pub fn file(&self) -> Result<File, Failure> {
        tempfile::tempfile_in(&self.dir).map_err(|error| self.failed(&error))
    }

    /// An error of the scratch volume. Another attempt may find more room: on a node, pods share it.
    pub fn failed(&self, error: &io::Error) -> Failure {
        let dir = self.dir.display();
        if is_full(error) {
            return Failure::unavailable(format!(
                "the scratch volume {dir} is full ({}), and the rows don't fit in {} of memory; give the node more disk, raise datasetBuilder.resources.limits.ephemeral-storage of the chart where it is set, or build from fewer rows",
                room(&self.dir),
                mebibytes(self.memory_bytes)
            ));
        }
        Failure::unavailable(format!(
            "the scratch volume {dir} can't be used: {error}; rows that don't fit in memory are sorted there"
        ))
    }
}

/// Whether a volume, or its quota, has no more room.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// How large the volume below a path is, and how much of it is free.
pub fn room(path: &Path) -> String {
    // A file that could not be written may not be there; its folder is.
    let found = path.ancestors().find_map(|it| rustix::fs::statvfs(it).ok());
    match found {
        Some(volume) => format!(
            "it has {}, {} free",
            mebibytes(volume.f_blocks.saturating_mul(volume.f_frsize)),
            mebibytes(volume.f_bavail.saturating_mul(volume.f_frsize))
        ),
        None => "its size is not known".to_owned(),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// A record of ours that can't be read back.
pub fn damaged() -> Failure {
    Failure::bug("a record of the scratch volume is not what was written there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_with_its_size_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(dir.path(), 64 << 20);
        let full = scratch.failed(&io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.reason, "StorageUnavailable");
        let name = dir.path().display().to_string();
        for words in [
            name.as_str(),
            "it has ",
            " MiB free",
            "64 MiB of memory",
            "ephemeral-storage",
        ] {
            assert!(full.message.contains(words), "{words}: {full}");
        }
        let missing = Scratch::new(&dir.path().join("absent"), 0);
        let failure = missing.file().unwrap_err();
        assert!(
            failure.message.contains("absent can't be used"),
            "{failure}"
        );
    }

    #[test]
    fn a_small_container_holds_a_quarter_of_its_memory() {
        for (limit, bytes) in [
            (Some("268435456\n"), 64 << 20),
            (Some("2147483648\n"), DEFAULT_MEMORY_BYTES),
            (Some("17179869184\n"), DEFAULT_MEMORY_BYTES),
            (Some("max\n"), DEFAULT_MEMORY_BYTES),
            (None, DEFAULT_MEMORY_BYTES),
        ] {
            assert_eq!(part_of_limit(limit), bytes, "{limit:?}");
        }
    }

    #[test]
    fn a_container_that_is_too_small_for_a_query_is_told_the_size_that_is_not() {
        let failure = check_query_limit(Some("536870912\n")).unwrap_err();
        assert_eq!(failure.reason, "QueryFailed");
        for words in ["512 MiB of memory", "takes 300 MiB", "to 1024 MiB or more"] {
            assert!(failure.message.contains(words), "{words}: {failure}");
        }
        for limit in [Some("1073741824\n"), Some("max\n"), None] {
            assert_eq!(check_query_limit(limit), Ok(()), "{limit:?}");
        }
    }

    #[test]
    fn files_have_no_name_that_could_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(dir.path(), 0);
        let file = scratch.file().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        drop(file);
    }
}
