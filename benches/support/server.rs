//! A server in this process, its origin, and a client: everything over loopback.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use couloir::contract::ListenAddr;
use couloir::features::builtin;
use couloir::serve::{Listening, Shared, run_thread};
use tokio::sync::{mpsc, watch};

use super::counting;

/// What a plain client sends.
pub const REQUEST: &[u8] =
    b"GET /index.html?a=b HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: origin\r\nDate: Sun, 22 Nov 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\n\
                          Content-Length: 12\r\nConnection: keep-alive\r\n\r\nhello, world";

/// Serves `location / { body }` on one thread, whose allocations are counted; the address it listens on.
///
/// `%%ORIGIN%%` in `body` is the address of an origin that answers every request with twelve bytes.
pub fn start(body: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = listener.local_addr().expect("its address");
    listener.set_nonblocking(true).expect("nonblocking");
    let text = format!(
        "events {{ worker_connections 64; }} http {{ access_log off; upstream origin {{ server {}; keepalive 8; }}
         server {{ listen {addr}; server_name localhost; keepalive_requests 1000000000; location / {{ {body} }} }} }}",
        origin()
    );
    let site = super::site(&Arc::new(builtin()), &text);
    let shared = Arc::new(Shared::new(site, 1));
    thread::spawn(move || {
        counting::count_this_thread();
        let (send, receive) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let listening = Listening {
            addr: ListenAddr::Inet(addr),
            fd: listener.into(),
            stop: stopped,
        };
        assert!(send.send(listening).is_ok());
        run_thread(shared, receive).expect("serve");
        drop((send, stop));
    });
    addr
}

fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind an origin");
    let addr = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let mut buf = [0; 4096];
                // a request is one packet here
                while matches!(stream.read(&mut buf), Ok(n) if n > 0)
                    && stream.write_all(RESPONSE).is_ok()
                {}
            });
        }
    });
    addr
}

/// A connection that asks again and again.
pub struct Client {
    stream: TcpStream,
    buf: [u8; 4096],
}

impl Client {
    /// Connects.
    pub fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        Self {
            stream,
            buf: [0; 4096],
        }
    }

    /// One request and its whole response, whose body ends with `end`.
    pub fn ask(&mut self, end: &[u8]) {
        self.stream.write_all(REQUEST).expect("send");
        let mut len = 0;
        while !self.buf[..len].ends_with(end) {
            let n = self.stream.read(&mut self.buf[len..]).expect("receive");
            assert!(
                n > 0,
                "closed after {}",
                String::from_utf8_lossy(&self.buf[..len])
            );
            len += n;
        }
        assert!(
            self.buf.starts_with(b"HTTP/1.1 200 "),
            "{}",
            String::from_utf8_lossy(&self.buf[..len])
        );
    }
}
