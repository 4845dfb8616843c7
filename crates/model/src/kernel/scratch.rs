//! Memory that a thread keeps from call to call, so that none is zeroed or asked of the system anew.

use std::cell::Cell;
use std::thread::LocalKey;

use super::panels::LANES;

/// One thread's memory for one purpose.
pub(super) type Place = Cell<Vec<f32>>;

thread_local! {
    /// Packed inputs of a product, of the thread that asks for it; one side of a gradient.
    pub(super) static INPUTS: Place = const { Cell::new(Vec::new()) };
    /// Weights of one task, as f32; the other side of a gradient.
    pub(super) static WEIGHTS: Place = const { Cell::new(Vec::new()) };
    /// Sums of one task.
    pub(super) static SUMS: Place = const { Cell::new(Vec::new()) };
}

/// Calls `f` with `len` values that begin at a cache line, which are whatever the last user left. A call within `f`,
/// of another task that the thread takes up, gets memory of its own.
pub(super) fn with_scratch<R>(
    place: &'static LocalKey<Place>,
    len: usize,
    f: impl FnOnce(&mut [f32]) -> R,
) -> R {
    let mut buffer = place.take();
    if buffer.len() < len + LANES {
        // Not by `resize`, which would copy what nobody reads.
        drop(buffer);
        buffer = vec![0.0; len + LANES];
    }
    let start = buffer.as_ptr().align_offset(LANES * size_of::<f32>());
    let start = start.min(LANES);
    let result = f(buffer.get_mut(start..start + len).unwrap_or_default());
    place.set(buffer);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_kept_and_a_call_within_a_call_has_its_own() {
        let first = with_scratch(&SUMS, 100, |outer| {
            outer.fill(1.0);
            with_scratch(&SUMS, 100, |inner| inner.fill(2.0));
            assert!(outer.iter().all(|value| *value == 1.0));
            assert!(
                outer
                    .as_ptr()
                    .cast::<[f32; LANES]>()
                    .addr()
                    .is_multiple_of(64)
            );
            outer.len()
        });
        assert_eq!(first, 100);
        // A shorter one is the same memory.
        with_scratch(&SUMS, 60, |again| {
            assert_eq!(again.len(), 60);
            assert!(again.iter().all(|value| *value == 1.0));
        });
    }
}
