//! Groups that change while they serve: names that resolve anew, health checks, the runtime API.

mod common;

#[path = "upstream/api.rs"]
mod api;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};

use common::client::{Client, Response, get};
use common::dns::{Dns, Records};
use common::origin::Origin;
use common::proc::{Couloir, Server, Setup};
use common::{DEADLINE, wait_for};

/// An origin that answers with its own name.
fn named(name: &'static str) -> Origin {
    Origin::respond(move |_| ok(name))
}

fn ok(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let done = wait_for(DEADLINE, || ready().then_some(()));
    assert!(done.is_some(), "not in time: {what}");
}

fn body(server: &Server) -> String {
    get(server.addr(8080), "/", "h").text()
}

// the state file is written by the user that serves
const HEAD: &str =
    "%%TEST_GLOBALS%% user root; worker_processes 2; events { } http { %%TEST_GLOBALS_HTTP%% ";

fn start(http: &str, values: &[(&str, String)]) -> Server {
    let mut setup = Setup::new(&format!("{HEAD}{http}}}"));
    for (name, value) in values {
        setup = setup.set(name, value);
    }
    setup.start(&Couloir::program())
}

fn srv(list: &[(u16, u16, &Origin)]) -> Records {
    let record = |(priority, weight, origin): &(u16, u16, &Origin)| {
        (*priority, *weight, origin.port(), "origin.test".to_owned())
    };
    Records::Srv(list.iter().map(record).collect())
}

#[test]
fn addresses_follow_the_name_without_a_lost_request() {
    let (a, b) = (named("a"), named("b"));
    let dns = Dns::start();
    dns.set("origin.test", Records::A(vec![Ipv4Addr::LOCALHOST]));
    dns.set("_http._tcp.app.test", srv(&[(1, 1, &a)]));
    let mut server = start(
        "resolver %%DNS%% valid=1s ipv6=off; resolver_timeout 1s;
         upstream app { zone app 64k; server app.test resolve service=http; }
         server { listen 127.0.0.1:%%PORT_8080%%; location / { proxy_pass http://app; } }",
        &[("DNS", dns.addr().to_string())],
    );
    eventually("the first answer", || body(&server) == "a");

    // clients go on while the name moves
    let stop = Arc::new(AtomicBool::new(false));
    let addr = server.addr(8080);
    let load = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let (mut bad, mut client) = (Vec::new(), Client::connect(addr));
            while !stop.load(Ordering::SeqCst) {
                let sent = client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
                match sent.and_then(|()| client.response("GET")) {
                    Ok(r) if r.status == 200 && r.keeps_alive() => {}
                    Ok(r) if r.status == 200 => client = Client::connect(addr),
                    other => {
                        bad.push(format!("{other:?}"));
                        client = Client::connect(addr);
                    }
                }
            }
            bad
        }
    });
    dns.set("_http._tcp.app.test", srv(&[(1, 1, &b)]));
    eventually("the new address", || body(&server) == "b");
    // two of one priority share, the third backs them up
    dns.set("_http._tcp.app.test", srv(&[(1, 3, &a), (2, 9, &b)]));
    eventually("the better priority", || body(&server) == "a");
    stop.store(true, Ordering::SeqCst);
    let bad = load.join().unwrap();
    assert!(bad.is_empty(), "{bad:?}");

    // a name that fails keeps what it had, a reload too
    dns.set("_http._tcp.app.test", Records::Code(2));
    server.wait_for_text(
        "error.log",
        "service http of app.test could not be resolved (2: Server failure)",
    );
    assert_eq!(body(&server), "a");
    let conf = format!(
        "{HEAD}resolver {} valid=1s ipv6=off; resolver_timeout 1s;
         upstream app {{ zone app 64k; server app.test resolve service=http; }}
         server {{ listen 127.0.0.1:%%PORT_8080%%; location / {{ add_header X-Conf 2; proxy_pass http://app; }} }} }}",
        dns.addr()
    );
    server.write_conf(&conf);
    server.reload();
    let mut seen = Vec::new();
    eventually("the new configuration", || {
        let r = get(server.addr(8080), "/", "h");
        seen.push((r.status, r.text()));
        r.header("X-Conf") == Some("2")
    });
    assert!(seen.iter().all(|r| *r == (200, "a".to_owned())), "{seen:?}");

    // one that does not exist has no addresses
    dns.set("_http._tcp.app.test", Records::Code(3));
    eventually("nobody left", || {
        get(server.addr(8080), "/", "h").status == 502
    });
    dns.set("_http._tcp.app.test", srv(&[(1, 1, &b)]));
    eventually("somebody again", || body(&server) == "b");
}

#[test]
fn names_need_a_zone_and_a_resolver() {
    let refused = |upstream: &str| {
        let conf = format!(
            "{HEAD}upstream app {{ {upstream} }} server {{ listen 127.0.0.1:%%PORT_8080%%; }} }}"
        );
        let (status, said) = Setup::new(&conf).test(&Couloir::program());
        assert!(!status.success(), "{said}");
        said
    };
    assert!(refused("server app.test resolve;").contains("to be in shared memory"));
    assert!(
        refused("zone a 64k; server app.test resolve;")
            .contains("no resolver defined to resolve names at run time in upstream \"app\"")
    );
    assert!(
        refused("zone a 64k; server app.test service=http;")
            .contains("service upstream \"app.test\" requires \"resolve\" parameter")
    );
    assert!(
        refused("zone a 64k; server app.test:80 resolve service=http;")
            .contains("may not have port")
    );
    assert!(
        refused("zone a 64k; server 127.0.0.1 resolve service=http;")
            .contains("requires domain name")
    );
    assert!(refused("state %%TESTDIR%%/x;").contains("\"state\" requires \"zone\""));
}

/// An origin whose health is set from outside; counts its checks.
struct Patient {
    origin: Origin,
    status: Arc<AtomicU16>,
    checks: Arc<AtomicUsize>,
}

impl Patient {
    fn new(name: &'static str) -> Self {
        let status = Arc::new(AtomicU16::new(200));
        let checks = Arc::new(AtomicUsize::new(0));
        let origin = Origin::respond({
            let (status, checks) = (status.clone(), checks.clone());
            move |request| match request.target().as_str() {
                "/health" => {
                    checks.fetch_add(1, Ordering::SeqCst);
                    let status = status.load(Ordering::SeqCst);
                    format!(
                        "HTTP/1.1 {status} X\r\nX-Name: {name}\r\nContent-Length: 8\r\n\r\nall good"
                    )
                    .into_bytes()
                }
                _ => ok(name),
            }
        });
        Self {
            origin,
            status,
            checks,
        }
    }

    fn set(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn wait_for_checks(&self, more: usize) {
        let goal = self.checks.load(Ordering::SeqCst) + more;
        eventually("checks", || self.checks.load(Ordering::SeqCst) >= goal);
    }
}

fn all_from(server: &Server, name: &str) -> bool {
    (0..4).all(|_| body(server) == name)
}

#[test]
fn an_origin_that_turns_bad_is_left_alone_until_it_is_good_again() {
    let (a, b) = (Patient::new("a"), Patient::new("b"));
    let http = "log_format none ''; match good { status 200 204; header X-Name; body ~ good$; }
         upstream app { zone app 64k; server %%A%%; server %%B%%; }
         server { listen 127.0.0.1:%%PORT_8080%%;
             location / { proxy_pass http://app; proxy_set_header X-Who $proxy_host;
                 health_check interval=40ms jitter=10ms fails=2 passes=2 uri=/health match=good keepalive_time=60s; } }";
    let values = [
        ("A", a.origin.addr().to_string()),
        ("B", b.origin.addr().to_string()),
    ];
    let mut server = start(http, &values);
    a.wait_for_checks(2);
    b.wait_for_checks(2);
    let check = &a.origin.requests()[0];
    assert_eq!(check.line(), "GET /health HTTP/1.1");
    assert_eq!(check.header("Host").as_deref(), Some("app"));
    assert_eq!(check.header("X-Who").as_deref(), Some("app"));

    // one connection for all checks; requests had theirs
    assert!(a.origin.connections() <= 3, "{}", a.origin.connections());

    a.set(500);
    let text = format!(
        "peer is unhealthy while checking status code, health check \"good\" of peer {} in upstream \"app\"",
        a.origin.addr()
    );
    server.wait_for_text("error.log", &text);
    assert!(all_from(&server, "b"));

    // the verdict survives a reload
    let conf = format!("{HEAD}{http}}}")
        .replace("location /", "add_header X-Conf 2; location /")
        .replace("%%A%%", &values[0].1)
        .replace("%%B%%", &values[1].1);
    server.write_conf(&conf);
    server.reload();
    let mut seen = Vec::new();
    eventually("the new configuration", || {
        let r = get(server.addr(8080), "/", "h");
        seen.push(r.text());
        r.header("X-Conf") == Some("2")
    });
    assert!(seen.iter().all(|name| name == "b"), "{seen:?}");
    a.wait_for_checks(2);
    assert!(all_from(&server, "b"));

    a.set(200);
    eventually("a is back", || body(&server) == "a");
}

#[test]
fn mandatory_checks_come_before_the_first_request() {
    let (a, b) = (Patient::new("a"), Patient::new("b"));
    a.set(503);
    b.set(503);
    let server = start(
        "upstream app { zone app 64k; server %%A%%; server %%B%%; }
         server { listen 127.0.0.1:%%PORT_8080%%;
             location / { proxy_pass http://app; health_check interval=50ms uri=/health mandatory; }
             location /api { api; } }",
        &[
            ("A", a.origin.addr().to_string()),
            ("B", b.origin.addr().to_string()),
        ],
    );
    assert_eq!(get(server.addr(8080), "/", "h").status, 502);
    b.set(200);
    eventually("b passes", || body(&server) == "b");
    assert!(all_from(&server, "b"));
    eventually("a is known to be unhealthy", || {
        let view = json(&get(
            server.addr(8080),
            "/api/9/http/upstreams/app",
            "localhost",
        ));
        let (a, b) = (&view["peers"][0], &view["peers"][1]);
        a["state"] == "unhealthy"
            && a["health_checks"]["last_passed"] == false
            && a["health_checks"]["unhealthy"] == 1
            && a["downtime"].as_u64().is_some_and(|ms| ms > 0)
            && b["state"] == "up"
            && b["responses"]["2xx"].as_u64().is_some_and(|n| n >= 4)
            && b["responses"]["codes"]["200"] == b["responses"]["total"]
    });
}

#[test]
fn a_check_of_the_port_alone() {
    let a = named("a");
    let gone = common::ports::Port::reserve();
    let server = start(
        "upstream app { zone app 64k; server %%A%%; server 127.0.0.1:%%GONE%%; }
         server { listen 127.0.0.1:%%PORT_8080%%;
             location / { proxy_pass http://app; proxy_next_upstream off;
                 health_check type=tcp interval=50ms; } }",
        &[
            ("A", a.addr().to_string()),
            ("GONE", gone.number().to_string()),
        ],
    );
    server.wait_for_text(
        "error.log",
        "peer is unhealthy while connecting to upstream, health check \"\"",
    );
    assert!(all_from(&server, "a"));
}

/// A gRPC server that knows the health of one service.
fn grpc_server() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_health(stream));
            }
        });
    });
    addr
}

async fn serve_health(stream: tokio::net::TcpStream) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((mut request, mut respond))) = connection.accept().await {
        let path = request.uri().path().to_owned();
        assert_eq!(request.headers()["content-type"], "application/grpc");
        tokio::spawn(async move {
            let asked = request.body_mut().data().await.unwrap().unwrap();
            let known = path == "/grpc.health.v1.Health/Check" && asked.ends_with(b"app.Main");
            let response = http::Response::builder().header("content-type", "application/grpc");
            if !known {
                let unknown = response.header("grpc-status", "12").body(()).unwrap();
                respond.send_response(unknown, true).unwrap();
                return;
            }
            let mut body = respond
                .send_response(response.body(()).unwrap(), false)
                .unwrap();
            let message = bytes::Bytes::from_static(b"\0\0\0\0\x02\x08\x01");
            body.send_data(message, false).unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            body.send_trailers(trailers).unwrap();
        });
    }
}

#[test]
fn checks_by_grpc() {
    let addr = grpc_server();
    let server = start(
        "upstream good { zone good 64k; server %%A%%; }
         upstream bad { zone bad 64k; server %%A%%; }
         upstream old { zone old 64k; server %%A%%; }
         server { listen 127.0.0.1:%%PORT_8080%%; location /api { api; }
             location /1 { proxy_pass http://good; health_check type=grpc grpc_service=app.Main mandatory interval=50ms; }
             location /2 { proxy_pass http://bad; health_check type=grpc grpc_service=app.Other interval=50ms; }
             location /3 { proxy_pass http://old; health_check type=grpc grpc_status=12 mandatory interval=50ms; } }",
        &[("A", addr.to_string())],
    );
    eventually("verdicts", || {
        let all = json(&get(
            server.addr(8080),
            "/api/9/http/upstreams",
            "localhost",
        ));
        let state = |name: &str| all[name]["peers"][0]["state"].clone();
        state("good") == "up" && state("bad") == "unhealthy" && state("old") == "up"
    });
    server.wait_for_text("error.log", "peer is unhealthy while checking grpc status");
}

fn json(r: &Response) -> serde_json::Value {
    assert_eq!(r.header("Content-Type"), Some("application/json"), "{r:?}");
    serde_json::from_slice(&r.body).unwrap_or_else(|e| panic!("{e} in {}", r.text()))
}
