//! The cache from outside: what is stored, what is served, who asks the origin, and what goes wrong.

mod common;

#[path = "cache/api.rs"]
mod api;
#[path = "cache/basics.rs"]
mod basics;
#[path = "cache/broken.rs"]
mod broken;
#[path = "cache/conf.rs"]
mod conf;
#[path = "cache/disk.rs"]
mod disk;
#[path = "cache/poison.rs"]
mod poison;
#[path = "cache/purge.rs"]
mod purge;
#[path = "cache/restart.rs"]
mod restart;
#[path = "cache/together.rs"]
mod together;

use common::client::{Response, exchange};
use common::origin::Origin;
use common::proc::{Couloir, Server, Setup};
use std::path::Path;

/// A caching proxy in front of `origin`; `path` are further parameters of the zone, `location` further statements.
fn cached(origin: &Origin, path: &str, location: &str) -> Server {
    setup(origin, "%%TESTDIR%%/cache", path, location).start(&Couloir::program())
}

fn setup(origin: &Origin, folder: &str, path: &str, location: &str) -> Setup {
    Setup::new(&format!(
        "%%TEST_GLOBALS%% worker_processes 2; worker_rlimit_nofile 8192; events {{ worker_connections 4096; }}
         http {{ %%TEST_GLOBALS_HTTP%%
             proxy_cache_path {folder} levels=1:2 keys_zone=z:1m {path};
             map $request_method $purge {{ default 0; PURGE 1; }}
             proxy_cache_key $request_uri;
             server {{ listen 127.0.0.1:%%PORT_8080%% backlog=4096; server_name localhost;
                 location = /alive {{ return 200 alive; }}
                 location / {{
                     proxy_pass http://%%ORIGIN%%;
                     proxy_cache z; proxy_cache_valid 200 1h;
                     add_header X-Cache $upstream_cache_status;
                     {location}
                 }} }} }}"
    ))
    .set("ORIGIN", origin.addr())
}

/// One request on a connection of its own; `more` are further header lines.
fn ask(server: &Server, method: &str, uri: &str, more: &str) -> Response {
    exchange(
        server.addr(8080),
        &format!("{method} {uri} HTTP/1.1\r\nHost: localhost\r\n{more}Connection: close\r\n\r\n"),
    )
}

fn get(server: &Server, uri: &str) -> Response {
    ask(server, "GET", uri, "")
}

/// `$upstream_cache_status` of a response.
fn status(response: &Response) -> &str {
    response.header("X-Cache").unwrap_or("-")
}

/// A response of a length, with header lines.
fn ok(headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Bytes that tell where they belong, other ones for another seed.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    for i in 0..len.div_ceil(8) as u64 {
        bytes.extend_from_slice(&(i.wrapping_mul(0x9e37_79b9) ^ seed).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The files of stored objects below a folder.
fn objects(folder: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut list = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            list.extend(objects(&path));
        } else if entry.file_name().len() == 32 {
            list.push(path);
        }
    }
    list
}
