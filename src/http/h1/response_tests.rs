use proptest::prelude::*;

use super::*;

/// Feeds `input` in steps; the limit is far away.
fn read(input: &[u8], step: usize) -> (Progress, UpstreamHead) {
    read_within(input, step, 4096)
}

fn read_within(input: &[u8], step: usize, limit: usize) -> (Progress, UpstreamHead) {
    let (mut parser, mut head, mut upto) = (
        Parser::default(),
        UpstreamHead::default(),
        step.min(input.len()),
    );
    loop {
        match parser.parse(&input[..upto], limit, &mut head) {
            Progress::Need if upto < input.len() => upto = (upto + step).min(input.len()),
            other => return (other, head),
        }
    }
}

fn done(input: &str) -> UpstreamHead {
    let (progress, head) = read(input.as_bytes(), input.len());
    assert!(
        matches!(progress, Progress::Done { .. }),
        "{input:?}: {progress:?}"
    );
    head
}

#[test]
fn a_usual_head() {
    let input = "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nhello";
    let (progress, head) = read(input.as_bytes(), 7);
    assert_eq!(
        progress,
        Progress::Done {
            consumed: input.len() - 5
        }
    );
    assert_eq!(
        (head.status, &head.status_line[..], head.reason()),
        (200, &b"200 OK"[..], &b"OK"[..])
    );
    assert_eq!(
        (head.content_length, head.connection_close),
        (Some(5), false)
    );
    assert_eq!(head.headers.get_all_id(Known::SetCookie).count(), 2);
    assert_eq!(head.body(false), BodyLength::Bytes(5));
    assert_eq!(head.body(true), BodyLength::None);
}

#[test]
fn status_lines() {
    for (line, status, text, close) in [
        ("HTTP/1.1 200 OK", 200, "200 OK", false),
        ("HTTP/1.0 404 Not Found", 404, "404 Not Found", true),
        ("HTTP/1.1 204", 204, "204", false),
        ("HTTP/1.1 204 ", 204, "204 ", false),
        ("HTTP/1.1   403.1 No", 403, "403.1 No", false),
        ("HTTP/2.0 200 OK", 200, "200 OK", false),
        ("HTTP/1.1 000 \x01\t", 0, "000 \x01\t", false),
    ] {
        for end in ["\r\n\r\n", "\n\n"] {
            let head = done(&format!("{line}{end}"));
            assert_eq!(
                (head.status, head.connection_close),
                (status, close),
                "{line:?}"
            );
            assert_eq!(head.status_line, text.as_bytes(), "{line:?}");
        }
    }
}

#[test]
fn what_is_no_head_is_http09() {
    for input in [
        "<html>",
        "HTTP/1.1 20",
        "HTTX",
        "HTTP/0.9",
        "HTTP/1.1 2000",
        "HTTP/1.1 200 a\rb",
        "http/1.1",
        "HTTP/1.1 2x",
        "HTTP/1.1000",
    ] {
        let input = format!("{input}\n");
        let (progress, head) = read(input.as_bytes(), 1);
        assert_eq!(progress, Progress::Done { consumed: 0 }, "{input:?}");
        assert!(head.is_http09() && head.connection_close && head.status == 200);
        assert_eq!(head.body(false), BodyLength::UntilClose);
    }
}

#[test]
fn refusals() {
    for (fields, message) in [
        (
            "Content-Length: 1\r\nContent-Length: 1",
            "upstream sent duplicate header line: \"Content-Length: 1\", previous value: \"Content-Length: 1\"",
        ),
        (
            "Content-Length: 1, 1",
            "upstream sent invalid \"Content-Length\" header: \"Content-Length: 1, 1\"",
        ),
        (
            "content-length:",
            "upstream sent invalid \"Content-Length\" header: \"content-length: \"",
        ),
        (
            "Content-Length: 9223372036854775808",
            "upstream sent invalid \"Content-Length\" header: \"Content-Length: 9223372036854775808\"",
        ),
        (
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "upstream sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time",
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 1",
            "upstream sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time",
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "upstream sent duplicate header line: \"Transfer-Encoding: chunked\", previous value: \"Transfer-Encoding: chunked\"",
        ),
        (
            "Transfer-Encoding: gzip, chunked",
            "upstream sent unknown \"Transfer-Encoding\": \"gzip, chunked\"",
        ),
        ("A B: c", "upstream sent invalid header: \"A\\x20...\""),
        ("A: b\0", "upstream sent invalid header: \"A: b\\x00...\""),
    ] {
        let (progress, _) = read(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n").as_bytes(), 3);
        match progress {
            Progress::Bad(error) => assert_eq!(error.to_string(), message),
            other => panic!("{fields:?}: {other:?}"),
        }
    }
}

#[test]
fn repeated_fields_are_dropped_and_told() {
    let head = done(
        "HTTP/1.1 200 OK\r\nServer: a\r\nserver: b\r\nA_b@: c\r\nHTTP/1.1 200 OK\r\nConnection: Close\r\n\r\n",
    );
    assert_eq!(head.headers.len(), 3);
    assert_eq!(
        head.ignored,
        [
            "upstream sent duplicate header line: \"server: b\", previous value: \"Server: a\", ignored"
        ]
    );
    assert_eq!(head.headers.get(b"a_B@"), Some(&b"c"[..]));
    assert!(head.connection_close);
}

#[test]
fn early_hints_come_before_the_head() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: a\r\nContent-Length: x\r\nLink: b\r\n\r\n";
    let input = format!("{hints}HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n");
    let (mut parser, mut head) = (Parser::default(), UpstreamHead::default());
    let progress = parser.parse(input.as_bytes(), 4096, &mut head);
    assert_eq!(
        (progress, head.headers.len()),
        (
            Progress::EarlyHints {
                consumed: hints.len()
            },
            3
        )
    );
    let rest = &input.as_bytes()[hints.len()..];
    assert_eq!(
        parser.parse(rest, 4096, &mut head),
        Progress::Done {
            consumed: rest.len()
        }
    );
    assert!(head.upgrade && head.status == 101 && head.headers.len() == 1);
    let (progress, _) = read(b"HTTP/1.0 103 Early Hints\r\n", 99);
    assert!(
        matches!(progress, Progress::Bad(e) if e.reason == "upstream sent HTTP/1.0 response with early hints")
    );
}

#[test]
fn the_limit_is_exact() {
    let input = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody";
    assert!(matches!(
        read_within(input, 99, 25).0,
        Progress::Done { consumed: 25 }
    ));
    for step in [1, 99] {
        let (progress, _) = read_within(input, step, 24);
        assert!(matches!(progress, Progress::Bad(e) if e.reason == "upstream sent too big header"));
    }
}

proptest! {
    #[test]
    fn split_anywhere_reads_the_same(
        start in "(HTTP/1.[01] [0-9]{3}( OK)?\r?\n)?",
        fields in prop::collection::vec("(Server|Content-Length|Transfer-Encoding|Connection|[a-c]): ?(chunked|close|[0-9]{1,3}|x)\r?\n", 0..6),
        end in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), any::<u8>()], 0..6),
        step in 1usize..9,
    ) {
        let input = [start.as_bytes(), fields.concat().as_bytes(), &end].concat();
        let whole = read(&input, input.len().max(1));
        let split = read(&input, step);
        prop_assert_eq!(format!("{whole:?}"), format!("{split:?}"));
    }
}
