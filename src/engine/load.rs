//! From files to a site.

use super::site::{self, Defaults};
use crate::config::{self, Diag, Reader, Sources};
use crate::contract::{BlockKind, Build, ModuleRegistry, Site, WrittenList};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a configuration is and how it is read.
#[derive(Clone)]
pub struct LoadOptions {
    /// `-c`.
    pub conf: PathBuf,
    /// `-p`.
    pub prefix: PathBuf,
    /// `-g`.
    pub directives: Vec<u8>,
    /// `-e`, or the built-in path of the error log.
    pub error_log: String,
    /// The built-in path of the PID file.
    pub pid: String,
    /// `-t`: nothing is to be started.
    pub testing: bool,
}

/// Why a configuration was refused.
pub struct LoadError {
    /// The error; its level and text are nginx's.
    pub diag: Box<Diag>,
    /// What was warned of before.
    pub warnings: Vec<Box<Diag>>,
}

/// A configuration that was accepted.
pub struct Loaded {
    /// Ready to serve.
    pub site: Site,
    /// `[warn]` messages, in order.
    pub warnings: Vec<Box<Diag>>,
    /// Every file that was read, for `-T`.
    pub sources: Arc<Sources>,
}

/// Reads and checks a configuration, in a thread of its own.
///
/// # Errors
/// The first error, in nginx's order and words.
pub fn load(
    registry: &Arc<ModuleRegistry>,
    options: &LoadOptions,
    reader: &(dyn Reader + Sync),
) -> Result<Loaded, LoadError> {
    crate::memory::apart(|| read(&mut build(registry, options), options, reader))
}

/// The same, and what stands where: for explaining requests.
///
/// # Errors
/// As [`load`].
pub fn load_written(
    registry: &Arc<ModuleRegistry>,
    options: &LoadOptions,
    reader: &(dyn Reader + Sync),
) -> Result<(Loaded, WrittenList), LoadError> {
    let mut b = build(registry, options);
    b.written = Some(WrittenList::default());
    let loaded = read(&mut b, options, reader)?;
    let mut written = b.written.take().unwrap_or_default();
    written.blocks_of(&b);
    Ok((loaded, written))
}

fn build(registry: &Arc<ModuleRegistry>, options: &LoadOptions) -> Build {
    let mut b = Build::new(registry.clone(), &options.prefix, &folder(options));
    b.testing = options.testing;
    b
}

fn folder(options: &LoadOptions) -> PathBuf {
    options.conf.parent().unwrap_or(Path::new("")).to_path_buf()
}

fn read(
    b: &mut Build,
    options: &LoadOptions,
    reader: &(dyn Reader + Sync),
) -> Result<Loaded, LoadError> {
    if !b.registry.is_arranged() {
        let diag = Diag::plain("the list of modules is not arranged (ModuleRegistry::arrange)");
        let warnings = Vec::new();
        return Err(LoadError { diag, warnings });
    }
    let conf_prefix = folder(options);
    let tree = config::parse_file(&options.conf, &conf_prefix, reader);
    let result = (|| {
        // `-g` is read first, and its directives count as given in the main level
        let g = (!options.directives.is_empty())
            .then(|| config::parse_command_line(&options.directives, &conf_prefix, reader));
        let roots = || g.iter().map(|t| &t.root).chain([&tree.root]);
        b.start_degraded = roots().any(starts_degraded);
        roots().try_for_each(|root| b.read(root))?;
        if !b
            .blocks
            .iter()
            .any(|block| matches!(block.kind, BlockKind::Events))
        {
            return Err(Diag::plain("no \"events\" section in configuration"));
        }
        let defaults = Defaults {
            error_log: options.error_log.clone(),
            pid: options.pid.clone(),
        };
        site::assemble(b, &defaults)
    })();
    let warnings = std::mem::take(&mut b.warnings);
    match result {
        Ok(site) => Ok(Loaded {
            site,
            warnings,
            sources: tree.sources,
        }),
        Err(diag) => Err(LoadError { diag, warnings }),
    }
}

/// `start_degraded on`, which counts for what stands before it too.
fn starts_degraded(root: &config::Block) -> bool {
    let mut written = root.items.iter();
    written.any(|s| s.name() == "start_degraded" && s.flag(0).unwrap_or(false))
}
