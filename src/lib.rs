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

/// What a module is written with; docs/filters.md is the guide, with an example of each hook.
///
/// | for | there is |
/// |---|---|
/// | a module and its directives | [`Module`](prelude::Module), [`Directive`](prelude::Directive), [`Conf`](prelude::Conf), [`Build`](prelude::Build), [`once`](prelude::once), [`Order`](prelude::Order) |
/// | steps of a request, and its content | [`Handler`](prelude::Handler), [`Phase`](prelude::Phase), [`Next`](prelude::Next), [`subrequest`](prelude::subrequest) |
/// | responses | [`HeadFilter`](prelude::HeadFilter), [`BodyFilter`](prelude::BodyFilter), [`EarlyFilter`](prelude::EarlyFilter), [`ResponseHead`](prelude::ResponseHead) |
/// | bodies of requests | [`RequestBodyFilter`](prelude::RequestBodyFilter) |
/// | variables | [`Variable`](prelude::Variable), [`Evaluate`](prelude::Evaluate), [`Val`](prelude::Val), [`Slot`](prelude::Slot) |
/// | balancing | [`Balance`](prelude::Balance), [`BalanceMethod`](prelude::BalanceMethod), [`PeerSet`](prelude::PeerSet), [`PickState`](prelude::PickState) |
/// | logs | [`Logger`](prelude::Logger), [`LogLevel`](prelude::LogLevel) |
/// | work beside requests | [`BackgroundService`](prelude::BackgroundService), [`ShutdownWatch`](prelude::ShutdownWatch) |
pub mod prelude {
    pub use crate::contract::subrequest;
    pub use crate::contract::{
        Args, Background, BackgroundService, BalanceKey, BalanceMethod, BlockId, Body, BodyFilter,
        BodyRead, Build, Captures, Conf, ConfResult, ConnInfo, Content, Diag, Directive,
        EarlyFilter, Evaluate, Handler, HeadFilter, Hooks, Include, Level, LogSink, Logger, Module,
        ModuleRegistry, Next, Order, Pass, Pattern, PeerSelector, Phase, Place, Protocol,
        RedirectTo, Request, RequestBodyFilter, ResponseHead, ShutdownWatch, SiteRef, Slot,
        Statement, Template, Unsupported, Val, VarId, Variable, background_site, once,
    };
    pub use crate::http::headers::Headers;
    pub use crate::http::method::Method;
    pub use crate::inherit;
    pub use crate::log::Level as LogLevel;
    pub use crate::upstream::set::{Balance, End, PeerSet};
    pub use crate::upstream::{Peer, pick::PickState};
    pub use async_trait::async_trait;
    pub use bytes::Bytes;
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
