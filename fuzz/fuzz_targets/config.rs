//! A configuration of any bytes is read or refused.
#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use couloir::config::Memory;
use couloir::engine::{LoadOptions, load};
use couloir::contract::ModuleRegistry;
use libfuzzer_sys::fuzz_target;

static REGISTRY: LazyLock<Arc<ModuleRegistry>> = LazyLock::new(|| Arc::new(couloir::features::builtin()));

fuzz_target!(|text: &[u8]| {
    let conf = PathBuf::from("/conf/nginx.conf");
    let mut memory = Memory::default();
    memory.insert(conf.clone(), text);
    let options = LoadOptions {
        conf,
        prefix: std::env::temp_dir(),
        directives: Vec::new(),
        error_log: "/dev/null".into(),
        pid: "nginx.pid".into(),
        testing: true,
    };
    if let Err(error) = load(&REGISTRY, &options, &memory) {
        assert!(!error.diag.first_line().is_empty());
    }
});
