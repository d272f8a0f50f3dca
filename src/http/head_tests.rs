use proptest::prelude::*;

use super::*;

fn read(input: &[u8], step: usize, limits: &Limits) -> (Progress, RequestHead) {
    let (mut parser, mut head) = (Parser::default(), RequestHead::default());
    let (mut from, mut upto) = (0, step.min(input.len()));
    loop {
        match parser.parse(&input[from..upto], limits, &mut head) {
            Progress::Need if upto < input.len() => upto = (upto + step).min(input.len()),
            Progress::Blank { consumed } => from += consumed,
            Progress::Done { consumed } => {
                return (
                    Progress::Done {
                        consumed: from + consumed,
                    },
                    head,
                );
            }
            other => return (other, head),
        }
    }
}

fn done(input: &str) -> RequestHead {
    let (progress, head) = read(input.as_bytes(), input.len(), &Limits::default());
    assert!(
        matches!(progress, Progress::Done { .. }),
        "{input:?}: {progress:?}"
    );
    head
}

/// Status and log text of a refusal, the same whole and byte by byte.
fn refusal(input: &str, limits: &Limits) -> String {
    let [whole, split] =
        [input.len(), 1].map(|step| match read(input.as_bytes(), step, limits).0 {
            Progress::Bad(e) => format!("{} {e}", e.status),
            other => panic!("{input:?} by {step}: {other:?}"),
        });
    assert_eq!(whole, split);
    whole
}

#[test]
fn a_browsers_get() {
    let input = "GET /a/b.html?c=d HTTP/1.1\r\nHost: Example.ORG.:8080\r\nUser-Agent: x\r\nbad_name: y\r\n\
                 Connection: Keep-Alive, Upgrade\r\nUpgrade: h2c\r\nCookie: a=1\r\nCookie: b=2\r\n\r\nrest";
    for step in [1, 5, input.len()] {
        let (progress, head) = read(input.as_bytes(), step, &Limits::default());
        assert_eq!(
            progress,
            Progress::Done {
                consumed: input.len() - 4
            }
        );
        assert_eq!(head.line, b"GET /a/b.html?c=d HTTP/1.1");
        assert_eq!(
            (head.method, head.method_name(), head.version),
            (Method::Get, &b"GET"[..], Version::V11)
        );
        assert_eq!(
            (head.text(&head.uri), head.query),
            (&b"/a/b.html?c=d"[..], Some(14))
        );
        assert_eq!(
            (&head.host[..], head.host_port),
            (&b"example.org"[..], 8080)
        );
        assert_eq!(
            head.connection,
            ConnectionHeader {
                close: false,
                keep_alive: true,
                upgrade: true
            }
        );
        assert_eq!(
            (head.headers.len(), head.header_in_bytes),
            (6, input.len() - 4)
        );
        let [dropped] = &head.ignored[..] else {
            panic!("{:?}", head.ignored)
        };
        assert_eq!(&input[dropped.clone()], "bad_name: y");
        assert!(!head.has_body() && !head.complex);
    }
}

#[test]
fn one_parser_reads_many_heads() {
    let input = b"\r\nPOST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\nabcGET /2 HTTP/1.0\r\n\r\nGET /3\n";
    let (mut parser, mut head, limits) =
        (Parser::default(), RequestHead::default(), Limits::default());
    assert_eq!(
        parser.parse(input, &limits, &mut head),
        Progress::Done { consumed: 72 }
    );
    assert!(head.expect_continue && head.has_body() && !parser.is_inside());
    assert_eq!((head.content_length, head.header_in_bytes), (Some(3), 70));
    assert_eq!(
        parser.parse(&input[75..], &limits, &mut head),
        Progress::Done { consumed: 19 }
    );
    assert_eq!(
        (
            head.version,
            head.host.len(),
            head.headers.len(),
            head.content_length
        ),
        (Version::V10, 0, 0, None)
    );
    assert_eq!(
        parser.parse(&input[94..], &limits, &mut head),
        Progress::Done { consumed: 7 }
    );
    assert_eq!(
        (head.version, head.http_major_minor, head.protocol.clone()),
        (Version::V09, (0, 9), None)
    );
    assert_eq!(
        parser.parse(&input[101..], &limits, &mut head),
        Progress::Need
    );
    assert!(!parser.is_inside());
    assert_eq!(parser.parse(b"GE", &limits, &mut head), Progress::Need);
    assert!(parser.is_inside());
}

#[test]
fn authority() {
    let head = done("GET http://A.b:81/x HTTP/1.1\r\nHost: other:82\r\n\r\n");
    assert_eq!((&head.host[..], head.host_port), (&b"a.b"[..], 81));
    let head = done("GET / HTTP/1.1\r\nHost: [2001:DB8::1]:443\r\n\r\n");
    assert_eq!(
        (&head.host[..], head.host_port),
        (&b"[2001:db8::1]"[..], 443)
    );
    let limits = Limits {
        allow_connect: true,
        ..Limits::default()
    };
    let (_, head) = read(b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n", 9, &limits);
    assert_eq!(
        (
            head.text(&head.target),
            head.text(&head.uri),
            head.host_port
        ),
        (&b"h:443"[..], &b"/"[..], 443)
    );
}

#[test]
fn connection_options() {
    let keep = ConnectionHeader {
        keep_alive: true,
        ..Default::default()
    };
    let close = ConnectionHeader {
        close: true,
        ..Default::default()
    };
    for (fields, expected) in [
        ("Connection: keep-alive", keep),
        ("Connection: CLOSE", close),
        ("Connection: keep-alive, close", close),
        ("Connection: close\r\nConnection: keep-alive", keep),
        ("Connection: keep-alive\r\nConnection: disclosed", close),
        ("Connection: te", ConnectionHeader::default()),
    ] {
        assert_eq!(
            done(&format!("GET / HTTP/1.0\r\n{fields}\r\n\r\n")).connection,
            expected,
            "{fields:?}"
        );
    }
}

#[test]
fn refusals() {
    let limits = Limits::default();
    for (fields, expected) in [
        (
            "",
            "400 client sent HTTP/1.1 request without \"Host\" header",
        ),
        ("Host:", "400 client sent invalid host header"),
        ("Host: a/b", "400 client sent invalid host header"),
        (
            "Host: a\r\nhost: a",
            "400 client sent duplicate host header: \"host: a\", previous value: \"Host: a\"",
        ),
        (
            "Host: a\r\nA : b",
            "400 client sent invalid header line: \"A\\x20...\"",
        ),
        (
            "Host: a\r\n b",
            "400 client sent invalid header line: \"\\x20...\"",
        ),
        (
            "Host: a\r\nA: b\0",
            "400 client sent invalid header line: \"A: b\\x00...\"",
        ),
        (
            "Host: a\r\nA: b\rc",
            "400 client sent invalid header line: \"A: b\\x0d...\"",
        ),
        (
            "Host: a\r\nContent-Length: +1",
            "400 client sent invalid \"Content-Length\" header",
        ),
        (
            "Host: a\r\nContent-Length: 1, 1",
            "400 client sent invalid \"Content-Length\" header",
        ),
        (
            "Host: a\r\nContent-Length:",
            "400 client sent invalid \"Content-Length\" header",
        ),
        (
            "Host: a\r\nContent-Length: 9223372036854775808",
            "400 client sent invalid \"Content-Length\" header",
        ),
        (
            "Host: a\r\nContent-Length: 1\r\nContent-Length: 1",
            "400 client sent duplicate header line: \"Content-Length: 1\", previous value: \"Content-Length: 1\"",
        ),
        (
            "Host: a\r\nExpect: x\r\nexpect: y",
            "400 client sent duplicate header line: \"expect: y\", previous value: \"Expect: x\"",
        ),
        (
            "Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
            "400 client sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time",
        ),
        (
            "Host: a\r\nTransfer-Encoding: gzip, chunked",
            "501 client sent unknown \"Transfer-Encoding\": \"gzip, chunked\"",
        ),
        (
            "Host: a\r\nTransfer-Encoding: \tchunked",
            "501 client sent unknown \"Transfer-Encoding\": \"\tchunked\"",
        ),
    ] {
        assert_eq!(
            refusal(&format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n"), &limits),
            expected,
            "{fields:?}"
        );
    }
    for (input, expected) in [
        (
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "400 client sent HTTP/1.0 request with \"Transfer-Encoding\" header",
        ),
        ("GET / HTTP/2.0\r\n", "505 client sent invalid version"),
        (
            "POST /\r\n",
            "400 client sent invalid method in HTTP/0.9 request",
        ),
        ("\x16\x03\x01\x02", "400 client sent invalid method"),
        (
            "GET http:/// HTTP/1.1\r\n",
            "400 client sent invalid host in request line",
        ),
        (
            "GET http://h:99999/ HTTP/1.1\r\n",
            "400 client sent invalid host in request line",
        ),
        (
            "GET http://h/ HTTP/1.1\r\n\r\n",
            "400 client sent HTTP/1.1 request without \"Host\" header",
        ),
        (
            "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
            "405 client sent TRACE method",
        ),
        (
            "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
            "405 client sent CONNECT method",
        ),
    ] {
        assert_eq!(refusal(input, &limits), expected, "{input:?}");
    }
    let connect = Limits {
        allow_connect: true,
        ..limits
    };
    // the server, which is known later, decides
    for (input, allowed, expected) in [
        ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", true, None),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", false, Some(405)),
        ("CONNECT a:1 HTTP/1.0\r\nHost: a\r\n\r\n", true, Some(405)),
        (
            "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
            true,
            Some(400),
        ),
    ] {
        let (progress, head) = read(input.as_bytes(), 999, &connect);
        assert!(matches!(progress, Progress::Done { .. }), "{input:?}");
        let refused = head.check_connect(allowed).err().map(|e| e.status);
        assert_eq!(refused, expected, "{input:?}");
    }
}

#[test]
fn a_bad_head_still_tells_the_log_what_it_was() {
    let (progress, head) = read(b"GET /a b HTTP/1.1\r\nHost: a\r\n", 999, &Limits::default());
    assert!(matches!(
        progress,
        Progress::Bad(HeadError {
            line_known: false,
            ..
        })
    ));
    assert_eq!(head.line, b"GET /a b HTTP/1.1");
    let (progress, head) = read(b"GET /a HTTP/1.1\r\nHost: a b\r\n", 999, &Limits::default());
    assert!(matches!(
        progress,
        Progress::Bad(HeadError {
            line_known: true,
            ..
        })
    ));
    assert_eq!(
        (&head.line[..], head.headers.get_id(Known::Host)),
        (&b"GET /a HTTP/1.1"[..], Some(&b"a b"[..]))
    );
}

#[test]
fn lines_move_to_large_buffers() {
    let limits = Limits {
        header_buffer: 64,
        large: (2, 100),
        ..Limits::default()
    };
    let outcome = |input: &str| {
        let [whole, split] =
            [input.len(), 1].map(|step| match read(input.as_bytes(), step, &limits).0 {
                Progress::Bad(e) => (e.status, e.to_string()),
                Progress::Done { .. } => (200, String::new()),
                other => panic!("{other:?}"),
            });
        assert_eq!(whole, split);
        whole
    };
    let get = |target: usize, fields: &[usize]| {
        let mut head = format!("GET /{} HTTP/1.0\r\n", "x".repeat(target - 1));
        for len in fields {
            head += &format!("A: {}\r\n", "b".repeat(len - 5));
        }
        head + "\r\n"
    };
    // The line end counts: 15 bytes around the target.
    assert_eq!(outcome(&get(85, &[])).0, 200);
    assert_eq!(
        outcome(&get(86, &[])),
        (414, "client sent too long URI".into())
    );
    // The line fills the first large buffer, a field the second, and then there is no third for the empty line.
    assert_eq!(outcome(&get(85, &[98])).0, 200);
    assert_eq!(outcome(&get(85, &[100])).0, 494);
    let (status, text) = outcome(&get(40, &[101]));
    assert_eq!(
        (status, text.split('"').next()),
        (494, Some("client sent too long header line: "))
    );
    // 55 in the first buffer, 9 left for the field's start, which then has a whole large buffer.
    assert_eq!(outcome(&get(40, &[60, 40])).0, 200);
    assert_eq!(outcome(&get(40, &[60, 41, 50])).0, 200);
    assert_eq!(outcome(&get(40, &[60, 41, 60])).0, 494);
    let none = Limits {
        header_buffer: 64,
        large: (0, 100),
        ..Limits::default()
    };
    assert!(refusal(&get(49, &[]), &none).ends_with("client sent too large request"));
    assert!(refusal(&get(50, &[]), &none).starts_with("414"));
    assert_eq!(outcome(&("\r\n".repeat(500) + &get(40, &[60]))).0, 200);
}

#[test]
fn field_lines_are_counted() {
    let limits = Limits {
        max_headers: 2,
        ..Limits::default()
    };
    let input = "GET / HTTP/1.1\r\nHost: a\r\na_b: dropped\r\nB: c\r\n";
    assert!(matches!(
        read(format!("{input}\r\n").as_bytes(), 9, &limits).0,
        Progress::Done { .. }
    ));
    assert_eq!(
        refusal(&format!("{input}C: d\r\n\r\n"), &limits),
        "494 client sent too many header lines"
    );
    let limits = Limits {
        ignore_invalid: false,
        ..limits
    };
    assert_eq!(
        refusal(&format!("{input}\r\n"), &limits),
        "494 client sent too many header lines"
    );
}

#[test]
fn lengths() {
    for (text, expected) in [
        ("0", Some(0)),
        ("007", Some(7)),
        ("9223372036854775807", Some(i64::MAX as u64)),
        ("9223372036854775808", None),
        ("99999999999999999999999", None),
        ("", None),
        ("-1", None),
        ("1 ", None),
        ("0x1", None),
    ] {
        assert_eq!(parse_length(text.as_bytes()), expected, "{text:?}");
    }
}

proptest! {
    #[test]
    fn split_anywhere_reads_the_same(
        blank in "(\r\n|\n){0,3}",
        line in "(GET|POST|TRACE|CONNECT) (/[a-c?%#.]{0,9}|http://[aB.:\\[]{0,4}/?|h:1)( HTTP/1.[01])?\r?\n",
        fields in prop::collection::vec("(Host|Content-Length|Transfer-Encoding|Connection|Expect|[a-c_]{1,9}): {0,2}(a|chunked|close|[0-9]{1,3})\r?\n", 0..6),
        end in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), any::<u8>()], 0..6),
        header_buffer in 1usize..80,
        number in 0usize..4,
        size in 1usize..60,
        step in 1usize..9,
    ) {
        let limits = Limits { header_buffer, large: (number, size), max_headers: 4, ..Limits::default() };
        let input = [blank.as_bytes(), line.as_bytes(), fields.concat().as_bytes(), &end].concat();
        let (whole, a) = read(&input, input.len().max(1), &limits);
        let (split, b) = read(&input, step, &limits);
        prop_assert_eq!(&whole, &split);
        if let Progress::Done { consumed } = whole {
            prop_assert!(consumed <= input.len() && a.header_in_bytes <= consumed);
            let ignored = |h: &RequestHead| h.ignored.len();
            prop_assert_eq!(ignored(&a), ignored(&b));
            prop_assert_eq!((&a.line, &a.host, &a.target, &a.uri), (&b.line, &b.host, &b.target, &b.uri));
            prop_assert_eq!(a.headers.iter().collect::<Vec<_>>(), b.headers.iter().collect::<Vec<_>>());
        }
    }
}
