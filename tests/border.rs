//! The border: what is refused, what is forwarded, and what no configuration makes us write.

mod common;

#[path = "border/api.rs"]
mod api;
#[path = "border/requests.rs"]
mod requests;
#[path = "border/splitting.rs"]
mod splitting;

use common::client::{Client, Response};
use common::origin::Origin;
use common::proc::{Couloir, Server, Setup};
use std::net::SocketAddr;

/// Starts Couloir on what stands in `http { }`.
fn start(origin: &Origin, http: &str) -> Server {
    let conf = format!("%%TEST_GLOBALS%% events {{ }} http {{ %%TEST_GLOBALS_HTTP%% {http} }}");
    Setup::new(&conf)
        .set("ORIGIN", origin.port())
        .start(&Couloir::program())
}

/// Sends bytes and reads the final response.
fn ask(addr: SocketAddr, bytes: &[u8]) -> Response {
    let mut client = Client::connect(addr);
    // it may have been answered and closed before all was sent
    let _ = client.send(bytes);
    loop {
        let shown = || bytes[..bytes.len().min(300)].escape_ascii().to_string();
        match client.response("GET") {
            Ok(r) if r.status < 200 => {}
            Ok(r) => return r,
            Err(e) => panic!("{e}: {}", shown()),
        }
    }
}

/// Whether a message holds control characters, lines without CR, or a name that is no token.
fn is_clean(message: &[u8]) -> bool {
    let end = message
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("a head");
    let text: Vec<u8> = message[..end].to_vec();
    let lines: Vec<&[u8]> = text.split(|b| *b == b'\n').collect();
    let last = lines.len() - 1;
    lines.iter().enumerate().all(|(i, line)| {
        let line = match line.strip_suffix(b"\r") {
            Some(line) => line,
            None if i == last => line,
            None => return false,
        };
        let control = line
            .iter()
            .any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f);
        let shape = match i {
            0 => line.split(|b| *b == b' ').count() == 3,
            _ => line
                .iter()
                .position(|b| *b == b':')
                .is_some_and(|at| couloir::http::strict::is_token(&line[..at])),
        };
        !control && shape
    })
}
