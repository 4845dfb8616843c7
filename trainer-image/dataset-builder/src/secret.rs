//! A mounted Secret, read as files. Nothing of it but its name and the names of its entries is ever said.

use std::fmt;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use graftwork_contract::dataset::Source;
use graftwork_objects::stores::Credentials;

use crate::failure::Failure;

/// Longest entry of a Secret that is read, in bytes: certificates of a few authorities.
const MAXIMUM_ENTRY_BYTES: u64 = 256 << 10;

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

    /// `source decisions (secret://warehouse/url)`
    pub fn title(&self) -> String {
        format!("source {} ({})", self.source.name, self.source.uri)
    }

    /// A Secret that can't be used, for this problem.
    pub fn bad(&self, problem: &str) -> Failure {
        Failure::source_denied(format!(
            "{}: {problem}; correct the Secret, then change the annotation graftwork.dev/refresh",
            self.title()
        ))
    }

    /// An entry; none where it is not there.
    ///
    /// # Errors
    /// One that can't be read, or is longer than any may be.
    pub fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        let path = Path::new(&self.source.path).join(name);
        let failed = |error: std::io::Error| {
            Failure::unavailable(format!("{}: {name} can't be read: {error}", self.title()))
        };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAXIMUM_ENTRY_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > MAXIMUM_ENTRY_BYTES {
            return Err(self.bad(&format!(
                "{name} is longer than {MAXIMUM_ENTRY_BYTES} bytes"
            )));
        }
        Ok(Some(bytes))
    }

    /// An entry without the line's end that editors leave; none where it is not there or empty.
    ///
    /// # Errors
    /// See [`Mounted::bytes`]; one that is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<String>, Failure> {
        let Some(bytes) = self.bytes(name)? else {
            return Ok(None);
        };
        let text =
            String::from_utf8(bytes).map_err(|_| self.bad(&format!("{name} is not UTF-8")))?;
        let text = text.trim_end_matches(['\n', '\r']);
        Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
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
