//! What an operator asks for: subcommands of the program that nginx does not have.

mod explain;

use crate::module::Registry;
use std::ffi::OsString;

/// Runs a subcommand; the result is the exit code.
pub type Subcommand = fn(Registry, &[OsString]) -> i32;

/// The subcommand that `args` (without the program's name) begin with.
pub fn subcommand(args: &[OsString]) -> Option<Subcommand> {
    match args.first()?.to_str()? {
        "explain" => Some(explain::main),
        _ => None,
    }
}
