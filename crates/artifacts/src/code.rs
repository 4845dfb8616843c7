//! Which program wrote something.

use std::fs::File;
use std::io::{self, Read as _, SeekFrom};
use std::sync::OnceLock;

/// Digits of the build's identity.
const DIGITS: usize = 12;
/// Notes are short; a file that claims otherwise is none of ours.
const MOST_BYTES: u64 = 1 << 16;
/// The kinds of a program header and of a note (System V ABI; `elf.h`).
const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;

/// `package`, the version of a program, with the first digits of what the linker calls this build: two builds of one
/// version are two programs. The version alone where the linker named none.
pub fn code_version(package: &str) -> String {
    static BUILD: OnceLock<Option<String>> = OnceLock::new();
    let build = BUILD.get_or_init(|| {
        let id = File::open("/proc/self/exe").and_then(|mut file| build_id(&mut file));
        let id = hex::encode(id.ok()??);
        id.get(..DIGITS).map(str::to_owned)
    });
    match build {
        Some(digits) => format!("{package}+{digits}"),
        None => package.to_owned(),
    }
}

/// The build's identity in an ELF file of 64 bits, least byte first: the digest that linkers write for debuggers.
fn build_id<F: io::Read + io::Seek>(file: &mut F) -> io::Result<Option<Vec<u8>>> {
    let head = bytes(file, 0, 64)?;
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let (first, size) = (long(&head, 32), u64::from(short(&head, 54)));
    for number in 0..u64::from(short(&head, 56)) {
        let header = bytes(file, first.saturating_add(number * size), 56)?;
        if word(&header, 0) == PT_NOTE {
            let notes = bytes(file, long(&header, 8), long(&header, 32).min(MOST_BYTES))?;
            if let Some(id) = find(&notes) {
                return Ok(Some(id.to_vec()));
            }
        }
    }
    Ok(None)
}

/// The build's identity among notes: each has the lengths of its owner's name and of what it says, its kind, and the
/// two, which end at multiples of four bytes.
fn find(mut notes: &[u8]) -> Option<&[u8]> {
    while notes.len() >= 12 {
        let (name, said) = (word(notes, 0) as usize, word(notes, 4) as usize);
        let kind = word(notes, 8);
        let (owner, rest) = notes
            .get(12..)?
            .split_at_checked(name.next_multiple_of(4))?;
        if kind == NT_GNU_BUILD_ID && owner == b"GNU\0" {
            return rest.get(..said);
        }
        notes = rest.get(said.next_multiple_of(4)..)?;
    }
    None
}

fn bytes<F: io::Read + io::Seek>(file: &mut F, at: u64, count: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(count).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The number at a place; 0 where the file has ended.
fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let part = bytes.get(at..at + N).and_then(|part| part.try_into().ok());
    part.unwrap_or([0; N])
}

fn short(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(number(bytes, at))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(bytes, at))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(bytes, at))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn a_program_is_its_version_and_its_build() {
        let version = code_version("1.2.3");
        let digits = version.strip_prefix("1.2.3+").unwrap();
        assert_eq!(digits.len(), DIGITS);
        assert!(digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        assert_eq!(code_version("1.2.3"), version);
    }

    #[test]
    fn the_build_is_found_behind_other_notes_and_what_is_no_program_has_none() {
        let note = |owner: &[u8], kind: u32, said: &[u8]| {
            let mut note = Vec::new();
            for number in [owner.len() as u32, said.len() as u32, kind] {
                note.extend(number.to_le_bytes());
            }
            for part in [owner, said] {
                note.extend(part);
                note.resize(note.len().next_multiple_of(4), 0);
            }
            note
        };
        let notes = [
            note(b"GNU\0", 1, &[7; 16]),
            note(b"x\0", 3, &[1; 3]),
            note(b"GNU\0", 3, &[9; 20]),
        ]
        .concat();
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..58].copy_from_slice(&[56, 0, 1, 0]);
        file[64..68].copy_from_slice(&PT_NOTE.to_le_bytes());
        file[72..80].copy_from_slice(&120_u64.to_le_bytes());
        file[96..104].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        file.extend(&notes);
        let found = |file: &[u8]| build_id(&mut Cursor::new(file)).unwrap();
        assert_eq!(found(&file), Some(vec![9; 20]));
        for end in 0..file.len() {
            assert_ne!(found(&file[..end]), Some(vec![9; 20]), "{end}");
        }
        assert_eq!(found(b"#!/bin/sh\n"), None);
    }
}
