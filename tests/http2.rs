//! HTTP/2 towards clients, with the `h2` crate as the client.

mod common;

use bytes::{Bytes, BytesMut};
use common::DEADLINE;
use common::client::Client;
use common::origin::{Origin, Step};
use common::proc::{Couloir, Server, Setup};
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use nix::sys::signal::Signal;
use std::io::Read;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const CONF: &str = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%% http2 on; %%HTTP%%
    server { listen 127.0.0.1:%%PORT_8080%%; server_name localhost; location / { %%LOCATION%% } }
    server { listen 127.0.0.1:%%PORT_8080%%; server_name off; http2 off; } }";

fn server(location: &str) -> Server {
    start("", location)
}

fn start(http: &str, location: &str) -> Server {
    let program = Couloir::program();
    Setup::new(CONF)
        .set("HTTP", http)
        .set("LOCATION", location)
        .start(&program)
}

/// A connection and the task that moves its frames.
struct Session {
    send: SendRequest<Bytes>,
    frames: JoinHandle<Result<(), h2::Error>>,
}

impl Session {
    async fn new(addr: SocketAddr) -> Session {
        Session::with(addr, &Builder::new()).await
    }

    async fn with(addr: SocketAddr, builder: &Builder) -> Session {
        let stream = TcpStream::connect(addr).await.unwrap();
        // as clients of HTTP/2 do: else each frame of a body waits for the one before it to be acknowledged
        stream.set_nodelay(true).unwrap();
        let (send, connection) = builder.handshake(stream).await.unwrap();
        Session {
            send,
            frames: tokio::spawn(connection),
        }
    }

    async fn send(
        &self,
        request: Request<()>,
        body: &[u8],
        trailers: Option<HeaderMap>,
    ) -> Result<Response<RecvStream>, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let ended = body.is_empty() && trailers.is_none();
        let (response, mut stream) = send.send_request(request, ended)?;
        let mut rest = Bytes::copy_from_slice(body);
        while !rest.is_empty() {
            stream.reserve_capacity(rest.len());
            let n = std::future::poll_fn(|cx| stream.poll_capacity(cx))
                .await
                .unwrap()?;
            let n = n.min(rest.len());
            let part = rest.split_to(n);
            stream.send_data(part, rest.is_empty() && trailers.is_none())?;
        }
        if let Some(t) = trailers {
            stream.send_trailers(t)?;
        }
        response.await
    }

    async fn get(&self, path: &str) -> Result<Response<Vec<u8>>, h2::Error> {
        whole(self.send(to(path), b"", None).await?).await
    }
}

fn to(path: &str) -> Request<()> {
    Request::get(format!("http://localhost{path}"))
        .body(())
        .unwrap()
}

async fn whole(response: Response<RecvStream>) -> Result<Response<Vec<u8>>, h2::Error> {
    let (head, mut body) = response.into_parts();
    let mut all = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok(Response::from_parts(head, all.to_vec()))
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, test).await.expect("hung") })
}

/// Bytes that are not all the same, so that a piece in the wrong place shows.
fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i / 251) as u8 ^ (i % 251) as u8).collect()
}

#[test]
fn a_response_and_its_variables() {
    let s = server(
        "add_header X-Http2 $http2; return 200 \"$request|$server_protocol|$host|$http_host|$http_cookie\";",
    );
    run(async {
        let session = Session::new(s.addr(8080)).await;
        let mut request = to("/a?b=c");
        request
            .headers_mut()
            .append("cookie", "a=1".parse().unwrap());
        request
            .headers_mut()
            .append("cookie", "b=2".parse().unwrap());
        let r = whole(session.send(request, b"", None).await.unwrap())
            .await
            .unwrap();
        assert_eq!(
            (r.status().as_u16(), &r.headers()["x-http2"]),
            (200, &"h2c".parse().unwrap())
        );
        assert!(!r.headers().contains_key("connection") && r.headers().contains_key("server"));
        let body = String::from_utf8(r.into_body()).unwrap();
        assert_eq!(
            body,
            "GET /a?b=c HTTP/2.0|HTTP/2.0|localhost|localhost|a=1; b=2"
        );
    });
}

#[test]
fn http1_goes_on_where_http2_is_spoken() {
    let s = server("return 200 ok;");
    for (bytes, status) in [
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("PRI * HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("P\r\n", 400),
    ] {
        let mut c = Client::connect(s.addr(8080));
        // the first byte alone decides nothing and must not get lost
        c.send(&bytes[..1]).unwrap();
        c.send(&bytes[1..]).unwrap();
        assert_eq!(c.response("GET").unwrap().status, status, "{bytes}");
    }
}

#[test]
fn a_server_that_does_not_speak_it() {
    let s = server("return 200 ok;");
    run(async {
        let session = Session::new(s.addr(8080)).await;
        let request = Request::get("http://off/").body(()).unwrap();
        assert_eq!(
            session.send(request, b"", None).await.unwrap().status(),
            421
        );
        assert_eq!(session.get("/").await.unwrap().status(), 200);
    });
}

#[test]
fn large_bodies_both_ways_through_small_windows() {
    let body = pattern(700_000);
    let origin = Origin::respond(|r| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            r.body().len()
        );
        [head.as_bytes(), r.body()].concat()
    });
    for extra in ["", "proxy_request_buffering off;", "proxy_buffering off;"] {
        for preread in ["0", "64k"] {
            let conf = format!(
                "client_max_body_size 0; {extra} proxy_pass http://{};",
                origin.addr()
            );
            let s = start(&format!("http2_body_preread_size {preread};"), &conf);
            run(async {
                let mut builder = Builder::new();
                builder
                    .initial_window_size(20_000)
                    .initial_connection_window_size(65_535);
                let session = Session::with(s.addr(8080), &builder).await;
                // a body before the settings are known is refused where no window is open for it
                assert_eq!(session.get("/").await.unwrap().status(), 200);
                // the origin does not decode chunks
                let post = Request::post("http://localhost/")
                    .header("content-length", body.len())
                    .body(())
                    .unwrap();
                let r = whole(session.send(post, &body, None).await.unwrap())
                    .await
                    .unwrap();
                assert_eq!(
                    (r.status().as_u16(), r.body().len()),
                    (200, body.len()),
                    "{extra} {preread}: {}",
                    s.log()
                );
                assert!(r.into_body() == body, "{extra} {preread}");
            });
        }
    }
}

#[test]
fn nothing_is_cut_off_where_connections_are_not_kept() {
    let s = Setup::new(&CONF.replace("%%LOCATION%%", "root %%TESTDIR%%;"))
        .set("HTTP", "keepalive_timeout 0;");
    let body = pattern(500_000);
    let s = s.file("big", &body, None).start(&Couloir::program());
    run(async {
        let session = Session::new(s.addr(8080)).await;
        let r = session.get("/big").await.unwrap();
        assert_eq!((r.status().as_u16(), r.body().len()), (200, body.len()));
        assert!(r.into_body() == body);
        let _ = session.frames.await.unwrap();
    });
}

#[test]
fn many_at_once() {
    let s = server("return 200 $arg_n;");
    run(async {
        let session = Session::new(s.addr(8080)).await;
        let mut tasks = Vec::new();
        for n in 0..100 {
            let send = Session {
                send: session.send.clone(),
                frames: tokio::spawn(async { Ok(()) }),
            };
            tasks.push(tokio::spawn(async move {
                (n, send.get(&format!("/?n={n}")).await.unwrap().into_body())
            }));
        }
        for t in tasks {
            let (n, body) = t.await.unwrap();
            assert_eq!(body, n.to_string().into_bytes());
        }
    });
}

#[test]
fn an_idle_connection_and_a_drained_one_end_with_goaway() {
    let s = start("keepalive_timeout 50ms;", "return 200 ok;");
    run(async {
        let session = Session::new(s.addr(8080)).await;
        assert_eq!(session.get("/").await.unwrap().status(), 200);
        // an error here would be anything but NO_ERROR
        session.frames.await.unwrap().unwrap();
    });
    let s = server("return 200 ok;");
    run(async {
        let session = Session::new(s.addr(8080)).await;
        assert_eq!(session.get("/").await.unwrap().status(), 200);
        s.signal(Signal::SIGQUIT);
        session.frames.await.unwrap().unwrap();
    });
}

#[test]
fn a_reload_keeps_connections() {
    let origin = Origin::respond(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec());
    let mut s = server(&format!("proxy_pass http://{};", origin.addr()));
    run(async {
        let session = Session::new(s.addr(8080)).await;
        assert_eq!(session.get("/").await.unwrap().into_body(), b"ok");
        s.write_conf(
            &CONF
                .replace("%%HTTP%%", "")
                .replace("%%LOCATION%%", "return 200 new;"),
        );
        s.reload();
        // the same connection sees the new configuration
        let deadline = std::time::Instant::now() + common::DEADLINE;
        while session.get("/").await.unwrap().into_body() != b"new" {
            assert!(std::time::Instant::now() < deadline);
        }
        assert!(!session.frames.is_finished());
    });
}

#[test]
fn requests_of_one_connection_are_counted() {
    let s = start("keepalive_requests 2;", "return 200 $connection_requests;");
    run(async {
        let session = Session::new(s.addr(8080)).await;
        for n in ["1", "2"] {
            assert_eq!(session.get("/").await.unwrap().into_body(), n.as_bytes());
        }
        session.frames.await.unwrap().unwrap();
    });
}

#[test]
fn a_head_that_is_too_large() {
    let s = start("large_client_header_buffers 2 1k;", "return 200 ok;");
    run(async {
        let session = Session::new(s.addr(8080)).await;
        let mut request = to("/");
        request
            .headers_mut()
            .append("x", "y".repeat(1300).parse().unwrap());
        session.send(request, b"", None).await.unwrap_err();
        let e = session.frames.await.unwrap().unwrap_err();
        assert_eq!(e.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{e:?}");
    });
}

/// What is logged of a body that is larger than allowed: over HTTP/1 as soon as a chunk announces it.
#[test]
fn a_body_that_turns_out_too_large() {
    let s = start("client_max_body_size 10;", "proxy_pass http://127.0.0.1:1;");
    let mut c = Client::connect(s.addr(8080));
    c.send("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n123456\r\nff\r\n1")
        .unwrap();
    assert_eq!(c.response("POST").unwrap().status, 413);
    s.wait_for_text(
        "error.log",
        "client intended to send too large chunked body: 6+255 bytes, client",
    );
    run(async {
        let session = Session::new(s.addr(8080)).await;
        let post = Request::post("http://localhost/").body(()).unwrap();
        let response = session.send(post, &[b'x'; 20], None).await.unwrap();
        assert_eq!(response.status(), 413);
    });
    s.wait_for_text(
        "error.log",
        "client intended to send too large chunked body: 20 bytes, client",
    );
}

#[test]
fn a_reset_ends_the_exchange_with_the_origin() {
    let origin = Origin::script(vec![vec![Step::Read, Step::WaitForClose]]);
    let s = server(&format!("proxy_pass http://{};", origin.addr()));
    run(async {
        let session = Session::new(s.addr(8080)).await;
        let mut send = session.send.clone().ready().await.unwrap();
        let (response, mut stream) = send.send_request(to("/"), true).unwrap();
        while origin.requests().is_empty() {
            tokio::task::yield_now().await;
        }
        stream.send_reset(Reason::CANCEL);
        drop(response);
        while !s.log().contains("\" 499 ") && !s.read("access.log").contains("\" 499 ") {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_broken_response_does_not_look_whole() {
    let origin = Origin::script(vec![vec![
        Step::Read,
        Step::send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
        Step::Close,
    ]]);
    let s = server(&format!("proxy_pass http://{};", origin.addr()));
    run(async {
        let session = Session::new(s.addr(8080)).await;
        assert!(session.get("/").await.is_err_and(|e| e.is_reset()));
    });
}

#[test]
fn silence_after_the_preface_is_not_waited_for_forever() {
    let s = start("client_header_timeout 100ms;", "return 200 ok;");
    for bytes in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\n",
    ] {
        let mut c = Client::connect(s.addr(8080));
        c.send(bytes).unwrap();
        let mut rest = Vec::new();
        c.stream().set_read_timeout(Some(DEADLINE)).unwrap();
        // closed, politely or not, but closed
        let _ = c.stream().read_to_end(&mut rest);
    }
}
