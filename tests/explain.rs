//! `couloir explain` and `explain_allow`.

mod common;

use common::client;
use common::proc::{Couloir, run};
use std::fs;
use std::path::Path;

const CONF: &str = r#"
events { }
http {
    client_max_body_size 10m;
    upstream app { server 127.0.0.1:1; server 127.0.0.1:2; }
    server { listen 8080 default_server; server_name _; return 404; }
    server {
        listen 8080;
        server_name example.com *.example.com;
        proxy_set_header Host $host;
        rewrite ^/old/(.*)$ /new/$1;
        location / { root html; try_files $uri $uri/ @app; }
        location ^~ /static/ { root html; }
        location /new/ {
            deny 10.0.0.0/8;
            allow all;
            proxy_pass http://app;
            proxy_set_header X-Team "$http_x_team";
        }
        location ~ \.php$ { return 403; }
        location /if { if ($arg_x = 1) { return 301 /other; } root html; }
        location /auth { auth_request /check; root html; }
        location /check { internal; proxy_pass http://app/check; }
        location @app { proxy_pass http://app; client_max_body_size 1m; }
    }
}
"#;

fn explain(conf: &str, args: &[&str]) -> (bool, String, String) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("html")).unwrap();
    fs::write(dir.path().join("html/file"), "12345").unwrap();
    fs::write(dir.path().join("nginx.conf"), conf).unwrap();
    let folder = dir.path().to_str().unwrap();
    let mut all = vec!["explain", "-p", folder, "-c", "nginx.conf"];
    all.extend(args);
    let (status, out, err) = run(Path::new(&Couloir::program()), &all);
    let clean = |text: String| text.replace(folder, "DIR");
    (status.success(), clean(out), clean(err))
}

fn told(args: &[&str]) -> String {
    let (ok, out, err) = explain(CONF, args);
    assert!(ok, "{err}");
    out
}

/// Each of `lines` is in the text, in this order.
fn in_order(text: &str, lines: &[&str]) {
    let mut rest = text;
    for line in lines {
        match rest.find(line) {
            Some(at) => rest = &rest[at + line.len()..],
            None => panic!("{line:?} is missing (or out of order) in\n{text}"),
        }
    }
}

#[test]
fn a_proxied_request_is_followed_to_what_the_origin_would_get() {
    let text = told(&[
        "-H",
        "X-Team: red",
        "GET http://www.example.com:8080/old/a?x=1",
    ]);
    in_order(
        &text,
        &[
            "its name is \"*.example.com\"  [DIR/nginx.conf:7]",
            "not _: the default server",
            "\"^/old/(.*)$\" matches \"/old/a\": the URI becomes \"/new/a\"  [DIR/nginx.conf:11]",
            "/new/ for \"/new/a\": the longest prefix  [DIR/nginx.conf:14]",
            "not /: a shorter prefix  [DIR/nginx.conf:12]",
            "not ~ \\.php$: does not match  [DIR/nginx.conf:20]",
            "an allow rule fits  [DIR/nginx.conf:16]",
            "http://127.0.0.1:1 would be asked, of \"app\" with 2 servers  [DIR/nginx.conf:17]",
            "GET /new/a?x=1 HTTP/1.1\n",
            "X-Team: red\n",
            "answer       the origin's\n",
            "in force",
            "proxy_set_header X-Team \"$http_x_team\"",
            "[DIR/nginx.conf:18] instead of DIR/nginx.conf:10",
            "client_max_body_size 10m",
            "[DIR/nginx.conf:4] from http",
        ],
    );
}

#[test]
fn clients_are_judged_by_the_address_that_is_given() {
    let text = told(&["--from", "10.1.1.1", "http://example.com:8080/new/"]);
    in_order(
        &text,
        &["a deny rule fits  [DIR/nginx.conf:15]", "answer       403"],
    );
}

#[test]
fn files_conditions_and_redirects() {
    let text = told(&["http://example.com:8080/nothing"]);
    in_order(
        &text,
        &[
            "the file \"DIR/html/nothing\" is not there  [DIR/nginx.conf:12]",
            "internally to @app",
            "GET /nothing HTTP/1.1",
            "client_max_body_size 1m",
            "instead of DIR/nginx.conf:4",
        ],
    );
    let text = told(&["http://example.com:8080/static/file"]);
    in_order(
        &text,
        &[
            "not ~ \\.php$: not tried: the longest prefix has \"^~\"",
            "static_files: ends with 404",
        ],
    );
    let text = told(&["http://example.com:8080/file"]);
    in_order(
        &text,
        &["static_files: answers 200, 5 bytes of \"DIR/html/file\"  [DIR/nginx.conf:12]"],
    );
    let text = told(&["http://example.com:8080/if?x=1"]);
    in_order(
        &text,
        &[
            "the condition holds  [DIR/nginx.conf:21]",
            "ends with 301 to \"/other\"",
            "answer       301 to http://example.com:8080/other",
        ],
    );
    let text = told(&["http://nobody:8080/"]);
    in_order(
        &text,
        &[
            "the default server: no name fits \"nobody\"",
            "ends with 404",
        ],
    );
    let text = told(&["http://example.com:8080/new"]);
    in_order(
        &text,
        &[
            "to the same with a slash: /new/ passes requests on  [DIR/nginx.conf:14]",
            "answer       301 to http://example.com:8080/new/",
        ],
    );
}

#[test]
fn subrequests_are_told_of_and_no_origin_is_asked() {
    let text = told(&["http://example.com:8080/auth"]);
    in_order(
        &text,
        &[
            "location     /auth",
            "  location     /check",
            "GET /check HTTP/1.1",
            "auth_request: allows  [DIR/nginx.conf:22]",
        ],
    );
}

#[test]
fn json_says_the_same() {
    let text = told(&["--json", "http://example.com:8080/x.php"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["status"], 403);
    assert_eq!(json["server"]["name"], "example.com");
    assert_eq!(json["location"]["name"], "~ \\.php$");
    assert_eq!(json["location"]["at"], "DIR/nginx.conf:20");
    let steps = json["steps"].as_array().unwrap();
    let location = steps.iter().find(|s| s["kind"] == "location").unwrap();
    let lost = location["others"].as_array().unwrap();
    assert!(lost.iter().any(|o| o["name"] == "/"), "{location}");
    let directives = json["directives"].as_array().unwrap();
    assert!(directives.iter().any(|d| d["text"] == "return 403"));
}

#[test]
fn what_cannot_be_explained_is_said_plainly() {
    for (conf, args, message) in [
        (
            CONF,
            &["http://a/"][..],
            "nobody listens on port 80; the addresses are: 0.0.0.0:8080",
        ),
        (
            CONF,
            &["--to", "1.2.3.4:5", "http://a/"],
            "nobody listens on 1.2.3.4:5",
        ),
        (CONF, &["ftp://a/"], "is not a URL"),
        (CONF, &["GET http://a:8080/%zz"], ""),
        (CONF, &["-H", "bad header: x", "http://a:8080/"], ""),
        (
            "http { nonsense; }",
            &["http://a/"],
            "nginx: [emerg] unknown directive \"nonsense\" in DIR/nginx.conf:1",
        ),
    ] {
        let (ok, out, err) = explain(conf, args);
        if message.is_empty() {
            // refused or answered with an error, never served
            assert!(
                !ok || out.contains("answer       400"),
                "{args:?}: {out}{err}"
            );
        } else {
            assert!(!ok && err.contains(message), "{args:?}: {out}{err}");
        }
    }
}

#[test]
fn a_response_header_tells_those_who_may_know() {
    let conf = |who: &str| {
        format!(
            "%%TEST_GLOBALS%% events {{ }} http {{ %%TEST_GLOBALS_HTTP%% explain_allow {who};
             server {{ listen 127.0.0.1:%%PORT_8080%%; server_name h;
                 location /a {{ return 200 x; }} location / {{ rewrite ^ /a; }} }} }}"
        )
    };
    let server = Couloir::start(&conf("127.0.0.0/8"));
    let response = client::get(server.addr(8080), "/b", "h");
    let told = response.header("Couloir-Explain").expect("the header");
    in_order(
        told,
        &[
            "server h on",
            "location /",
            "rewrite \"^\" matches",
            "location /a",
            "in force: location /a",
        ],
    );
    let server = Couloir::start(&conf("10.0.0.0/8"));
    let response = client::get(server.addr(8080), "/b", "h");
    assert_eq!(
        (response.status, response.header("Couloir-Explain")),
        (200, None)
    );
}
