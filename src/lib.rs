//! Couloir: a drop-in nginx replacement on Pingora, extended with filters written in Rust.
#![deny(unsafe_code)]
#![warn(missing_docs)]
pub mod log;
pub mod upstream;
