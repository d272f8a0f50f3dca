//! Origins over HTTP/2 whose streams end otherwise than they declared.

use std::io::ErrorKind;

use super::alive;
use super::common::client::Client;
use super::common::origin::{Origin, Step};
use super::common::proc::{Couloir, Server, Setup};

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame of stream 1, or of the connection.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short frame");
    let mut out = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
    out.extend_from_slice(payload);
    out
}

fn data(bytes: &[u8], flags: u8) -> Vec<u8> {
    frame(0, flags, 1, bytes)
}

/// `:status: 200` and `content-length: 5`, in HPACK without the table.
fn head(flags: u8) -> Vec<u8> {
    frame(1, END_HEADERS | flags, 1, b"\x88\x0f\x0d\x015")
}

fn reset(code: u8) -> Vec<u8> {
    frame(3, 0, 1, &[0, 0, 0, code])
}

/// `x: y`.
fn trailers() -> Vec<u8> {
    frame(1, END_HEADERS | END_STREAM, 1, b"\x00\x01x\x01y")
}

fn go_away(last: u8) -> Vec<u8> {
    frame(7, 0, 0, &[0, 0, 0, last, 0, 0, 0, 0])
}

fn server(origin: &Origin) -> Server {
    Setup::new(
        "%%TEST_GLOBALS%% events { }
         http { %%TEST_GLOBALS_HTTP%%
             proxy_cache_path %%TESTDIR%%/cache keys_zone=z:1m;
             proxy_http_version 2;
             server { listen 127.0.0.1:%%PORT_8080%%; server_name localhost;
                 location = /alive { return 200 alive; }
                 location /plain { proxy_pass http://%%ORIGIN%%; }
                 location /unbuffered { proxy_buffering off; proxy_pass http://%%ORIGIN%%; }
                 location /cached { proxy_cache z; proxy_cache_valid 1h; proxy_cache_lock on;
                     add_header X-Cache $upstream_cache_status; proxy_pass http://%%ORIGIN%%; }
                 location /grpc { grpc_pass %%ORIGIN%%; }
             } }",
    )
    .set("ORIGIN", origin.addr())
    .start(&Couloir::program())
}

/// One request to an origin that sends these frames and closes, or waits for the close: the status where the response is
/// a whole one, `None` where it is broken off.
fn ask(path: &str, frames: &[Vec<u8>], close: bool) -> Option<u16> {
    let end = match close {
        true => Step::Close,
        false => Step::WaitForClose,
    };
    // the connection preface comes with everything else that a request without a body consists of
    let script = vec![
        Step::ReadBytes(24),
        Step::Send(frame(4, 0, 0, b"")),
        Step::Send(frames.concat()),
        end,
    ];
    let origin = Origin::script(vec![script]);
    let server = server(&origin);
    let mut last = None;
    // what breaks off must not be found in the cache by the second one
    for _ in 0..2 {
        let mut client = Client::connect(server.addr(8080));
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.send(request).unwrap();
        last = match client.response("GET") {
            Ok(response) => {
                assert_ne!(response.header("X-Cache"), Some("HIT"), "{path}");
                assert!(
                    response.status != 200 || response.text() == "abcde",
                    "{path}"
                );
                // the next response on the connection is its own
                client
                    .send("GET /alive HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    .unwrap();
                assert_eq!(client.response("GET").unwrap().text(), "alive", "{path}");
                Some(response.status)
            }
            Err(e) => {
                let broken = matches!(
                    e.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                );
                assert!(broken, "{path}: {e}");
                None
            }
        };
    }
    alive(&server);
    last
}

#[test]
fn shorter_or_longer_than_declared() {
    let endings: [(&str, Vec<Vec<u8>>, bool); 9] = [
        ("HEADERS", vec![head(END_STREAM)], false),
        ("empty DATA", vec![head(0), data(b"", END_STREAM)], false),
        ("DATA", vec![head(0), data(b"abc", END_STREAM)], false),
        (
            "trailers",
            vec![head(0), data(b"abc", 0), trailers()],
            false,
        ),
        (
            "too much",
            vec![head(0), data(b"abcdef", END_STREAM)],
            false,
        ),
        (
            "RST_STREAM NO_ERROR",
            vec![head(0), data(b"abc", 0), reset(0)],
            false,
        ),
        (
            "RST_STREAM CANCEL",
            vec![head(0), data(b"abc", 0), reset(8)],
            false,
        ),
        ("GOAWAY", vec![head(0), data(b"abc", 0), go_away(0)], false),
        (
            "end of the connection",
            vec![head(0), data(b"abc", 0)],
            true,
        ),
    ];
    for (name, frames, close) in &endings {
        for path in ["/plain", "/unbuffered", "/cached", "/grpc"] {
            let status = ask(path, frames, *close);
            // where the head is sent by then, the response is broken off
            assert!(
                matches!(status, None | Some(502)),
                "{path}, {name}: {status:?}"
            );
        }
    }
    // nothing was sent yet
    assert_eq!(ask("/plain", &endings[0].1, false), Some(502));
    // whole ones
    for path in ["/plain", "/unbuffered", "/grpc"] {
        for frames in [
            vec![head(0), data(b"abcde", END_STREAM)],
            vec![head(0), data(b"abcde", 0), trailers()],
        ] {
            assert_eq!(ask(path, &frames, false), Some(200), "{path}");
        }
    }
}
