//! A number, or a bit, for each row, by its position.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::Scratch;
use crate::failure::Failure;

/// Bytes of a number.
const WIDTH: u64 = 8;

/// A number for each row: in memory where all fit in a share of it, else on the scratch volume.
#[derive(Debug)]
pub struct Numbers {
    scratch: Scratch,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<u64>),
    Disk(File),
}

impl Numbers {
    /// All zero. What is not set takes no room, neither in memory nor on the volume.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn new(scratch: &Scratch, count: u64) -> Result<Self, Failure> {
        let bytes = count.saturating_mul(WIDTH);
        let place = match usize::try_from(count) {
            Ok(count) if bytes <= scratch.share_bytes() as u64 => Place::Memory(vec![0; count]),
            _ => {
                let file = scratch.file()?;
                file.set_len(bytes)
                    .map_err(|error| scratch.failed(&error))?;
                Place::Disk(file)
            }
        };
        Ok(Self {
            scratch: scratch.clone(),
            place,
        })
    }

    /// The number at a position that there is.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn get(&self, position: u64) -> Result<u64, Failure> {
        match &self.place {
            Place::Memory(numbers) => usize::try_from(position)
                .ok()
                .and_then(|position| numbers.get(position).copied())
                .ok_or_else(super::damaged),
            Place::Disk(file) => {
                let mut bytes = [0; WIDTH as usize];
                file.read_exact_at(&mut bytes, position * WIDTH)
                    .map_err(|error| self.scratch.failed(&error))?;
                Ok(u64::from_le_bytes(bytes))
            }
        }
    }

    /// Changes the number at a position that there is.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn set(&mut self, position: u64, number: u64) -> Result<(), Failure> {
        match &mut self.place {
            Place::Memory(numbers) => {
                let place = usize::try_from(position)
                    .ok()
                    .and_then(|position| numbers.get_mut(position));
                *place.ok_or_else(super::damaged)? = number;
                Ok(())
            }
            Place::Disk(file) => file
                .write_all_at(&number.to_le_bytes(), position * WIDTH)
                .map_err(|error| self.scratch.failed(&error)),
        }
    }
}

/// A bit for each row, in memory: 25 MB for 200 million rows.
#[derive(Debug, Clone)]
pub struct Bits(Vec<u64>);

impl Bits {
    /// All unset.
    pub fn new(count: u64) -> Self {
        let words = usize::try_from(count.div_ceil(64)).unwrap_or(usize::MAX);
        Self(vec![0; words])
    }

    /// Whether a bit is set.
    pub fn get(&self, position: u64) -> bool {
        let word = usize::try_from(position / 64)
            .ok()
            .and_then(|word| self.0.get(word));
        word.is_some_and(|word| (word >> (position % 64)) & 1 == 1)
    }

    /// Sets a bit.
    pub fn set(&mut self, position: u64) {
        let word = usize::try_from(position / 64)
            .ok()
            .and_then(|word| self.0.get_mut(word));
        if let Some(word) = word {
            *word |= 1 << (position % 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_same_in_memory_and_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        for memory in [0, 1 << 30] {
            let mut numbers = Numbers::new(&Scratch::new(dir.path(), memory), 1000).unwrap();
            assert_eq!(matches!(numbers.place, Place::Disk(_)), memory == 0);
            numbers.set(999, 7).unwrap();
            numbers.set(0, u64::MAX).unwrap();
            let read: Vec<u64> = [0, 1, 998, 999].map(|at| numbers.get(at).unwrap()).into();
            assert_eq!(read, [u64::MAX, 0, 0, 7]);
            assert!(numbers.get(1000).is_err());
        }
    }

    #[test]
    fn a_bit_is_set_alone() {
        let mut bits = Bits::new(130);
        bits.set(64);
        bits.set(129);
        let set: Vec<u64> = (0..200).filter(|at| bits.get(*at)).collect();
        assert_eq!(set, [64, 129]);
    }
}
