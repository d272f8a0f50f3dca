//! Headers changed by `more_set_headers` and its kin, 103 responses, and what is refused with a reason.

mod common;

use common::client::{self, Client};
use common::origin::{Gate, Origin, Step};
use common::proc::{Couloir, Setup};

#[test]
fn more_headers_of_responses_and_requests() {
    let origin = Origin::echo(&["Host", "X-In", "X-New", "X-Secret-A", "X-Kept", "Accept"]);
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        more_set_headers 'Server: mine' 'X-Outer: $uri';
        server { listen 127.0.0.1:%%PORT_8080%%; server_name localhost;
            location /all { more_set_headers -s '404 403' 'X-Fail: yes'; more_set_headers -t 'text/plain text/css' X-Type:text;
                add_header X-Gone 1; more_set_headers 'X-Many: a'; more_set_headers -a 'X-Many: b';
                location /all/404 { return 404; }
                location /all/css { default_type text/css; return 200 x; } }
            location /clear { more_clear_headers Server 'X-O*' Content-Type; more_set_headers 'Last-Modified'; return 200 x; }
            location /in { more_set_input_headers 'Host: other' 'X-New: $arg_n' 'Accept:'; more_set_input_headers -r 'X-In: seen' 'X-Kept: no';
                more_clear_input_headers 'X-Secret-*'; more_set_input_headers -t text/x 'X-New: never';
                proxy_set_header Host $http_host; proxy_pass http://127.0.0.1:%%ORIGIN%%; } } }";
    let server = Setup::new(conf)
        .set("ORIGIN", origin.port())
        .start(&Couloir::program());
    let get = |path: &str| client::get(server.addr(8080), path, "localhost");

    let all = get("/all/404");
    assert_eq!(all.header("Server"), Some("mine"));
    assert_eq!(all.header("X-Outer"), Some("/all/404"));
    assert_eq!(all.header("X-Fail"), Some("yes"));
    assert_eq!(all.header("X-Type"), None);
    let css = get("/all/css");
    assert_eq!(css.header("X-Fail"), None);
    assert_eq!(css.header("X-Type"), Some("text"));
    let many: Vec<_> = css.headers.iter().filter(|(n, _)| n == "X-Many").collect();
    assert_eq!(many.len(), 2, "{many:?}");

    let clear = get("/clear");
    assert_eq!(clear.text(), "x");
    for name in ["Server", "X-Outer", "Content-Type", "Last-Modified"] {
        assert_eq!(clear.header(name), None, "{name}");
    }

    let request = "GET /in?n=7 HTTP/1.1\r\nHost: localhost\r\nAccept: a\r\nX-In: 1\r\nX-Secret-A: s\r\nConnection: close\r\n\r\n";
    client::exchange(server.addr(8080), request);
    let seen = origin.wait_for_requests(1).remove(0);
    assert_eq!(seen.header("Host").as_deref(), Some("other"));
    assert_eq!(seen.header("X-New").as_deref(), Some("7"));
    assert_eq!(seen.header("X-In").as_deref(), Some("seen"));
    for name in ["Accept", "X-Kept", "X-Secret-A"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
    assert!(server.stop().success());
}

#[test]
fn more_headers_are_checked() {
    for (directive, text) in [
        ("more_set_headers -x 'A: b';", "invalid option name: \"-x\""),
        (
            "more_set_headers 'A: b' -s;",
            "option \"-s\" takes an argument",
        ),
        ("more_set_headers -s 'x' 'A: b';", "bad status code: \"x\""),
        ("more_set_headers 'A B: b';", "invalid header \"A B: b\""),
        ("more_set_headers 'Content-Length: 1';", "cannot be changed"),
        (
            "more_set_input_headers 'Transfer-Encoding: chunked';",
            "cannot be changed",
        ),
        (
            "more_set_input_headers -s 404 'A: b';",
            "invalid option name: \"-s\"",
        ),
        (
            "image_filter size;",
            "the \"image_filter\" directive is not supported: images are not changed",
        ),
    ] {
        let conf = format!(
            "%%TEST_GLOBALS%% events {{ }} http {{ %%TEST_GLOBALS_HTTP%% server {{ location / {{ {directive} }} }} }}"
        );
        let (status, told) = Setup::new(&conf).test(&Couloir::program());
        assert!(!status.success(), "{directive}");
        assert!(told.contains(text), "{directive}: {told}");
    }
}

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nServer: x\r\nConnection: close\r\n\r\n";
const FINAL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone";

#[test]
fn early_hints_come_before_the_response() {
    let gate = Gate::new();
    let script = |hold: &Gate| {
        vec![
            Step::Read,
            Step::send(HINTS),
            Step::Wait(hold.clone()),
            Step::send(FINAL),
            Step::Close,
        ]
    };
    let open = Gate::new();
    open.open();
    let origin = Origin::script(vec![
        script(&gate),
        script(&open),
        script(&open),
        script(&open),
    ]);
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        server { listen 127.0.0.1:%%PORT_8080%%; proxy_buffer_size 4k; early_hints $arg_hint;
            location / { proxy_pass http://127.0.0.1:%%ORIGIN%%; } } }";
    let server = Setup::new(conf)
        .set("ORIGIN", origin.port())
        .start(&Couloir::program());
    let addr = server.addr(8080);
    let mut client = Client::connect(addr);
    let ask = |path: &str, version: &str| {
        format!("GET {path} HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    };
    client.send(ask("/?hint=1", "1.1")).unwrap();
    let expected = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
    let hints = client.take(expected.len()).unwrap();
    assert_eq!(String::from_utf8_lossy(&hints), expected);
    // they were sent while the origin was still busy
    gate.open();
    let rest = String::from_utf8(client.read_to_close().unwrap()).unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\n"), "{rest}");
    assert!(rest.ends_with("\r\n\r\ndone"), "{rest}");

    for request in [
        ask("/?hint=0", "1.1"),
        ask("/", "1.1"),
        ask("/?hint=1", "1.0"),
    ] {
        let mut client = Client::connect(addr);
        client.send(&request).unwrap();
        let all = String::from_utf8(client.read_to_close().unwrap()).unwrap();
        assert!(all.starts_with("HTTP/1.1 200 OK\r\n"), "{request}: {all}");
    }
    assert!(server.stop().success());
}

#[test]
fn bodies_are_read_early_and_browsers_told_apart() {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        server { listen 127.0.0.1:%%PORT_8080%%; client_body_early_read $http_x_early; client_body_in_file_only clean;
            client_max_body_size 5; modern_browser msie 6.0; modern_browser_value new;
            location / { return 200 '[$request_body_file]'; }
            location /b { return 200 '$modern_browser|$ancient_browser|$msie'; } } }";
    let server = Setup::new(conf).start(&Couloir::program());
    let post = |head: &str, body: &str| {
        let length = body.len();
        let request = format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{head}Connection: close\r\n\r\n{body}"
        );
        client::exchange(server.addr(8080), &request)
    };
    assert_eq!(post("", "abc").text(), "[]");
    assert_eq!(post("X-Early: 0\r\n", "abc").text(), "[]");
    let read = post("X-Early: 1\r\n", "abc").text();
    assert!(read.contains("client_body_temp/"), "{read}");
    assert_eq!(post("X-Early: 1\r\n", "too long").status, 413);

    for (agent, expected) in [
        ("Mozilla/4.0 (compatible; MSIE 6.0; X)", "new||1"),
        ("Mozilla/4.0 (compatible; MSIE 5.0; X)", "|1|1"),
        ("curl/8", "|1|"),
    ] {
        let request = format!(
            "GET /b HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {agent}\r\nConnection: close\r\n\r\n"
        );
        let answer = client::exchange(server.addr(8080), &request);
        assert_eq!(answer.text(), expected, "{agent}");
    }
    assert!(server.stop().success());
}
