//! A mounted Secret, read as files. Nothing of it but its name and the names of its entries is ever said.

use std::fmt;
use std::path::Path;

use graftwork_contract::dataset::Source;
use graftwork_objects::secret::{self, EntryError};
use graftwork_objects::stores::Credentials;

use crate::failure::Failure;

/// A text of a Secret: no log and no message prints it by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(String);

impl Hidden {
    /// Hides a text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("hidden")
    }
}

/// The folder of a source's Secret.
#[derive(Debug)]
pub struct Mounted<'a> {
    source: &'a Source,
}

impl<'a> Mounted<'a> {
    /// The Secret that is mounted at the source's path.
    pub fn new(source: &'a Source) -> Self {
        Self { source }
    }

    /// The source's name.
    pub fn source_name(&self) -> &'a str {
        &self.source.name
    }

    /// The source's URI, which names the Secret of a query.
    pub fn uri(&self) -> &'a str {
        &self.source.uri
    }

    /// `source decisions (secret://warehouse/url)`
    pub fn title(&self) -> String {
        format!("source {} ({})", self.source.name, self.source.uri)
    }

    /// A Secret that can't be used, for this problem.
    pub fn bad(&self, problem: &str) -> Failure {
        Failure::source_denied(format!(
            "{}: {problem}; correct the Secret that spec.sources[{}] names, then change the annotation \
             graftwork.dev/refresh",
            self.title(),
            self.source.name
        ))
    }

    /// An entry; none where it is not there.
    ///
    /// # Errors
    /// One that can't be read, or is longer than any may be.
    pub fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        secret::entry(Path::new(&self.source.path), name).map_err(|error| match error {
            EntryError::Read(_) => {
                Failure::unavailable(format!("{}: {name} {error}", self.title()))
            }
            EntryError::TooLong => self.bad(&format!("{name} {error}")),
        })
    }

    /// An entry without the line's end that editors leave; none where it is not there or empty.
    ///
    /// # Errors
    /// See [`Mounted::bytes`]; one that is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<String>, Failure> {
        let Some(bytes) = self.bytes(name)? else {
            return Ok(None);
        };
        secret::text(bytes).map_err(|_| self.bad(&format!("{name} is not UTF-8")))
    }
}

impl Credentials for Mounted<'_> {
    type Error = Failure;

    fn text(&self, name: &str) -> Result<Option<String>, Failure> {
        Mounted::text(self, name)
    }

    fn bad(&self, problem: &str) -> Failure {
        Mounted::bad(self, problem)
    }
}
