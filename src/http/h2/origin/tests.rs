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
    let mut s = Stream::begin(None, b"\x82", true, 65536);
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
    let s = Stream::begin(Some(kept), b"\x82", false, 65536);
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
        let mut s = Stream::begin(None, b"\x82", false, 65536);
        assert_eq!(read(&mut s, &bytes).0.err().as_deref(), Some(text));
    }
    let mut s = Stream::begin(None, b"\x82", false, 65536);
    let head = answer(&[ok, ("content-length", "3")], 1, false);
    assert!(matches!(read(&mut s, &head).0, Ok(Event::Head)));
    let mut data = BytesMut::new();
    frame::data(&mut data, 1, b"four", true);
    let text = "upstream sent response body larger than indicated content length";
    assert_eq!(read(&mut s, &data).0.err().as_deref(), Some(text));
    let mut s = Stream::begin(None, b"\x82", false, 65536);
    let mut goaway = BytesMut::new();
    frame::go_away(&mut goaway, 0, Code::REFUSED_STREAM);
    let text = "upstream sent goaway with error 7";
    assert_eq!(read(&mut s, &goaway).0.err().as_deref(), Some(text));
}

#[test]
fn windows_are_kept() {
    let mut s = Stream::begin(None, b"\x82", true, 65536);
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
        let mut s = Stream::begin(None, b"\x82", true, 65536);
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
