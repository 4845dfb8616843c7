//! Memory that is read soon, asked for while something else is computed.
//!
//! Of a weight's panels the first tile of rows waits for memory, which then waits for the others. And with many rows a
//! product with the base takes longer to compute than to read, while the factors of the rows' adapters, which no cache
//! holds when they are many, are the other way round. So tiles ask for the lines of the next panels, and for those of
//! the factors, as they go. Nothing is computed otherwise for it.

use std::ops::Range;

/// Bytes that memory gives at a time.
const LINE: usize = 64;
/// Lines that are asked for at most, 4 MiB: more would push each other out before anybody reads them.
const MOST: usize = (4 << 20) / LINE;

/// Places in memory, one behind the other, counted in lines.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    spans: Vec<Span>,
    lines: usize,
}

#[derive(Debug)]
struct Span {
    /// A place to ask for, which nobody reads from by this.
    start: usize,
    /// Lines of those before it.
    before: usize,
}

impl Ahead {
    /// Adds what these values take.
    pub fn push<T>(&mut self, values: &[T]) {
        self.spans.push(Span {
            start: values.as_ptr().addr(),
            before: self.lines,
        });
        self.lines += size_of_val(values).div_ceil(LINE);
    }

    /// The share of what is at `work` of `all`.
    pub(super) fn share(&self, work: Range<usize>, all: usize) -> Share<'_> {
        let lines = self.lines.min(MOST) as u128;
        let at = |work: usize| (lines * work as u128 / all.max(1) as u128) as usize;
        Share {
            ahead: self,
            lines: at(work.start)..at(work.end),
        }
    }

    /// Where a line begins, and how many of the same span follow it, with it.
    fn find(&self, line: usize) -> Option<(usize, usize)> {
        let number = self.spans.partition_point(|span| span.before <= line);
        let span = self.spans.get(number.checked_sub(1)?)?;
        let end = self
            .spans
            .get(number)
            .map_or(self.lines, |next| next.before);
        let start = span.start + (line - span.before) * LINE;
        (line < end).then_some((start, end - line))
    }
}

/// What one task asks for.
#[derive(Debug, Clone)]
pub(super) struct Share<'a> {
    ahead: &'a Ahead,
    lines: Range<usize>,
}

impl Share<'_> {
    /// Lines that are left.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Takes at most so many lines, as many as lie beside each other.
    pub fn take(&mut self, lines: usize) -> Piece {
        let most = lines.min(self.lines.len());
        if most == 0 {
            return Piece::default();
        }
        let Some((start, beside)) = self.ahead.find(self.lines.start) else {
            return Piece::default();
        };
        let lines = most.min(beside);
        self.lines.start += lines;
        Piece { start, lines }
    }
}

/// Lines beside each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Piece {
    start: usize,
    lines: usize,
}

impl Piece {
    /// What falls to one of so many tiles, of what these values take.
    pub fn of<T>(values: &[T], tile: usize, tiles: usize) -> Self {
        let lines = size_of_val(values).div_ceil(LINE);
        let at = |tile: usize| lines * tile.min(tiles) / tiles.max(1);
        Self {
            start: values.as_ptr().addr() + at(tile) * LINE,
            lines: at(tile + 1) - at(tile),
        }
    }

    /// Asks for what falls to one of so many steps.
    #[expect(
        clippy::inline_always,
        reason = "a few instructions within a tile's loop"
    )]
    #[inline(always)]
    pub fn ask(self, step: usize, steps: usize) {
        if self.lines == 0 {
            return;
        }
        let each = self.lines.div_ceil(steps);
        for line in step * each..self.lines.min((step + 1) * each) {
            ask(self.start + line * LINE);
        }
    }
}

/// Asks for one line, into the second cache: the nearest one is the tile's own.
#[inline]
fn ask(place: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let place = std::ptr::without_provenance::<i8>(place);
        #[expect(unsafe_code, reason = "an instruction by its name")]
        // SAFETY: it reads nothing, and faults nowhere.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(place);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places of all lines that so many tasks ask for, in order.
    fn places(ahead: &Ahead, tasks: usize, each: usize) -> Vec<usize> {
        let shares = (0..tasks).map(|task| ahead.share(task..task + 1, tasks));
        let mut places = Vec::new();
        for mut share in shares {
            while share.len() > 0 {
                let piece = share.take(each);
                places.extend((0..piece.lines).map(|line| piece.start + line * LINE));
            }
            assert_eq!(share.take(each), Piece::default());
        }
        places
    }

    #[test]
    fn every_line_is_asked_for_once_whoever_asks() {
        let (long, short, none) = (vec![0_u8; 1000], vec![0_u32; 33], Vec::<f32>::new());
        let mut ahead = Ahead::default();
        ahead.push(&long);
        ahead.push(&none);
        ahead.push(&short);
        let lines = |start: usize, count: usize| (0..count).map(move |line| start + line * LINE);
        let all: Vec<usize> = lines(long.as_ptr().addr(), 16)
            .chain(lines(short.as_ptr().addr(), 3))
            .collect();
        for (tasks, each) in [(1, 100), (1, 1), (3, 5), (50, 2)] {
            assert_eq!(
                places(&ahead, tasks, each),
                all,
                "{tasks} tasks, {each} lines"
            );
        }
        assert_eq!(places(&Ahead::default(), 3, 5), Vec::<usize>::new());
        let tiles = (0..5).map(|tile| Piece::of(&long, tile, 5));
        let of_tiles = tiles.flat_map(|piece| lines(piece.start, piece.lines));
        assert_eq!(of_tiles.collect::<Vec<_>>(), all[..16]);
    }
}
