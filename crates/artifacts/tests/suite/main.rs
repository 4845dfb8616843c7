//! The store as its users have it, in a folder and in a bucket. One program: each is linked apart.

mod bucket;
mod store;
