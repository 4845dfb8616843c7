//! Weights in blocks, packed for the products: sixteen outputs side by side.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use half::f16;
use rayon::prelude::*;

use super::super::panels::LANES;
use super::super::shared::Shared;
use super::{GROUP, eight};
use crate::quant::{BlockFormat, Blocks, scale_and_minimum};

/// How a weight's group is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// 8 bits, 128 stands for 0.
    Eight,
    /// 4 bits, 8 stands for 0.
    Four,
    /// 4 bits from a minimum on.
    FourWithMinimum,
}

impl Kind {
    fn of(format: BlockFormat) -> Option<Self> {
        match format {
            BlockFormat::Q8_0 => Some(Self::Eight),
            BlockFormat::Q4_0 => Some(Self::Four),
            BlockFormat::Q4K => Some(Self::FourWithMinimum),
            // Its scales are for 16 values each.
            BlockFormat::Q6K => None,
        }
    }

    /// The whole number that stands for 0.
    pub fn zero(self) -> i32 {
        match self {
            Self::Eight => 128,
            Self::Four => 8,
            Self::FourWithMinimum => 0,
        }
    }

    /// Lines of one group.
    pub fn lines(self) -> usize {
        match self {
            Self::Eight => 8,
            Self::Four | Self::FourWithMinimum => 4,
        }
    }

    /// Scale lines of so many groups.
    fn scales(self, groups: usize) -> usize {
        match self {
            Self::Eight | Self::Four => groups,
            // Scale and minimum of every eight groups.
            Self::FourWithMinimum => groups / 8 * 2,
        }
    }

    /// Minor scales of so many groups.
    fn minors(self, groups: usize) -> usize {
        match self {
            Self::Eight | Self::Four => 0,
            Self::FourWithMinimum => groups,
        }
    }

    /// Line and shift of a group's four neighbours number `quad`. Those of 4 bits lie in pairs, as far
    /// apart as the lines are many.
    fn place(self, quad: usize) -> (usize, u32) {
        match self {
            Self::Eight => (quad, 0),
            Self::Four | Self::FourWithMinimum => (quad % 4, 4 * (quad as u32 / 4)),
        }
    }

    fn mask(self) -> u8 {
        match self {
            Self::Eight => 255,
            Self::Four | Self::FourWithMinimum => 15,
        }
    }
}

/// Four neighbouring inputs of sixteen outputs: as much as a register and a cache line hold.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u8; 64]);

/// Sixteen outputs' scales, or minima, as f16.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C, align(32))]
pub(super) struct Scales(pub [u16; LANES]);

/// Sixteen outputs' scales and minima of one group, in units of their block's.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C, align(32))]
pub(super) struct Minor {
    pub scales: [u8; LANES],
    pub minima: [u8; LANES],
}

/// What writes the values of a weight's row.
pub(crate) type RowOf<'a> = &'a dyn Fn(usize, &mut [f32]);

/// Panels, each of lines `[groups][lines of a group]`, of scales, and of minor scales where its kind has them.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub quants: &'a [Line],
    pub scales: &'a [Scales],
    pub minors: &'a [Minor],
}

/// A weight `[outputs, inputs]` in blocks, packed by sixteen outputs. It takes what the blocks do, and an
/// eighth of a bit more a value under `Q4_K`.
#[derive(Debug)]
pub(crate) struct IntegerPanels {
    outputs: usize,
    inputs: usize,
    kind: Kind,
    /// Of this weight, or of a [`IntegerPanels::stack`] with it in, as the scales.
    quants: Shared<Line>,
    scales: Shared<Scales>,
    minors: Shared<Minor>,
}

impl IntegerPanels {
    /// Packs a weight; none where it has a format that these products don't know, or no values.
    pub fn pack(blocks: &Blocks) -> Option<Self> {
        let kind = Kind::of(blocks.format())?;
        let (outputs, inputs) = (blocks.outputs(), blocks.inputs());
        if outputs == 0 || inputs == 0 {
            return None;
        }
        let (panels, groups) = (outputs.div_ceil(LANES), inputs / GROUP);
        let rows = |panel: usize| (panel * LANES..outputs.min((panel + 1) * LANES)).enumerate();

        let lines = kind.lines();
        let mut quants = vec![Line([0; 64]); panels * groups * lines];
        let each = quants.par_chunks_mut(groups * lines).enumerate();
        each.for_each(|(panel, quants)| {
            for (lane, row) in rows(panel) {
                for (group, lines) in quants.chunks_exact_mut(lines).enumerate() {
                    put_integers(kind, lines, lane, &integers(blocks, row, group));
                }
            }
        });

        let count = kind.scales(groups);
        let mut scales = vec![Scales([0; LANES]); panels * count];
        let each = scales.par_chunks_mut(count).enumerate();
        each.for_each(|(panel, scales)| {
            for (lane, row) in rows(panel) {
                for (number, line) in scales.iter_mut().enumerate() {
                    if let Some(slot) = line.0.get_mut(lane) {
                        *slot = scale_bits(blocks, row, number);
                    }
                }
            }
        });

        let mut minors = Vec::new();
        for panel in 0..panels {
            for group in 0..kind.minors(groups) {
                let mut minor = Minor {
                    scales: [0; LANES],
                    minima: [0; LANES],
                };
                let slots = minor.scales.iter_mut().zip(&mut minor.minima);
                for ((_, row), (scale, minimum)) in rows(panel).zip(slots) {
                    (*scale, *minimum) = minor_of(blocks, row, group);
                }
                minors.push(minor);
            }
        }
        Some(Self {
            outputs,
            inputs,
            kind,
            quants: Shared::of(quants),
            scales: Shared::of(scales),
            minors: Shared::of(minors),
        })
    }

    /// Packs weights in 8 bits as [`Panels::stack`](super::super::panels::Panels::stack) does: the stack, for one
    /// product with all of them, and each as a part of its memory. Each comes as what writes the values of one of its
    /// rows, and its outputs. None where the inputs are no whole groups, or there are no weights.
    pub fn stack(weights: &[(RowOf<'_>, usize)], inputs: usize) -> Option<(Self, Vec<Self>)> {
        let groups = inputs / GROUP;
        let panels = weights.iter().map(|(_, outputs)| outputs.div_ceil(LANES));
        let panels: usize = panels.sum();
        if panels == 0 || groups == 0 || !inputs.is_multiple_of(GROUP) {
            return None;
        }
        let lines = groups * Kind::Eight.lines();
        let zero = Line([eight::ZERO; 64]);
        let (mut quants, mut scales) = (vec![zero; panels * lines], Vec::new());
        scales.resize(panels * groups, Scales([0; LANES]));
        let mut free = quants.chunks_exact_mut(lines);
        let mut free = free.by_ref().zip(scales.chunks_exact_mut(groups));
        let mut row = vec![0.0; inputs];
        for (row_of, outputs) in weights {
            for first in (0..*outputs).step_by(LANES) {
                let Some((quants, scales)) = free.next() else {
                    break;
                };
                for (lane, number) in (first..*outputs).take(LANES).enumerate() {
                    row_of(number, &mut row);
                    eight::put_row(row.as_chunks().0, lane, quants, scales);
                }
            }
        }
        let stack = Self {
            outputs: panels * LANES,
            inputs,
            kind: Kind::Eight,
            quants: Shared::of(quants),
            scales: Shared::of(scales),
            minors: Shared::of(Vec::new()),
        };
        let mut first = 0;
        let parts = weights.iter().map(|(_, outputs)| {
            let panels = first..first + outputs.div_ceil(LANES);
            first = panels.end;
            stack.part(panels, *outputs)
        });
        let parts = parts.collect();
        Some((stack, parts))
    }

    /// Some panels of it as a weight of so many outputs.
    fn part(&self, panels: Range<usize>, outputs: usize) -> Self {
        let groups = self.groups();
        let of = |count: usize| panels.start * count..panels.end * count;
        Self {
            outputs,
            quants: self.quants.part(of(groups * self.kind.lines())),
            scales: self.scales.part(of(self.kind.scales(groups))),
            minors: self.minors.part(of(self.kind.minors(groups))),
            ..*self
        }
    }

    /// Moves each of these, with its parts, into one piece of memory: see [`Shared::gather`].
    pub fn gather(all: Vec<(&mut Self, Vec<&mut Self>)>) {
        let (mut quants, mut scales, mut minors) = (Vec::new(), Vec::new(), Vec::new());
        for (whole, parts) in all {
            let mut of = (Vec::new(), Vec::new(), Vec::new());
            for part in parts {
                of.0.push(&mut part.quants);
                of.1.push(&mut part.scales);
                of.2.push(&mut part.minors);
            }
            quants.push((&mut whole.quants, of.0));
            scales.push((&mut whole.scales, of.1));
            minors.push((&mut whole.minors, of.2));
        }
        Shared::gather(quants);
        Shared::gather(scales);
        Shared::gather(minors);
    }

    /// Rows of the weight.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the weight.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes held, whoever shares them.
    pub fn bytes(&self) -> usize {
        size_of_val(self.quants.values())
            + size_of_val(self.scales.values())
            + size_of_val(self.minors.values())
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn groups(&self) -> usize {
        self.inputs / GROUP
    }

    pub(super) fn panels(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// A whole panel; none past the last.
    pub(super) fn panel(&self, panel: usize) -> Option<Parts<'_>> {
        self.parts(panel..panel + 1)
    }

    /// Whole panels, one behind the other; none past the last.
    pub(super) fn parts(&self, panels: Range<usize>) -> Option<Parts<'_>> {
        let groups = self.groups();
        let of = |count: usize| panels.start * count..panels.end * count;
        Some(Parts {
            quants: self.quants.values().get(of(groups * self.kind.lines()))?,
            scales: self.scales.values().get(of(self.kind.scales(groups)))?,
            minors: self.minors.values().get(of(self.kind.minors(groups)))?,
        })
    }

    /// The values of `rows` × `columns`, row-major, as [`Blocks::read`] gives them. `columns` start and end at
    /// multiples of 32; what lies outside is left out.
    pub fn read(&self, rows: Range<usize>, columns: Range<usize>) -> Vec<f32> {
        let mut values = Vec::with_capacity(rows.len() * columns.len());
        for row in rows {
            let (panel, lane) = (row / LANES, row % LANES);
            let Some(parts) = self.panel(panel) else {
                break;
            };
            for group in columns.start / GROUP..(columns.end / GROUP).min(self.groups()) {
                let lines = parts.lines(self.kind, group);
                let (scale, minimum) = parts.scale(self.kind, group, lane);
                values.extend((0..GROUP).map(|index| {
                    let value = i32::from(integer(self.kind, lines, lane, index));
                    let value = (value - self.kind.zero()) as f32;
                    match self.kind {
                        Kind::FourWithMinimum => scale * value - minimum,
                        Kind::Eight | Kind::Four => value * scale,
                    }
                }));
            }
        }
        values
    }
}

impl Parts<'_> {
    /// The lines of a group.
    pub fn lines(&self, kind: Kind, group: usize) -> &[Line] {
        let lines = kind.lines();
        let range = group * lines..(group + 1) * lines;
        self.quants.get(range).unwrap_or_default()
    }

    /// Scales and minima of a group of all lanes.
    pub fn scales(&self, kind: Kind, group: usize) -> ([f32; LANES], [f32; LANES]) {
        let (mut scales, mut minima) = ([0.0; LANES], [0.0; LANES]);
        for (lane, (scale, minimum)) in scales.iter_mut().zip(&mut minima).enumerate() {
            (*scale, *minimum) = self.scale(kind, group, lane);
        }
        (scales, minima)
    }

    /// Scale and minimum of one output's group.
    fn scale(&self, kind: Kind, group: usize, lane: usize) -> (f32, f32) {
        let major = |line: usize| {
            let line = self.scales.get(line);
            let bits = line.and_then(|line| line.0.get(lane));
            f16::from_bits(bits.copied().unwrap_or_default()).to_f32()
        };
        if kind != Kind::FourWithMinimum {
            return (major(group), 0.0);
        }
        let minor = self.minors.get(group);
        let of = |values: Option<&[u8; LANES]>| {
            let value = values.and_then(|values| values.get(lane));
            f32::from(value.copied().unwrap_or_default())
        };
        (
            major(group / 8 * 2) * of(minor.map(|minor| &minor.scales)),
            major(group / 8 * 2 + 1) * of(minor.map(|minor| &minor.minima)),
        )
    }
}

/// The products of a group with sixteen outputs' whole numbers.
pub(super) fn dots(kind: Kind, lines: &[Line], quads: &[i32; 8], start: i32) -> [i32; LANES] {
    let mut dots = [start; LANES];
    for (number, quad) in quads.iter().enumerate() {
        let (line, shift) = kind.place(number);
        let inputs = quad.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
        let weights = lines.get(line).map_or(&[][..], |line| line.0.as_slice());
        for (dot, weights) in dots.iter_mut().zip(weights.as_chunks::<4>().0) {
            for (weight, input) in weights.iter().zip(inputs) {
                *dot += i32::from((weight >> shift) & kind.mask()) * input;
            }
        }
    }
    dots
}

/// One stored whole number.
fn integer(kind: Kind, lines: &[Line], lane: usize, index: usize) -> u8 {
    let (line, shift) = kind.place(index / 4);
    let line = lines.get(line);
    let byte = line.and_then(|line| line.0.get(lane * 4 + index % 4));
    (byte.copied().unwrap_or_default() >> shift) & kind.mask()
}

fn put_integers(kind: Kind, lines: &mut [Line], lane: usize, values: &[u8; GROUP]) {
    for (index, value) in values.iter().enumerate() {
        let (line, shift) = kind.place(index / 4);
        let line = lines.get_mut(line);
        if let Some(byte) = line.and_then(|line| line.0.get_mut(lane * 4 + index % 4)) {
            *byte |= value << shift;
        }
    }
}

/// The whole numbers of one group, shifted to be at least 0.
fn integers(blocks: &Blocks, row: usize, group: usize) -> [u8; GROUP] {
    let row = blocks.row(row);
    let mut values = [0; GROUP];
    let halves = |values: &mut [u8; GROUP], quants: &[u8]| {
        let (low, high) = values.split_at_mut(GROUP / 2);
        for ((low, high), quant) in low.iter_mut().zip(high).zip(quants) {
            (*low, *high) = (quant & 15, quant >> 4);
        }
    };
    match blocks.format() {
        BlockFormat::Q8_0 => {
            if let Some([_, _, quants @ ..]) = row.as_chunks::<34>().0.get(group) {
                for (value, quant) in values.iter_mut().zip(quants) {
                    // -128 becomes 0.
                    *value = quant ^ 128;
                }
            }
        }
        BlockFormat::Q4_0 => {
            if let Some([_, _, quants @ ..]) = row.as_chunks::<18>().0.get(group) {
                halves(&mut values, quants);
            }
        }
        BlockFormat::Q4K => {
            if let Some(block) = row.as_chunks::<144>().0.get(group / 8) {
                let part = group % 8;
                let quants = block.iter().skip(16 + part / 2 * GROUP);
                for (value, quant) in values.iter_mut().zip(quants) {
                    *value = (quant >> (4 * (part % 2))) & 15;
                }
            }
        }
        BlockFormat::Q6K => {}
    }
    values
}

/// The f16 at the start of a block; of `Q4_K` alternately its scale and its minimum.
fn scale_bits(blocks: &Blocks, row: usize, number: usize) -> u16 {
    let row = blocks.row(row);
    let at = |start: usize| {
        let bytes = row.get(start..).and_then(|rest| rest.first_chunk::<2>());
        bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
    };
    match blocks.format() {
        BlockFormat::Q4K => at(number / 2 * 144 + number % 2 * 2),
        format => at(number * format.bytes()),
    }
}

/// A group's own scale and minimum under `Q4_K`.
fn minor_of(blocks: &Blocks, row: usize, group: usize) -> (u8, u8) {
    let row = blocks.row(row);
    let block = row.as_chunks::<144>().0.get(group / 8);
    let scales = block.and_then(|block| block.get(4..16));
    scale_and_minimum(scales.unwrap_or_default(), group % 8)
}
