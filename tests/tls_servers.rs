//! Which server answers a request over TLS: nginx and Couloir on the same configuration, for every pair of the name in the
//! handshake and the name in the request, and for each way in which a request may name its host.

mod common;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use common::nginx::Nginx;
use common::proc::{Couloir, Server};
use common::tls::with_pairs;

const CONF: &str = r#"%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
    ssl_certificate one.crt; ssl_certificate_key one.key; ssl_client_certificate one.crt;
    server { listen 127.0.0.1:%%PORT_8443%% ssl http2 default_server; server_name _; error_page 400 421 495 496 /p;
        location / { return 418 "catch-all $server_name $host $ssl_server_name"; } location = /p { return 200 "refused by catch-all $status"; } }
    server { listen 127.0.0.1:%%PORT_8443%% ssl http2; server_name known.test; error_page 400 421 495 496 /p;
        location / { return 200 "known $server_name $host $ssl_server_name"; } location = /p { return 200 "refused by known"; } }
    server { listen 127.0.0.1:%%PORT_8443%% ssl http2; server_name *.wild.test; location / { return 200 "wild $server_name $host"; } }
    server { listen 127.0.0.1:%%PORT_8443%% ssl http2; server_name ~^re(?<digits>\d+)\.test$; location / { return 200 "regex $digits $host"; } }
    server { listen 127.0.0.1:%%PORT_8443%% ssl http2; server_name mtls.test; ssl_verify_client on; error_page 400 421 495 496 /p;
        location / { return 200 "verified $host"; } location = /p { return 200 "refused by mtls"; } }
    server { listen 127.0.0.1:%%PORT_8443%% ssl http2; server_name maybe.test; ssl_verify_client optional;
        location / { return 200 "optional $host $ssl_client_verify"; } }
    server { listen 127.0.0.1:%%PORT_8444%% ssl http2 default_server; server_name known.test; location / { return 200 "default $host"; } }
    server { listen 127.0.0.1:%%PORT_8444%% ssl http2; server_name ""; location / { return 200 "nameless $host"; } }
    server { listen 127.0.0.1:%%PORT_8445%% ssl http2; server_name known.test; ssl_verify_client on; error_page 400 421 495 496 /p;
        location / { return 200 "alone $host"; } location = /p { return 200 "refused by the only one"; } }
    server { listen 127.0.0.1:%%PORT_8446%% ssl http2 default_server; server_name mtls.test; ssl_verify_client on; error_page 400 421 495 496 /p;
        location / { return 200 "verified default $host"; } location = /p { return 200 "refused by the default" ; } }
    server { listen 127.0.0.1:%%PORT_8446%% ssl http2; server_name known.test; location / { return 200 "known $host"; } }
}"#;

const SNI: &[Option<&str>] = &[
    None,
    Some("known.test"),
    Some("a.wild.test"),
    Some("re1.test"),
    Some("unknown.test"),
    Some("mtls.test"),
];

const HOSTS: &[&str] = &[
    "known.test",
    "KNOWN.test",
    "a.wild.test",
    "b.wild.test",
    "re1.test",
    "re2.test",
    "unknown.test",
    "mtls.test",
    "maybe.test",
    "127.0.0.1",
];

/// How a request tells its host.
#[derive(Clone, Copy, Debug)]
enum Form {
    Host,
    Absolute,
    OldWithoutHost,
    Http2,
}

/// Sends one request; the status and the body.
fn ask(
    addr: SocketAddr,
    sni: Option<&str>,
    host: &str,
    form: Form,
    identity: Option<&Path>,
) -> String {
    let mut curl = Command::new("curl");
    curl.args(["-ksS", "--max-time", "10", "-w", " | %{http_code}"]);
    if let Some(path) = identity {
        curl.arg("--cert").arg(path.join("one.crt"));
        curl.arg("--key").arg(path.join("one.key"));
    }
    let target = format!("http://{host}/");
    let line = format!("Host: {host}");
    match form {
        Form::Host => curl.args(["--http1.1", "-H", &line]),
        Form::Absolute => curl.args([
            "--http1.1",
            "-H",
            "Host: known.test",
            "--request-target",
            &target,
        ]),
        Form::OldWithoutHost => curl.args(["--http1.0", "-H", "Host:"]),
        Form::Http2 => curl.args(["--http2", "-H", &line]),
    };
    // curl sends no name in the handshake where the URL has an address
    curl.arg("--connect-to").arg(format!("::{addr}"));
    curl.arg(format!("https://{}/", sni.unwrap_or("127.0.0.1")));
    let output = curl.output().expect("curl");
    let text = String::from_utf8_lossy(&output.stdout);
    // the release in error pages
    let text: Vec<_> = text
        .split("nginx/1.")
        .map(|t| t.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.'))
        .collect();
    let text = text.join("nginx");
    match output.status.success() {
        true => text,
        false => format!("{text} {}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}

/// What every combination gets, a line each.
fn table(server: &Server) -> String {
    let mut text = String::new();
    let dir = server.dir();
    let mut note = |port: u16, sni: Option<&str>, host: &str, form: Form, identity: bool| {
        let answer = ask(server.addr(port), sni, host, form, identity.then_some(dir));
        let sni = sni.unwrap_or("-");
        let _ = writeln!(text, "{port} {sni} {host} {form:?} {identity}: {answer}");
    };
    for sni in SNI {
        for host in HOSTS {
            note(8443, *sni, host, Form::Host, false);
            note(8443, *sni, host, Form::Http2, false);
        }
        for host in ["known.test", "unknown.test", "mtls.test"] {
            note(8443, *sni, host, Form::Absolute, false);
            note(8443, *sni, host, Form::Host, true);
        }
        note(8443, *sni, "", Form::OldWithoutHost, false);
    }
    for port in [8444, 8445, 8446] {
        for sni in [
            None,
            Some("known.test"),
            Some("unknown.test"),
            Some("mtls.test"),
        ] {
            for host in ["known.test", "unknown.test", "mtls.test"] {
                note(port, sni, host, Form::Host, false);
                note(port, sni, host, Form::Http2, false);
            }
            note(port, sni, "", Form::OldWithoutHost, false);
        }
    }
    text
}

#[test]
fn the_host_chooses_the_server_whatever_the_handshake_named() {
    let start = |program: &Path| with_pairs(CONF, &["one"]).start(program);
    let ours = table(&start(&Couloir::program()));
    // what must hold of any program
    for line in [
        "8443 known.test unknown.test Host false: catch-all _ unknown.test known.test | 418",
        "8443 known.test unknown.test Http2 false: catch-all _ unknown.test known.test | 418",
        "8443 known.test unknown.test Absolute false: catch-all _ unknown.test known.test | 418",
        "8443 known.test  OldWithoutHost false: catch-all _ _ known.test | 418",
        "8443 known.test re2.test Host false: regex 2 re2.test | 200",
        "8443 re1.test re2.test Http2 false: regex 2 re2.test | 200",
    ] {
        assert!(ours.lines().any(|l| l == line), "missing: {line}\n{ours}");
    }
    let theirs = table(&start(&Nginx::require()));
    let differ: String = theirs
        .lines()
        .zip(ours.lines())
        .filter(|(theirs, ours)| theirs != ours)
        .map(|(theirs, ours)| format!("nginx:   {theirs}\ncouloir: {ours}\n"))
        .collect();
    assert!(differ.is_empty(), "{differ}");
    assert_eq!(theirs.lines().count(), ours.lines().count());
}
