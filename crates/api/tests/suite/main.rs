//! What the definitions, examples and documents promise. One program: each is linked apart.

mod admission;
mod bounds;
mod cel;
mod golden;
mod readme;
mod reasons;
