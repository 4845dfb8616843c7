//! Packed values that several weights are parts of, gathered on large pages where they are many.
//!
//! A pass reads the factors of many adapters once each, some kilobytes here and some there. On the system's small pages
//! nearly every one of them begins with a walk through the tables of pages, and the longer an engine has loaded
//! adapters and let them go, the farther are its pages from each other. So what is served lies in one piece, for
//! which the system is asked for large pages.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::MmapMut;
use rayon::prelude::*;

/// Bytes of a large page, on x86-64 and most others.
const LARGE_PAGE: usize = 2 << 20;

/// Some of the values of a piece of memory. Clones and parts share it.
#[derive(Debug, Clone)]
pub(super) struct Shared<T> {
    memory: Arc<Memory<T>>,
    range: Range<usize>,
}

#[derive(Debug)]
enum Memory<T> {
    Own(Vec<T>),
    /// From the start of a large page on.
    Mapped {
        memory: MmapMut,
        bytes: Range<usize>,
        values: PhantomData<T>,
    },
}

impl<T: Pod> Memory<T> {
    fn values(&self) -> &[T] {
        match self {
            Self::Own(values) => values,
            Self::Mapped { memory, bytes, .. } => {
                bytemuck::cast_slice(memory.get(bytes.clone()).unwrap_or_default())
            }
        }
    }

    /// The values of all slices, one behind the other.
    fn of(slices: &[&[T]]) -> Self
    where
        T: Sync,
    {
        let bytes = slices.iter().map(|slice| size_of_val(*slice)).sum();
        let Some((mut memory, bytes)) = mapped(bytes) else {
            return Self::Own(slices.concat());
        };
        let mut rest = memory.get_mut(bytes.clone()).unwrap_or_default();
        let mut places = Vec::with_capacity(slices.len());
        for slice in slices {
            let (place, after) = rest.split_at_mut(size_of_val(*slice));
            places.push((place, slice));
            rest = after;
        }
        let places = places.into_par_iter();
        places.for_each(|(place, slice)| place.copy_from_slice(bytemuck::cast_slice(slice)));
        Self::Mapped {
            memory,
            bytes,
            values: PhantomData,
        }
    }
}

/// Memory of so many bytes on large pages, and where it begins; none where it does not fill one, or the system has no
/// more. What lies before is never touched and takes none.
fn mapped(bytes: usize) -> Option<(MmapMut, Range<usize>)> {
    if bytes < LARGE_PAGE {
        return None;
    }
    let memory = MmapMut::map_anon(bytes.checked_add(LARGE_PAGE)?).ok()?;
    let start = memory.as_ptr().align_offset(LARGE_PAGE);
    // The rest is no large page: who counts these bytes would not know of it. A kernel that has none gives small ones.
    #[cfg(target_os = "linux")]
    let _ = memory.advise_range(
        memmap2::Advice::HugePage,
        start,
        bytes / LARGE_PAGE * LARGE_PAGE,
    );
    Some((memory, start..start.checked_add(bytes)?))
}

impl<T: Pod> Shared<T> {
    /// All of these values.
    pub fn of(values: Vec<T>) -> Self {
        Self {
            range: 0..values.len(),
            memory: Arc::new(Memory::Own(values)),
        }
    }

    /// The values.
    pub fn values(&self) -> &[T] {
        let values = self.memory.values();
        values.get(self.range.clone()).unwrap_or_default()
    }

    /// Some of them, counted from the first one.
    pub fn part(&self, range: Range<usize>) -> Self {
        Self {
            memory: Arc::clone(&self.memory),
            range: self.range.start + range.start..self.range.start + range.end,
        }
    }

    /// Moves each of these, with its parts, into one piece of memory.
    pub fn gather(all: Vec<(&mut Self, Vec<&mut Self>)>)
    where
        T: Sync,
    {
        let slices: Vec<&[T]> = all.iter().map(|(whole, _)| whole.values()).collect();
        let memory = Arc::new(Memory::of(&slices));
        let mut end = 0;
        for (whole, parts) in all {
            let start = end;
            end += whole.range.len();
            for part in parts {
                let from = start + (part.range.start - whole.range.start);
                *part = Self {
                    memory: Arc::clone(&memory),
                    range: from..from + part.range.len(),
                };
            }
            *whole = Self {
                memory: Arc::clone(&memory),
                range: start..end,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A whole of so many values from `first` on, and its second half.
    fn with_half(first: u32, len: u32) -> [Shared<u32>; 2] {
        let whole = Shared::of((first..first + len).collect());
        let half = whole.part(len as usize / 2..len as usize);
        [whole, half]
    }

    #[test]
    fn what_is_gathered_has_the_values_that_it_had_and_lies_in_one_piece() {
        let large = LARGE_PAGE as u32 / 4;
        for (lens, is_mapped) in [
            ([5, 8], false),
            ([large - 3, 7], true),
            ([0, 2 * large + 1], true),
        ] {
            let (mut one, mut two) = (with_half(7, lens[0]), with_half(50, lens[1]));
            let before: Vec<Vec<u32>> = one
                .iter()
                .chain(&two)
                .map(|it| it.values().to_vec())
                .collect();
            let ([a, half_of_a], [b, half_of_b]) = (&mut one, &mut two);
            Shared::gather(vec![(a, vec![half_of_a]), (b, vec![half_of_b])]);
            for (gathered, before) in one.iter().chain(&two).zip(before) {
                assert_eq!(gathered.values(), before);
            }
            let [[a, _], [b, half_of_b]] = [&one, &two];
            assert_eq!(a.values().as_ptr_range().end, b.values().as_ptr());
            assert_eq!(
                b.values().as_ptr_range().end,
                half_of_b.values().as_ptr_range().end
            );
            let mapped = matches!(&*a.memory, Memory::Mapped { .. });
            assert_eq!(mapped, is_mapped, "{lens:?}");
            if mapped {
                assert!(a.values().as_ptr().addr().is_multiple_of(LARGE_PAGE));
            }
        }
    }

    #[test]
    fn nothing_can_be_gathered_and_has_no_values() {
        Shared::<u32>::gather(Vec::new());
        let mut nothing = Shared::<u32>::of(Vec::new());
        Shared::gather(vec![(&mut nothing, Vec::new())]);
        assert!(nothing.values().is_empty());
    }
}
