//! Content that wants more than its share: what it costs, and that the rest of the server does not notice.
//! Limits and files that are kept open, across a reload.

mod common;

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use common::client::{self, Client};
use common::origin::Origin;
use common::proc::{Couloir, Server, Setup};
use common::{DEADLINE, wait_for};

/// A server with `body` in it and `outside` beside it.
fn server(outside: &str, body: &str, setup: impl FnOnce(Setup) -> Setup) -> Server {
    let conf = format!(
        "%%TEST_GLOBALS%% worker_processes 1; events {{ }}
         http {{ %%TEST_GLOBALS_HTTP%% {outside}
             server {{ listen 127.0.0.1:%%PORT_8080%%; root %%TESTDIR%%/www;
                 location = /alive {{ return 200 alive; }}
                 {body} }} }}"
    );
    setup(Setup::new(&conf)).start(&Couloir::program())
}

fn get(addr: SocketAddr, target: &str) -> (u16, String) {
    let response = client::get(addr, target, "localhost");
    (response.status, response.text())
}

fn alive(server: &Server) {
    assert_eq!(get(server.addr(8080), "/alive"), (200, "alive".into()));
}

/// Memory of the server's processes, KiB.
fn memory(server: &Server) -> u64 {
    let field = |pid: i32, name: &str| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let own = server.pid().as_raw();
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let mine = pid == own || field(pid, "PPid:")? == own as u64;
        mine.then(|| field(pid, "VmRSS:")).flatten()
    });
    all.sum()
}

/// Reads `count` bytes of the answer to `target`, then no more for as long as the client lives.
fn begin(server: &Server, target: &str, count: usize) -> Client {
    let mut client = Client::connect(server.addr(8080));
    client
        .send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        .unwrap();
    assert_eq!(client.response_head().unwrap().status, 200);
    client.take(count).unwrap();
    client
}

#[test]
fn a_gzip_bomb_is_unpacked_as_it_is_read() {
    // one member of 8 MiB of nothing, again and again: 800 MiB from less than 1 MiB
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packer.write_all(&vec![0; 8 << 20]).unwrap();
    let bomb = packer.finish().unwrap().repeat(100);
    assert!(bomb.len() < 1 << 20);
    let origin = Origin::respond(move |_| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            bomb.len()
        );
        [head.as_bytes(), &bomb].concat()
    });
    let server = server(
        "",
        "location / { gunzip on; proxy_pass http://%%ORIGIN%%; }",
        |s| s.set("ORIGIN", origin.addr()),
    );
    alive(&server);
    let before = memory(&server);
    let stalled = begin(&server, "/bomb", 64 << 10);
    alive(&server);
    // the client takes part of it and stalls: what it does not take is not unpacked
    let _more = begin(&server, "/bomb", 4 << 20);
    alive(&server);
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB");
    drop(stalled);
}

#[test]
fn substitutions_that_grow_are_sent_as_they_are_made() {
    // 4 MiB that become 4 GiB
    let long = "y".repeat(1000);
    let server = server(
        "",
        &format!(
            "location / {{ sub_filter x '{long}'; sub_filter_once off; sub_filter_types *; }}"
        ),
        |s| s.file("www/many.html", "x".repeat(4 << 20), None),
    );
    alive(&server);
    let before = memory(&server);
    let stalled = begin(&server, "/many.html", 1 << 20);
    alive(&server);
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB");
    drop(stalled);
    alive(&server);
}

#[test]
fn includes_that_include_themselves_end() {
    let server = server("", "location / { ssi on; }", |s| {
        s.file(
            "www/one.html",
            "1<!--#include virtual=\"/two.html\" -->",
            None,
        )
        .file(
            "www/two.html",
            "2<!--#include virtual=\"/one.html\" -->",
            None,
        )
        .file(
            "www/start.html",
            "<!--#include virtual=\"/wide.html\" -->",
            None,
        )
        .file(
            "www/wide.html",
            "w<!--#include virtual=\"/wide.html\" --><!--#include virtual=\"/wide.html\" -->",
            None,
        )
    });
    let (status, text) = get(server.addr(8080), "/one.html");
    assert_eq!(status, 200);
    assert!(text.starts_with("1212") && text.len() < 4096, "{text}");
    server.wait_for_text("error.log", "subrequests cycle while processing");
    // each includes itself twice: no more than the limit in all
    let mut client = Client::connect(server.addr(8080)).limit(Duration::from_secs(60));
    client
        .send("GET /start.html HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    alive(&server);
    let wide = client.response("GET").unwrap();
    assert_eq!(wide.status, 200);
    assert!(wide.body.len() < 1 << 20, "{}", wide.body.len());
    alive(&server);
}

#[test]
fn slow_password_hashes_do_not_hold_up_others() {
    // bcrypt of 2^12 rounds: a good part of a second
    let server = server(
        "",
        "location /closed { auth_basic x; auth_basic_user_file %%TESTDIR%%/users; }",
        |s| {
            s.file(
                "users",
                "u:$2y$12$abcdefghijklmnopqrstuu/LVz6MZlItEy42I2juLihZ66HnQx/cy\n",
                None,
            )
        },
    );
    let addr = server.addr(8080);
    let mut other = Client::connect(addr);
    let ask = "GET /alive HTTP/1.1\r\nHost: localhost\r\n\r\n";
    other.send(ask).unwrap();
    assert_eq!(other.response("GET").unwrap().status, 200);
    let overtaken = (0..10).any(|_| {
        let mut slow = Client::connect(addr);
        slow.send("GET /closed HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Basic dTp3cm9uZw==\r\n\r\n")
            .unwrap();
        // the thread has the slow one before it gets to these
        for _ in 0..3 {
            other.send(ask).unwrap();
            assert_eq!(other.response("GET").unwrap().status, 200);
        }
        slow.stream().set_nonblocking(true).unwrap();
        let waits = slow.stream().peek(&mut [0]).is_err();
        slow.stream().set_nonblocking(false).unwrap();
        assert_eq!(slow.response("GET").unwrap().status, 401);
        waits
    });
    assert!(overtaken);
}

#[test]
fn limits_are_remembered_across_a_reload() {
    let mut server = server(
        "limit_req_zone $arg_k zone=req:1m rate=1r/m; limit_conn_zone $arg_k zone=conn:1m;",
        "location /req { limit_req zone=req; alias %%TESTDIR%%/www/a; }
         location /conn { limit_conn conn 1; proxy_pass http://127.0.0.1:%%PORT_8081%%; }
         location /new { return 404; }",
        |s| s.file("www/a", "a", None),
    );
    let addr = server.addr(8080);
    // holds its place: nobody answers it
    let silent = std::net::TcpListener::bind(("127.0.0.1", server.port(8081))).unwrap();
    assert_eq!(get(addr, "/req?k=1").0, 200);
    assert_eq!(get(addr, "/req?k=1").0, 503);
    let mut held = Client::connect(addr);
    held.send("GET /conn?k=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let (_origin, _) = silent.accept().unwrap();
    assert_eq!(get(addr, "/conn?k=1").0, 503);
    server.write_conf(
        "%%TEST_GLOBALS%% worker_processes 1; events { }
         http { %%TEST_GLOBALS_HTTP%%
             limit_req_zone $arg_k zone=req:1m rate=1r/m; limit_conn_zone $arg_k zone=conn:1m;
             server { listen 127.0.0.1:%%PORT_8080%%; root %%TESTDIR%%/www;
                 location /req { limit_req zone=req; alias %%TESTDIR%%/www/a; }
                 location /conn { limit_conn conn 1; proxy_pass http://127.0.0.1:%%PORT_8081%%; }
                 location /new { return 200 new; } } }",
    );
    server.reload();
    let there = wait_for(DEADLINE, || (get(addr, "/new").0 == 200).then_some(()));
    assert!(there.is_some(), "{}", server.log());
    assert_eq!(get(addr, "/req?k=1").0, 503);
    assert_eq!(get(addr, "/req?k=2").0, 200);
    assert_eq!(get(addr, "/conn?k=1").0, 503);
}

#[test]
fn open_files_are_believed_for_a_while() {
    let conf = |answer: &str| {
        format!(
            "%%TEST_GLOBALS%% worker_processes 1; events {{ }}
             http {{ %%TEST_GLOBALS_HTTP%%
                 server {{ listen 127.0.0.1:%%PORT_8080%%; root %%TESTDIR%%/www;
                     open_file_cache max=100; open_file_cache_valid 1h;
                     location / {{ }}
                     location /often/ {{ open_file_cache_min_uses 3; }}
                     location /errors/ {{ open_file_cache_errors on; }}
                     location /off/ {{ open_file_cache off; }}
                     location /tried/ {{ open_file_cache_errors on; try_files $uri =410; }}
                     location /state {{ return 200 {answer}; }} }} }}"
        )
    };
    let mut setup = Setup::new(&conf("old"));
    for name in ["a", "often/a", "off/a", "tried/a"] {
        setup = setup.file(&format!("www/{name}"), "old", None);
    }
    let mut server = setup.start(&Couloir::program());
    let addr = server.addr(8080);
    fs::create_dir(server.dir().join("www/errors")).unwrap();
    for name in ["/a", "/often/a", "/off/a", "/tried/a"] {
        assert_eq!(get(addr, name), (200, "old".into()), "{name}");
    }
    assert_eq!(get(addr, "/errors/a").0, 404);
    assert_eq!(get(addr, "/tried/none").0, 410);
    assert_eq!(get(addr, "/none").0, 404);
    for name in [
        "a",
        "often/a",
        "off/a",
        "tried/a",
        "errors/a",
        "tried/none",
        "none",
    ] {
        server.write("new", "newer");
        fs::rename(
            server.dir().join("new"),
            server.dir().join("www").join(name),
        )
        .unwrap();
    }
    let after = |name: &str| get(addr, name);
    assert_eq!(after("/a"), (200, "old".into()));
    assert_eq!(after("/often/a"), (200, "newer".into()));
    assert_eq!(after("/off/a"), (200, "newer".into()));
    assert_eq!(after("/tried/a"), (200, "old".into()));
    assert_eq!(after("/errors/a").0, 404);
    assert_eq!(after("/tried/none").0, 410);
    assert_eq!(after("/none"), (200, "newer".into()));
    // a new configuration knows nothing of the old one's files
    server.write_conf(&conf("new"));
    server.reload();
    let there = wait_for(DEADLINE, || (get(addr, "/state").1 == "new").then_some(()));
    assert!(there.is_some(), "{}", server.log());
    for name in ["/a", "/tried/a", "/errors/a", "/tried/none"] {
        assert_eq!(after(name), (200, "newer".into()), "{name}");
    }
}

#[test]
fn parameters_of_open_file_cache() {
    for (text, message) in [
        ("max=0", "invalid \"open_file_cache\" parameter \"max=0\""),
        (
            "inactive=1m",
            "\"open_file_cache\" must have the \"max\" parameter",
        ),
        (
            "max=1 inactive=x",
            "invalid \"open_file_cache\" parameter \"inactive=x\"",
        ),
        ("on", "invalid \"open_file_cache\" parameter \"on\""),
    ] {
        let conf = format!("events {{ }} http {{ open_file_cache {text}; }}");
        let (status, said) = Setup::new(&conf).test(&Couloir::program());
        assert!(
            !status.success() && said.contains(message),
            "{text}: {said}"
        );
    }
}

/// The configuration of docs/recipes.md, with origins of our own: a client keeps the variant that he was given.
#[test]
fn variants_stay() {
    let page = include_str!("../docs/recipes.md");
    let begin = page.find("http {\n").unwrap();
    let text = &page[begin..begin + page[begin..].find("\n```").unwrap()];
    let origin = |name: &'static str| {
        Origin::respond(move |r| {
            let variant = r.header("x-variant").unwrap_or_default();
            let body = format!("{name} {variant}");
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .into()
        })
    };
    let (a, b) = (origin("a"), origin("b"));
    let conf = text
        .replace(
            "http {",
            "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%",
        )
        .replace("listen 80;", "listen 127.0.0.1:%%PORT_8080%%;")
        .replace("10.0.0.1:8080", &a.addr().to_string())
        .replace("10.0.0.2:8080", &b.addr().to_string())
        // often enough to meet both
        .replace("5% b", "50% b");
    let server = Setup::new(&conf).start(&Couloir::program());
    let ask = |target: &str, cookies: &str| {
        client::exchange(
            server.addr(8080),
            &format!("GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{cookies}\r\n"),
        )
    };
    let mut seen = [0; 2];
    for _ in 0..30 {
        let first = ask("/", "");
        let drawn = first.text();
        assert!(drawn == "a a" || drawn == "b b", "{drawn}");
        seen[usize::from(drawn == "b b")] += 1;
        let set = |name: &str| {
            let all = first.headers.iter();
            let mut cookies = all.filter(|(n, _)| n.eq_ignore_ascii_case("set-cookie"));
            let cookie = cookies
                .find(|(_, v)| v.starts_with(&format!("{name}=")))
                .unwrap();
            cookie.1.split(';').next().unwrap().to_owned()
        };
        let uid = set("uid");
        // the key alone draws the same again; so does the cookie alone
        assert_eq!(ask("/", &format!("Cookie: {uid}\r\n")).text(), drawn);
        assert_eq!(
            ask("/", &format!("Cookie: {}\r\n", set("variant"))).text(),
            drawn
        );
        assert_eq!(
            ask("/?variant=b", &format!("Cookie: {uid}\r\n")).text(),
            "b b"
        );
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}
