//! The API and the metrics answer only to hosts that are theirs, and take no changes from pages of other sites.

use super::common::origin::Origin;
use super::{ask, start};

/// Method, further headers (`%` stands for the server's port), and the status; `Host` is `localhost` unless it is given.
const ASKED: &[(&str, &str, u16)] = &[
    ("GET", "", 200),
    ("GET", "Host: 127.0.0.1:%\r\n", 200),
    ("GET", "Host: LOCALHOST.:%\r\n", 200),
    ("GET", "Host: api.test\r\n", 200),
    ("GET", "Host: x.wild.test\r\n", 200),
    ("GET", "Host: evil.test\r\n", 403),
    ("GET", "Host: localhost.evil.test\r\n", 403),
    ("GET", "Host: 127.0.0.1.evil.test\r\n", 403),
    ("GET", "Host: 192.0.2.1\r\n", 403),
    ("GET", "Host: [::1]\r\n", 403),
    ("GET", "Origin: http://evil.test\r\n", 200),
    ("PATCH", "", 200),
    ("PATCH", "Content-Type: application/json\r\n", 200),
    (
        "PATCH",
        "Content-Type: Application/JSON; charset=utf-8\r\n",
        200,
    ),
    (
        "PATCH",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        200,
    ),
    ("PATCH", "Origin: http://localhost\r\n", 200),
    (
        "PATCH",
        "Host: localhost:%\r\nOrigin: http://localhost:%\r\nSec-Fetch-Site: same-origin\r\n",
        200,
    ),
    (
        "PATCH",
        "Host: localhost:%\r\nOrigin: https://LOCALHOST:%\r\n",
        200,
    ),
    ("PATCH", "Sec-Fetch-Site: none\r\n", 200),
    ("PATCH", "Origin: http://evil.test\r\n", 403),
    (
        "PATCH",
        "Origin: http://evil.test\r\nContent-Type: application/json\r\n",
        403,
    ),
    ("PATCH", "Origin: http://localhost.evil.test\r\n", 403),
    ("PATCH", "Origin: http://evil.test/localhost\r\n", 403),
    ("PATCH", "Origin: http://localhost:1\r\n", 403),
    ("PATCH", "Origin: null\r\n", 403),
    ("PATCH", "Origin:\r\n", 403),
    (
        "PATCH",
        "Origin: http://localhost\r\nOrigin: http://evil.test\r\n",
        403,
    ),
    ("PATCH", "Sec-Fetch-Site: cross-site\r\n", 403),
    ("PATCH", "Sec-Fetch-Site: same-site\r\n", 403),
    (
        "PATCH",
        "Host: evil.test\r\nOrigin: http://evil.test\r\n",
        403,
    ),
    ("PATCH", "Content-Type: text/plain\r\n", 415),
    (
        "PATCH",
        "Content-Type: multipart/form-data; boundary=x\r\n",
        415,
    ),
    (
        "PATCH",
        "Content-Type: text/plain; application/json\r\n",
        415,
    ),
    ("PATCH", "Content-Type: application/jsonx\r\n", 415),
    (
        "PATCH",
        "Content-Type: application/json\r\nContent-Type: text/plain\r\n",
        415,
    ),
    (
        "PATCH",
        "Origin: http://localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n",
        415,
    ),
    (
        "PATCH",
        "Sec-Fetch-Site: same-origin\r\nContent-Type: application/x-www-form-urlencoded\r\n",
        415,
    ),
    ("DELETE", "Origin: http://evil.test\r\n", 403),
    ("POST", "Content-Type: text/plain\r\n", 415),
];

#[test]
fn foreign_pages_are_refused() {
    let origin = Origin::echo(&[]);
    let server = start(
        &origin,
        "upstream app { zone app 64k; server 127.0.0.1:%%ORIGIN%%; }
        server { listen 127.0.0.1:%%PORT_8080%%; server_name api.test *.wild.test;
            location /api { api write=on; } location /metrics { metrics; } }",
    );
    let port = server.port(8080).to_string();
    let mut wrong = Vec::new();
    for (method, fields, status) in ASKED {
        let host = if fields.contains("Host:") {
            ""
        } else {
            "Host: localhost\r\n"
        };
        let fields = fields.replace('%', &port);
        let body = if *method == "GET" {
            ""
        } else {
            "{\"weight\":2}"
        };
        let path = match *method {
            "POST" => "/api/9/http/upstreams/app/servers",
            _ => "/api/9/http/upstreams/app/servers/0",
        };
        let mut paths = vec![path];
        if *method == "GET" {
            paths.push("/metrics");
        }
        for path in paths {
            let request = format!(
                "{method} {path} HTTP/1.1\r\n{host}{fields}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let r = ask(server.addr(8080), request.as_bytes());
            if r.status != *status {
                wrong.push(format!(
                    "{} instead of {status}: {method} {path} {fields:?}",
                    r.status
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // who sends no Host is no browser
    let old = ask(server.addr(8080), b"GET /metrics HTTP/1.0\r\n\r\n");
    assert_eq!(old.status, 200);
    let log = server.log();
    assert!(
        log.contains("api takes no changes from pages of \"http://evil.test\""),
        "{log}"
    );
    assert!(
        log.contains("localhost only, not to \"evil.test\""),
        "{log}"
    );
    assert!(server.stop().success());
}
