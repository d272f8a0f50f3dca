//! From a header list to a request that is served.

use super::connection::{Connection, Fault};
use super::stream::{Begin, Stream};
use super::{listener, websocket};
use crate::contract::{Downstream, Gauge, Request, ServerConf, Stat};
use crate::engine::{lookup, phases, target};
use crate::http::h2::Code;
use crate::http::h2::hpack::Fields;
use crate::http::head::{Asked, HeadError, Limits, OptionsV2};
use crate::log::Level;
use crate::serve::thread::Thread;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A request whose head has come.
pub(super) struct Opened {
    thread: &'static Thread,
    stream: Arc<Stream>,
    request: Box<Request>,
    head: Result<Asked, HeadError>,
    writing: Gauge,
}

/// A request that has been served.
pub(super) struct Served {
    pub stream: u32,
    /// RST_STREAM was sent.
    pub reset: bool,
    /// Bytes of the body that were declared and have not come.
    pub rest: Option<u64>,
    /// The client got its answer.
    pub answered: bool,
}

impl Opened {
    /// Serves the request, up to its log line.
    pub async fn serve(self) -> Served {
        let Opened {
            thread,
            stream,
            mut request,
            head,
            writing,
        } = self;
        let served = async {
            if stream.is_closed() {
                cancelled(&mut request);
            } else {
                answer(&mut request, head).await;
            }
        };
        // a panic of one request is not the others' business; its object is not used again
        let sound = AssertUnwindSafe(served).catch_unwind().await.is_ok();
        let answered = !stream.is_closed();
        let reset = stream.end(request.timed_out || matches!(request.out.status, 408 | 444));
        if sound {
            thread.recycle(request);
        }
        drop(writing);
        Served {
            stream: stream.id,
            reset,
            rest: stream.rest(),
            answered,
        }
    }
}

impl Connection {
    /// Makes a request of the fields that have come.
    pub(super) fn open(&mut self, id: u32, block: usize, ended: bool) -> Result<(), Fault> {
        let thread = self.thread;
        let site = self.serving();
        // a reload may have moved the address
        let Some((index, l, _)) = listener(&site, &self.addr) else {
            return Err(Fault(Code::NO_ERROR));
        };
        let info = self.conn.info();
        let first = lookup::of_connection(l, info);
        let Some(server) = site.servers.get(first as usize) else {
            return Err(Fault(Code::NO_ERROR));
        };
        info.listener.store(index, Ordering::Relaxed);
        let requests = info.requests.fetch_add(1, Ordering::Relaxed) + 1;
        self.kept = true;
        self.priorities += u64::from(self.conf.max_concurrent_streams);
        let begin = Begin {
            opened: Instant::now(),
            in_closed: ended,
            preread: self.conf.preread,
            chunk: server.conf.http2.chunk_size,
        };
        let stream = Arc::new(Stream::new(id, self.link.clone(), begin));
        let mut r = thread.request(&site, stream.clone());
        r.server = first;
        r.location = server.default_location;
        r.start = stream.opened;
        let (sec, msec) = crate::http::date::time();
        r.start_msec = sec as u64 * 1000 + u64::from(msec);
        let head = read_head(&mut r, &self.fields, ended, &server.conf);
        r.head.header_in_bytes = block;
        match &head {
            Ok(Asked::Response) => stream.declare(r.head.content_length),
            Ok(Asked::WebSocket) => ask_for_websocket(&mut r, &stream),
            Err(e) if e.status == 400 => stream.malformed(),
            Err(_) => {}
        }
        let core = r.core();
        let last = core.keepalive_timeout == 0
            || requests >= core.keepalive_requests
            || info.start.elapsed().as_millis() as u64 > core.keepalive_time;
        Stat::Requests.up();
        self.processing += 1;
        self.streams.insert(id, stream.clone());
        self.opened.push(Opened {
            thread,
            stream,
            request: r,
            head,
            writing: Gauge::new(Stat::Writing),
        });
        if last {
            self.part();
        }
        Ok(())
    }
}

fn read_head(
    r: &mut Request,
    fields: &Fields,
    ended: bool,
    conf: &ServerConf,
) -> Result<Asked, HeadError> {
    let limits = Limits {
        header_buffer: conf.client_header_buffer_size,
        large: conf.large_client_header_buffers,
        ignore_invalid: conf.ignore_invalid_headers,
        underscores: conf.underscores_in_headers,
        max_headers: conf.max_headers,
        allow_connect: false,
        strict: conf.strict,
    };
    let options = OptionsV2 {
        ended,
        connect_protocol: true,
    };
    let mut dropped = Vec::new();
    let result = r.head.take_v2(fields.iter(), options, &limits, |name| {
        dropped.push(name.to_vec());
    });
    for name in dropped {
        r.error(
            Level::Info,
            format_args!(
                "client sent invalid header: \"{}\" while reading client request headers",
                crate::http::text::shown(&name)
            ),
        );
    }
    r.method = r.head.method;
    r.out.http11 = true;
    r.keepalive = true;
    result
}

/// Adds what HTTP/1.1 asks for a WebSocket with.
fn ask_for_websocket(r: &mut Request, stream: &Stream) {
    let key = websocket::key((r.conn().serial, stream.id));
    stream.websocket(&key);
    let headers = &mut r.head.headers;
    headers.append(b"Upgrade", b"websocket");
    headers.append(b"Connection", b"Upgrade");
    headers.set(b"Sec-WebSocket-Key", key.as_bytes());
    if !headers.contains(b"sec-websocket-version") {
        headers.append(b"Sec-WebSocket-Version", b"13");
    }
}

/// The client took the request back before anything was done for it: it is in the access log all the same.
fn cancelled(r: &mut Request) {
    r.client_closed = true;
    r.out.status = 499;
    phases::log(r);
    r.forget_shared();
}

async fn answer(r: &mut Request, head: Result<Asked, HeadError>) {
    let site = r.site.clone();
    let Some(l) = site
        .listeners
        .get(r.conn().listener.load(Ordering::Relaxed))
    else {
        return;
    };
    r.server = lookup::server(l, r);
    let Some(server) = site.servers.get(r.server as usize) else {
        return;
    };
    r.location = server.default_location;
    if let Err(e) = head {
        r.error(
            Level::Info,
            format_args!("{e} while reading client request headers"),
        );
        if e.line_known {
            // a path that is no URI is in the log as it came
            let _ = target::apply(r, server.conf.merge_slashes);
        }
        return phases::refuse(r, e.status).await;
    }
    if !server.conf.http2.enable && !l.http2 {
        let why = "client attempted to request the server name for which the negotiated protocol is disabled";
        r.error(
            Level::Info,
            format_args!("{why} while processing HTTP/2 connection"),
        );
        return phases::refuse(r, 421).await;
    }
    phases::serve(r).await;
}
