//! Temporary files that cannot be written: the request that needs one fails, the others go on.

use std::fs;
use std::path::Path;

use super::common::client::Client;
use super::common::origin::{Origin, Step};
use super::common::proc::Server;
use super::{alive, error_logged, get, ok, pattern, proxy};

/// Puts a file in a folder's place: nothing can be made in it, not even by root.
fn spoil(server: &Server, name: &str) {
    let folder = server.dir().join(name);
    remove(&folder);
    fs::write(folder, "").expect("a file");
}

fn remove(folder: &Path) {
    if folder.exists() {
        fs::remove_dir_all(folder).expect("remove");
    }
}

#[test]
fn an_upload_that_finds_no_room() {
    let origin = Origin::respond(|request| ok(&request.body().len().to_string()).into_bytes());
    let server = proxy(
        &origin,
        "client_max_body_size 0; client_body_buffer_size 16k;",
    );
    spoil(&server, "client_body_temp");
    let body = pattern(200_000);
    let mut client = Client::connect(server.addr(8080));
    let _ = client.send(format!(
        "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ));
    let _ = client.send(&body);
    assert_eq!(client.response("POST").unwrap().status, 500);
    assert!(origin.requests().is_empty());
    error_logged(
        &server,
        &[
            "[crit]",
            "client_body_temp/",
            "failed (20: Not a directory)",
            ", client: 127.0.0.1",
        ],
    );
    alive(&server);
    let mut small = Client::connect(server.addr(8080));
    small
        .send("POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc")
        .unwrap();
    assert_eq!(small.response("POST").unwrap().text(), "3");
}

#[test]
fn a_response_that_finds_no_room() {
    let body = pattern(24 << 20);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let origin = Origin::script(vec![
        vec![Step::Read, Step::send(head), Step::Send(body.clone())],
        vec![Step::Read, Step::send(ok("small"))],
    ]);
    let server = proxy(&origin, "");
    spoil(&server, "proxy_temp");
    let mut client = Client::connect(server.addr(8080));
    client.send(get("/x")).unwrap();
    // while the client does not read
    error_logged(
        &server,
        &[
            "[crit]",
            "proxy_temp/",
            "failed (20: Not a directory) while reading upstream, client: 127.0.0.1",
        ],
    );
    client.response("GET").unwrap_err();
    assert!(client.buffered().len() < body.len());
    let mut other = Client::connect(server.addr(8080));
    other.send(get("/y")).unwrap();
    assert_eq!(other.response("GET").unwrap().text(), "small");
}
