//! Couloir: a drop-in nginx replacement on Pingora, extended with filters written in Rust.
//!
//! A program of one's own is this library with one more module:
//!
//! ```no_run
//! use couloir::prelude::*;
//!
//! # struct Hello;
//! # impl Module for Hello {
//! #     const NAME: &'static str = "hello";
//! #     type Conf = ();
//! #     const DIRECTIVES: &'static [Directive<()>] = &[];
//! #     fn attach(_: &std::sync::Arc<()>, _: &mut Hooks) -> ConfResult<()> { Ok(()) }
//! # }
//! fn main() -> std::process::ExitCode {
//!     couloir::main_with(|modules| modules.add::<Hello>())
//! }
//! ```
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod admin;
pub mod cache;
pub mod cli;
pub mod config;
pub mod contract;
pub mod delivery;
pub mod dns;
pub mod engine;
pub mod exchange;
pub mod features;
pub mod files;
pub mod http;
pub mod log;
mod memory;
mod process;
pub mod runtime;
pub mod serve;
pub mod tls;
pub mod upstream;

use std::process::ExitCode;

/// What a module is written with.
pub mod prelude {
    pub use crate::contract::{
        Args, Body, BodyFilter, Build, Conf, ConfResult, Directive, Handler, HeadFilter, Hooks,
        Level, Logger, Module, ModuleRegistry, Next, Order, Pattern, Phase, Place, RedirectTo,
        Request, Slot, Statement, Template, Val, VarId, Variable,
    };
    pub use crate::inherit;
    pub use crate::log::Level as LogLevel;
}

/// Runs Couloir with its built-in modules, as the command line says.
pub fn main() -> ExitCode {
    main_with(|modules| modules)
}

/// Runs Couloir with further modules: `add` is given the list with the built-in ones in it.
pub fn main_with(
    add: impl for<'r> FnOnce(&'r mut contract::ModuleRegistry) -> &'r mut contract::ModuleRegistry,
) -> ExitCode {
    memory::forgo_huge_pages();
    memory::serve_openssl();
    runtime::panics::install();
    let mut registry = features::builtin();
    add(&mut registry);
    if let Err(fault) = registry.arrange() {
        eprintln!("couloir: [emerg] {fault}");
        return ExitCode::FAILURE;
    }
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let code = match admin::subcommand(&args) {
        Some(run) => run(registry, &args),
        None => process::main(registry, args.into_iter()),
    };
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
