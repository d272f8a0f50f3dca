//! What is done to responses, and beside them: codings by weight, headers and trailers, copies of requests.

mod common;

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::client::{self, Client, Response};
use common::origin::Origin;
use common::proc::{Couloir, Server, Setup};

fn server(body: &str, setup: impl FnOnce(Setup) -> Setup) -> Server {
    let conf = format!(
        "%%TEST_GLOBALS%% events {{ }}
         http {{ %%TEST_GLOBALS_HTTP%%
             server {{ listen 127.0.0.1:%%PORT_8080%%; root %%TESTDIR%%/www; {body} }} }}"
    );
    setup(Setup::new(&conf)).start(&Couloir::program())
}

fn get(addr: SocketAddr, target: &str, headers: &str) -> Response {
    client::exchange(
        addr,
        &format!("GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{headers}\r\n"),
    )
}

/// The coding of a response and its body without it.
fn unpacked(response: &Response) -> (String, String) {
    let coding = response.header("content-encoding").unwrap_or("").to_owned();
    let mut text = Vec::new();
    match coding.as_str() {
        "gzip" => {
            let mut all = flate2::read::MultiGzDecoder::new(&response.body[..]);
            all.read_to_end(&mut text).unwrap();
        }
        "br" => {
            let mut all = brotli::Decompressor::new(&response.body[..], 4096);
            all.read_to_end(&mut text).unwrap();
        }
        "zstd" => text = zstd::stream::decode_all(&response.body[..]).unwrap(),
        _ => text.clone_from(&response.body),
    }
    (coding, String::from_utf8(text).unwrap())
}

#[test]
fn the_coding_that_is_wanted_most() {
    let page = "all of the page ".repeat(100);
    let server = server(
        "gzip on; brotli on; zstd on; gzip_vary on; gzip_min_length 10;
         location / { }
         location /two/ { zstd off; alias %%TESTDIR%%/www/; }
         location /types/ { brotli_types text/css; gzip_types *; zstd off; default_type text/css; types { } alias %%TESTDIR%%/www/; }
         location /added/ { add_before_body /head; add_after_body /foot; alias %%TESTDIR%%/www/; }
         location = /head { default_type text/html; return 200 before; }
         location = /foot { default_type text/html; return 200 after; }
         location /static/ { zstd_static on; brotli_static on; gzip_static on; alias %%TESTDIR%%/www/; }
         location /always/ { gzip off; brotli off; zstd off; gzip_static always; brotli_static on; alias %%TESTDIR%%/www/; }
         types { text/html html; }",
        |s| {
            s.file("www/a.html", &page, None)
                .file("www/b.html", "no file of another coding, but long enough", None)
                .file("www/a.html.gz", "GZ", None)
                .file("www/a.html.br", "BR", None)
                .file("www/small.html", "small", None)
        },
    );
    let addr = server.addr(8080);
    let added = format!("before{page}after");
    for (target, accept, coding, text) in [
        ("/a.html", "gzip, br, zstd", "zstd", &page),
        ("/a.html", "gzip, br;q=0.9, zstd;q=0.1", "gzip", &page),
        ("/a.html", "gzip;q=0.8, br;q=0.9, zstd;q=0.1", "br", &page),
        ("/a.html", "gzip;q=0.5, br;q=0.5", "br", &page),
        ("/a.html", "zstd;q=0, br;q=0, gzip;q=0.001", "gzip", &page),
        ("/a.html", "identity", "", &page),
        ("/two/a.html", "zstd, gzip;q=0.2, br;q=0.1", "gzip", &page),
        ("/types/a.html", "gzip;q=0.1, br", "br", &page),
        ("/added/a.html", "br", "br", &added),
        ("/added/a.html", "zstd", "zstd", &added),
        ("/added/a.html", "gzip", "gzip", &added),
    ] {
        let response = get(addr, target, &format!("Accept-Encoding: {accept}\r\n"));
        let got = unpacked(&response);
        assert_eq!(got, (coding.to_owned(), text.clone()), "{target} {accept}");
        assert_eq!(response.header("vary"), Some("Accept-Encoding"), "{target}");
    }
    let small = get(addr, "/small.html", "Accept-Encoding: br\r\n");
    assert_eq!(unpacked(&small).0, "");
    for (target, accept, coding, body) in [
        // there is no .zst
        ("/static/a.html", "zstd, br, gzip", "br", "BR"),
        ("/static/a.html", "br;q=0.1, gzip;q=0.2", "gzip", "GZ"),
        ("/static/a.html", "br, gzip", "br", "BR"),
        ("/always/a.html", "identity", "gzip", "GZ"),
        ("/always/a.html", "br", "br", "BR"),
    ] {
        let response = get(addr, target, &format!("Accept-Encoding: {accept}\r\n"));
        let encoding = response.header("content-encoding");
        assert_eq!(
            (encoding, response.text().as_str()),
            (Some(coding), body),
            "{target} {accept}"
        );
    }
    let response = get(addr, "/static/a.html", "");
    assert_eq!(unpacked(&response), (String::new(), page));
    assert_eq!(response.header("vary"), Some("Accept-Encoding"));
    let response = get(addr, "/static/b.html", "Accept-Encoding: br\r\n");
    assert_eq!(unpacked(&response).0, "br");
}

#[test]
fn headers_and_trailers() {
    let server = server(
        "add_header X-A outer; add_header X-S outer;
         location /on { add_header X-A inner; return 200; }
         location /off { add_header_inherit off; return 200; }
         location /merge { add_header_inherit merge; add_header X-A inner; return 200; }
         location /trailer { add_trailer X-T \"$status\"; add_trailer X-Always y always; proxy_pass http://%%ORIGIN%%; }",
        |s| {
            let origin = Origin::respond(|_| {
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_vec()
            });
            let s = s.set("ORIGIN", origin.addr());
            // lives as long as the test
            std::mem::forget(origin);
            s
        },
    );
    let addr = server.addr(8080);
    let all = |target: &str| {
        let response = get(addr, target, "");
        let of = response
            .headers
            .iter()
            .filter(|(n, _)| n.to_ascii_lowercase().starts_with("x-"));
        of.map(|(n, v)| format!("{n}: {v}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    assert_eq!(all("/on"), "X-A: inner");
    assert_eq!(all("/off"), "");
    assert_eq!(all("/merge"), "X-A: inner, X-A: outer, X-S: outer");
    let mut client = Client::connect(addr);
    client
        .send("GET /trailer HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .unwrap();
    let text = String::from_utf8(client.read_to_close().unwrap()).unwrap();
    assert!(
        text.ends_with("0\r\nX-T: 200\r\nX-Always: y\r\n\r\n"),
        "{text}"
    );
}

#[test]
fn copies_and_what_comes_afterwards() {
    let origin = Origin::respond(|r| {
        let body = r.target();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into()
    });
    let server = server(
        "location / { mirror /copy1; mirror /copy2; proxy_pass http://%%ORIGIN%%; }
         location /copy { internal; proxy_pass http://%%ORIGIN%%$uri-of$request_uri; }
         location = /bare { internal; proxy_set_header Content-Length \"\"; proxy_pass http://%%ORIGIN%%/bare-of$request_uri; }
         location /nobody { mirror /bare; mirror_request_body off; proxy_pass http://%%ORIGIN%%; }
         location /post { post_action /after; proxy_pass http://%%ORIGIN%%; }
         location = /after { internal; proxy_pass http://%%ORIGIN%%/after-$status; }",
        |s| s.set("ORIGIN", origin.addr()),
    );
    let addr = server.addr(8080);
    let ask = |target: &str| {
        client::exchange(
            addr,
            &format!(
                "POST {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"
            ),
        )
    };
    let seen = |count: usize| {
        let mut all: Vec<String> = origin
            .wait_for_requests(count)
            .iter()
            .map(|r| format!("{} {}", r.target(), String::from_utf8_lossy(r.body())))
            .collect();
        origin.take_requests();
        all.sort();
        all.join(", ")
    };
    assert_eq!(ask("/x").text(), "/x");
    assert_eq!(seen(3), "/copy1-of/x body, /copy2-of/x body, /x body");
    assert_eq!(ask("/nobody").text(), "/nobody");
    assert_eq!(seen(2), "/bare-of/nobody , /nobody body");
    assert_eq!(ask("/post").text(), "/post");
    let after = seen(2);
    assert!(
        after.starts_with("/after-200") && after.ends_with("/post body"),
        "{after}"
    );
}

#[test]
fn refusals_are_slow_where_they_are_to_be() {
    let server = server(
        "auth_delay 300ms;
         location /401 { return 401; }
         location /closed { auth_basic x; auth_basic_user_file %%TESTDIR%%/users; }
         location /open { return 200; }",
        |s| s.file("users", "u:{PLAIN}p\n", None),
    );
    let timed = |target: &str| {
        let began = Instant::now();
        (get(server.addr(8080), target, "").status, began.elapsed())
    };
    let (status, took) = timed("/closed");
    assert!(
        status == 401 && took >= Duration::from_millis(300),
        "{took:?}"
    );
    // the fastest of several is without the delay, however busy the machine is
    let open = (0..20)
        .map(|_| timed("/open"))
        .min_by_key(|(_, took)| *took)
        .unwrap();
    assert!(
        open.0 == 200 && open.1 < Duration::from_millis(300),
        "{open:?}"
    );
}

#[test]
fn what_is_left_out_is_refused_with_a_reason() {
    for (text, message) in [
        (
            "location / { image_filter resize 1 1; }",
            "the \"image_filter\" directive is not supported: images",
        ),
        (
            "location / { xslt_stylesheet a; }",
            "the \"xslt_stylesheet\" directive is not supported: XML",
        ),
        (
            "location / { perl a::b; }",
            "the \"perl\" directive is not supported: Perl is not embedded",
        ),
    ] {
        let conf = format!("events {{ }} http {{ server {{ {text} }} }}");
        let (status, said) = Setup::new(&conf).test(&Couloir::program());
        assert!(
            !status.success() && said.contains(message),
            "{text}: {said}"
        );
        assert!(said.contains("nginx.conf:1"), "{said}");
    }
}
