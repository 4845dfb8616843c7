//! Packed weights and products whose bits do not depend on their company.
//!
//! Every output of [`product`] is one chain of fused multiply-adds over the inner dimension, in
//! ascending order, in one lane of one vector register. How many rows share the call, how they are
//! cut into tiles and how many threads work changes which register that is, never the chain: the
//! bits of a row depend on the row and the weight alone. `reference.rs` is the same chain written
//! plainly; the tests hold the two equal bit for bit.
//!
//! Many rows are multiplied in blocks (`blocked.rs`), from inputs that are packed too; few as they lie. Blocks of GGUF
//! files are unpacked into a part of their panels at a time (`unpack.rs`).
//!
//! Weights may be packed as bf16 or f16 (the bits of their values in f32, in both directions), or stay in blocks,
//! multiplied with inputs in 8 bits for serving (`integer/`), with the same promise.
//!
//! The instruction set does matter: [`Isa::Portable`] has no fused multiply-add and rounds twice.

mod ahead;
mod attention;
mod blocked;
mod dispatch;
mod elementwise;
mod halves;
mod integer;
mod lanes;
mod outer;
mod panels;
mod product;
#[cfg(test)]
pub(crate) mod reference;
mod scratch;
mod shared;
mod together;
mod unpack;
#[cfg(target_arch = "x86_64")]
mod x86_avx2;
#[cfg(target_arch = "x86_64")]
mod x86_avx512;

pub use attention::BLOCK_TOKENS;
pub(crate) use attention::{
    HeadBlocks, HeadQuery, HeadRows, QueryGradient, attend, attend_backward, attend_f16,
    write_token, write_token_f16, write_transposed,
};
pub use dispatch::Isa;
pub(crate) use elementwise::*;
pub(crate) use halves::{HalfFormat, HalfPanels, HalfWeight, product_halves};
pub(crate) use integer::{IntegerPanels, RowOf, product_integers};
pub(crate) use outer::accumulate_outer;
pub use panels::Panels;
pub(crate) use panels::{LANES, packed_bytes};
pub use product::{Epilogue, product, product_parallel};
pub(crate) use product::{Packed, product_tiled};
pub(crate) use together::{Addition, Base, Beside, Weight, together};
pub(crate) use unpack::{unpack, unpack_transposed};
