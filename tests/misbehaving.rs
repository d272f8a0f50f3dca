//! Peers that stall, lie, dribble and break off: what the other side gets, and what the logs say of it.
//!
//! `COULOIR_BIN` with an nginx of our level checks the tests themselves.

mod common;

#[path = "misbehaving/applications.rs"]
mod applications;
#[path = "misbehaving/clients.rs"]
mod clients;
#[path = "misbehaving/disk.rs"]
mod disk;
#[path = "misbehaving/http2_origins.rs"]
mod http2_origins;
#[path = "misbehaving/origins.rs"]
mod origins;
#[path = "misbehaving/upgrade.rs"]
mod upgrade;

use common::origin::Origin;
use common::proc::{Couloir, Server, Setup};

/// A proxy in front of `origin` with further statements in its location; `short.log` has a line per request.
fn proxy(origin: &Origin, location: &str) -> Server {
    Setup::new(&format!(
        "%%TEST_GLOBALS%% events {{ }}
         http {{ %%TEST_GLOBALS_HTTP%%
             log_format short '$request_method $uri $status $body_bytes_sent $upstream_status';
             upstream u {{ server %%ORIGIN%%; keepalive 4; }}
             server {{ listen 127.0.0.1:%%PORT_8080%%; server_name localhost;
                 access_log %%TESTDIR%%/short.log short;
                 client_header_timeout 1s; client_body_timeout 1s;
                 location = /alive {{ return 200 alive; }}
                 location / {{
                     proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection '';
                     proxy_read_timeout 1s; proxy_next_upstream off;
                     {location}
                 }} }} }}"
    ))
    .set("ORIGIN", origin.addr())
    .start(&Couloir::program())
}

/// A GET that leaves the connection open.
fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// A GET that asks to close the connection.
fn get_once(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

/// A response of a length.
fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Bytes that tell where they belong.
fn pattern(len: usize) -> Vec<u8> {
    (0..len / 8)
        .flat_map(|i| (i as u64).to_be_bytes())
        .collect()
}

/// Waits for a line of the access log.
fn logged(server: &Server, line: &str) {
    server.wait_for_text("short.log", &format!("{line}\n"));
}

/// Waits for a line of the error log that has all of `parts`, in this order.
fn error_logged(server: &Server, parts: &[&str]) {
    let has = |line: &str| {
        let mut rest = line;
        parts.iter().all(|part| match rest.split_once(part) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    };
    let found = common::wait_for(common::DEADLINE, || {
        server.log().lines().any(has).then_some(())
    });
    assert!(found.is_some(), "no line with {parts:?}:\n{}", server.log());
}

/// The server still answers others.
fn alive(server: &Server) {
    let response = common::client::get(server.addr(8080), "/alive", "localhost");
    assert_eq!((response.status, response.text().as_str()), (200, "alive"));
}
