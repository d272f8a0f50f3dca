//! Tests of the frames.

use super::*;
use proptest::prelude::*;

fn only(out: &[u8]) -> (Head, &[u8]) {
    let head = Head::parse(out).unwrap();
    assert_eq!(out.len(), HEAD + head.length);
    (head, &out[HEAD..])
}

fn read(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<Frame<'_>, Invalid> {
    let head = Head {
        length: payload.len(),
        kind,
        flags,
        stream,
    };
    parse(&head, payload)
}

#[test]
fn what_is_written_is_read() {
    let mut out = BytesMut::new();
    settings(&mut out, &[(4, 65_536), (8, 1)]);
    let (head, payload) = only(&out);
    let Ok(Frame::Settings(s)) = parse(&head, payload) else {
        panic!()
    };
    assert_eq!(s.iter().collect::<Vec<_>>(), [(4, 65_536), (8, 1)]);

    out.clear();
    settings_ack(&mut out);
    let (head, payload) = only(&out);
    assert_eq!(parse(&head, payload), Ok(Frame::SettingsAck));

    out.clear();
    go_away(&mut out, 7, Code::ENHANCE_YOUR_CALM);
    let (head, payload) = only(&out);
    let want = Frame::GoAway {
        last: 7,
        code: Code::ENHANCE_YOUR_CALM,
    };
    assert_eq!(parse(&head, payload), Ok(want));

    out.clear();
    window_update(&mut out, 3, 9);
    let (head, payload) = only(&out);
    assert_eq!(
        (head.stream, parse(&head, payload)),
        (3, Ok(Frame::WindowUpdate(9)))
    );

    out.clear();
    ping(&mut out, true, *b"12345678");
    let (head, payload) = only(&out);
    let want = Frame::Ping {
        ack: true,
        data: *b"12345678",
    };
    assert_eq!(parse(&head, payload), Ok(want));
}

#[test]
fn a_long_block_continues() {
    let mut out = BytesMut::new();
    let at = headers_begin(&mut out);
    out.extend_from_slice(b"0123456789");
    headers_end(&mut out, at, 5, true, 4);
    let mut frames = Vec::new();
    let mut rest = &out[..];
    while let Some(head) = Head::parse(rest) {
        let end = HEAD + head.length;
        frames.push((head.kind, head.flags, rest[HEAD..end].to_vec()));
        rest = &rest[end..];
    }
    assert_eq!(
        frames,
        [
            (kind::HEADERS, flag::END_STREAM, b"0123".to_vec()),
            (kind::CONTINUATION, 0, b"4567".to_vec()),
            (kind::CONTINUATION, flag::END_HEADERS, b"89".to_vec())
        ]
    );
}

#[test]
fn padding_and_priority() {
    let block = b"\x02\0\0\0\x03\x10abPP";
    let flags = flag::PADDED | flag::PRIORITY | flag::END_HEADERS;
    let want = Frame::Headers {
        block: b"ab",
        end: false,
        whole: true,
        depends: Some(3),
    };
    assert_eq!(read(kind::HEADERS, flags, 1, block), Ok(want));
    for (payload, code) in [
        (&b""[..], Code::FRAME_SIZE_ERROR),
        (b"\x01", Code::PROTOCOL_ERROR),
    ] {
        assert_eq!(
            read(kind::DATA, flag::PADDED, 1, payload).unwrap_err().0,
            code
        );
    }
    // all of it may be padding
    let want = Frame::Data {
        data: b"",
        end: false,
    };
    assert_eq!(read(kind::DATA, flag::PADDED, 1, b"\x01x"), Ok(want));
}

#[test]
fn refusals_name_code_and_reason() {
    for (kind, stream, payload, code, text) in [
        (
            kind::DATA,
            0,
            &b""[..],
            Code::PROTOCOL_ERROR,
            "sent DATA frame with incorrect identifier",
        ),
        (
            kind::PING,
            0,
            b"123",
            Code::FRAME_SIZE_ERROR,
            "sent PING frame with incorrect length 3",
        ),
        (
            kind::PING,
            1,
            b"12345678",
            Code::PROTOCOL_ERROR,
            "sent PING frame with incorrect identifier",
        ),
        (
            kind::RST_STREAM,
            0,
            b"\0\0\0\0",
            Code::PROTOCOL_ERROR,
            "sent RST_STREAM frame with incorrect identifier",
        ),
        (
            kind::SETTINGS,
            0,
            b"12345",
            Code::FRAME_SIZE_ERROR,
            "sent SETTINGS frame with incorrect length 5",
        ),
        (
            kind::GOAWAY,
            0,
            b"12345",
            Code::FRAME_SIZE_ERROR,
            "sent GOAWAY frame with incorrect length 5",
        ),
        (
            kind::WINDOW_UPDATE,
            1,
            b"\0\0\0\0",
            Code::PROTOCOL_ERROR,
            "sent WINDOW_UPDATE frame with incorrect window increment 0",
        ),
    ] {
        let e = read(kind, 0, stream, payload).unwrap_err();
        assert_eq!((e.0, e.to_string()), (code, text.to_owned()));
    }
    let e = Settings::check(setting::ENABLE_PUSH, 2).unwrap_err();
    assert_eq!(
        e.to_string(),
        "sent SETTINGS frame with incorrect ENABLE_PUSH value 2"
    );
    assert!(Settings::check(setting::MAX_FRAME_SIZE, 16_384).is_ok());
}

proptest! {
    #[test]
    fn never_panics(kind in 0u8..12, flags: u8, stream: u32, payload: Vec<u8>) {
        let _ = read(kind, flags, stream, &payload);
        let _ = Head::parse(&payload);
    }

    #[test]
    fn heads_round_trip(length in 0usize..1 << 24, kind: u8, flags: u8, stream in 0u32..1 << 31) {
        let head = Head { length, kind, flags, stream };
        let mut out = BytesMut::new();
        head.write(&mut out);
        prop_assert_eq!(Head::parse(&out), Some(head));
    }
}
