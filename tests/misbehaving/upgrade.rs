//! Connections that become something else: bytes pass both ways as they are.

use std::net::Shutdown;

use super::common::client::Client;
use super::common::origin::{Gate, Origin, Step};
use super::common::proc::Server;
use super::{logged, pattern, proxy};

const ACCEPT: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
const ASK: &str =
    "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

fn tunnel(steps: Vec<Step>) -> (Origin, Server) {
    let origin = Origin::script(vec![steps]);
    let server = proxy(
        &origin,
        "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;",
    );
    (origin, server)
}

fn accepted(client: &mut Client) {
    let response = client.response_head().unwrap();
    assert_eq!(response.status, 101);
    assert_eq!(response.header("Upgrade"), Some("websocket"));
    assert_eq!(response.header("Connection"), Some("upgrade"));
}

#[test]
fn echoes_both_ways() {
    let (origin, server) = tunnel(vec![Step::Read, Step::send(ACCEPT), Step::Echo]);
    let mut client = Client::connect(server.addr(8080));
    client.send(ASK).unwrap();
    accepted(&mut client);
    let bytes = pattern(200_000);
    for piece in [&b"ping"[..], b"\0\xff", &bytes] {
        client.send(piece).unwrap();
        assert!(client.take(piece.len()).unwrap() == piece);
    }
    assert_eq!(
        origin.requests()[0].header("Upgrade").as_deref(),
        Some("websocket")
    );
    client.stream().shutdown(Shutdown::Write).unwrap();
    assert!(client.read_to_close().unwrap().is_empty());
    let log = server.wait_for_text("short.log", "GET /ws 101 ");
    assert!(
        log.starts_with(&format!("GET /ws 101 {} 101", 4 + 2 + bytes.len())),
        "{log}"
    );
}

#[test]
fn bytes_right_behind_the_head_of_the_answer() {
    let (_origin, server) = tunnel(vec![
        Step::Read,
        Step::send(format!("{ACCEPT}early")),
        Step::Echo,
    ]);
    let mut client = Client::connect(server.addr(8080));
    client.send(ASK).unwrap();
    accepted(&mut client);
    assert_eq!(client.take(5).unwrap(), b"early");
    client.send("later").unwrap();
    assert_eq!(client.take(5).unwrap(), b"later");
}

#[test]
fn bytes_right_behind_the_head_of_the_request() {
    let (_origin, server) = tunnel(vec![Step::Read, Step::send(ACCEPT), Step::Echo]);
    let mut client = Client::connect(server.addr(8080));
    client.send(format!("{ASK}early")).unwrap();
    accepted(&mut client);
    assert_eq!(client.take(5).unwrap(), b"early");
}

#[test]
fn the_origin_ends_it() {
    let (_origin, server) = tunnel(vec![
        Step::Read,
        Step::send(ACCEPT),
        Step::send("bye"),
        Step::Close,
    ]);
    let mut client = Client::connect(server.addr(8080));
    client.send(ASK).unwrap();
    accepted(&mut client);
    assert_eq!(client.read_to_close().unwrap(), b"bye");
    logged(&server, "GET /ws 101 3 101");
}

#[test]
fn the_client_ends_it() {
    let closed = Gate::new();
    let (_origin, server) = tunnel(vec![
        Step::Read,
        Step::send(ACCEPT),
        Step::WaitForClose,
        Step::Open(closed.clone()),
    ]);
    let mut client = Client::connect(server.addr(8080));
    client.send(ASK).unwrap();
    accepted(&mut client);
    drop(client);
    assert!(closed.wait(), "the origin's connection stays open");
    logged(&server, "GET /ws 101 0 101");
}

#[test]
fn the_origin_declines() {
    let (_origin, server) = tunnel(vec![Step::Read, Step::send(super::ok("no"))]);
    let mut client = Client::connect(server.addr(8080));
    client.send(ASK).unwrap();
    let response = client.response("GET").unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "no"));
    logged(&server, "GET /ws 200 2 200");
}

/// What is logged when a tunnel ends by a side's silence or reset: levels as in nginx.
#[test]
fn ends_of_tunnels_are_logged() {
    const DOING: &str = "while proxying upgraded connection, client: 127.0.0.1";
    // the origin falls silent
    let (_origin, server) = tunnel(vec![Step::Read, Step::send(ACCEPT), Step::WaitForClose]);
    let mut client = Client::connect(server.addr(8080));
    client.send(ASK).unwrap();
    accepted(&mut client);
    assert!(client.read_to_close().unwrap().is_empty());
    let timed_out = "upstream timed out (110: Connection timed out)";
    super::error_logged(&server, &["[info]", timed_out, DOING]);
    assert!(!server.log().contains("[error]"), "{}", server.log());
    // the origin resets
    let (_origin, server) = tunnel(vec![
        Step::Read,
        Step::send(ACCEPT),
        Step::ReadBytes(1),
        Step::Reset,
    ]);
    let mut client = Client::connect(server.addr(8080));
    client.send(ASK).unwrap();
    accepted(&mut client);
    client.send("x").unwrap();
    let _ = client.read_to_close();
    let reset = "recv() failed (104: Connection reset by peer)";
    super::error_logged(&server, &["[error]", reset, DOING]);
    // the client resets
    let (_origin, server) = tunnel(vec![Step::Read, Step::send(ACCEPT), Step::WaitForClose]);
    let mut client = Client::connect(server.addr(8080));
    client.send(ASK).unwrap();
    accepted(&mut client);
    socket2::SockRef::from(client.stream())
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
    drop(client);
    super::error_logged(&server, &["[info]", reset, DOING]);
    assert!(!server.log().contains("[error]"), "{}", server.log());
}
