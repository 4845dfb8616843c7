//! Which program wrote something.

use std::sync::OnceLock;

use crate::verify::digest_of_file;

/// Digits of the program's digest.
const DIGITS: usize = 12;

/// `package`, the version of a program, with the first digits of the SHA-256 over its file behind it: two builds of one
/// version are two programs.
pub fn code_version(package: &str) -> String {
    static FILE: OnceLock<Option<String>> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let (digest, _) = digest_of_file("/proc/self/exe".as_ref()).ok()?;
        let digits = digest.as_str().strip_prefix("sha256:")?;
        digits.get(..DIGITS).map(str::to_owned)
    });
    match file {
        Some(digits) => format!("{package}+{digits}"),
        None => package.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_its_version_and_its_file() {
        let version = code_version("1.2.3");
        let digits = version.strip_prefix("1.2.3+").unwrap();
        assert_eq!(digits.len(), DIGITS);
        assert!(digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        assert_eq!(code_version("1.2.3"), version);
    }
}
