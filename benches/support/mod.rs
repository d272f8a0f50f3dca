//! What the benches share: configurations, requests, and a server in this process whose allocations are counted.
// every bench compiles this folder and uses its own part of it
#![allow(dead_code)]

pub mod counting;
pub mod peers;
pub mod server;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use couloir::config::Memory;
use couloir::contract::{ConnInfo, ModuleRegistry, Remote, Request, Site, SiteRef};
use couloir::engine::{LoadOptions, load};
use couloir::serve::{Conn, Transport};

/// Loads a configuration text.
pub fn site(registry: &Arc<ModuleRegistry>, text: &str) -> Site {
    let conf = PathBuf::from("/conf/nginx.conf");
    let memory: Memory = [(conf.clone(), text)].into_iter().collect();
    let options = LoadOptions {
        conf,
        prefix: std::env::temp_dir(),
        directives: Vec::new(),
        error_log: "stderr".into(),
        pid: "nginx.pid".into(),
        testing: true,
    };
    match load(registry, &options, &memory) {
        Ok(loaded) => loaded.site,
        Err(error) => panic!("{}", error.diag.first_line()),
    }
}

/// A configuration of one server with so many locations: most prefixes, some exact, ten regular expressions.
pub fn locations(count: usize) -> String {
    let mut text = String::from(
        "events { } http { access_log off; server { listen 127.0.0.1:8080; server_name localhost;\n",
    );
    for i in 0..count {
        text += &match i % 10 {
            0 => format!("location = /exact/{i} {{ return 200; }}\n"),
            1 => format!("location ^~ /assets/{i}/ {{ return 200; }}\n"),
            9 if i < 100 => format!("location ~ ^/pattern-{i}/[0-9]+$ {{ return 200; }}\n"),
            n => format!("location /app{n}/{i}/ {{ return 200; }}\n"),
        };
    }
    text + "location / { return 404; } } }"
}

/// A request of `site` without a client; needs a runtime to be entered.
pub fn request(site: Site) -> Request {
    let (ours, theirs) = tokio::net::UnixStream::pair().expect("a pair of sockets");
    std::mem::forget(theirs);
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
    Request::new(
        SiteRef::new(Arc::new(site)),
        Arc::new(Conn::new(Transport::Unix(ours), info)),
    )
}

/// A runtime to be inside of.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}
