//! Directives of HTTP/2.

use super::once;
use crate::config::Result;
use crate::contract::{
    Args, BodyFilter, Build, Conf, Directive, HeadFilter, Hooks, Http2Conf, Module, Place, Request,
    Statement, Val, Variable,
};
use crate::inherit;
use std::sync::Arc;

/// HTTP/2 towards clients.
pub struct Http2;

/// What a block says; see [`Http2Conf`].
#[derive(Default, Clone)]
#[allow(missing_docs)]
pub struct Http2Written {
    pub enable: Option<bool>,
    pub max_concurrent_streams: Option<u64>,
    pub preread_size: Option<u64>,
    pub chunk_size: Option<u64>,
    pub recv_buffer_size: Option<u64>,
    pub pool_size: Option<u64>,
    pub streams_index_size: Option<u64>,
}

impl Http2Written {
    /// The settings as connections read them.
    pub fn settings(&self) -> Http2Conf {
        let d = Http2Conf::default();
        Http2Conf {
            enable: self.enable.unwrap_or(d.enable),
            max_concurrent_streams: self
                .max_concurrent_streams
                .map_or(d.max_concurrent_streams, |n| n.min(u32::MAX.into()) as u32),
            preread_size: self
                .preread_size
                .map_or(d.preread_size, |n| n.min(MAX_WINDOW) as u32),
            chunk_size: self
                .chunk_size
                .map_or(d.chunk_size, |n| n.min(MAX_FRAME) as usize),
            recv_buffer: self
                .recv_buffer_size
                .map_or(d.recv_buffer, |n| n.min(MAX_WINDOW) as usize),
        }
    }
}

impl Conf for Http2Written {
    fn inherit(&mut self, o: &Self) {
        inherit!(self, o; enable, max_concurrent_streams, preread_size, chunk_size, recv_buffer_size, pool_size,
            streams_index_size);
    }
}

/// The largest flow-control window (RFC 9113, section 6.9.1).
const MAX_WINDOW: u64 = (1 << 31) - 1;
/// The largest frame (RFC 9113, section 4.2).
const MAX_FRAME: u64 = (1 << 24) - 1;
/// What nginx keeps of a frame that is not whole: `http2_recv_buffer_size` must be larger.
const STATE_BUFFER: u64 = 16;

const HTTP_SERVER: Place = Place::HTTP.or(Place::SERVER);
const HTTP_SERVER_LOCATION: Place = HTTP_SERVER.or(Place::LOCATION);

impl Module for Http2 {
    const NAME: &'static str = "http_v2";
    type Conf = Http2Written;
    const DIRECTIVES: &'static [Directive<Http2Written>] = &[
        Directive::new(
            "http2",
            HTTP_SERVER,
            Args::Flag,
            "`http2 on|off;` HTTP/2, by ALPN over TLS and by its preface without. Default: off.",
            |c, s, _| once(&mut c.enable, s, s.flag(0)?),
        ),
        Directive::new(
            "http2_max_concurrent_streams",
            HTTP_SERVER,
            Args::Exactly(1),
            "`http2_max_concurrent_streams number;` Requests at once on a connection. Default: 128.",
            |c, s, _| once(&mut c.max_concurrent_streams, s, s.number(0)?),
        ),
        Directive::new(
            "http2_body_preread_size",
            HTTP_SERVER,
            Args::Exactly(1),
            "`http2_body_preread_size size;` How much of a body may come before it is asked for. Default: 64k.",
            |c, s, _| {
                let size = s.size(0)?;
                if size > MAX_WINDOW {
                    return Err(s.error_at(
                        0,
                        format!("the maximum body preread buffer size is {MAX_WINDOW}"),
                    ));
                }
                once(&mut c.preread_size, s, size)
            },
        ),
        Directive::new(
            "http2_chunk_size",
            HTTP_SERVER_LOCATION,
            Args::Exactly(1),
            "`http2_chunk_size size;` The largest DATA frame sent. Default: 8k.",
            |c, s, _| {
                let size = s.size(0)?;
                if size == 0 {
                    return Err(s.error_at(0, "the http2 chunk size cannot be zero"));
                }
                once(&mut c.chunk_size, s, size)
            },
        ),
        Directive::new(
            "http2_recv_buffer_size",
            Place::HTTP,
            Args::Exactly(1),
            "`http2_recv_buffer_size size;` The most that is read from a connection at once. Default: 256k.",
            |c, s, _| {
                let size = s.size(0)?;
                if size <= STATE_BUFFER {
                    return Err(s.error_at(0, "value is too small"));
                }
                once(&mut c.recv_buffer_size, s, size)
            },
        ),
        Directive::new(
            "http2_pool_size",
            HTTP_SERVER,
            Args::Exactly(1),
            "`http2_pool_size size;` Checked; memory is not allocated in pools here. Default: 4k.",
            pool_size,
        ),
        Directive::new(
            "http2_streams_index_size",
            HTTP_SERVER,
            Args::Exactly(1),
            "`http2_streams_index_size number;` Checked; streams are found by hashing. Default: 32.",
            |c, s, _| {
                let n = s.number(0)?;
                if !n.is_power_of_two() {
                    return Err(s.error_at(0, "must be a power of two"));
                }
                once(&mut c.streams_index_size, s, n)
            },
        ),
        Directive::new(
            "http2_max_concurrent_pushes",
            HTTP_SERVER,
            Args::Exactly(1),
            "`http2_max_concurrent_pushes number;` Obsolete: warned of and ignored.",
            obsolete,
        ),
        Directive::new(
            "http2_push_preload",
            HTTP_SERVER_LOCATION,
            Args::Flag,
            "`http2_push_preload on | off;` Obsolete: warned of and ignored.",
            obsolete,
        ),
        Directive::new(
            "http2_push",
            HTTP_SERVER_LOCATION,
            Args::Exactly(1),
            "`http2_push uri | off;` Obsolete: warned of and ignored.",
            obsolete,
        ),
        Directive::new(
            "http2_max_requests",
            HTTP_SERVER,
            Args::Exactly(1),
            "`http2_max_requests number;` Obsolete, ignored: see `keepalive_requests`.",
            obsolete,
        ),
        Directive::new(
            "http2_max_field_size",
            HTTP_SERVER,
            Args::Exactly(1),
            "`http2_max_field_size size;` Obsolete, ignored: see `large_client_header_buffers`.",
            obsolete,
        ),
        Directive::new(
            "http2_max_header_size",
            HTTP_SERVER,
            Args::Exactly(1),
            "`http2_max_header_size size;` Obsolete, ignored: see `large_client_header_buffers`.",
            obsolete,
        ),
        Directive::new(
            "http2_recv_timeout",
            HTTP_SERVER,
            Args::Exactly(1),
            "`http2_recv_timeout time;` Obsolete, ignored: see `client_header_timeout`.",
            obsolete,
        ),
        Directive::new(
            "http2_idle_timeout",
            HTTP_SERVER,
            Args::Exactly(1),
            "`http2_idle_timeout time;` Obsolete, ignored: see `keepalive_timeout`.",
            obsolete,
        ),
    ];
    const VARIABLES: &'static [Variable] = &[Variable::new("http2", |r, _| {
        match (r.head.http_major_minor.0, r.conn().tls.get()) {
            (2, Some(_)) => Val::Bytes(b"h2"),
            (2, None) => Val::Bytes(b"h2c"),
            _ => Val::Bytes(b""),
        }
    })];

    fn attach(conf: &Arc<Http2Written>, on: &mut Hooks) -> Result<()> {
        if let Some(size) = conf.chunk_size {
            on.response(ChunkSize(size.min(MAX_FRAME) as usize));
        }
        Ok(())
    }
}

/// `http2_chunk_size` of a location.
struct ChunkSize(usize);

impl HeadFilter for ChunkSize {
    fn head(&self, r: &mut Request) -> Option<Box<dyn BodyFilter>> {
        r.down.chunk_size(self.0);
        None
    }
}

fn pool_size(c: &mut Http2Written, s: &Statement, _b: &mut Build) -> Result<()> {
    const MIN: u64 = 256;
    const ALIGNMENT: u64 = 16;
    let size = s.size(0)?;
    if size < MIN {
        return Err(s.error_at(0, format!("the pool size must be no less than {MIN}")));
    }
    if size % ALIGNMENT != 0 {
        return Err(s.error_at(
            0,
            format!("the pool size must be a multiple of {ALIGNMENT}"),
        ));
    }
    once(&mut c.pool_size, s, size)
}

fn obsolete(_c: &mut Http2Written, s: &Statement, b: &mut Build) -> Result<()> {
    let successor = match s.name() {
        "http2_max_requests" => "keepalive_requests",
        "http2_max_field_size" | "http2_max_header_size" => "large_client_header_buffers",
        "http2_recv_timeout" => "client_header_timeout",
        "http2_idle_timeout" => "keepalive_timeout",
        name => {
            b.warn(s.warn(format!("the \"{name}\" directive is obsolete, ignored")));
            return Ok(());
        }
    };
    b.warn(s.warn(format!(
        "the \"{}\" directive is obsolete, use the \"{successor}\" directive instead",
        s.name()
    )));
    Ok(())
}
