//! What others compute, and what anybody may send. One program: each is linked apart.

mod parity;
mod seeds;
