//! Any text with variables is prepared or refused, and has a value in a request that has only begun.
#![no_main]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::Instant;

use couloir::config::Memory;
use couloir::engine::{LoadOptions, load};
use couloir::contract::{ConnInfo, Remote, SiteRef};
use couloir::prelude::*;
use couloir::serve::{Conn, Transport};
use libfuzzer_sys::fuzz_target;

static TEMPLATE: Mutex<Option<Template>> = Mutex::new(None);

struct Probe;

impl Module for Probe {
    const NAME: &'static str = "probe";
    type Conf = ();
    const DIRECTIVES: &'static [Directive<()>] =
        &[Directive::own("probe", Place::HTTP, Args::Exactly(1), "`probe text;` Keeps a text.", keep)];

    fn attach(_: &Arc<()>, _: &mut Hooks) -> ConfResult<()> {
        Ok(())
    }
}

fn keep(_: &mut (), s: &Statement, b: &mut Build) -> ConfResult<()> {
    *TEMPLATE.lock().expect("the template") = Some(b.template(s, 0)?);
    Ok(())
}

static REGISTRY: LazyLock<Arc<ModuleRegistry>> = LazyLock::new(|| {
    let mut registry = couloir::features::builtin();
    registry.add::<Probe>();
    Arc::new(registry)
});

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"));

fuzz_target!(|text: &[u8]| {
    // the quotes' own rules are the target `config`'s
    let mut conf_text = b"events { } http { probe \"".to_vec();
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            conf_text.push(b'\\');
        }
        conf_text.push(*byte);
    }
    conf_text.extend_from_slice(b"\"; server { } }");
    let conf = PathBuf::from("/conf/nginx.conf");
    let mut memory = Memory::default();
    memory.insert(conf.clone(), conf_text);
    let options = LoadOptions {
        conf,
        prefix: std::env::temp_dir(),
        directives: Vec::new(),
        error_log: "/dev/null".into(),
        pid: "nginx.pid".into(),
        testing: true,
    };
    let Ok(loaded) = load(&REGISTRY, &options, &memory) else { return };
    let template = TEMPLATE.lock().expect("the template").take().expect("the directive was read");
    let _inside = RUNTIME.enter();
    let (ours, _theirs) = tokio::net::UnixStream::pair().expect("a pair of sockets");
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
    let request = Request::new(SiteRef::new(Arc::new(loaded.site)), Arc::new(Conn::new(Transport::Unix(ours), info)));
    let mut out = Vec::new();
    template.write(&request, &mut out);
    assert_eq!(&*template.eval(&request), &*out);
});
