//! Couloir: a drop-in nginx replacement on Pingora, extended with filters written in Rust.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod cli;
pub mod config;
pub mod engine;
pub mod exchange;
pub mod http;
pub mod log;
pub mod module;
pub mod modules;
pub mod serve;
pub mod upstream;
