//! The exchange with an origin.

pub mod h1;
