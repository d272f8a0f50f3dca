//! Frames that cost us and carry nothing: each flood ends with GOAWAY, soon and cheaply.

use super::*;

/// Frames, or groups of them, that an attack consists of.
const FRAMES: usize = 20_000;

fn raw(c: &mut Raw, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    Head {
        length: payload.len(),
        kind,
        flags,
        stream,
    }
    .write(&mut c.out);
    c.out.extend_from_slice(payload);
}

/// An origin that takes everything and says nothing.
fn silent_origin() -> SocketAddr {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = l.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        while let Ok((s, _)) = l.accept() {
            kept.push(s);
            // those that were given up long ago
            if kept.len() > 500 {
                kept.drain(..250);
            }
        }
    });
    addr
}

/// Sends a flood on a connection of its own, with a request open on stream 1: `one` again and again, where `group` is
/// given in turns of so many, each of which waits until the one before was looked at. How many were sent before the
/// server took no more, and the code of GOAWAY.
fn flood(
    s: &Server,
    begin: impl Fn(&mut Raw),
    one: impl Fn(&mut Raw, usize),
    group: Option<usize>,
) -> (usize, Option<Code>) {
    let mut c = Raw::connect(s.addr(8080));
    c.request(&[(":method", "POST"), (":path", "/wait")], false);
    begin(&mut c);
    let mut sent = 0;
    while sent < FRAMES {
        for _ in 0..group.unwrap_or(100) {
            one(&mut c, sent);
            sent += 1;
        }
        if group.is_some() {
            frame::ping(&mut c.out, false, *b"in turns");
        }
        if !c.flush() {
            break;
        }
        while group.is_some() {
            let Some((head, payload)) = c.frame() else {
                return (sent, None);
            };
            match frame::parse(&head, &payload) {
                Ok(Frame::GoAway { code, .. }) => return (sent, Some(code)),
                Ok(Frame::Ping { ack: true, data }) if data == *b"in turns" => break,
                _ => {}
            }
        }
    }
    (sent, c.end())
}

#[test]
fn floods_end_the_connection() {
    let origin = silent_origin();
    let s = start(
        "keepalive_requests 1000000;",
        &format!("location / {{ root .; }} location /wait {{ proxy_pass http://{origin}; }}"),
    );
    s.write("big", vec![b'x'; 1 << 20]);
    type Begin = fn(&mut Raw);
    type One = fn(&mut Raw, usize);
    let nothing: Begin = |_| {};
    let floods: [(&str, Begin, One); 18] = [
        ("PING", nothing, |c, _| {
            frame::ping(&mut c.out, false, [0; 8]);
        }),
        ("PING, acknowledging nothing", nothing, |c, _| {
            frame::ping(&mut c.out, true, [0; 8]);
        }),
        ("SETTINGS", nothing, |c, _| {
            frame::settings(&mut c.out, &[(4, 65_535)]);
        }),
        ("SETTINGS, empty", nothing, |c, _| {
            frame::settings(&mut c.out, &[]);
        }),
        ("SETTINGS, acknowledging nothing", nothing, |c, _| {
            frame::settings_ack(&mut c.out);
        }),
        (
            "SETTINGS, all windows",
            |c| {
                for _ in 0..100 {
                    c.request(&[(":method", "POST"), (":path", "/wait")], false);
                }
            },
            |c, n| frame::settings(&mut c.out, &[(4, 1 + n as u32 % 2); 100]),
        ),
        ("WINDOW_UPDATE", nothing, |c, _| {
            frame::window_update(&mut c.out, 1, 1);
        }),
        ("WINDOW_UPDATE of the connection", nothing, |c, _| {
            frame::window_update(&mut c.out, 0, 1);
        }),
        (
            "WINDOW_UPDATE, trickled",
            |c| {
                frame::settings(&mut c.out, &[(4, 0)]);
                c.request(&[(":path", "/big")], true);
            },
            |c, _| frame::window_update(&mut c.out, 3, 1),
        ),
        (
            "WINDOW_UPDATE of a stream that has ended",
            nothing,
            |c, n| {
                if n == 0 {
                    let id = c.request(&[(":path", "/none")], true);
                    frame::reset(&mut c.out, id, Code::CANCEL);
                }
                frame::window_update(&mut c.out, 3, 1);
            },
        ),
        ("empty DATA", nothing, |c, _| {
            frame::data(&mut c.out, 1, b"", false);
        }),
        ("DATA of padding", nothing, |c, _| {
            raw(c, kind::DATA, flag::PADDED, 1, &[0]);
        }),
        ("unknown frames", nothing, |c, _| raw(c, 77, 0, 0, &[])),
        ("GOAWAY", nothing, |c, _| {
            raw(c, kind::GOAWAY, 0, 0, &[0; 8])
        }),
        ("RST_STREAM again and again", nothing, |c, _| {
            frame::reset(&mut c.out, 1, Code::CANCEL);
        }),
        ("CONTINUATION", nothing, |c, n| {
            if n == 0 {
                raw(c, kind::HEADERS, 0, 3, &[0x82]);
            }
            raw(c, kind::CONTINUATION, 0, 3, &[]);
        }),
        ("CONTINUATION, a few each", nothing, |c, _| {
            // heads that are whole, each in a hundred frames, of requests that are never answered
            let id = c.next;
            c.next += 2;
            raw(c, kind::HEADERS, flag::END_STREAM, id, &[0x82]);
            for _ in 0..100 {
                raw(c, kind::CONTINUATION, 0, id, &[]);
            }
            raw(c, kind::CONTINUATION, flag::END_HEADERS, id, &[0x86, 0x84]);
            frame::reset(&mut c.out, id, Code::CANCEL);
        }),
        ("PRIORITY", nothing, |c, _| {
            raw(c, kind::PRIORITY, 0, 1, &[0; 5]);
        }),
    ];
    let (_, memory) = cost(&s);
    for (name, begin, one) in floods {
        let (before, _) = cost(&s);
        let lines = s.log().matches("http2 flood detected").count();
        let (sent, code) = flood(&s, begin, one, None);
        assert!(
            matches!(code, None | Some(Code::ENHANCE_YOUR_CALM)),
            "{name}: {code:?} after {sent}"
        );
        if name != "PRIORITY" {
            let more = common::wait_for(DEADLINE, || {
                (s.log().matches("http2 flood detected").count() > lines).then_some(())
            });
            assert!(more.is_some(), "{name}");
        }
        let (after, _) = cost(&s);
        // an unoptimized build, and the machine may be busy: what is meant is that it does not go on
        assert!(after - before < 200, "{name}: {} ms", (after - before) * 10);
    }
    let grown = cost(&s).1.saturating_sub(memory);
    assert!(grown < 15_000, "{grown} kB more");
    let mut c = Raw::connect(s.addr(8080));
    let id = c.request(&[(":path", "/none")], true);
    c.flush();
    assert_eq!(c.answer(id, false).status, "404");
}

/// Streams that are reset in one turn.
const GROUP: usize = 10;

/// Whoever resets them, and whether they are in one read or in turns.
#[test]
fn rapid_resets_end_the_connection() {
    let origin = silent_origin();
    let s = start(
        "keepalive_requests 1000000; http2_max_concurrent_streams 12;",
        &format!("location / {{ proxy_pass http://{origin}; proxy_request_buffering off; }}"),
    );
    type One = fn(&mut Raw, usize);
    let resets: [(&str, One); 5] = [
        ("RST_STREAM", |c, _| {
            let id = c.request(&[], true);
            frame::reset(&mut c.out, id, Code::CANCEL);
        }),
        ("a window that is too large", |c, _| {
            let id = c.request(&[], true);
            frame::window_update(&mut c.out, id, (1 << 31) - 1);
        }),
        ("DATA for a half-closed stream", |c, _| {
            let id = c.request(&[], true);
            frame::data(&mut c.out, id, b"x", false);
        }),
        ("HEADERS for a half-closed stream", |c, _| {
            let id = c.request(&[], true);
            c.headers(id, &[("x", "y")], true);
        }),
        ("RST_STREAM after the head was read", |c, n| {
            // they are opened in one turn, and reset in the next
            if n % GROUP == 0 && n > 0 {
                for i in 0..GROUP as u32 {
                    frame::reset(&mut c.out, c.next - 2 * (i + 1), Code::CANCEL);
                }
            }
            c.request(&[], true);
        }),
    ];
    for (name, one) in resets {
        let (before, memory) = cost(&s);
        let (sent, code) = flood(&s, |_| {}, one, Some(GROUP));
        assert_eq!(code, Some(Code::ENHANCE_YOUR_CALM), "{name} after {sent}");
        assert!((1000..FRAMES).contains(&sent), "{name}: {sent}");
        let (after, grown) = cost(&s);
        assert!(after - before < 500, "{name}: {} ms", (after - before) * 10);
        let grown = grown.saturating_sub(memory);
        assert!(grown < 20_000, "{name}: {grown} kB more");
    }
    let ended = common::wait_for(DEADLINE, || {
        (s.log().matches("http2 flood detected").count() == resets.len()).then_some(())
    });
    assert!(
        ended.is_some(),
        "{}",
        s.log().matches("http2 flood detected").count()
    );
}

/// All in one go they are more than a client may open at once: that ends the connection, too.
#[test]
fn rapid_resets_in_one_go_end_the_connection() {
    let origin = silent_origin();
    let s = start(
        "keepalive_requests 1000000; http2_max_concurrent_streams 12;",
        &format!("location / {{ proxy_pass http://{origin}; }}"),
    );
    let one = |c: &mut Raw, _| {
        let id = c.request(&[], true);
        frame::reset(&mut c.out, id, Code::CANCEL);
    };
    let (_, code) = flood(&s, |_| {}, one, None);
    assert!(
        matches!(
            code,
            None | Some(Code::ENHANCE_YOUR_CALM) | Some(Code::NO_ERROR)
        ),
        "{code:?}"
    );
    let log = common::wait_for(DEADLINE, || {
        let log = s.log();
        (log.contains("http2 flood detected") || log.contains("too many refused streams"))
            .then_some(())
    });
    assert!(log.is_some());
}

/// Updates of the table's size cost as much as fields: a block begins with two at most.
#[test]
fn table_size_updates_end_the_connection() {
    let s = start("", "location / { return 204; }");
    let (before, _) = cost(&s);
    let updates = [0x20, 0x3f, 0xe1, 0x1f].repeat(500);
    let fields = [0x82, 0x86, 0x84, 0x01, 0x01, b'h'];
    let one = |c: &mut Raw, _| {
        let id = c.next;
        c.next += 2;
        let block = [&updates[..], &fields].concat();
        raw(
            c,
            kind::HEADERS,
            flag::END_STREAM | flag::END_HEADERS,
            id,
            &block,
        );
    };
    let (sent, code) = flood(&s, |_| {}, one, Some(1));
    assert_eq!((sent, code), (1, Some(Code::COMPRESSION_ERROR)));
    let (after, _) = cost(&s);
    assert!(after - before < 50, "{} ms", (after - before) * 10);
    // two of them are what an encoder may send
    let mut c = Raw::connect(s.addr(8080));
    for id in [1, 3] {
        let block = [&updates[..4], &fields].concat();
        raw(
            &mut c,
            kind::HEADERS,
            flag::END_STREAM | flag::END_HEADERS,
            id,
            &block,
        );
        c.flush();
        assert_eq!(c.answer(id, false).status, "204");
    }
}
