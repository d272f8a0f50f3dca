use super::*;
use crate::http::h2::hpack::{Encoder, Indexing};
use proptest::prelude::*;

fn answer(fields: &[(&str, &str)], stream: u32, end: bool) -> BytesMut {
    let mut out = BytesMut::new();
    let mut encoder = Encoder::default();
    let at = frame::headers_begin(&mut out);
    for (name, value) in fields {
        encoder.field(
            &mut out,
            name.as_bytes(),
            value.as_bytes(),
            Indexing::Passing,
        );
    }
    frame::headers_end(&mut out, at, stream, end, 16384);
    out
}

fn read(s: &mut Stream, bytes: &[u8]) -> (Result<Event, String>, UpstreamHead, Headers) {
    let (mut head, mut trailers) = (UpstreamHead::default(), Headers::default());
    let mut buf = BytesMut::from(bytes);
    let event = s.read(&mut buf, &mut head, &mut trailers);
    (event, head, trailers)
}

#[test]
fn a_request_and_its_answer() {
    let mut s = Stream::begin(None, b"\x82", true, false, 65536);
    assert!(s.out.starts_with(PREFACE));
    assert_eq!(s.room(), 16384);
    s.send(b"abc", false);
    s.send(b"", true);
    assert!(s.sent);
    s.out.clear();
    let (event, head, _) = read(&mut s, &answer(&[(":status", "200"), ("x", "y")], 1, false));
    assert!(matches!(event, Ok(Event::Head)));
    assert_eq!(
        (head.status, head.headers.get(b"x")),
        (200, Some(&b"y"[..]))
    );
    let mut data = BytesMut::new();
    frame::data(&mut data, 1, b"hello", false);
    assert!(matches!(read(&mut s, &data).0, Ok(Event::Data(d)) if &d[..] == b"hello"));
    let (event, _, trailers) = read(&mut s, &answer(&[("grpc-status", "0")], 1, true));
    assert!(matches!(event, Ok(Event::End)));
    assert_eq!(trailers.get(b"grpc-status"), Some(&b"0"[..]));
    let kept = s.end().expect("the connection can be used again");
    let s = Stream::begin(Some(kept), b"\x82", false, false, 65536);
    assert_eq!((s.id, s.sent), (3, true));
}

#[test]
fn what_origins_may_not_send() {
    let ok = (":status", "200");
    for (bytes, text) in [
        (
            answer(&[("x", "y")], 1, false),
            "upstream sent no :status header",
        ),
        (
            answer(&[ok, ok], 1, false),
            "upstream sent duplicate :status header",
        ),
        (
            answer(&[(":status", "20")], 1, false),
            "upstream sent invalid :status \"20\"",
        ),
        (
            answer(&[(":status", "101")], 1, false),
            "upstream sent unexpected :status \"101\"",
        ),
        (
            answer(&[ok, (":x", "y")], 1, false),
            "upstream sent invalid header \":x: y\"",
        ),
        (
            answer(&[ok], 3, false),
            "upstream sent frame for unknown stream 3",
        ),
        (
            answer(&[ok, ("a", "b\r\nc")], 1, false),
            "upstream sent invalid header: \"a: b\r\nc\"",
        ),
    ] {
        let mut s = Stream::begin(None, b"\x82", false, false, 65536);
        assert_eq!(read(&mut s, &bytes).0.err().as_deref(), Some(text));
    }
    let mut s = Stream::begin(None, b"\x82", false, false, 65536);
    let head = answer(&[ok, ("content-length", "3")], 1, false);
    assert!(matches!(read(&mut s, &head).0, Ok(Event::Head)));
    let mut data = BytesMut::new();
    frame::data(&mut data, 1, b"four", true);
    let text = "upstream sent response body larger than indicated content length";
    assert_eq!(read(&mut s, &data).0.err().as_deref(), Some(text));
    let mut s = Stream::begin(None, b"\x82", false, false, 65536);
    let mut goaway = BytesMut::new();
    frame::go_away(&mut goaway, 0, Code::REFUSED_STREAM);
    let text = "upstream sent goaway with error 7";
    assert_eq!(read(&mut s, &goaway).0.err().as_deref(), Some(text));
}

/// Every way in which a stream may end before the length that was declared has come, or after more of it.
#[test]
fn lengths_are_kept() {
    const SHORT: &str = "upstream prematurely closed stream";
    const LONG: &str = "upstream sent response body larger than indicated content length";
    const REPEATED: &str = "upstream sent duplicate header line: \"content-length: 5\", previous value: \"content-length: 5\"";
    let head =
        |length: &str, end| answer(&[(":status", "200"), ("content-length", length)], 1, end);
    let data = |bytes: &[u8], end| {
        let mut out = BytesMut::new();
        frame::data(&mut out, 1, bytes, end);
        out
    };
    let reset = |code| {
        let mut out = BytesMut::new();
        frame::reset(&mut out, 1, code);
        out
    };
    let status =
        |status: &str, end| answer(&[(":status", status), ("content-length", "5")], 1, end);
    let trailers = || answer(&[("x", "y")], 1, true);
    let twice = [
        (":status", "200"),
        ("content-length", "5"),
        ("content-length", "5"),
    ];
    for (head_only, pieces, expected) in [
        (false, vec![head("5", true)], Err(SHORT)),
        (false, vec![head("5", false), data(b"", true)], Err(SHORT)),
        (
            false,
            vec![head("5", false), data(b"1234", true)],
            Err(SHORT),
        ),
        (
            false,
            vec![head("5", false), data(b"1234", false), trailers()],
            Err(SHORT),
        ),
        (
            false,
            vec![head("5", false), data(b"1234", false), data(b"56", true)],
            Err(LONG),
        ),
        (false, vec![head("0", false), data(b"1", true)], Err(LONG)),
        (
            false,
            vec![
                head("5", false),
                data(b"1234", false),
                reset(Code::NO_ERROR),
            ],
            Err("upstream rejected request with error 0"),
        ),
        (
            false,
            vec![head("5", false), data(b"12345", false), reset(Code::CANCEL)],
            Err("upstream rejected request with error 8"),
        ),
        (false, vec![answer(&twice, 1, true)], Err(REPEATED)),
        (
            false,
            vec![status("204", false), data(b"1", true)],
            Err(LONG),
        ),
        (true, vec![head("5", false), data(b"1", true)], Err(LONG)),
        // whole ones
        (false, vec![head("0", true)], Ok(())),
        (false, vec![head("5", false), data(b"12345", true)], Ok(())),
        (
            false,
            vec![head("5", false), data(b"12345", false), trailers()],
            Ok(()),
        ),
        (
            false,
            vec![
                head("5", false),
                data(b"12345", true),
                reset(Code::NO_ERROR),
            ],
            Ok(()),
        ),
        (false, vec![status("304", true)], Ok(())),
        (true, vec![head("5", true)], Ok(())),
    ] {
        let mut s = Stream::begin(None, b"\x82", false, head_only, 65536);
        let (mut head, mut trailers) = (UpstreamHead::default(), Headers::default());
        let mut buf = BytesMut::new();
        for piece in &pieces {
            buf.extend_from_slice(piece);
        }
        let outcome = loop {
            match s.read(&mut buf, &mut head, &mut trailers) {
                Ok(Event::Need) => break Ok(s.is_ended()),
                Ok(_) => {}
                Err(text) => break Err(text),
            }
        };
        assert_eq!(
            outcome,
            expected.map(|()| true).map_err(str::to_owned),
            "{pieces:?}"
        );
    }
}

#[test]
fn windows_are_kept() {
    let mut s = Stream::begin(None, b"\x82", true, false, 65536);
    for _ in 0..3 {
        s.send(&[0; 16384], false);
    }
    assert_eq!(s.room(), 65535 - 3 * 16384);
    s.send(&[0; 16383], false);
    assert_eq!(s.room(), 0);
    let mut update = BytesMut::new();
    frame::window_update(&mut update, 1, 10);
    assert!(matches!(read(&mut s, &update).0, Ok(Event::Need)));
    assert_eq!(s.room(), 0, "the connection's window is used up");
    update.clear();
    frame::window_update(&mut update, 0, 5);
    let _ = read(&mut s, &update);
    assert_eq!(s.room(), 5);
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut s = Stream::begin(None, b"\x82", true, false, 65536);
        let (mut head, mut trailers) = (UpstreamHead::default(), Headers::default());
        let mut buf = BytesMut::from(&bytes[..]);
        for _ in 0..50 {
            match s.read(&mut buf, &mut head, &mut trailers) {
                Ok(Event::Need) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }
}

/// Frames as an origin sends them, written again and again: how often until it is too much.
fn times(s: &mut Stream, frames: &[u8], most: usize) -> (usize, String) {
    for n in 0..most {
        let mut buf = BytesMut::from(frames);
        let (mut head, mut trailers) = (UpstreamHead::default(), Headers::default());
        loop {
            match s.read(&mut buf, &mut head, &mut trailers) {
                Ok(Event::Need) => break,
                Ok(_) => {}
                Err(e) => return (n, e),
            }
        }
        s.out.clear();
    }
    (most, String::new())
}

fn streaming() -> Stream {
    let mut s = Stream::begin(None, b"\x82", true, false, 65536);
    let (event, ..) = read(&mut s, &answer(&[(":status", "200")], 1, false));
    assert!(matches!(event, Ok(Event::Head)));
    s
}

#[test]
fn frames_that_carry_nothing_are_bounded() {
    type Write = fn(&mut BytesMut);
    let floods: [(&str, Write); 7] = [
        ("ping", |b| frame::ping(b, false, [0; 8])),
        ("settings", |b| frame::settings(b, &[(4, 65_535)])),
        ("window update", |b| frame::window_update(b, 1, 1)),
        ("empty data", |b| frame::data(b, 1, b"", false)),
        ("unused", |b| frame::settings_ack(b)),
        ("goaway", |b| frame::go_away(b, 1, Code::NO_ERROR)),
        ("unused", |b| {
            let (kind, flags) = (99, 0);
            let (length, stream) = (0, 0);
            Head {
                length,
                kind,
                flags,
                stream,
            }
            .write(b);
        }),
    ];
    for (name, write) in floods {
        let mut frames = BytesMut::new();
        write(&mut frames);
        let (n, e) = times(&mut streaming(), &frames, 100_000);
        assert_eq!(e, format!("upstream sent too many {name} frames"));
        // time allows some meanwhile
        assert!((2000..20_000).contains(&n), "{name}: {n}");
    }
    let mut s = Stream::begin(None, b"\x82", false, false, 65536);
    let (n, e) = times(&mut s, &answer(&[(":status", "103")], 1, false), 100_000);
    assert_eq!(e, "upstream sent too many interim headers frames");
    assert!(n >= 200, "{n}");
    let mut s = Stream::begin(None, b"\x82", false, false, 65536);
    let mut head = BytesMut::from(&[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x88][..]);
    head.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0, 0, 1].repeat(100_000));
    let (_, e) = times(&mut s, &head, 1);
    assert_eq!(e, "upstream sent too many continuation frames");
}

#[test]
fn origins_may_ping_for_every_message() {
    let mut frames = BytesMut::new();
    frame::data(&mut frames, 1, b"\0\0\0\0\0", false);
    frame::window_update(&mut frames, 0, 5);
    frame::ping(&mut frames, false, [0; 8]);
    let mut s = streaming();
    // windows beyond the default would be an error of their own
    s.send(&[0; 5], false);
    s.kept.window -= 1 << 30;
    assert_eq!(times(&mut s, &frames, 50_000), (50_000, String::new()));
    // and for what it is sent
    let mut frames = BytesMut::new();
    frame::window_update(&mut frames, 0, 5);
    frame::window_update(&mut frames, 1, 5);
    frame::ping(&mut frames, false, [0; 8]);
    let mut s = streaming();
    for _ in 0..50_000 {
        s.send(&[0; 5], false);
        assert_eq!(times(&mut s, &frames, 1).1, "");
    }
}
