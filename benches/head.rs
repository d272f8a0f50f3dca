//! Parsing heads: a browser's request and an origin's response.

use std::hint::black_box;

use couloir::http::h1::response;
use couloir::http::head::{Limits, Parser, Progress, RequestHead};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SMALL: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

const BROWSER: &[u8] = b"GET /wp-content/themes/site/style.css?ver=6.4 HTTP/1.1\r\nHost: www.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nReferer: http://www.example.com/\r\n\
    Connection: keep-alive\r\nCookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\
    Upgrade-Insecure-Requests: 1\r\nIf-Modified-Since: Tue, 02 Jan 2024 03:04:05 GMT\r\nCache-Control: max-age=0\r\n\r\n";

const ORIGIN: &[u8] = b"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: Sun, 22 Nov 2026 00:00:00 GMT\r\nContent-Type: application/json\r\n\
    Content-Length: 512\r\nCache-Control: no-store\r\nETag: \"abc\"\r\nSet-Cookie: a=b; Path=/; HttpOnly\r\nX-Request-Id: 1234\r\n\r\n";

fn heads(c: &mut Criterion) {
    let mut group = c.benchmark_group("head parse");
    let limits = Limits::default();
    for (what, text) in [("small request", SMALL), ("browser request", BROWSER)] {
        let (mut parser, mut head) = (Parser::default(), RequestHead::default());
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(what, |b| {
            b.iter(|| {
                let progress = parser.parse(black_box(text), &limits, &mut head);
                assert!(matches!(progress, Progress::Done { .. }));
            });
        });
    }
    let mut head = response::UpstreamHead::default();
    group.throughput(Throughput::Bytes(ORIGIN.len() as u64));
    group.bench_function("origin response", |b| {
        b.iter(|| {
            let mut parser = response::Parser::default();
            let progress = parser.parse(black_box(ORIGIN), 4096, &mut head);
            assert!(matches!(progress, response::Progress::Done { .. }));
        });
    });
    group.finish();
}

criterion_group!(benches, heads);
criterion_main!(benches);
