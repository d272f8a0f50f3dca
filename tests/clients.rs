//! Clients that others wrote: gRPC by grpcio, WebSockets by `websockets`, each with its own origin behind us.

mod common;

use common::proc::{Couloir, Server, Setup};
use common::tls;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A script of tests/clients that serves; it ends when its input does.
struct Origin {
    child: Child,
    ports: Vec<String>,
}

impl Origin {
    fn start(script: &str, args: &[&str]) -> Origin {
        let mut command = python(script);
        command.arg("serve").args(args);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e} (make test-deps installs it)"));
        let mut line = String::new();
        let out = child.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("a line");
        let ports: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        assert!(!ports.is_empty(), "{script} did not start");
        Origin { child, ports }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn python(script: &str) -> Command {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var_os("COULOIR_PYTHON")
        .map_or_else(|| root.join("target/clients/bin/python3"), PathBuf::from);
    let mut command = Command::new(python);
    command.arg(root.join("tests/clients").join(script));
    command
}

/// Runs a script to its end; what it says is what a failed test shows.
fn run(mut command: Command, server: &Server) {
    let output = command.output().expect("run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    assert!(
        output.status.success(),
        "{}\n{}\n--- error.log\n{}",
        output.status,
        text(&output.stderr),
        server.log()
    );
}

/// The origin of gRPC calls; the folder has its certificate.
fn grpc_origin(dir: &tempfile::TempDir) -> Origin {
    let (cert, key) = tls::pair("localhost");
    let (cert_file, key_file) = (dir.path().join("origin.crt"), dir.path().join("origin.key"));
    std::fs::write(&cert_file, cert.to_pem().expect("PEM")).expect("write");
    std::fs::write(&key_file, key.private_key_to_pem_pkcs8().expect("PEM")).expect("write");
    let path = |p: &PathBuf| p.to_str().expect("UTF-8").to_owned();
    Origin::start("grpc_calls.py", &[&path(&cert_file), &path(&key_file)])
}

/// Runs a check of grpc_long.py, all of it on as many connections as it opens itself.
fn grpc_for_long(check: &str, connections: usize) {
    let dir = tempfile::tempdir().expect("temp folder");
    let origin = grpc_origin(&dir);
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        log_format connection $connection; access_log connections.log connection;
        http2 on; client_max_body_size 0; grpc_read_timeout 60s; grpc_send_timeout 60s; keepalive_requests 1000000;
        upstream plain { server 127.0.0.1:%%PLAIN%%; keepalive 8; }
        server { listen 127.0.0.1:%%PORT_8080%%; location / { grpc_pass grpc://plain; } } }";
    let server = Setup::new(conf)
        .set("PLAIN", &origin.ports[0])
        .start(&Couloir::program());
    let mut command = python("grpc_long.py");
    command.arg(check).arg(server.port(8080).to_string());
    run(command, &server);
    let log = server.log();
    assert!(!log.contains("flood") && !log.contains("too many"), "{log}");
    let log = server.read("connections.log");
    let used: std::collections::HashSet<&str> = log.lines().collect();
    assert_eq!(used.len(), connections, "connections were replaced");
}

#[test]
fn grpc_small_messages() {
    grpc_for_long("small_messages", 3);
    grpc_for_long("one_message_at_a_time", 3);
}

#[test]
fn grpc_messages_paced_and_streamed() {
    grpc_for_long("paced_messages", 1);
    grpc_for_long("a_stream_of_messages", 1);
    grpc_for_long("messages_with_probes", 1);
}

#[test]
fn grpc_calls_that_are_cancelled_or_late() {
    grpc_for_long("calls_cancelled_at_once", 1);
    grpc_for_long("calls_cancelled_at_the_origin", 1);
    grpc_for_long("short_deadlines", 1);
}

#[test]
fn grpc_keep_alive_pings() {
    grpc_for_long("pings_of_an_idle_connection", 1);
}

#[test]
fn grpc_calls() {
    let dir = tempfile::tempdir().expect("temp folder");
    let origin = grpc_origin(&dir);
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        http2 on; client_max_body_size 0; grpc_read_timeout 60s; grpc_send_timeout 60s;
        upstream plain { server 127.0.0.1:%%PLAIN%%; keepalive 8; }
        upstream secure { server 127.0.0.1:%%SECURE%%; keepalive 8; }
        server { listen 127.0.0.1:%%PORT_8080%%; location / { grpc_pass grpc://plain; } }
        server { listen 127.0.0.1:%%PORT_8081%% ssl;
            ssl_certificate localhost.crt; ssl_certificate_key localhost.key;
            location / { grpc_pass grpcs://secure; } } }";
    let server = tls::with_pairs(conf, &["localhost"])
        .set("PLAIN", &origin.ports[0])
        .set("SECURE", &origin.ports[1])
        .start(&Couloir::program());
    let mut command = python("grpc_calls.py");
    command
        .arg("call")
        .arg(server.dir().join("localhost.crt"))
        .arg(format!("plain:{}", server.port(8080)))
        .arg(format!("tls:{}", server.port(8081)));
    run(command, &server);
}

#[test]
fn websocket_talks() {
    let origin = Origin::start("websocket_talk.py", &[]);
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        map $http_upgrade $connection_upgrade { default upgrade; '' close; }
        proxy_http_version 1.1; proxy_read_timeout 60s;
        proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
        proxy_set_header X-Real-IP $remote_addr;
        server { listen 127.0.0.1:%%PORT_8080%%; listen 127.0.0.1:%%PORT_8081%% ssl;
            ssl_certificate localhost.crt; ssl_certificate_key localhost.key;
            location / { proxy_pass http://127.0.0.1:%%ORIGIN%%; }
            location /short { proxy_pass http://127.0.0.1:%%ORIGIN%%; proxy_read_timeout 1500ms; } } }";
    let server = tls::with_pairs(conf, &["localhost"])
        .set("ORIGIN", &origin.ports[0])
        .start(&Couloir::program());
    let mut command = python("websocket_talk.py");
    command
        .arg("talk")
        .arg(server.dir().join("localhost.crt"))
        .arg(format!("ws://127.0.0.1:{}", server.port(8080)))
        .arg(format!("wss://127.0.0.1:{}", server.port(8081)));
    run(command, &server);
    // what ends a connection that was upgraded is no error, but for the silence
    let log = server.log();
    let timeouts = log.matches("upstream timed out").count();
    assert_eq!(timeouts, 2, "{log}");
}
