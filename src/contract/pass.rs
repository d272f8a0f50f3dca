//! What a location that talks to an origin hands to the exchange engine.

use super::{PeerSelector, Request, TempPath, Template, Val};
use crate::config::addr::{Address, parse_server};
use crate::http::h1::response::UpstreamHead;
use crate::upstream::identity::{Identity, Settings, TlsSettings};
use crate::upstream::{Group, UpstreamState};
use std::sync::Arc;

/// A location's origin, protocol and settings: the content of `proxy_pass` and its kin.
pub struct Pass {
    /// Speaks the origin's protocol.
    pub protocol: Box<dyn Protocol>,
    /// Where the origin is.
    pub target: PassTarget,
    /// Timeouts, buffers, header rules.
    pub conf: ProxySettings,
    identities: [Arc<Identity>; 2],
}

impl Pass {
    /// A location's origin; what its connections have in common with others is worked out here.
    pub fn new(protocol: Box<dyn Protocol>, target: PassTarget, conf: ProxySettings) -> Pass {
        let literal = |t: &Template| t.as_literal().map(Into::into);
        let plain = Settings {
            protocol: match protocol.codec() {
                Codec::Http1 => "http/1",
                Codec::Http2 => "h2",
                _ => protocol.scheme(),
            },
            tls: None,
            bind: conf.bind.as_ref().and_then(literal),
            transparent: conf.bind_transparent,
            keepalive: conf.socket_keepalive,
            rcvbuf: conf.socket_rcvbuf,
            sndbuf: conf.socket_sndbuf,
            proxy_header: conf.proxy_protocol.is_some(),
        };
        let secure = Settings {
            tls: Some(match &conf.tls {
                Some(tls) => tls.settings(),
                None => TlsSettings::default(),
            }),
            ..plain.clone()
        };
        Pass {
            protocol,
            target,
            conf,
            identities: [plain, secure].map(Identity::new),
        }
    }

    /// What connections must have in common to be shared; `tls` is whether it is spoken.
    pub fn identity(&self, tls: bool) -> &Arc<Identity> {
        let [plain, secure] = &self.identities;
        if tls { secure } else { plain }
    }

    /// Whether anything of connections depends on the request.
    pub fn has_own(&self, tls: bool) -> bool {
        let bind = self.conf.bind.as_ref();
        bind.is_some_and(|t| t.as_literal().is_none())
            || (tls && self.conf.tls.as_ref().is_some_and(|tls| tls.has_own()))
    }
}

/// A group named by a directive; known once the whole configuration has been read.
pub type GroupRef = Arc<std::sync::OnceLock<Arc<Upstream>>>;

/// A group of peers, with what of a request decides its peer.
pub struct Upstream {
    /// The peers.
    pub group: Arc<Group>,
    /// The key of a hash, `sticky`.
    pub selector: Option<Arc<dyn PeerSelector>>,
}

impl Upstream {
    /// A group whose method of balancing does not look at requests.
    pub fn plain(group: Arc<Group>) -> Upstream {
        Upstream {
            group,
            selector: None,
        }
    }
}

impl std::ops::Deref for Upstream {
    type Target = Group;

    fn deref(&self) -> &Group {
        &self.group
    }
}

/// The groups of a site, for targets with variables; filled once everything has been read.
pub type GroupsRef = Arc<std::sync::OnceLock<Groups>>;

/// Where the origin is.
pub enum PassTarget {
    /// A group known when the configuration is read; the flag asks for TLS.
    Group(GroupRef, bool),
    /// A URL with variables, evaluated for each request and read by [`Protocol::target`].
    Dynamic(Template, GroupsRef),
}

/// Groups by name, as targets with variables find them.
#[derive(Default)]
pub struct Groups {
    /// Name, port (0 for an `upstream {}` block) and group.
    pub list: Vec<(Box<str>, u16, Arc<Upstream>)>,
}

impl Groups {
    /// The `upstream {}` of that name if no port was written, or an implied upstream of that name and port.
    pub fn find(&self, name: &str, port: u16, port_given: bool) -> Option<&Arc<Upstream>> {
        let fits = |p: u16| if p == 0 { !port_given } else { p == port };
        self.list
            .iter()
            .find(|(n, p, _)| fits(*p) && n.eq_ignore_ascii_case(name))
            .map(|(_, _, g)| g)
    }
}

/// What an evaluated target stands for.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where to connect to; a host that is no address is an `upstream`'s name or is looked up by the resolver.
    pub address: Address,
    /// `$proxy_host`: the name, with the port where it is not the default one.
    pub host: Vec<u8>,
    /// `$proxy_port`.
    pub port: Vec<u8>,
    /// The URI part; empty where there is none.
    pub uri: Vec<u8>,
    /// Whether TLS is spoken.
    pub tls: bool,
}

/// How a protocol turns a request into bytes, and reads the head of the answer.
pub trait Protocol: Send + Sync + 'static {
    /// Name for logs: `http`, `fastcgi`.
    fn scheme(&self) -> &'static str;

    /// Whether `limit_except` takes the origin of its location over (in nginx all but `memcached_pass`).
    fn in_limit_except(&self) -> bool {
        true
    }

    /// Writes the request's head to `out`. `url` is the evaluated target where it has variables.
    ///
    /// # Errors
    /// The status with which the request ends.
    fn request(
        &self,
        r: &mut Request,
        to: &Destination<'_>,
        body: BodyLength,
        out: &mut Vec<u8>,
    ) -> Result<(), u16>;

    /// Reads an evaluated target ([`PassTarget::Dynamic`]).
    ///
    /// # Errors
    /// What is to be logged before the request ends with 500.
    fn target(&self, url: &[u8]) -> Result<Target, String> {
        let address = parse_server(url, 0)
            .map_err(|e| format!("{e} in upstream \"{}\"", String::from_utf8_lossy(url)))?;
        Ok(Target {
            address,
            host: url.to_vec(),
            port: Vec::new(),
            uri: Vec::new(),
            tls: false,
        })
    }

    /// Writes the key of the cache where the location gives none (`proxy_cache_key`), and notes what variables of the
    /// protocol need (`$proxy_host`). `target` is the evaluated target where it has variables.
    fn cache_key(
        &self,
        r: &mut Request,
        to: &Destination<'_>,
        target: Option<&Target>,
        out: &mut Vec<u8>,
    ) {
        let _ = (r, to, target, out);
    }

    /// How answers, and the bodies of requests, are framed.
    fn codec(&self) -> Codec {
        Codec::Http1
    }

    /// Whether the request's method can be served; it is answered 405 where not.
    fn takes(&self, r: &Request) -> bool {
        let _ = r;
        true
    }

    /// Name for logs where TLS is spoken: `https`.
    fn secure_scheme(&self) -> &'static str {
        "https"
    }

    /// The request as `explain` shows it; `written` is what [`Protocol::request`] wrote.
    fn shown(&self, r: &Request, written: &[u8]) -> Vec<u8> {
        let _ = r;
        written.iter().copied().filter(|b| *b != b'\r').collect()
    }

    /// Whether error output of the application makes the answer an invalid one (`fastcgi_catch_stderr`).
    fn is_fatal(&self, stderr: &[u8]) -> bool {
        let _ = stderr;
        false
    }

    /// Whether a request body of unknown length can be sent ([`BodyLength::Chunked`]); it is read first where not.
    fn chunked(&self) -> bool {
        false
    }

    /// Whether [`Protocol::rewrite`] may change anything: asked once a response.
    fn rewrites(&self) -> bool {
        false
    }

    /// Rewrites `Location`, `Refresh` or `Set-Cookie` of the response for the client: `proxy_redirect`, `proxy_cookie_*`.
    ///
    /// `out` receives the new value; `false` leaves the value as it is.
    fn rewrite(
        &self,
        r: &mut Request,
        to: &Destination<'_>,
        name: &[u8],
        value: &[u8],
        out: &mut Vec<u8>,
    ) -> bool {
        let _ = (r, to, name, value, out);
        false
    }

    /// A body that replaces the client's (`proxy_set_body`).
    fn body(&self, r: &Request) -> Option<Vec<u8>> {
        let _ = r;
        None
    }

    /// The method sent to the origin.
    fn method<'r>(&'r self, r: &'r Request) -> Val<'r> {
        Val::Bytes(r.method_text())
    }
}

/// How an origin frames its answers, and the bodies that it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// HTTP/1.
    Http1,
    /// HTTP/2; the head is written as HTTP/1 text and becomes a header block.
    Http2,
    /// CGI's head, or HTTP's, and a body up to the end of the connection: SCGI and uwsgi.
    Cgi,
    /// FastCGI records; whether the connection may be kept (`fastcgi_keep_conn`).
    FastCgi {
        /// See above.
        keep: bool,
    },
    /// None: the bytes of client and origin are passed on as they are (`tunnel_pass`).
    Tunnel,
    /// memcached's text protocol; flags that mean a value is compressed (`memcached_gzip_flag`), 0 for none.
    Memcached {
        /// See above.
        gzip_flag: u64,
    },
}

/// Which origin a request goes to.
pub struct Destination<'a> {
    /// Name and port as written: `$proxy_host`. A target without variables needs none: the protocol knows it.
    pub host: &'a [u8],
    /// `$proxy_port`, where the target has variables.
    pub port: &'a [u8],
    /// The URI part of an evaluated URL, where it has one.
    pub uri: Option<&'a [u8]>,
    /// Whether TLS is spoken.
    pub tls: bool,
}

/// How long the request's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none.
    None,
    /// So many bytes.
    Known(u64),
    /// To be sent in chunks.
    Chunked,
}

/// Settings of the exchange with an origin; times in milliseconds, sizes in bytes.
#[derive(Clone)]
pub struct ProxySettings {
    /// `proxy_connect_timeout`.
    pub connect_timeout: u64,
    /// `proxy_send_timeout`.
    pub send_timeout: u64,
    /// `proxy_read_timeout`.
    pub read_timeout: u64,
    /// `proxy_buffering`.
    pub buffering: bool,
    /// `proxy_request_buffering`.
    pub request_buffering: bool,
    /// `proxy_buffer_size`: the response head must fit.
    pub buffer_size: usize,
    /// `proxy_buffers`: number and size.
    pub buffers: (usize, usize),
    /// `proxy_busy_buffers_size`.
    pub busy_buffers_size: usize,
    /// `proxy_max_temp_file_size`; 0 keeps responses out of files.
    pub max_temp_file_size: u64,
    /// `proxy_temp_file_write_size`.
    pub temp_file_write_size: usize,
    /// `proxy_temp_path`.
    pub temp_path: Arc<TempPath>,
    /// `proxy_limit_rate`, bytes a second.
    pub limit_rate: Option<Template>,
    /// `proxy_ignore_client_abort`.
    pub ignore_client_abort: bool,
    /// `proxy_intercept_errors`.
    pub intercept_errors: bool,
    /// `proxy_next_upstream`: bits of [`next`].
    pub next_upstream: u32,
    /// `proxy_next_upstream_tries`; 0 is without limit.
    pub next_upstream_tries: u32,
    /// `proxy_next_upstream_timeout`; 0 is without limit.
    pub next_upstream_timeout: u64,
    /// `proxy_pass_request_body`.
    pub pass_request_body: bool,
    /// `proxy_pass_trailers`.
    pub pass_trailers: bool,
    /// `proxy_force_ranges`.
    pub force_ranges: bool,
    /// `proxy_socket_keepalive`.
    pub socket_keepalive: bool,
    /// `proxy_socket_rcvbuf`, bytes.
    pub socket_rcvbuf: Option<usize>,
    /// `proxy_socket_sndbuf`, bytes.
    pub socket_sndbuf: Option<usize>,
    /// `proxy_bind`.
    pub bind: Option<Template>,
    /// `proxy_bind … transparent`.
    pub bind_transparent: bool,
    /// `proxy_protocol`: what connections begin with.
    pub proxy_protocol: Option<crate::upstream::proxy_header::ProxyHeader>,
    /// Headers that are not passed on, in lower case.
    pub hide: Arc<crate::http::names::NameSet>,
    /// `proxy_ignore_headers`: bits of [`ignore`].
    pub ignore: u32,
    /// TLS towards the origin, where the target may ask for it.
    pub tls: Option<Arc<super::UpstreamTls>>,
    /// `proxy_cache` and its kin, where responses are cached.
    pub cache: Option<Arc<super::CacheSettings>>,
    /// `proxy_store`, where copies of responses are kept.
    pub store: Option<Arc<Store>>,
}

/// `proxy_store`.
pub struct Store {
    /// The file; the URI's own where it is not given.
    pub path: Option<Template>,
    /// `proxy_store_access`: permission bits.
    pub access: u32,
}

/// The origin's side of a request.
#[derive(Default)]
pub struct UpstreamInfo {
    /// `http`, `https`, `fastcgi`: for the error log.
    pub scheme: &'static str,
    /// The URI sent to the origin: for the error log.
    pub uri: Vec<u8>,
    /// `$proxy_host`; set by the protocol when it writes the request.
    pub host: Vec<u8>,
    /// `$proxy_port`.
    pub port: Vec<u8>,
    /// Length of the body sent to the origin: `$proxy_internal_body_length`.
    pub body: Option<BodyLength>,
    /// Every try, in order.
    pub states: Vec<UpstreamState>,
    /// Why the last try that failed did: `$upstream_failure`; empty where none has.
    pub failure: &'static str,
    /// The same while the try lasts, for the error log.
    pub failing: &'static str,
    /// The head of the last answer, as the origin sent it.
    pub head: UpstreamHead,
    /// Trailers of the last answer.
    pub trailers: crate::http::headers::Headers,
    /// Whether `head` holds an answer.
    pub has_head: bool,
    /// X-Accel-Buffering of the answer.
    pub buffered: Option<bool>,
    /// `proxy_limit_rate`, bytes a second; 0 is none.
    pub limit_rate: u64,
    /// What this exchange does with the cache.
    pub cache: Option<Box<super::CacheCall>>,
    /// The copy of the answer that is being written (`proxy_store`).
    pub copy: Option<super::StoredCopy>,
    /// What an unsafe request invalidates if it succeeds (`proxy_cache_rfc9111`): the zone and the key.
    pub invalidates: Option<(Arc<crate::cache::CachePath>, Vec<u8>)>,
    /// `$upstream_cache_status`.
    pub cache_status: Option<crate::cache::Status>,
    /// Seconds since the object that is served was stored or found unchanged: `$upstream_cache_age`.
    pub cache_age: Option<i64>,
    /// Whether `head` is of an object in the cache.
    pub from_cache: bool,
    /// Whether HEAD is sent as GET, so that the response can be stored (`proxy_cache_convert_head`).
    pub convert_head: bool,
    /// A background request's update of an object; it ends with the request.
    pub background: Option<crate::cache::Update>,
}

impl UpstreamInfo {
    /// Forgets the answer of an exchange before this one.
    pub fn forget_answer(&mut self) {
        self.has_head = false;
        self.head.clear();
        self.trailers.clear();
    }

    /// Forgets what the last exchange did with the cache.
    pub fn forget_cache(&mut self) {
        self.cache = None;
        self.copy = None;
        self.invalidates = None;
        self.cache_status = None;
        self.cache_age = None;
        self.from_cache = false;
        self.convert_head = false;
    }

    /// What is known of the old object, where the origin is asked whether it still is the same
    /// (`proxy_cache_revalidate`).
    pub fn revalidating(&self) -> Option<&crate::cache::file::Meta> {
        let call = self.cache.as_ref()?;
        let asked =
            call.settings.revalidate && self.cache_status == Some(crate::cache::Status::Expired);
        call.old_meta().filter(|_| asked)
    }

    /// Whether the answer may still be stored, or is stored.
    pub fn is_cacheable(&self) -> bool {
        self.from_cache || self.cache.as_ref().is_some_and(|c| c.cacheable)
    }

    /// Forgets where the request was going: another location follows.
    pub fn forget_target(&mut self) {
        self.host.clear();
        self.port.clear();
        self.body = None;
    }

    /// The present try fails.
    pub fn fails(&mut self, reason: &'static str) {
        self.failing = reason;
        self.failure = reason;
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.uri.clear();
        self.forget_target();
        self.states.clear();
        self.has_head = false;
        self.failure = "";
        self.failing = "";
        self.buffered = None;
        self.limit_rate = 0;
        self.forget_cache();
        self.background = None;
        self.trailers.clear();
    }
}
