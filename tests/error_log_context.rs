//! What a line of the error log says of the request that it is about, and where it goes: as in nginx.

mod common;

use std::path::Path;

use common::DEADLINE;
use common::client;
use common::nginx::Nginx;
use common::proc::{Couloir, Server, Setup};
use common::wait_for;

/// The lines of a log at `error` and above, without time, process and connection, and with the folder neutral.
fn lines(server: &Server, log: &str, count: usize) -> Vec<String> {
    let dir = server.dir().display().to_string();
    let port = server.port(8080).to_string();
    let read = || {
        let text = std::fs::read_to_string(server.dir().join(log)).unwrap_or_default();
        let mut lines: Vec<_> = text
            .lines()
            .filter_map(|line| {
                let (_, rest) = line.split_once("] ")?;
                let severe = line.contains("[error]") || line.contains("[crit]");
                let (_, message) = rest.split_once(": *")?.1.split_once(' ')?;
                severe.then(|| {
                    // ours: the reason in a word, at the end; nginx's phase after an upstream's failure
                    let message = message
                        .split(", upstream_failure: ")
                        .next()
                        .unwrap_or_default();
                    let message = message.replace(" while sending to client", "");
                    message.replace(&dir, "DIR").replace(&port, "PORT")
                })
            })
            .collect();
        lines.sort();
        (lines.len() >= count).then_some(lines)
    };
    wait_for(DEADLINE, read).unwrap_or_else(|| {
        panic!(
            "{count} lines expected in {log}: {}",
            std::fs::read_to_string(server.dir().join(log)).unwrap_or_default()
        )
    })
}

/// Runs the same requests against both programs; the lines of the logs must be the same.
fn compare(conf: &str, requests: &[(&str, usize)], logs: &[(&str, usize)]) -> Vec<Vec<String>> {
    let run = |program: &Path| {
        let server = Setup::new(conf)
            .file(
                "root/ssi.html",
                "<!--#include virtual=\"/down\" --><!--#include virtual=\"/gone.txt\" -->",
                None,
            )
            .start(program);
        for (path, status) in requests {
            let response = client::get(server.addr(8080), path, "a.test");
            assert_eq!(
                usize::from(response.status),
                *status,
                "{}: {path}",
                program.display()
            );
        }
        logs.iter()
            .map(|(log, count)| lines(&server, log, *count))
            .collect::<Vec<_>>()
    };
    let theirs = run(&Nginx::require());
    let ours = run(&Couloir::program());
    assert_eq!(theirs, ours);
    ours
}

#[test]
fn lines_of_subrequests_name_them_and_go_to_the_log_of_their_request() {
    let conf = r#"%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        server { listen 127.0.0.1:%%PORT_8080%%; server_name named; root %%TESTDIR%%/root;
            location = /auth { internal; error_log %%TESTDIR%%/sub.log; proxy_pass http://unix:%%TESTDIR%%/none:/told; }
            location = /file { internal; root %%TESTDIR%%/root; }
            location /a/ { error_log %%TESTDIR%%/a.log; auth_request /auth; empty_gif; }
            location /f/ { auth_request /file; empty_gif; }
            location = /down { proxy_pass http://unix:%%TESTDIR%%/none:; }
            location = /mirrored { internal; proxy_pass http://unix:%%TESTDIR%%/none:; }
            location /m/ { mirror /mirrored; error_log %%TESTDIR%%/m.log; return 204; }
            location /mm/ { mirror /mirrored; error_log %%TESTDIR%%/m.log; root %%TESTDIR%%/root; log_not_found off; }
            location /ssi.html { ssi on; }
            location /add/ { add_before_body /gone.txt; addition_types *; error_log %%TESTDIR%%/add.log; return 200 body; }
            location /plain/ { proxy_pass http://unix:%%TESTDIR%%/none:; } } }"#;
    let seen = compare(
        conf,
        &[
            ("/a/x", 500),
            ("/f/x", 500),
            ("/ssi.html", 200),
            ("/mm/x", 404),
            ("/add/x", 200),
            ("/plain/x", 502),
        ],
        &[("error.log", 5), ("a.log", 2), ("m.log", 1), ("add.log", 1)],
    );
    assert_eq!(
        seen[1][1],
        "connect() to unix:DIR/none failed (2: No such file or directory) while connecting to upstream, client: 127.0.0.1, \
         server: named, request: \"GET /a/x HTTP/1.1\", subrequest: \"/auth\", upstream: \"http://unix:DIR/none:/told\", \
         host: \"a.test\""
    );
}

#[test]
fn standard_error_is_a_log_on_every_level() {
    for place in ["http", "server", "location"] {
        let at = |here: &str| {
            if here == place {
                "error_log stderr info;"
            } else {
                ""
            }
        };
        let conf = format!(
            "%%TEST_GLOBALS%% events {{ }} http {{ %%TEST_GLOBALS_HTTP%% {} server {{ listen 127.0.0.1:%%PORT_8080%%; \
             server_name named; {} location / {{ root %%TESTDIR%%/root; {} }} }} }}",
            at("http"),
            at("server"),
            at("location")
        );
        let seen = compare(&conf, &[("/gone", 404)], &[("stderr.txt", 1)]);
        assert!(
            seen[0][0].starts_with("open() \"DIR/root/gone\" failed"),
            "{place}: {seen:?}"
        );
    }
}
