//! Memory that is read soon, asked for while something else is computed.
//!
//! Of a weight's panels the first tile of rows waits for memory, which then waits for the others. And with many rows a
//! product with the base takes longer to compute than to read, while the factors of the rows' adapters, which no cache
//! holds when they are many, are the other way round. So tiles ask for the lines of the next panels, and for those of
//! the factors that the same thread multiplies next, as they go. Nothing is computed otherwise for it.

/// Bytes that memory gives at a time.
const LINE: usize = 64;
/// Lines that are asked for at most: half of a second cache, of which more would push each other out before anybody
/// reads them.
const MOST: usize = (512 << 10) / LINE;

/// Places in memory, one behind the other, that are still to be asked for.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    spans: Vec<Piece>,
    /// The first span with lines that are left.
    at: usize,
    lines: usize,
}

impl Ahead {
    /// Adds what these values take, as far as a cache has room.
    pub fn push<T>(&mut self, values: &[T]) {
        let mut span = Piece::of(values, 0, 1);
        span.lines = span.lines.min(MOST - self.lines);
        self.lines += span.lines;
        self.spans.push(span);
    }

    /// Lines that are left.
    pub fn len(&self) -> usize {
        self.lines
    }

    /// Takes at most so many lines, as many as lie beside each other.
    pub fn take(&mut self, lines: usize) -> Piece {
        while let Some(span) = self.spans.get_mut(self.at) {
            if span.lines == 0 {
                self.at += 1;
                continue;
            }
            let piece = Piece {
                start: span.start,
                lines: lines.min(span.lines),
            };
            span.start += piece.lines * LINE;
            span.lines -= piece.lines;
            self.lines -= piece.lines;
            return piece;
        }
        Piece::default()
    }
}

/// Lines beside each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Piece {
    /// A place to ask for, which nobody reads from by this.
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

    /// How many.
    pub fn lines(self) -> usize {
        self.lines
    }

    /// To be asked for in so many steps.
    pub fn paced(self, steps: usize) -> Paced {
        Paced {
            next: self.start,
            end: self.start + self.lines * LINE,
            each: self.lines.div_ceil(steps.max(1)) * LINE,
        }
    }
}

/// What is left of a piece, and how much of it one step of a tile's loop asks for: a division in each step would take
/// as long as a part of the tile.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Paced {
    next: usize,
    end: usize,
    /// Bytes.
    each: usize,
}

impl Paced {
    /// Asks for what falls to the next step.
    #[expect(
        clippy::inline_always,
        reason = "a few instructions within a tile's loop"
    )]
    #[inline(always)]
    pub fn ask(&mut self) {
        let until = self.end.min(self.next + self.each);
        while self.next < until {
            ask(self.next);
            self.next += LINE;
        }
    }
}

/// Asks for the line of a place that is written soon, into the nearest cache.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn ask_near(place: *const f32) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    #[expect(unsafe_code, reason = "an instruction by its name")]
    // SAFETY: it reads nothing, and faults nowhere.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
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

    fn ahead(spans: &[&[u8]]) -> Ahead {
        let mut ahead = Ahead::default();
        spans.iter().for_each(|values| ahead.push(values));
        ahead
    }

    /// Places of all lines that are asked for, in order, some at a time.
    fn places(mut ahead: Ahead, each: usize) -> Vec<usize> {
        let mut places = Vec::new();
        while ahead.len() > 0 {
            let piece = ahead.take(each);
            places.extend((0..piece.lines).map(|line| piece.start + line * LINE));
        }
        assert_eq!(ahead.take(each), Piece::default());
        places
    }

    #[test]
    fn every_line_is_asked_for_once_however_many_are_taken() {
        let (long, short, none) = (vec![0_u8; 1000], vec![0_u8; 130], Vec::<u8>::new());
        let lines = |start: usize, count: usize| (0..count).map(move |line| start + line * LINE);
        let all: Vec<usize> = lines(long.as_ptr().addr(), 16)
            .chain(lines(short.as_ptr().addr(), 3))
            .collect();
        let ahead = || ahead(&[&long, &none, &short, &none]);
        for each in [100, 1, 5] {
            assert_eq!(places(ahead(), each), all, "{each} lines");
        }
        assert_eq!(ahead().take(0).lines(), 0);
        assert_eq!(places(Ahead::default(), 5), Vec::<usize>::new());
        let tiles = (0..5).map(|tile| Piece::of(&long, tile, 5));
        let of_tiles = tiles.flat_map(|piece| lines(piece.start, piece.lines));
        assert_eq!(of_tiles.collect::<Vec<_>>(), all[..16]);
    }

    #[test]
    fn a_piece_is_asked_for_within_its_steps() {
        let large = vec![0_u8; 10 * LINE];
        for steps in [1, 3, 10, 40] {
            let mut paced = Piece::of(&large, 0, 1).paced(steps);
            let begin = paced.next;
            paced.ask();
            assert_eq!((paced.next - begin) / LINE, 10_usize.div_ceil(steps));
            (1..steps).for_each(|_| paced.ask());
            assert_eq!(paced.next, paced.end);
        }
        let mut nothing = Paced::default();
        nothing.ask();
        assert_eq!(nothing.next, 0);
    }

    #[test]
    fn no_more_is_asked_for_than_a_cache_holds() {
        let large = vec![0_u8; (MOST + 5) * LINE];
        let ahead = ahead(&[&large[..LINE], &large, &large]);
        assert_eq!(ahead.len(), MOST);
        assert_eq!(places(ahead, 100).len(), MOST);
    }
}
