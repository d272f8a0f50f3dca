//! HTTP/2 towards origins: gRPC and `proxy_http_version 2`, with the `h2` crate as the origin and as the client.

mod common;
#[path = "grpc/web.rs"]
mod web;

use bytes::Bytes;
use common::client;
use common::proc::{Couloir, Server, Setup};
use common::{DEADLINE, wait_for};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::{TcpListener, TcpStream};

/// An origin; its paths say what it does.
struct Origin {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    resets: Arc<AtomicUsize>,
}

impl Origin {
    fn start() -> Origin {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let origin = Origin {
            addr: listener.local_addr().unwrap(),
            connections: Arc::default(),
            resets: Arc::default(),
        };
        let (connections, resets) = (origin.connections.clone(), origin.resets.clone());
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    stream.set_nodelay(true).unwrap();
                    connections.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(serve(stream, resets.clone()));
                }
            });
        });
        origin
    }
}

async fn serve(stream: TcpStream, resets: Arc<AtomicUsize>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(answer(request, respond, resets.clone()));
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    resets: Arc<AtomicUsize>,
) {
    let path = request.uri().path().to_owned();
    let asked = request.headers().clone();
    let mut body = request.into_body();
    let mut head = Response::builder().header("content-type", "application/grpc");
    for (name, shown) in [
        ("te", "x-te"),
        ("content-type", "x-type"),
        ("content-length", "x-length"),
    ] {
        if let Some(value) = asked.get(name) {
            head = head.header(shown, value);
        }
    }
    let head = head.body(()).unwrap();
    match path.as_str() {
        // every piece goes back as it comes
        "/echo" => {
            let mut send = respond.send_response(head, false).unwrap();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                push(&mut send, data).await;
            }
            let _ = send.send_trailers(status("0"));
        }
        // how much came
        "/count" => {
            let mut count = 0;
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                count += data.len();
            }
            let mut send = respond.send_response(head, false).unwrap();
            let _ = send.send_data(count.to_string().into(), false);
            let _ = send.send_trailers(status("0"));
        }
        "/large" => {
            let mut send = respond.send_response(head, false).unwrap();
            push(&mut send, vec![b'x'; 3 << 20].into()).await;
            let _ = send.send_trailers(status("0"));
        }
        // an error in the head alone
        "/only" => {
            let mut head = head;
            head.headers_mut().extend(status("12"));
            let _ = respond.send_response(head, true);
        }
        "/reset" => respond.send_reset(Reason::REFUSED_STREAM),
        "/cut" => {
            let mut send = respond.send_response(head, false).unwrap();
            let _ = send.send_data("part".into(), false);
            // a reset drops what has not been sent: the client says when it has come
            while let Some(Ok(data)) = body.data().await {
                if data == "go" {
                    break;
                }
            }
            send.send_reset(Reason::INTERNAL_ERROR);
        }
        "/hang" => {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            resets.fetch_add(1, Ordering::Relaxed);
        }
        _ => {
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            let _ = send.send_data(path.into(), true);
        }
    }
}

async fn push(send: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        match std::future::poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(Ok(n)) => {
                let n = n.min(data.len());
                if send.send_data(data.split_to(n), false).is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

fn status(code: &'static str) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert("grpc-status", code.parse().unwrap());
    map
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn run<T>(test: impl Future<Output = T>) -> T {
    runtime().block_on(async { tokio::time::timeout(DEADLINE, test).await.expect("hung") })
}

fn server(origin: &Origin) -> Server {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%% http2 on; client_max_body_size 10m;
        upstream u { server %%ORIGIN%%; keepalive 4; }
        server { listen 127.0.0.1:%%PORT_8080%%;
            location / { grpc_pass grpc://u; grpc_read_timeout 20s; }
            location /hang { grpc_pass u; grpc_read_timeout 300ms; error_page 504 = @late; }
            location @late { add_header grpc-status 4 always; default_type application/grpc; return 200; }
            location /h2/ { proxy_pass http://u; proxy_http_version 2; }
        } }";
    Setup::new(conf)
        .set("ORIGIN", origin.addr)
        .start(&Couloir::program())
}

async fn connect(server: &Server) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(server.addr(8080)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    send
}

fn call(path: &str) -> Request<()> {
    Request::post(format!("http://localhost{path}"))
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap()
}

/// Sends a request without a body, or with a whole one; the body of the answer and its trailers.
async fn unary(
    send: &SendRequest<Bytes>,
    path: &str,
    body: &'static [u8],
) -> Result<(Response<()>, Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut send = send.clone().ready().await?;
    let (response, mut stream) = send.send_request(call(path), body.is_empty())?;
    if !body.is_empty() {
        push(&mut stream, Bytes::from_static(body)).await;
        stream.send_data(Bytes::new(), true)?;
    }
    let (head, mut body) = response.await?.into_parts();
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    let trailers = body.trailers().await?;
    Ok((Response::from_parts(head, ()), all, trailers))
}

fn grpc_status(map: Option<&HeaderMap>) -> &str {
    map.and_then(|m| m.get("grpc-status"))
        .map_or("none", |v| v.to_str().unwrap())
}

#[test]
fn unary_calls_keep_their_trailers_and_connections() {
    let origin = Origin::start();
    let server = server(&origin);
    run(async {
        let send = connect(&server).await;
        for _ in 0..3 {
            let (head, body, trailers) = unary(&send, "/echo", b"hello").await.unwrap();
            assert_eq!((head.status().as_u16(), &body[..]), (200, &b"hello"[..]));
            assert_eq!(head.headers()["x-te"], "trailers");
            assert_eq!(grpc_status(trailers.as_ref()), "0");
        }
        let (head, body, _) = unary(&send, "/only", b"x").await.unwrap();
        assert_eq!(grpc_status(Some(head.headers())), "12");
        assert!(body.is_empty());
    });
    assert_eq!(origin.connections.load(Ordering::Relaxed), 1);
}

/// An empty frame behind the head would make it a broken call for grpcio.
#[test]
fn an_error_in_the_head_alone_ends_with_it() {
    let origin = Origin::start();
    let server = server(&origin);
    run(async {
        for path in ["/only", "/hang"] {
            let mut send = connect(&server).await.ready().await.unwrap();
            let (response, _) = send.send_request(call(path), true).unwrap();
            let response = response.await.unwrap();
            assert!(response.body().is_end_stream(), "{path}: {response:?}");
        }
    });
}

#[test]
fn both_directions_flow_at_once() {
    let origin = Origin::start();
    let server = server(&origin);
    run(async {
        let mut send = connect(&server).await.ready().await.unwrap();
        let (response, mut stream) = send.send_request(call("/echo"), false).unwrap();
        stream.send_data("one".into(), false).unwrap();
        let mut body = response.await.unwrap().into_body();
        for text in ["one", "two", "three"] {
            if text != "one" {
                // sent only once the piece before has come back
                stream.send_data(text.into(), false).unwrap();
            }
            let data = body.data().await.unwrap().unwrap();
            assert_eq!(data, text);
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        stream.send_data(Bytes::new(), true).unwrap();
        assert!(body.data().await.is_none());
        assert_eq!(grpc_status(body.trailers().await.unwrap().as_ref()), "0");
    });
}

#[test]
fn large_messages_pass_through_small_windows() {
    static LARGE: [u8; 2 << 20] = [b'a'; 2 << 20];
    let origin = Origin::start();
    let server = server(&origin);
    run(async {
        let send = connect(&server).await;
        let (_, body, trailers) = unary(&send, "/count", &LARGE).await.unwrap();
        assert_eq!(body, LARGE.len().to_string().as_bytes());
        assert_eq!(grpc_status(trailers.as_ref()), "0");
        let (_, body, trailers) = unary(&send, "/large", b"").await.unwrap();
        assert_eq!(body.len(), 3 << 20);
        assert_eq!(grpc_status(trailers.as_ref()), "0");
    });
}

#[test]
fn origins_that_refuse_break_off_or_hang() {
    let origin = Origin::start();
    let server = server(&origin);
    run(async {
        let send = connect(&server).await;
        let (head, ..) = unary(&send, "/reset", b"x").await.unwrap();
        assert_eq!(head.status(), 502);
        // what was cut off must not look whole
        let mut cut = send.clone().ready().await.unwrap();
        let (response, mut stream) = cut.send_request(call("/cut"), false).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "part");
        stream.send_data("go".into(), false).unwrap();
        let rest = body.data().await;
        assert!(matches!(rest, Some(Err(_))), "{rest:?}");
        let (head, ..) = unary(&send, "/hang", b"x").await.unwrap();
        assert_eq!(grpc_status(Some(head.headers())), "4");
        // the connection to the client goes on
        let (_, body, _) = unary(&send, "/echo", b"still").await.unwrap();
        assert_eq!(body, b"still");
    });
    let log = server.log();
    assert!(
        log.contains("upstream rejected request with error 7"),
        "{log}"
    );
    assert!(log.contains("upstream timed out"), "{log}");
}

#[test]
fn a_call_that_is_cancelled_ends_at_the_origin() {
    let origin = Origin::start();
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%% http2 on;
        server { listen 127.0.0.1:%%PORT_8080%%; location / { grpc_pass %%ORIGIN%%; } } }";
    let server = Setup::new(conf)
        .set("ORIGIN", origin.addr)
        .start(&Couloir::program());
    run(async {
        let mut send = connect(&server).await.ready().await.unwrap();
        let (_response, mut stream) = send.send_request(call("/hang"), true).unwrap();
        let connected = async {
            while origin.connections.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
        };
        connected.await;
        stream.send_reset(Reason::CANCEL);
        // the frame is sent by the connection's own task
        let ended = async {
            while origin.resets.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        ended.await;
    });
}

#[test]
fn http1_clients_of_http2_origins() {
    let origin = Origin::start();
    let server = server(&origin);
    for _ in 0..2 {
        let response = client::get(server.addr(8080), "/h2/x", "h");
        assert_eq!((response.status, response.text().as_str()), (200, "/h2/x"));
    }
    let seen = wait_for(DEADLINE, || {
        (origin.connections.load(Ordering::Relaxed) == 1).then_some(())
    });
    assert!(seen.is_some(), "one connection is kept");
}
