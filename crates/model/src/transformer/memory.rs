//! The vectors of one pass, used again from layer to layer: new ones are zeroed, or come from the system page by page.

use std::sync::{Mutex, PoisonError};

/// Vectors of one length that are kept for later.
const KEPT: usize = 4;

/// What layers have let go.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Vec<Vec<f32>>>);

impl Memory {
    /// A vector of `len` values, which are whatever its last user left: who takes it writes all of them.
    pub fn take(&self, len: usize) -> Vec<f32> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match free.iter().position(|vector| vector.len() == len) {
            Some(place) => free.swap_remove(place),
            None => vec![0.0; len],
        }
    }

    /// A vector of zeros.
    pub fn zeroed(&self, len: usize) -> Vec<f32> {
        let mut vector = self.take(len);
        vector.fill(0.0);
        vector
    }

    /// Keeps a vector, as long as there are few of its length: what a pass holds at its peak does not grow by it.
    pub fn give(&self, vector: Vec<f32>) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let alike = free.iter().filter(|other| other.len() == vector.len());
        if !vector.is_empty() && alike.count() < KEPT {
            free.push(vector);
        }
    }

    /// Lets all of them go.
    pub fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_comes_back_by_its_length_and_few_are_kept() {
        let memory = Memory::default();
        memory.give(vec![1.0; 5]);
        assert_eq!(memory.take(4), [0.0; 4]);
        assert_eq!(memory.take(5), [1.0; 5]);
        assert_eq!(memory.take(5), [0.0; 5]);
        for _ in 0..=KEPT {
            memory.give(vec![2.0; 3]);
        }
        assert_eq!(memory.zeroed(3), [0.0; 3]);
        for _ in 1..KEPT {
            assert_eq!(memory.take(3), [2.0; 3]);
        }
        assert_eq!(memory.take(3), [0.0; 3]);
        memory.give(vec![1.0; 5]);
        memory.clear();
        assert_eq!(memory.take(5), [0.0; 5]);
    }
}
