//! No configuration makes us write CR, LF or NUL into a head, whatever a variable holds.

use super::common::client::Client;
use super::common::origin::Origin;
use super::{ask, is_clean, start};

/// What a location says, what is asked for, the status, and what the log names.
const RESPONSES: &[(&str, &str, u16, &str)] = &[
    (
        "return 302 http://h$uri;",
        "/%0d%0aX-Split:%201",
        400,
        "\"return\" would write a CR, LF or NUL from \"$uri\"",
    ),
    (
        "return 302 http://h$document_uri;",
        "/%0aX-Split:1",
        400,
        "$document_uri",
    ),
    (
        "return 302 http://h$request_uri;",
        "/%0d%0aX-Split:1",
        302,
        "",
    ),
    ("return 302 http://h/?$args;", "/?%0d%0aX-Split:1", 302, ""),
    (
        "add_header X-A $uri; return 200 x;",
        "/%0d%0aX-Split:1",
        400,
        "\"add_header\" would write a CR, LF or NUL from \"$uri\"",
    ),
    (
        "add_header X-A $uri always; return 200 x;",
        "/%0d%0aX-Split:1",
        400,
        "add_header",
    ),
    (
        "add_header X-A $arg_x; return 200 x;",
        "/?x=%0d%0aX-Split:1",
        200,
        "",
    ),
    (
        "add_header Last-Modified $uri; return 200 x;",
        "/%0dX",
        400,
        "add_header",
    ),
    (
        "add_header X-A $map_uri; return 200 x;",
        "/%0d%0aX-Split:1",
        400,
        "$map_uri",
    ),
    (
        "add_header X-A $broken; return 200 x;",
        "/",
        500,
        "\"add_header\" would write a CR, LF or NUL from \"$broken\"",
    ),
    (
        "set $x \"a\r\nX-Split: 1\"; add_header X-A $x; return 200 x;",
        "/",
        500,
        "$x",
    ),
    (
        "set $x \"a;\n   b\"; add_header X-A $x; return 200 x;",
        "/",
        200,
        "",
    ),
    (
        "add_header X-A \"a;\r\n   b $host\n\"; return 200 x;",
        "/",
        200,
        "",
    ),
    (
        "add_header X-A $remote_user; return 200 x;",
        "/",
        400,
        "$remote_user",
    ),
    (
        "if ($uri ~ \"(?s)^/(.*)$\") { add_header X-A $1; return 200 x; }",
        "/a%0aX-Split:1",
        400,
        "\"$1\"",
    ),
    (
        "rewrite ^/(.*)$ http://h/$1 redirect;",
        "/a%0d%0aX-Split:1",
        0,
        "",
    ),
    (
        "rewrite ^ http://h$uri redirect;",
        "/a%0d%0aX-Split:1",
        400,
        "\"rewrite\"",
    ),
    (
        "rewrite ^ http://h/?u=$uri permanent;",
        "/a%0d%0aX-Split:1",
        400,
        "\"rewrite\"",
    ),
    (
        "error_page 404 =302 http://h$uri; return 404;",
        "/a%0d%0aX-Split:1",
        400,
        "\"error_page\"",
    ),
    (
        "auth_basic \"a $uri\"; auth_basic_user_file /dev/null;",
        "/a%0d%0aX-Split:1",
        400,
        "\"auth_basic\"",
    ),
    ("charset $uri; return 200 x;", "/a%0d%0aX-Split:1", 0, ""),
    ("expires $uri; return 200 x;", "/a%0d%0aX-Split:1", 200, ""),
    (
        "more_set_headers \"X-A: $uri\"; return 200 x;",
        "/a%0d%0aX-Split:1",
        400,
        "\"more_set_headers\"",
    ),
    (
        "add_trailer X-T $uri; return 200 x;",
        "/a%0d%0aX-Split:1",
        200,
        "\"add_trailer\"",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%/; proxy_redirect ~.* http://h$uri;",
        "/a%0d%0aX-Split:1",
        400,
        "\"proxy_redirect\"",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%/; proxy_cookie_path ~.* $uri;",
        "/a%0d%0aX-Split:1",
        400,
        "\"proxy_cookie_path\"",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%/; proxy_cookie_domain ~.* $uri;",
        "/a%0d%0aX-Split:1",
        400,
        "\"proxy_cookie_domain\"",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%/; add_header X-A $uri;",
        "/a%0d%0aX-Split:1",
        400,
        "\"add_header\"",
    ),
    // requests to origins
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%$uri;",
        "/a%0d%0aX-Split:1",
        400,
        "\"proxy_pass\" would write a control character",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%$uri;",
        "/a%01",
        400,
        "\"proxy_pass\"",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%$uri;",
        "/a%20HTTP/1.1%20b",
        200,
        "",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%/x?$uri;",
        "/a%0d%0aX-Split:1",
        0,
        "",
    ),
    (
        "rewrite ^ /x?u=$uri break; proxy_pass http://127.0.0.1:%%ORIGIN%%;",
        "/a%0d%0aX-Split:1",
        400,
        "\"proxy_pass\"",
    ),
    (
        "set $args $uri; proxy_pass http://127.0.0.1:%%ORIGIN%%/y;",
        "/a%0d%0aX-Split:1",
        400,
        "\"proxy_pass\"",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%; proxy_set_header X-A $uri;",
        "/a%0d%0aX-Split:1",
        400,
        "\"proxy_set_header\" would write a CR, LF or NUL from \"$uri\"",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%; proxy_set_header Host $uri;",
        "/a%0aX-Split:1",
        400,
        "\"proxy_set_header\"",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%; proxy_set_header X-A $broken;",
        "/",
        500,
        "$broken",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%; proxy_set_header X-User $remote_user;",
        "/",
        400,
        "$remote_user",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%; proxy_set_header X-A \"a\n  b\";",
        "/",
        200,
        "",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%; proxy_method $uri;",
        "/a%0d%0aX-Split:1",
        400,
        "\"proxy_method\"",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%; proxy_method \"GET /b\";",
        "/",
        500,
        "\"proxy_method\"",
    ),
    (
        "proxy_pass http://127.0.0.1:%%ORIGIN%%; more_set_input_headers \"X-A: $uri\";",
        "/a%0d%0aX-Split:1",
        400,
        "\"more_set_input_headers\"",
    ),
    (
        "auth_request /auth; return 200 x;",
        "/a%0d%0aX-Split:1",
        200,
        "",
    ),
];

#[test]
fn no_head_is_split() {
    let origin = Origin::respond(|_| {
        b"HTTP/1.1 200 OK\r\nLocation: http://o/\r\nSet-Cookie: a=b; path=/; domain=d\r\nContent-Length: 0\r\n\r\n".to_vec()
    });
    let servers: String = RESPONSES
        .iter()
        .enumerate()
        .map(|(i, (body, ..))| {
            let inner = match body.starts_with("auth_request") {
                true => "location = /auth { proxy_pass http://127.0.0.1:%%ORIGIN%%; proxy_set_header X-U $request_uri; }",
                false => "",
            };
            format!("server {{ listen 127.0.0.1:%%PORT_8080%%; server_name s{i}.test; {inner} location / {{ {body} }} }}\n")
        })
        .collect();
    let server = start(
        &origin,
        &format!(
            "map $uri $map_uri {{ default $uri; }} map $host $broken {{ default \"a\r\nX-Split: 1\"; }} {servers}"
        ),
    );
    let mut wrong = Vec::new();
    for (i, (body, path, status, logged)) in RESPONSES.iter().enumerate() {
        let before = server.log().len();
        // "a", CR, LF, "X-Split:1"
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: s{i}.test\r\nAuthorization: Basic YQ0KWC1TcGxpdDE6MQ==\r\nConnection: close\r\n\r\n"
        );
        let mut client = Client::connect(server.addr(8080));
        client.send(&request).expect("sent");
        let raw = client.read_to_close().expect("a response");
        let shown = raw.escape_ascii();
        let head = raw
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .unwrap_or(raw.len());
        let head = String::from_utf8_lossy(&raw[..head]).into_owned();
        let clean = head
            .split("\r\n")
            .all(|l| !l.contains(['\r', '\n', '\0']) && !l.starts_with("X-Split"));
        if !clean {
            wrong.push(format!("{body}: {shown}"));
        }
        if *status != 0 && !head.starts_with(&format!("HTTP/1.1 {status} ")) {
            wrong.push(format!("{body}: {status} expected: {shown}"));
        }
        for seen in origin.take_requests() {
            if !is_clean(&seen.raw) || seen.header("X-Split").is_some() {
                wrong.push(format!("{body}: forwarded {}", seen.raw.escape_ascii()));
            }
        }
        let log = server.log();
        let new = &log[before..];
        let lines = new.lines().filter(|l| l.contains(" would write ")).count();
        if !new.contains(logged) || lines != usize::from(!logged.is_empty()) && *status != 0 {
            wrong.push(format!("{body}: logged {lines} lines: {new}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(server.stop().success());
}

#[test]
fn spaces_of_variables_are_escaped_and_folded_text_is_one_line() {
    let origin = Origin::echo(&[]);
    let server = start(
        &origin,
        "server { listen 127.0.0.1:%%PORT_8080%%;
            location /uri { proxy_pass http://127.0.0.1:%%ORIGIN%%$uri; }
            location /text { add_header X-A \"a;\r\n\t b; $host\n c\"; return 200 x; } }",
    );
    let get = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        ask(server.addr(8080), request.as_bytes())
    };
    assert!(
        get("/uri/a%20b")
            .text()
            .starts_with("GET /uri/a%20b HTTP/1.")
    );
    assert_eq!(get("/text").header("X-A"), Some("a; b; h c"));
    assert!(server.stop().success());
}
