//! examples/hello_filter.rs: a user's filter in a user's program.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::client;
use common::proc::Setup;

/// The example's program: `cargo test` builds it, a single `--test example` does not.
fn program() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_couloir")).with_file_name("examples");
    let program = folder.join("hello_filter");
    if !program.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", "hello_filter"]);
        assert!(build.status().expect("cargo").success());
    }
    program
}

const CONF: &str = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
    hello 'Hello, $visitor!';
    server { listen 127.0.0.1:%%PORT_8080%%;
        location / { return 200 body; }
        location /b { hello other; return 200 $visitor; } } }";

#[test]
fn the_filter_has_its_directive_and_its_variable() {
    let server = Setup::new(CONF).start(&program());
    let addr = server.addr(8080);
    let response = client::get(addr, "/", "h");
    assert_eq!(response.header("X-Hello"), Some("Hello, stranger!"));
    assert_eq!(response.text(), "body");
    let named = "GET / HTTP/1.1\r\nHost: h\r\nX-Name: Ann\r\nConnection: close\r\n\r\n";
    let response = client::exchange(addr, named);
    assert_eq!(response.header("X-Hello"), Some("Hello, Ann!"));
    let response = client::get(addr, "/b", "h");
    assert_eq!(response.header("X-Hello"), Some("other"));
    assert_eq!(response.text(), "stranger");
    assert!(server.stop().success());
}

#[test]
fn its_mistakes_are_reported_like_all_others() {
    let (status, text) = Setup::new("events { }\nhttp {\n hello;\n}").test(&program());
    assert_eq!(status.code(), Some(1));
    let expected = "nginx: [emerg] invalid number of arguments in \"hello\" directive in ";
    assert!(text.contains(expected), "{text}");
    assert!(text.contains("nginx.conf:3\n"), "{text}");
}
