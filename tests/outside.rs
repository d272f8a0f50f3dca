//! tests/outside: modules of an outsider, written against `couloir::prelude` alone, in a program of his own.
//!
//! The program is not a member of the workspace. It is built into the same target folder with the same lock file, so that
//! only the library is compiled once more.

mod common;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use common::client::{self, Client};
use common::origin::Origin;
use common::proc::{Server, Setup};

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = root.join("tests/outside");
        let lock = std::fs::read(root.join("Cargo.lock")).expect("Cargo.lock");
        std::fs::write(folder.join("Cargo.lock"), lock).expect("tests/outside/Cargo.lock");
        let target = Path::new(env!("CARGO_BIN_EXE_couloir")).ancestors().nth(2);
        let target = target.expect("the target folder");
        let mut build = Command::new(env!("CARGO"));
        // everything it needs has been fetched for the project itself
        build.args(["build", "--quiet", "--offline", "--manifest-path"]);
        build.arg(folder.join("Cargo.toml"));
        build.arg("--target-dir").arg(target);
        assert!(build.status().expect("cargo").success(), "cargo build");
        target.join("debug/outside")
    })
}

fn start(http: &str, origins: &[&Origin]) -> Server {
    let conf = format!("%%TEST_GLOBALS%% events {{ }} http {{ %%TEST_GLOBALS_HTTP%% {http} }}");
    let mut setup = Setup::new(&conf);
    for (i, origin) in origins.iter().enumerate() {
        setup = setup.set(&format!("ORIGIN{i}"), origin.addr());
    }
    setup.start(program())
}

fn says(text: &'static str) -> Origin {
    Origin::respond(move |_| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: \"a\"\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )
        .into_bytes()
    })
}

#[test]
fn a_balancing_method_chooses_servers() {
    let (first, last) = (says("first"), says("last"));
    let server = start(
        "upstream app { server %%ORIGIN0%%; server %%ORIGIN1%%; last_first; }
         upstream dead { server %%ORIGIN0%%; server 127.0.0.1:%%PORT_8081%% max_fails=0; last_first; }
         server { listen 127.0.0.1:%%PORT_8080%%;
             location / { proxy_pass http://app; }
             location /dead { proxy_pass http://dead; } }",
        &[&first, &last],
    );
    let addr = server.addr(8080);
    for _ in 0..3 {
        assert_eq!(client::get(addr, "/", "h").text(), "last");
    }
    // nothing listens on the last server: the next try asks the one before
    assert_eq!(client::get(addr, "/dead", "h").text(), "first");
    assert!(server.stop().success());
}

#[test]
fn a_body_filter_sees_bodies_before_they_are_compressed() {
    let origin = says("a body that is long enough to be compressed");
    let server = start(
        "gzip on; gzip_types text/plain; gzip_min_length 1; gzip_proxied any; mark m-$status;
         server { listen 127.0.0.1:%%PORT_8080%%;
             location / { stamp \" [$uri]\"; proxy_pass http://%%ORIGIN0%%; } }",
        &[&origin],
    );
    let addr = server.addr(8080);
    let plain = client::get(addr, "/x", "h");
    let whole = "a body that is long enough to be compressed [/x]";
    assert_eq!(plain.text(), whole);
    assert_eq!(plain.header("Content-Length"), None);
    assert_eq!(plain.header("ETag"), Some("W/\"a\""));
    assert_eq!(plain.header("X-Mark"), Some("m-200"));
    let request =
        "GET /x HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n";
    let packed = client::exchange(addr, request);
    assert_eq!(packed.header("Content-Encoding"), Some("gzip"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed.body[..])
        .read_to_string(&mut text)
        .expect("gzip");
    assert_eq!(text, whole);
    assert!(server.stop().success());
}

#[test]
fn a_request_body_filter_changes_what_the_origin_receives() {
    let origin = Origin::echo(&[]);
    let server = start(
        "server { listen 127.0.0.1:%%PORT_8080%%; mask_digits on; proxy_http_version 1.1;
             location /buffered { proxy_pass http://%%ORIGIN0%%; }
             location /direct { proxy_pass http://%%ORIGIN0%%; proxy_request_buffering off; }
             location /off { mask_digits off; proxy_pass http://%%ORIGIN0%%; } }",
        &[&origin],
    );
    let addr = server.addr(8080);
    let bodies = [
        "Content-Length: 9\r\n\r\ncard 1234",
        "Transfer-Encoding: chunked\r\n\r\n6\r\ncard 1\r\n3\r\n234\r\n0\r\n\r\n",
    ];
    for (location, expected) in [
        ("/buffered", "card ####"),
        ("/direct", "card ####"),
        ("/off", "card 1234"),
    ] {
        for body in bodies {
            let request =
                format!("POST {location} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{body}");
            assert_eq!(client::exchange(addr, &request).status, 200, "{request}");
            let received = origin.take_requests();
            let [received] = &received[..] else {
                panic!("{} requests", received.len());
            };
            let mut text = String::from_utf8_lossy(received.body()).into_owned();
            if received.header("Transfer-Encoding").is_some() {
                text = joined(&text);
            }
            assert_eq!(text, expected, "{request}");
        }
        // a body that the filter refuses
        if location != "/off" {
            let request = format!(
                "POST {location} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 3\r\n\r\na\0b"
            );
            assert_eq!(client::exchange(addr, &request).status, 400, "{location}");
        }
    }
    assert!(server.stop().success());
}

/// The data of a chunked body.
fn joined(body: &str) -> String {
    let mut lines = body.split("\r\n");
    let mut text = String::new();
    while let (Some(_), Some(data)) = (lines.next(), lines.next()) {
        text.push_str(data);
    }
    text
}

#[test]
fn access_handlers_decide_now_and_later() {
    let server = start(
        "server { listen 127.0.0.1:%%PORT_8080%%;
             location /key { api_key s3cret; return 200 in; }
             location /ask { api_key_check /vote$is_args; greet you; }
             location /key/greet { api_key s3cret; greet you; }
             location /any { satisfy any; api_key s3cret; api_key_check /vote; greet any; }
             location /vote { if ($http_x_vote = yes) { return 204; } return 403; }
             location /asked { api_key_check /vote; greet $http_x_vote; } }",
        &[],
    );
    let addr = server.addr(8080);
    let ask = |uri: &str, header: &str| {
        client::exchange(
            addr,
            &format!("GET {uri} HTTP/1.1\r\nHost: h\r\n{header}Connection: close\r\n\r\n"),
        )
    };
    assert_eq!(ask("/key/greet", "").status, 401);
    assert_eq!(ask("/key/greet", "X-Api-Key: no\r\n").status, 403);
    let granted = ask("/key/greet", "X-Api-Key: s3cret\r\n");
    assert_eq!(
        (granted.status, granted.text()),
        (200, "Hello, you!\n".to_owned())
    );
    assert_eq!(ask("/asked", "").status, 403);
    assert_eq!(ask("/asked", "X-Vote: yes\r\n").text(), "Hello, yes!\n");
    assert_eq!(ask("/any", "X-Vote: yes\r\n").status, 200);
    assert_eq!(ask("/any", "X-Api-Key: s3cret\r\n").status, 200);
    assert_eq!(ask("/any", "X-Api-Key: no\r\n").status, 403);
    assert!(server.stop().success());
}

#[test]
fn variables_services_and_sinks_keep_their_state() {
    let server = start(
        "tick_every 1ms; audit_log %%TESTDIR%%/audit.log;
         server { listen 127.0.0.1:%%PORT_8080%%; count_visits on;
             location / { greet \"$visit $visit\"; }
             location /ticks { greet \"[$ticks]\"; } }",
        &[],
    );
    let addr = server.addr(8080);
    assert_eq!(client::get(addr, "/a", "h").text(), "Hello, 1 1!\n");
    assert_eq!(client::get(addr, "/b", "h").text(), "Hello, 2 2!\n");
    let ticked = common::wait_for(common::DEADLINE, || {
        let text = client::get(addr, "/ticks", "h").text();
        (text != "Hello, [0]!\n").then_some(text)
    });
    let ticked = ticked.expect("a tick");
    assert!(ticked.starts_with("Hello, ["), "{ticked}");
    let log = server.wait_for_text("audit.log", "GET /b 200\n");
    assert!(log.starts_with("GET /a 200\nGET /b 200\n"), "{log}");
    assert!(server.stop().success());
}

/// The lines of the error log at alert.
fn alerts(server: &Server) -> Vec<String> {
    let log = server.log();
    let lines = log.lines().filter(|l| l.contains("[alert]"));
    lines.map(str::to_owned).collect()
}

#[test]
fn a_hook_that_panics_ends_its_request_alone() {
    let origin = says("a body");
    let server = start(
        "upstream bad { server %%ORIGIN0%%; server %%ORIGIN0%%; panic_balance; }
         server { listen 127.0.0.1:%%PORT_8080%%; root %%TESTDIR%%;
             location / { greet you; }
             location /handler { panic_in handler; greet you; }
             location /future { panic_in future; greet you; }
             location /content { panic_in content; }
             location /head { panic_in head_filter; mark kept; greet you; }
             location /early { panic_in early_filter; greet you; }
             location /variable { greet $panic; }
             location /balance { proxy_pass http://bad; }
             location /subrequest { api_key_check /handler; greet you; }
             location /page { error_page 500 /error; panic_in handler; greet you; }
             location /again { error_page 500 @again; panic_in handler; greet you; }
             location @again { panic_in handler; greet you; }
             location /error { greet \"after an error\"; } }",
        &[&origin],
    );
    let addr = server.addr(8080);
    let mut seen = 0;
    for (uri, status, reports) in [
        (
            "/handler",
            500,
            &["handler of module \"panics\" panicked: gave up: Some(Handler) at src/panics.rs:"][..],
        ),
        (
            "/future",
            500,
            &["handler of module \"panics\" panicked: a future gave up at src/panics.rs:"],
        ),
        (
            "/content",
            500,
            &["handler of module \"panics\" panicked: gave up: Some(Handler) at "],
        ),
        (
            "/head",
            500,
            &["head filter of module \"panics\" panicked: a head filter gave up at "],
        ),
        (
            "/early",
            500,
            &["head filter of module \"panics\" panicked: an early filter gave up at "],
        ),
        (
            "/variable",
            500,
            &["variable \"$panic\" panicked: a variable gave up at "],
        ),
        (
            "/balance",
            500,
            &[
                "balancing method \"outside::panics::Panic\" panicked: a balancing method gave up at ",
            ],
        ),
        // the subrequest ends with 500, which is no vote
        (
            "/subrequest",
            403,
            &["handler of module \"panics\" panicked: gave up: Some(Handler) at "],
        ),
        (
            "/page",
            500,
            &["handler of module \"panics\" panicked: gave up: Some(Handler) at "],
        ),
        (
            "/again",
            500,
            &[
                "handler of module \"panics\" panicked: gave up: Some(Handler) at ",
                "handler of module \"panics\" panicked: gave up: Some(Handler) at ",
            ],
        ),
    ] {
        let response = client::get(addr, uri, "h");
        assert_eq!(response.status, status, "{uri}");
        match uri {
            "/page" => assert_eq!(response.text(), "Hello, after an error!\n"),
            _ => assert!(
                response.text().contains("<center><h1>"),
                "{uri}: {}",
                response.text()
            ),
        }
        if uri == "/head" {
            // the other filters still run
            assert_eq!(response.header("X-Mark"), Some("kept"));
        }
        let lines = alerts(&server);
        let new = &lines[seen..];
        assert_eq!(new.len(), reports.len(), "{uri}: {new:?}");
        for (line, report) in new.iter().zip(reports) {
            assert!(line.contains(report), "{uri}: {line}");
            let context = format!(", client: 127.0.0.1, server: , request: \"GET {uri} HTTP/1.1\"");
            assert!(line.contains(&context), "{uri}: {line}");
        }
        seen = lines.len();
        // the thread serves on
        assert_eq!(client::get(addr, "/", "h").text(), "Hello, you!\n");
    }
    assert!(!server.log().contains("panicked at"), "{}", server.log());
    assert!(server.stop().success());
}

#[test]
fn a_panic_ends_a_stream_of_http2_with_500() {
    let server = start(
        "server { listen 127.0.0.1:%%PORT_8080%%; http2 on;
             location / { greet you; }
             location /handler { panic_in handler; greet you; }
             location /head { panic_in head_filter; greet you; } }",
        &[],
    );
    let base = format!("http://{}", server.addr(8080));
    for (uri, expected) in [("/handler", "2 500"), ("/head", "2 500"), ("/", "2 200")] {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "10", "--http2-prior-knowledge"]);
        curl.args(["-w", "%{http_version} %{http_code}", "-o", "/dev/null"]);
        let output = curl.arg(format!("{base}{uri}")).output().expect("curl");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{uri}");
    }
    let lines = alerts(&server);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[1].contains("head filter of module \"panics\""),
        "{lines:?}"
    );
    assert!(server.stop().success());
}

#[test]
fn a_body_filter_that_panics_breaks_the_response_off() {
    let server = start(
        "server { listen 127.0.0.1:%%PORT_8080%%;
             location / { greet you; }
             location /body { panic_in body_filter; greet you; } }",
        &[],
    );
    let addr = server.addr(8080);
    let mut broken = Client::connect(addr);
    broken
        .send("GET /body HTTP/1.1\r\nHost: h\r\n\r\n")
        .expect("sent");
    broken.response("GET").expect_err("a complete response");
    let lines = alerts(&server);
    let report =
        "body filter of module \"panics\" panicked: a body filter gave up at src/panics.rs:";
    assert!(lines.len() == 1 && lines[0].contains(report), "{lines:?}");
    assert_eq!(client::get(addr, "/", "h").text(), "Hello, you!\n");
    assert!(server.stop().success());
}

#[test]
fn a_request_body_filter_that_panics_ends_its_request() {
    let origin = Origin::echo(&[]);
    let server = start(
        "server { listen 127.0.0.1:%%PORT_8080%%; panic_in request_body; proxy_http_version 1.1;
             location /buffered { proxy_pass http://%%ORIGIN0%%; }
             location /direct { proxy_pass http://%%ORIGIN0%%; proxy_request_buffering off; } }",
        &[&origin],
    );
    let addr = server.addr(8080);
    for (i, uri) in ["/buffered", "/direct"].into_iter().enumerate() {
        let request = format!(
            "POST {uri} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 4\r\n\r\ndata"
        );
        assert_eq!(client::exchange(addr, &request).status, 500, "{uri}");
        let lines = alerts(&server);
        let report = "request body filter \"outside::panics::Panic\" panicked: a request body filter gave up at ";
        assert_eq!(lines.len(), i + 1, "{lines:?}");
        assert!(lines[i].contains(report), "{lines:?}");
        assert_eq!(client::get(addr, "/direct", "h").status, 200);
    }
    for received in origin.requests() {
        assert!(
            !received.raw.ends_with(b"data"),
            "the body got past its filter"
        );
    }
    assert!(server.stop().success());
}

#[test]
fn a_logger_that_panics_does_not_keep_others_from_logging() {
    let server = start(
        "server { listen 127.0.0.1:%%PORT_8080%%; audit_log %%TESTDIR%%/audit.log;
             access_log %%TESTDIR%%/own.log; panic_in logger;
             location / { greet you; } }",
        &[],
    );
    let addr = server.addr(8080);
    for n in 1..=2 {
        assert_eq!(client::get(addr, "/", "h").text(), "Hello, you!\n");
        let found = common::wait_for(common::DEADLINE, || {
            (alerts(&server).len() == n).then_some(())
        });
        found.expect("an alert");
    }
    let lines = alerts(&server);
    let report = "logger of module \"panics\" panicked: a logger gave up at ";
    assert!(lines[0].contains(report), "{lines:?}");
    server.wait_for_text("audit.log", "GET / 200\nGET / 200\n");
    server.wait_for_text("own.log", "GET / HTTP/1.1");
    assert!(server.stop().success());
}
