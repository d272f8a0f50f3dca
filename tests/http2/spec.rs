//! What RFC 9113 and RFC 7541 ask of a server, case by case: each sends frames on a connection of its own and says how
//! it must end. The cases follow the sections, and with them those of h2spec, which Debian does not have.

use super::{Raw, start};
use couloir::http::h2::Code;
use couloir::http::h2::frame::{self, Frame};
use std::io::Write;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITIZED: u8 = 0x20;
const WHOLE: u8 = END_STREAM | END_HEADERS;

/// `GET / HTTP/2` of localhost, and the same with POST.
const GET: &[u8] = b"\x82\x86\x84\x01\x09localhost";
const POST: &[u8] = b"\x83\x86\x84\x01\x09localhost";

/// How a case must end.
#[derive(Debug)]
enum End {
    /// GOAWAY with this code.
    Connection(Code),
    /// RST_STREAM with this code, and the connection goes on.
    Stream(Code),
    /// The connection goes on.
    Fine,
    /// A response with this status, and the connection goes on.
    Answer(&'static str),
}

use End::{Answer, Connection, Fine, Stream};

fn one(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A whole request with these bytes behind its usual fields.
fn get(more: &[u8]) -> Vec<u8> {
    one(HEADERS, WHOLE, 1, &[GET, more].concat())
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    one(SETTINGS, 0, 0, &payload)
}

/// What came of it: the code of GOAWAY, that of RST_STREAM, the last status.
fn observe(addr: std::net::SocketAddr, bytes: &[u8]) -> (Option<Code>, Option<Code>, String) {
    let mut c = Raw::connect(addr);
    c.flush();
    // the server may close while this is sent
    let _ = c.stream.write_all(bytes);
    let (mut goaway, mut reset, mut status) = (None, None, String::new());
    // requests run after the frames that came with them: an answer precedes that of the second PING
    let mut markers = vec![*b"the end.", *b"nearly.."];
    let _ = c.stream.write_all(&one(PING, 0, 0, b"nearly.."));
    while let Some((head, payload)) = c.frame() {
        match frame::parse(&head, &payload) {
            Ok(Frame::GoAway { code, .. }) => goaway = Some(code),
            Ok(Frame::Reset(code)) => reset = Some(code),
            Ok(Frame::Headers { .. }) => {
                let mut a = super::Answer::default();
                c.take(&head, &payload, head.stream, &mut a);
                status = a.status;
            }
            Ok(Frame::Ping { ack: true, data }) if markers.last() == Some(&data) => {
                markers.pop();
                let Some(next) = markers.last() else { break };
                let _ = c.stream.write_all(&one(PING, 0, 0, next));
            }
            _ => {}
        }
    }
    (goaway, reset, status)
}

#[track_caller]
fn check(cases: &[(&str, Vec<u8>, End)]) {
    let s = start("", "location / { return 200 ok; } client_max_body_size 0;");
    let mut failures = Vec::new();
    for (name, bytes, end) in cases {
        let seen = observe(s.addr(8080), bytes);
        let good = match end {
            Connection(code) => seen.0 == Some(*code),
            Stream(code) => seen.0.is_none() && seen.1 == Some(*code),
            Fine => seen.0.is_none(),
            // a body that nobody reads may come after the answer
            Answer(status) => {
                let whole = seen.1.is_none_or(|code| code == Code::NO_ERROR);
                seen.0.is_none() && whole && seen.2 == *status
            }
        };
        if !good {
            failures.push(format!("{name}: {end:?} expected, {seen:?} seen"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn frames_and_header_blocks() {
    let open = one(HEADERS, END_HEADERS, 1, POST);
    check(&[
        (
            "4.1 unknown type",
            [one(22, 0, 0, b"12345678"), get(b"")].concat(),
            Answer("200"),
        ),
        (
            "4.1 undefined flags",
            [one(PING, 0x16, 0, b"12345678"), get(b"")].concat(),
            Answer("200"),
        ),
        (
            "4.1 reserved bit",
            [one(PING, 0, 1 << 31, b"12345678"), get(b"")].concat(),
            Answer("200"),
        ),
        (
            "4.2 DATA of 2^14 bytes",
            [open.clone(), one(DATA, END_STREAM, 1, &[0; 1 << 14])].concat(),
            Fine,
        ),
        (
            "4.2 DATA too large",
            [open.clone(), one(DATA, END_STREAM, 1, &[0; (1 << 14) + 1])].concat(),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "4.2 larger DATA once that is allowed",
            [
                open.clone(),
                one(DATA, 0, 1, b"x"),
                one(DATA, END_STREAM, 1, &[0; 20_000]),
            ]
            .concat(),
            Answer("200"),
        ),
        (
            "4.2 DATA above what is allowed then",
            [
                open.clone(),
                one(DATA, 0, 1, b"x"),
                one(DATA, END_STREAM, 1, &[0; (1 << 17) + 1]),
            ]
            .concat(),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "4.2 HEADERS too large",
            one(HEADERS, WHOLE, 1, &[GET, &[0; 1 << 14]].concat()),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "4.2 CONTINUATION too large",
            [
                one(HEADERS, END_STREAM, 1, GET),
                one(CONTINUATION, END_HEADERS, 1, &[0; (1 << 14) + 1]),
            ]
            .concat(),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "4.2 SETTINGS too large",
            one(SETTINGS, 0, 0, &[0; 6 * 3000]),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "4.2 unknown type too large",
            one(22, 0, 0, &[0; (1 << 14) + 1]),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "4.3 no header block",
            one(HEADERS, WHOLE, 1, b"\xff\xff\xff\xff\xff"),
            Connection(Code::COMPRESSION_ERROR),
        ),
        (
            "4.3 PRIORITY within a block",
            [
                one(HEADERS, END_STREAM, 1, GET),
                one(PRIORITY, 0, 1, &[0; 5]),
            ]
            .concat(),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "4.3 HEADERS of another stream within a block",
            [
                one(HEADERS, END_STREAM, 1, GET),
                one(HEADERS, WHOLE, 3, GET),
            ]
            .concat(),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "5.5 unknown type within a block",
            [one(HEADERS, END_STREAM, 1, GET), one(22, 0, 0, b"x")].concat(),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "5.5 unknown setting",
            [setting(0xff, 1), get(b"")].concat(),
            Answer("200"),
        ),
        (
            "6.10 CONTINUATION frames",
            [
                one(HEADERS, END_STREAM, 1, &GET[..2]),
                one(CONTINUATION, 0, 1, &GET[2..3]),
                one(CONTINUATION, 0, 1, b""),
                one(CONTINUATION, END_HEADERS, 1, &GET[3..]),
            ]
            .concat(),
            Answer("200"),
        ),
        (
            "6.10 DATA within a block",
            [
                one(HEADERS, 0, 1, POST),
                one(CONTINUATION, 0, 1, b""),
                one(DATA, END_STREAM, 1, b"x"),
            ]
            .concat(),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.10 CONTINUATION of stream 0",
            [
                one(HEADERS, END_STREAM, 1, GET),
                one(CONTINUATION, END_HEADERS, 0, b""),
            ]
            .concat(),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.10 CONTINUATION of another stream",
            [
                one(HEADERS, END_STREAM, 1, GET),
                one(CONTINUATION, END_HEADERS, 3, b""),
            ]
            .concat(),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.10 CONTINUATION behind a whole block",
            [get(b""), one(CONTINUATION, END_HEADERS, 1, GET)].concat(),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.10 CONTINUATION behind DATA",
            [
                open,
                one(DATA, 0, 1, b"x"),
                one(CONTINUATION, END_HEADERS, 1, GET),
            ]
            .concat(),
            Connection(Code::PROTOCOL_ERROR),
        ),
    ]);
}

#[test]
fn states_of_streams() {
    let reset = [
        one(HEADERS, END_HEADERS, 1, POST),
        one(RST_STREAM, 0, 1, &[0, 0, 0, 8]),
    ]
    .concat();
    // a request whose answer takes the whole window stays half-closed
    let half = [setting(4, 0), get(b"")].concat();
    let with = |before: &[u8], more: Vec<u8>| [before, &more].concat();
    check(&[
        (
            "5.1 DATA, idle",
            one(DATA, END_STREAM, 1, b"x"),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "5.1 RST_STREAM, idle",
            one(RST_STREAM, 0, 1, &[0; 4]),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "5.1 WINDOW_UPDATE, idle",
            one(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "5.1 CONTINUATION, idle",
            one(CONTINUATION, END_HEADERS, 1, GET),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "5.1 PRIORITY, idle",
            [one(PRIORITY, 0, 3, &[0; 5]), get(b"")].concat(),
            Answer("200"),
        ),
        (
            "5.1 DATA, half-closed",
            with(&half, one(DATA, END_STREAM, 1, b"x")),
            Stream(Code::STREAM_CLOSED),
        ),
        (
            "5.1 HEADERS, half-closed",
            with(&half, one(HEADERS, WHOLE, 1, GET)),
            Stream(Code::STREAM_CLOSED),
        ),
        (
            "5.1 CONTINUATION, half-closed",
            with(&half, one(CONTINUATION, END_HEADERS, 1, GET)),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "5.1 DATA behind RST_STREAM",
            with(&reset, one(DATA, END_STREAM, 1, b"x")),
            Stream(Code::STREAM_CLOSED),
        ),
        (
            "5.1 CONTINUATION behind RST_STREAM",
            with(&reset, one(CONTINUATION, END_HEADERS, 1, GET)),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "5.1 WINDOW_UPDATE behind RST_STREAM",
            with(&reset, one(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
            Fine,
        ),
        (
            "5.1.1 even identifier",
            one(HEADERS, WHOLE, 2, GET),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "5.1.1 smaller identifier",
            [one(HEADERS, WHOLE, 5, GET), one(HEADERS, WHOLE, 3, GET)].concat(),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "5.3.1 HEADERS that depends on itself",
            one(
                HEADERS,
                WHOLE | PRIORITIZED,
                1,
                &[&[0, 0, 0, 1, 255], GET].concat(),
            ),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "5.3.1 PRIORITY that depends on itself",
            one(PRIORITY, 0, 1, &[0, 0, 0, 1, 255]),
            Connection(Code::PROTOCOL_ERROR),
        ),
    ]);
}

#[test]
fn each_type_of_frame() {
    let open = one(HEADERS, END_HEADERS, 1, POST);
    let with = |more: Vec<u8>| [open.clone(), more].concat();
    let window = |stream, n: u32| one(WINDOW_UPDATE, 0, stream, &n.to_be_bytes());
    check(&[
        (
            "6.1 DATA of stream 0",
            with(one(DATA, END_STREAM, 0, b"x")),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.1 padding too long",
            with(one(DATA, END_STREAM | PADDED, 1, b"\x06test")),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.1 padding",
            with(one(DATA, END_STREAM | PADDED, 1, b"\x02xyzz")),
            Answer("200"),
        ),
        (
            "6.1 padded without length",
            with(one(DATA, END_STREAM | PADDED, 1, b"")),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "6.2 HEADERS of stream 0",
            one(HEADERS, WHOLE, 0, GET),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.2 padding too long",
            one(HEADERS, WHOLE | PADDED, 1, &[&[100], GET].concat()),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.2 padding and priority",
            one(
                HEADERS,
                WHOLE | PADDED | PRIORITIZED,
                1,
                &[&[2, 0, 0, 0, 0, 9], GET, &[0, 0]].concat(),
            ),
            Answer("200"),
        ),
        (
            "6.3 PRIORITY of stream 0",
            one(PRIORITY, 0, 0, &[0, 0, 0, 3, 9]),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.3 PRIORITY too short",
            with(one(PRIORITY, 0, 1, &[0; 4])),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "6.4 RST_STREAM of stream 0",
            one(RST_STREAM, 0, 0, &[0; 4]),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.4 RST_STREAM too short",
            with(one(RST_STREAM, 0, 1, &[0; 3])),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "6.5 acknowledgement with payload",
            one(SETTINGS, ACK, 0, &[0]),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "6.5 SETTINGS of a stream",
            one(SETTINGS, 0, 1, &[0, 3, 0, 0, 0, 100]),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.5 SETTINGS of 3 bytes",
            one(SETTINGS, 0, 0, &[0; 3]),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "6.5.2 ENABLE_PUSH 2",
            setting(2, 2),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.5.2 INITIAL_WINDOW_SIZE 2^31",
            setting(4, 1 << 31),
            Connection(Code::FLOW_CONTROL_ERROR),
        ),
        (
            "6.5.2 MAX_FRAME_SIZE 2^14 - 1",
            setting(5, (1 << 14) - 1),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.5.2 MAX_FRAME_SIZE 2^24",
            setting(5, 1 << 24),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.7 PING with ACK",
            [one(PING, ACK, 0, b"12345678"), get(b"")].concat(),
            Answer("200"),
        ),
        (
            "6.7 PING of a stream",
            one(PING, 0, 1, b"12345678"),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.7 PING of 6 bytes",
            one(PING, 0, 0, b"123456"),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "6.8 GOAWAY of a stream",
            one(GOAWAY, 0, 1, &[0; 8]),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.8 GOAWAY of 4 bytes",
            one(GOAWAY, 0, 0, &[0; 4]),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "6.9 increment of 0",
            window(0, 0),
            Connection(Code::PROTOCOL_ERROR),
        ),
        (
            "6.9 WINDOW_UPDATE of 3 bytes",
            one(WINDOW_UPDATE, 0, 0, &[0, 0, 1]),
            Connection(Code::FRAME_SIZE_ERROR),
        ),
        (
            "6.9.1 window of the connection above 2^31 - 1",
            [window(0, u32::MAX >> 1), window(0, u32::MAX >> 1)].concat(),
            Connection(Code::FLOW_CONTROL_ERROR),
        ),
        (
            "6.9.1 window of a stream above 2^31 - 1",
            with([window(1, u32::MAX >> 1), window(1, u32::MAX >> 1)].concat()),
            Stream(Code::FLOW_CONTROL_ERROR),
        ),
        (
            "7 unknown code in GOAWAY",
            [one(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 255]), get(b"")].concat(),
            Fine,
        ),
        (
            "7 unknown code in RST_STREAM",
            with(one(RST_STREAM, 0, 1, &[0, 0, 0, 255])),
            Fine,
        ),
        (
            "8.4 PUSH_PROMISE",
            one(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], GET].concat()),
            Connection(Code::PROTOCOL_ERROR),
        ),
    ]);
}

#[test]
fn requests_that_are_malformed() {
    let bad = |block: &[u8]| one(HEADERS, WHOLE, 1, block);
    let trailers = |flags, block: &[u8]| {
        [
            one(HEADERS, END_HEADERS, 1, POST),
            one(DATA, 0, 1, b"x"),
            one(HEADERS, flags, 1, block),
        ]
        .concat()
    };
    let body = |length: &[u8], pieces: &[&[u8]]| {
        let mut all = one(
            HEADERS,
            END_HEADERS,
            1,
            &[POST, b"\x0f\x0d", &[length.len() as u8], length].concat(),
        );
        for (i, piece) in pieces.iter().enumerate() {
            all.extend(one(DATA, u8::from(i + 1 == pieces.len()), 1, piece));
        }
        all
    };
    let malformed = || Stream(Code::PROTOCOL_ERROR);
    check(&[
        (
            "8.1 second HEADERS without END_STREAM",
            trailers(END_HEADERS, b"\0\x01a\x01b"),
            malformed(),
        ),
        (
            "8.1 trailers",
            trailers(WHOLE, b"\0\x01a\x01b"),
            Answer("200"),
        ),
        (
            "8.2.1 capital letters",
            get(b"\0\x05X-TOO\x01x"),
            malformed(),
        ),
        (
            "8.2.2 connection",
            get(b"\0\x0aconnection\x0akeep-alive"),
            malformed(),
        ),
        ("8.2.2 te", get(b"\0\x02te\x04gzip"), malformed()),
        (
            "8.2.2 te: trailers",
            get(b"\0\x02te\x08trailers"),
            Answer("200"),
        ),
        (
            "8.3 unknown pseudo-header field",
            get(b"\0\x05:test\x01x"),
            malformed(),
        ),
        (
            "8.3 pseudo-header field of responses",
            get(b"\x88"),
            malformed(),
        ),
        (
            "8.3 pseudo-header field in trailers",
            trailers(WHOLE, b"\0\x05:test\x01x"),
            malformed(),
        ),
        (
            "8.3 pseudo-header field behind others",
            bad(b"\x82\x86\0\x01a\x01b\x84\x01\x09localhost"),
            malformed(),
        ),
        (
            "8.3.1 empty :path",
            bad(b"\x82\x86\x04\0\x01\x09localhost"),
            malformed(),
        ),
        (
            "8.3.1 no :method",
            bad(b"\x86\x84\x01\x09localhost"),
            malformed(),
        ),
        (
            "8.3.1 no :scheme",
            bad(b"\x82\x84\x01\x09localhost"),
            malformed(),
        ),
        (
            "8.3.1 no :path",
            bad(b"\x82\x86\x01\x09localhost"),
            malformed(),
        ),
        ("8.3.1 :method twice", get(b"\x82"), malformed()),
        ("8.3.1 :scheme twice", get(b"\x86"), malformed()),
        ("8.3.1 :path twice", get(b"\x84"), malformed()),
        (
            "8.1.1 body shorter than declared",
            body(b"3", &[b"x"]),
            malformed(),
        ),
        (
            "8.1.1 body longer than declared, in pieces",
            body(b"1", &[b"x", b"y"]),
            malformed(),
        ),
        (
            "8.1.1 body as declared",
            body(b"2", &[b"x", b"y"]),
            Answer("200"),
        ),
    ]);
}

#[test]
fn header_compression() {
    let broken = || Connection(Code::COMPRESSION_ERROR);
    check(&[
        (
            "2.3.3 index beyond both tables, indexed",
            get(b"\xc6"),
            broken(),
        ),
        (
            "2.3.3 index beyond both tables, literal",
            get(b"\x7f\x07\x01x"),
            broken(),
        ),
        ("4.2 size update behind a field", get(b"\x20"), broken()),
        (
            "4.2 size updates first",
            one(HEADERS, WHOLE, 1, &[b"\x20\x3f\xe1\x1f", GET].concat()),
            Answer("200"),
        ),
        (
            "5.2 padding of more than 7 bits",
            get(b"\0\x01a\x82\xff\xff"),
            broken(),
        ),
        ("5.2 padding of zeros", get(b"\0\x01a\x81\x18"), broken()),
        ("5.2 EOS", get(b"\0\x01a\x84\xff\xff\xff\xff"), broken()),
        ("6.1 index 0", get(b"\x80"), broken()),
        (
            "6.3 size above the setting",
            one(HEADERS, WHOLE, 1, &[b"\x3f\xe2\x1f", GET].concat()),
            broken(),
        ),
    ]);
}
