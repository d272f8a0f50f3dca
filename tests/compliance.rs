//! What every built-in module must hold to, whoever wrote it.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use couloir::config::Memory;
use couloir::contract::{
    AnyConf, AnyModule, Args, ConnInfo, Hooks, ModuleRegistry, Place, Remote, Request, Site,
    SiteRef,
};
use couloir::engine::{LoadOptions, load};
use couloir::features::builtin;
use couloir::serve::{Conn, Transport};
use tempfile::TempDir;

/// Loads a configuration text; the error is nginx's first line.
fn site(registry: &Arc<ModuleRegistry>, dir: &Path, text: &str) -> Result<Site, String> {
    let conf = PathBuf::from("/conf/nginx.conf");
    let memory: Memory = [(conf.clone(), text)].into_iter().collect();
    let options = LoadOptions {
        conf,
        prefix: dir.into(),
        directives: Vec::new(),
        error_log: dir.join("error.log").display().to_string(),
        pid: "nginx.pid".into(),
        testing: true,
    };
    match load(registry, &options, &memory) {
        Ok(loaded) => Ok(loaded.site),
        Err(error) => Err(error.diag.first_line()),
    }
}

fn defaults(module: &dyn AnyModule) -> Arc<AnyConf> {
    let mut conf = module.new_conf();
    module.inherit(&mut *conf, &*module.new_conf());
    Arc::from(conf)
}

fn hooks_of(module: &dyn AnyModule, conf: &Arc<AnyConf>) -> usize {
    let mut hooks = Hooks::default();
    if let Err(error) = module.attach(conf, &mut hooks) {
        panic!("{}: {}", module.name(), error.first_line());
    }
    hooks.len()
}

#[test]
fn names_are_unique() {
    let registry = builtin();
    let mut modules = HashMap::new();
    let mut places: HashMap<&str, u32> = HashMap::new();
    let mut variables = HashMap::new();
    for module in registry.modules() {
        assert!(
            modules.insert(module.name(), ()).is_none(),
            "module {}",
            module.name()
        );
        for d in module.directives() {
            let taken = places.entry(d.name).or_default();
            assert_eq!(
                *taken & d.place.0,
                0,
                "{} is declared twice for {:?}",
                d.name,
                d.place.names()
            );
            *taken |= d.place.0;
        }
        for v in module.variables() {
            assert!(
                variables.insert((v.name, v.prefix), ()).is_none(),
                "${}",
                v.name
            );
        }
    }
}

#[test]
fn declarations_are_complete() {
    for module in builtin().modules() {
        for d in module.directives() {
            let what = format!("{} of {}", d.name, module.name());
            assert!(!d.help.is_empty(), "{what} has no help");
            assert!(!d.place.names().is_empty(), "{what} may stand nowhere");
            if !d.inert {
                let syntax = d.help.strip_prefix('`').and_then(|h| h.split_once('`'));
                let (syntax, meaning) =
                    syntax.unwrap_or_else(|| panic!("{what}: no syntax in {:?}", d.help));
                assert!(syntax.starts_with(d.name), "{what}: syntax {syntax:?}");
                assert!(
                    syntax.ends_with(';') || d.args.is_block(),
                    "{what}: syntax {syntax:?}"
                );
                assert!(
                    !meaning.trim().is_empty(),
                    "{what} has a syntax and no meaning"
                );
            }
            match d.args {
                Args::Between(a, b) => assert!(a < b, "{what}: {a} to {b}"),
                Args::Block(a, b) => assert!(a <= b, "{what}: {a} to {b}"),
                Args::Exactly(n) => assert!(n > 0, "{what}: none is Args::None"),
                Args::None | Args::Flag | Args::AtLeast(_) => {}
            }
        }
    }
}

#[test]
fn what_is_not_used_leaves_no_hook() {
    let registry = Arc::new(builtin());
    let unused = registry.modules().filter(|module| !module.always());
    for module in unused {
        let hooks = hooks_of(module, &defaults(module));
        assert_eq!(
            hooks,
            0,
            "{} leaves hooks where it is not used",
            module.name()
        );
    }
    let always = registry.modules().filter(|module| module.always()).count();
    let dir = TempDir::new().unwrap();
    let site = site(
        &registry,
        dir.path(),
        "events { } http { access_log off; server { location / { } } }",
    )
    .unwrap();
    for location in &site.locations {
        let hooks = location.hooks.len();
        assert!(
            hooks <= always,
            "{hooks} hooks in an empty location, {always} modules are always on"
        );
    }
}

#[test]
fn inheriting_twice_is_inheriting_once() {
    for module in builtin().modules() {
        let once = defaults(module);
        let mut twice = module.new_conf();
        for _ in 0..2 {
            module.inherit(&mut *twice, &*module.new_conf());
        }
        assert_eq!(
            hooks_of(module, &once),
            hooks_of(module, &Arc::from(twice)),
            "{}",
            module.name()
        );
    }
}

#[test]
fn variables_of_a_request_that_has_only_begun() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let dir = TempDir::new().unwrap();
    let registry = Arc::new(builtin());
    let site = Arc::new(site(&registry, dir.path(), "events { } http { server { } }").unwrap());
    let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
    let info = ConnInfo {
        serial: 1,
        remote: Remote::unix(),
        local: Remote::unix(),
        listener: AtomicUsize::new(0),
        start: Instant::now(),
        requests: AtomicU64::new(0),
        tls: OnceLock::new(),
        proxy: OnceLock::new(),
    };
    let request = Request::new(
        SiteRef::new(site),
        Arc::new(Conn::new(Transport::Unix(ours), info)),
    );
    for module in registry.modules() {
        for v in module.variables() {
            let suffixes: &[&[u8]] = if v.prefix {
                &[b"x", b"1", b"\xff", b""]
            } else {
                &[b""]
            };
            for suffix in suffixes {
                let value = catch_unwind(AssertUnwindSafe(|| {
                    (v.get)(&request, suffix).as_bytes().len()
                }));
                assert!(value.is_ok(), "${} of {} panics", v.name, module.name());
            }
        }
    }
}

/// A block of each kind, with room for statements in it.
const BLOCKS: [(Place, &str, &str); 9] = [
    (Place::MAIN, "", " events { }"),
    (Place::EVENTS, "events {", "}"),
    (Place::HTTP, "events { } http {", "}"),
    (Place::SERVER, "events { } http { server {", "} }"),
    (
        Place::LOCATION,
        "events { } http { server { location / {",
        "} } }",
    ),
    (
        Place::SERVER_IF,
        "events { } http { server { if ($a) {",
        "} } }",
    ),
    (
        Place::LOCATION_IF,
        "events { } http { server { location / { if ($a) {",
        "} } } }",
    ),
    (
        Place::LIMIT_EXCEPT,
        "events { } http { server { location / { limit_except GET {",
        "} } } }",
    ),
    (Place::UPSTREAM, "events { } http { upstream u {", "} }"),
];

#[test]
fn bad_parameters_are_refused_and_never_a_panic() {
    let dir = TempDir::new().unwrap();
    let registry = Arc::new(builtin());
    for module in registry.modules() {
        for d in module.directives() {
            // numbers and paths only: a name would be looked up in the DNS
            for (count, value) in
                (0..5usize).flat_map(|n| ["1", "$host", "/1", "''", "0=", "~("].map(|v| (n, v)))
            {
                for (_, before, after) in BLOCKS.iter().filter(|(place, ..)| d.place.allows(*place))
                {
                    let end = if d.args.is_block() { "{ }" } else { ";" };
                    let text = format!(
                        "{before} {} {} {end} {after}",
                        d.name,
                        [value].repeat(count).join(" ")
                    );
                    let outcome = catch_unwind(AssertUnwindSafe(|| {
                        site(&registry, dir.path(), &text).map(drop)
                    }));
                    let Ok(outcome) = outcome else {
                        panic!("panics: {text}")
                    };
                    if !d.args.accepts(count) {
                        let message = outcome.expect_err(&text);
                        let expected = format!(
                            "invalid number of arguments in \"{}\" directive in ",
                            d.name
                        );
                        assert!(message.starts_with(&expected), "{text}: {message}");
                    }
                }
            }
        }
    }
}
