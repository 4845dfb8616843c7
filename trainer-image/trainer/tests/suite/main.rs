//! The trainer as its operator starts it, and beside what others train. One program: each is linked apart.

mod attempt;
mod parity;
mod pretrain;
