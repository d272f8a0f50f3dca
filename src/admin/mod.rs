//! What an operator asks for: subcommands of the program that nginx does not have.

mod cache;
mod explain;

use crate::cli::{self, Command};
use crate::contract::ModuleRegistry;
use crate::engine::load::LoadOptions;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;

/// Runs a subcommand; the result is the exit code.
pub type Subcommand = fn(ModuleRegistry, &[OsString]) -> i32;

/// The subcommand that `args` (without the program's name) begin with.
pub fn subcommand(args: &[OsString]) -> Option<Subcommand> {
    match args.first()?.to_str()? {
        "explain" => Some(explain::main),
        "cache" => Some(cache::main),
        "modules" => Some(modules),
        _ => None,
    }
}

/// `couloir modules`: every module in the order of its hooks, with its directives.
fn modules(registry: ModuleRegistry, args: &[OsString]) -> i32 {
    if args.len() > 1 {
        eprintln!("usage: couloir modules");
        return 1;
    }
    let mut text = String::new();
    for module in registry.modules() {
        let mut names: Vec<&str> = module.directives().iter().map(|d| d.name).collect();
        names.dedup();
        text.push_str(module.name());
        text.push_str(if names.is_empty() { "" } else { ": " });
        text.push_str(&names.join(" "));
        text.push('\n');
    }
    // a reader that went away has what it wanted
    let _ = std::io::stdout().write_all(text.as_bytes());
    0
}

/// How a configuration is loaded that is only looked at; the parameters are those of `-c`, `-p` and `-g`.
fn load_options(
    conf: Option<&Path>,
    prefix: Option<&Path>,
    directives: Option<&OsStr>,
) -> Result<LoadOptions, String> {
    let mut args: Vec<OsString> = Vec::new();
    let pairs = [
        ("-c", conf.map(Path::as_os_str)),
        ("-p", prefix.map(Path::as_os_str)),
        ("-g", directives),
    ];
    for (flag, value) in pairs {
        if let Some(value) = value {
            args.extend([flag.into(), value.into()]);
        }
    }
    let Ok(Command::Run(options)) = cli::parse(args.into_iter()) else {
        return Err("invalid options".to_owned());
    };
    let paths = options.paths();
    Ok(LoadOptions {
        conf: paths.conf_file.clone(),
        prefix: paths.prefix.clone(),
        directives: options.directives().to_vec(),
        error_log: "stderr".to_owned(),
        pid: cli::PID_PATH.to_owned(),
        testing: true,
    })
}
