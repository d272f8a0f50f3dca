use proptest::prelude::*;

use super::*;

fn scan(input: &[u8], step: usize) -> (Step, RequestLine) {
    let (mut line, mut upto) = (RequestLine::default(), step.min(input.len()));
    loop {
        match line.advance(&input[..upto]) {
            Step::More if upto < input.len() => upto = (upto + step).min(input.len()),
            other => return (other, line),
        }
    }
}

fn good(input: &str) -> RequestLine {
    let (step, line) = scan(input.as_bytes(), input.len());
    assert_eq!(step, Step::Done, "{input:?}");
    line
}

#[test]
fn targets() {
    for (input, target, uri, authority, complex) in [
        ("GET / HTTP/1.1\r\n", "/", "/", None, false),
        (
            "GET   /a?b=/../%   HTTP/1.0 \n",
            "/a?b=/../%",
            "/a?b=/../%",
            None,
            false,
        ),
        ("\r\n\n\rGET /a HTTP/1.1\r\n", "/a", "/a", None, false),
        ("GET /a/../b HTTP/1.1\r\n", "/a/../b", "/a/../b", None, true),
        ("GET /a//b HTTP/1.1\r\n", "/a//b", "/a//b", None, true),
        ("GET /a.b+c HTTP/1.1\r\n", "/a.b+c", "/a.b+c", None, false),
        ("GET /%41 HTTP/1.1\r\n", "/%41", "/%41", None, true),
        ("GET /a?b#c HTTP/1.1\r\n", "/a?b#c", "/a?b#c", None, true),
        (
            "GET http://h HTTP/1.1\r\n",
            "http://h",
            "/",
            Some("h"),
            false,
        ),
        (
            "GET http://h:80/x HTTP/1.1\r\n",
            "http://h:80/x",
            "/x",
            Some("h:80"),
            false,
        ),
        (
            "GET http://[::1]:?x HTTP/1.1\r\n",
            "http://[::1]:?x",
            "?x",
            Some("[::1]:"),
            true,
        ),
        (
            "GET a+b-c.1:///x HTTP/1.1\r\n",
            "a+b-c.1:///x",
            "/x",
            Some(""),
            false,
        ),
        (
            "CONNECT h:443 HTTP/1.1\r\n",
            "h:443",
            "/",
            Some("h:443"),
            false,
        ),
    ] {
        let line = good(input);
        assert_eq!(&input[line.target()], target, "{input:?}");
        assert_eq!(&input[line.uri()], uri, "{input:?}");
        assert_eq!(line.authority().map(|r| &input[r]), authority, "{input:?}");
        assert_eq!(line.complex(), complex, "{input:?}");
        assert_eq!(line.pos(), input.len(), "{input:?}");
    }
    let line = good("GET http://h/x?y HTTP/1.1 \r\nHost");
    assert_eq!(
        (line.version(), line.schema(), line.query()),
        ((1, 1), Some(4..8), Some(15))
    );
    assert_eq!(
        (line.line(), line.protocol(), line.method()),
        (0..26, Some(17..26), Method::Get)
    );
    assert_eq!(good("GET /a#?b HTTP/1.1\n").query(), None);
    assert_eq!(good("M-SEARCH_ /a HTTP/1.999\n").version(), (1, 999));
    for simple in ["GET /x\r\n", "GET /x\n", "GET /x \r\n", "GET http://h \n"] {
        let line = good(simple);
        assert_eq!(
            (line.version(), line.protocol()),
            ((0, 9), None),
            "{simple:?}"
        );
        assert_eq!(&simple[line.line()], simple.trim_end_matches(['\r', '\n']));
    }
}

#[test]
fn refusals() {
    use BadLine::*;
    for (input, why) in [
        ("get / HTTP/1.1\r\n", Method),
        ("\x16\x03\x01", Method),
        ("g", Method),
        (" GET / HTTP/1.1\r\n", Method),
        ("GE(", Method),
        ("GET\r", Method),
        ("GET *", Request),
        ("GET ?", Request),
        ("GET /a\tb", Request),
        ("GET /a\x7f", Request),
        ("GET /a\0", Request),
        ("GET /a b", Request),
        ("GET /a\rb", Request),
        ("GET http:/h", Request),
        ("GET ht_tp:", Request),
        ("GET http://a_b", Request),
        ("GET http://[a%", Request),
        ("GET http://h:8a", Request),
        ("GET http://u@", Request),
        ("GET / http", Request),
        ("GET / HTTP/0", Request),
        ("GET / HTTP/1.a", Request),
        ("GET / HTTP/1.\r", Request),
        ("GET / HTTP/1.1000", Request),
        ("GET / HTTP/1.1x", Request),
        ("GET / HTTP/1.1 x", Request),
        ("GET / HTTP/1.1\rx", Request),
        ("GET / HTTP/2", Version),
        ("GET / HTTP/11", Version),
        ("POST /\r\n", SimpleMethod),
        ("CONNECT /", Request),
        ("CONNECT h ", Request),
        ("CONNECT h: ", Request),
        ("CONNECT h:1/", Request),
        ("CONNECT h:1\r", Request),
        ("CONNECT h:1 \n", SimpleMethod),
    ] {
        assert_eq!(
            scan(input.as_bytes(), input.len()).0,
            Step::Bad(why),
            "{input:?}"
        );
        assert_eq!(
            scan(input.as_bytes(), 1).0,
            Step::Bad(why),
            "{input:?} byte by byte"
        );
    }
}

proptest! {
    #[test]
    fn split_anywhere_reads_the_same(
        input in "(\r\n){0,2}(GET|CONNECT|get|X_-)? {0,2}(http://)?[a-c.:/?%#\\[\\]]{0,12} ?(HTTP/[012].[0-9]{1,4})? ?(\r\n|\n|\r)?",
        noise in prop::collection::vec(any::<u8>(), 0..3),
        step in 1usize..7,
    ) {
        let input = [input.as_bytes(), &noise].concat();
        let (whole, a) = scan(&input, input.len().max(1));
        let (split, b) = scan(&input, step);
        prop_assert_eq!(whole, split);
        prop_assert_eq!(format!("{a:?}"), format!("{b:?}"));
        if whole == Step::Done {
            for range in [a.line(), a.target(), a.uri(), a.method_text()] {
                prop_assert!(a.start() <= range.start && range.start <= range.end && range.end <= a.line().end, "{:?} of {:?}", range, a);
            }
        }
    }
}
