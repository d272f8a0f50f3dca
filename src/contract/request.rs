//! One request, from its head to its log line.

mod body;
mod variables;

use super::{
    BadValue, Captures, ConnInfo, CoreConf, Downstream, LocId, Location, Remote, ResponseHead,
    Server, SiteRef, Slot, Spool, UpstreamInfo, Val,
};
use crate::http::head::{RequestHead, Version};
use crate::http::headers::Headers;
use crate::http::method::Method;
use crate::log::{ErrorLog, Level};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;
use variables::{Kept, empty_values};

/// A request and everything that hooks learn and decide about it.
///
/// Requests are reused: [`Request::reset`] forgets all and keeps the memory.
pub struct Request {
    /// The configuration that this request is served from, to its end.
    pub site: SiteRef,
    /// Index of the virtual server.
    pub server: u32,
    /// The location, or the settings that take its place.
    pub location: LocId,
    /// The client's side.
    pub down: Arc<dyn Downstream>,
    /// The head as the client sent it.
    pub head: RequestHead,
    /// The method in force; `error_page` turns it into GET.
    pub method: Method,
    /// `$uri`: decoded and normalised.
    pub uri: Vec<u8>,
    /// `$args`.
    pub args: Vec<u8>,
    /// Whether the URI is still the client's, so that its raw form may be passed on.
    pub valid_unparsed_uri: bool,
    /// Whether the URI begins as its location says; false after `rewrite … break`, where `alias` has no meaning.
    pub valid_location: bool,
    /// `try_files` found a file below the `alias` of a regular expression's location: the URI follows the alias.
    pub add_uri_to_alias: bool,
    /// Whether the request was already there when the one before it ended: `$pipe`.
    pub pipelined: bool,
    /// Whether the request came here by an internal redirect.
    pub internal: bool,
    /// Redirects left before the request is taken for a loop.
    pub uri_changes: u8,
    /// Whether the rewrite phase changed the URI.
    pub uri_changed: bool,
    /// `$1` … of the last match.
    pub captures: Captures,
    /// The client's address in force; the realip module changes it.
    pub remote: Remote,
    /// When the first byte of the head was read.
    pub start: Instant,
    /// The same in milliseconds since the epoch.
    pub start_msec: u64,
    /// The response head.
    pub out: ResponseHead,
    /// Whether the final head has been sent.
    pub header_sent: bool,
    /// Body bytes given to the client, framing not counted.
    pub body_sent: u64,
    /// Whether the response may be followed by another request.
    pub keepalive: bool,
    /// Whether an error page is being served: a second error gets the built-in page.
    pub error_page: bool,
    /// The status that `error_page` forces; 0 for none.
    pub err_status: u16,
    /// `satisfy any`: the status of the first hook that refused.
    pub access_code: u16,
    /// The request's body.
    pub body: BodyState,
    /// Tries at origins.
    pub upstream: UpstreamInfo,
    /// `limit_rate` in force, bytes a second; 0 is none.
    pub limit_rate: u64,
    /// Whether `limit_rate` was set by a variable or an origin.
    pub limit_rate_set: bool,
    /// `limit_rate_after`, bytes.
    pub limit_rate_after: u64,
    /// Whether the response ended in the middle: no keepalive, no success.
    pub aborted: bool,
    /// Whether this is a subrequest.
    pub subrequest: bool,
    /// Whether the response had been sent in full when `post_action` began.
    pub completed: bool,
    /// In a subrequest: what it needs to know of the client's request.
    pub main: Option<MainRequest>,
    /// Whether a value was found that cannot be written into a head.
    pub bad_value: BadValue,
    /// How the response's body passes on its way out.
    pub output: super::Output,
    /// Bytes of the response head.
    pub head_size: u64,
    /// How many requests this subrequest is inside of.
    pub depth: u8,
    /// In a subrequest of the client's request: how many were begun inside of it.
    pub(crate) nested: Option<Arc<AtomicU32>>,
    /// What a subrequest sends where its response is empty or an error: a media type and a text.
    pub stub: Option<(Vec<u8>, Vec<u8>)>,
    /// Whether the client was too slow (`reset_timedout_connection`).
    pub timed_out: bool,
    /// The last `if` entered that has a content handler of its own: nginx calls it, with the settings of later ones.
    pub content_from: Option<LocId>,
    /// Whether the client closed before the response was ready (499).
    pub client_closed: bool,
    /// Whether hooks have panicked while the request was served.
    pub(crate) panicked: Panicked,
    /// What the request goes through, if someone asked.
    pub trace: Option<Arc<super::Trace>>,
    /// Values of variables; subrequests have the same ones.
    values: Arc<[Kept]>,
    slots: Vec<Option<Box<dyn Any + Send + Sync>>>,
    shared: Vec<Arc<dyn Any + Send + Sync>>,
    scratch: Vec<u8>,
}

/// Hooks that have panicked while a request was served: its error is answered without them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Panicked {
    /// None.
    #[default]
    None,
    /// The one with this number; filters are told by it.
    Once(usize),
    /// Another one, while the error was being answered: all filters are left out.
    Twice,
}

impl Panicked {
    /// Whether a filter is left out.
    pub(crate) fn skips(self, id: usize) -> bool {
        match self {
            Panicked::None => false,
            Panicked::Once(culprit) => culprit == id,
            Panicked::Twice => true,
        }
    }
}

/// What a subrequest knows of the client's request.
#[derive(Clone, Copy, Debug)]
pub struct MainRequest {
    /// Its method when the subrequest was begun.
    pub method: Method,
    /// Its location then, whose `error_log` the subrequest writes to.
    pub location: LocId,
}

/// How far the request's body has been read.
#[derive(Default)]
pub struct BodyState {
    /// The whole body, once it has been read.
    pub spool: Spool,
    /// Whether `spool` is complete.
    pub read: bool,
    /// Whether the rest is thrown away.
    pub discarded: bool,
    /// Whether someone reads it piece by piece.
    pub streaming: bool,
    /// Whether it cannot be read further: it is malformed, too large or too slow.
    pub failed: bool,
    /// Whether 100 Continue has been sent (or needs not be).
    pub continued: bool,
    /// Bytes read so far.
    pub received: u64,
}

impl Request {
    /// A request of `site` on a connection, with nothing in it yet.
    pub fn new(site: SiteRef, down: Arc<dyn Downstream>) -> Request {
        let remote = down.info().remote.clone();
        let mut r = Request {
            server: 0,
            location: 0,
            down,
            head: RequestHead::default(),
            method: Method::default(),
            uri: Vec::new(),
            args: Vec::new(),
            valid_unparsed_uri: true,
            valid_location: true,
            add_uri_to_alias: false,
            internal: false,
            uri_changes: 0,
            uri_changed: false,
            captures: Captures::default(),
            remote,
            start: Instant::now(),
            start_msec: 0,
            out: ResponseHead::default(),
            header_sent: false,
            body_sent: 0,
            keepalive: false,
            error_page: false,
            err_status: 0,
            access_code: 0,
            body: BodyState::default(),
            upstream: UpstreamInfo::default(),
            limit_rate: 0,
            limit_rate_set: false,
            limit_rate_after: 0,
            aborted: false,
            subrequest: false,
            completed: false,
            main: None,
            bad_value: BadValue::None,
            output: Default::default(),
            head_size: 0,
            depth: 0,
            nested: None,
            stub: None,
            timed_out: false,
            pipelined: false,
            content_from: None,
            client_closed: false,
            panicked: Panicked::None,
            trace: None,
            values: Arc::default(),
            slots: Vec::new(),
            shared: Vec::new(),
            scratch: Vec::new(),
            site,
        };
        r.size_slots();
        r
    }

    /// Lets go of the connection and keeps the memory; [`Request::reset`] follows.
    pub fn release(&mut self) {
        thread_local! {
            static NOBODY: Arc<dyn Downstream> = Arc::new(super::downstream::DetachedConn::default());
        }
        self.body.spool.clear();
        self.down = NOBODY.with(Clone::clone);
    }

    /// Makes this the next request of `down`; keeps allocated memory.
    pub fn reset(&mut self, site: &SiteRef, down: Arc<dyn Downstream>) {
        let same = self.site.same(site);
        if !same {
            self.site = site.clone();
        }
        self.remote = down.info().remote.clone();
        self.down = down;
        self.server = 0;
        self.location = 0;
        self.method = Method::default();
        self.uri.clear();
        self.args.clear();
        self.valid_unparsed_uri = true;
        self.valid_location = true;
        self.add_uri_to_alias = false;
        self.internal = false;
        self.uri_changes = 11;
        self.uri_changed = false;
        self.captures.clear();
        self.out.clear();
        self.header_sent = false;
        self.body_sent = 0;
        self.keepalive = false;
        self.error_page = false;
        self.err_status = 0;
        self.access_code = 0;
        self.body.spool.clear();
        self.body.read = false;
        self.body.discarded = false;
        self.body.streaming = false;
        self.body.failed = false;
        self.body.continued = false;
        self.body.received = 0;
        self.upstream.clear();
        self.limit_rate = 0;
        self.limit_rate_set = false;
        self.limit_rate_after = 0;
        self.aborted = false;
        self.subrequest = false;
        self.completed = false;
        self.main = None;
        self.bad_value = BadValue::None;
        self.output.clear();
        self.head_size = 0;
        self.depth = 0;
        self.nested = None;
        self.stub = None;
        self.timed_out = false;
        self.pipelined = false;
        self.content_from = None;
        self.client_closed = false;
        self.panicked = Panicked::None;
        self.trace = None;
        self.shared.clear();
        if same {
            match Arc::get_mut(&mut self.values) {
                Some(values) => values.iter_mut().for_each(Kept::take),
                // a subrequest that outlives its parent still has them
                None => self.values = empty_values(self.site.var_slots),
            }
            for s in &mut self.slots {
                *s = None;
            }
        } else {
            self.slots.clear();
            self.size_slots();
        }
    }

    /// `$request_length`.
    pub fn length(&self) -> u64 {
        let body = self.down.coded_body().unwrap_or(self.body.received);
        self.head.header_in_bytes as u64 + body
    }

    /// `$body_bytes_sent`.
    pub fn body_bytes_sent(&self) -> u64 {
        let beyond = self.down.sent().saturating_sub(self.head_size);
        beyond.saturating_sub(self.down.framing_sent())
    }

    fn size_slots(&mut self) {
        self.values = empty_values(self.site.var_slots);
        self.slots.resize_with(self.site.module_slots, || None);
    }

    /// The connection.
    pub fn conn(&self) -> &ConnInfo {
        self.down.info()
    }

    /// `$server_addr`: the address that the client connected to, `unix:` and the path of a UNIX-domain socket.
    pub fn local_address(&self) -> Val<'_> {
        let conn = self.conn();
        let index = conn.listener.load(std::sync::atomic::Ordering::Relaxed);
        match (conn.local.addr, self.site.listeners.get(index)) {
            (None, Some(listener)) => Val::Owned(listener.addr.to_string().into_bytes()),
            _ => Val::Bytes(conn.local.text.as_bytes()),
        }
    }

    /// The virtual server.
    pub fn server(&self) -> &Server {
        &self.site.servers[self.server as usize]
    }

    /// The location.
    pub fn location(&self) -> &Location {
        &self.site.locations[self.location as usize]
    }

    /// The location's core settings.
    pub fn core(&self) -> &CoreConf {
        &self.location().core
    }

    /// The client's headers.
    pub fn headers(&self) -> &Headers {
        &self.head.headers
    }

    /// The protocol version of the client.
    pub fn version(&self) -> Version {
        self.head.version
    }

    /// The method in force, as text.
    pub fn method_text(&self) -> &[u8] {
        self.text_of(self.method)
    }

    /// The method in force of the client's request, in its subrequests too: `$request_method`.
    pub fn main_method_text(&self) -> &[u8] {
        self.text_of(self.main.map_or(self.method, |main| main.method))
    }

    fn text_of(&self, method: Method) -> &[u8] {
        // a broken head of HTTP/2 has no request line
        if method == self.head.method && !self.head.line.is_empty() {
            self.head.method_name()
        } else {
            method.name().as_bytes()
        }
    }

    /// Whether the method is HEAD.
    pub fn is_head(&self) -> bool {
        self.method == Method::Head
    }

    /// `$request_uri`: the raw target of the request line.
    pub fn unparsed_uri(&self) -> &[u8] {
        self.head.text(&self.head.uri)
    }

    /// A module's state in this request.
    pub fn slot<T: Send + Sync + 'static>(&self, slot: Slot<T>) -> Option<&T> {
        self.slots.get(slot.0 as usize)?.as_ref()?.downcast_ref()
    }

    /// The same, to be changed.
    pub fn slot_mut<T: Send + Sync + 'static>(&mut self, slot: Slot<T>) -> Option<&mut T> {
        self.slots
            .get_mut(slot.0 as usize)?
            .as_mut()?
            .downcast_mut()
    }

    /// Stores a module's state in this request.
    pub fn set_slot<T: Send + Sync + 'static>(&mut self, slot: Slot<T>, value: T) {
        if let Some(s) = self.slots.get_mut(slot.0 as usize) {
            *s = Some(Box::new(value));
        }
    }

    /// Settings that a module kept with the location ([`super::Hooks::keep`]).
    pub fn kept<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.location()
            .hooks
            .kept
            .iter()
            .find_map(|k| k.downcast_ref())
    }

    /// What a module remembers for the whole request: internal redirects keep it, and subrequests see it too.
    pub fn shared<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.shared.iter().find_map(|s| s.downcast_ref())
    }

    /// Remembers something for the whole request; it is dropped when the request ends.
    pub fn set_shared<T: Send + Sync + 'static>(&mut self, value: T) {
        match self.shared.iter_mut().find(|s| s.is::<T>()) {
            Some(s) => *s = Arc::new(value),
            None => self.shared.push(Arc::new(value)),
        }
    }

    /// Drops what modules remembered: the request has ended.
    pub(crate) fn forget_shared(&mut self) {
        self.shared.clear();
    }

    /// Gives a subrequest the values of variables, which both then share, and what modules remembered.
    pub(crate) fn share(&self, sub: &mut Request) {
        sub.values = self.values.clone();
        sub.shared = self.shared.clone();
    }

    /// Takes over what modules remembered in a subrequest.
    pub(crate) fn take_shared(&mut self, sub: &Request) {
        for s in &sub.shared {
            let kind = (**s).type_id();
            match self
                .shared
                .iter_mut()
                .find(|own| (***own).type_id() == kind)
            {
                Some(own) => *own = s.clone(),
                None => self.shared.push(s.clone()),
            }
        }
    }

    /// An empty buffer to work in; give it back with [`Request::put_scratch`] so that it is allocated once.
    pub fn scratch(&mut self) -> Vec<u8> {
        let mut v = std::mem::take(&mut self.scratch);
        v.clear();
        v
    }

    /// Returns a buffer taken by [`Request::scratch`].
    pub fn put_scratch(&mut self, v: Vec<u8>) {
        self.scratch = v;
    }

    /// Milliseconds since the request began.
    pub fn elapsed(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Changes the request's URI, as an internal redirect does; the raw form is no longer valid.
    pub fn set_uri(&mut self, uri: Vec<u8>, args: Vec<u8>) {
        self.uri = uri;
        self.args = args;
        self.valid_unparsed_uri = false;
        self.valid_location = true;
        self.add_uri_to_alias = false;
    }

    /// The extension of the URI's last segment, without the dot.
    pub fn exten(&self) -> &[u8] {
        let name = self.uri.rsplit(|b| *b == b'/').next().unwrap_or_default();
        match memchr::memrchr(b'.', name) {
            Some(i) if i > 0 => &name[i + 1..],
            _ => b"",
        }
    }

    /// Puts the settings of an `if` in place of the location's.
    pub fn enter_if(&mut self, id: LocId) {
        let site = &self.site;
        if site
            .locations
            .get(id as usize)
            .is_some_and(|l| l.claims.is_some())
        {
            self.content_from = Some(id);
        }
        self.location = id;
    }

    /// The media type of the URI by its extension (`types`, `default_type`).
    pub fn set_content_type(&mut self) {
        // X-Accel-Redirect brings the origin's type along
        if !self.out.content_type.is_empty() {
            return;
        }
        let site = self.site.clone();
        let core = &site.locations[self.location as usize].core;
        let ext = self.exten();
        let found = core
            .types
            .get(ext)
            .cloned()
            .or_else(|| core.types.get(&*ext.to_ascii_lowercase()).cloned());
        self.out.content_type.clear();
        self.out
            .content_type
            .extend_from_slice(found.as_ref().unwrap_or(&core.default_type));
    }

    /// Whether a line of this level would be written to the location's `error_log`.
    pub fn log_enabled(&self, level: Level) -> bool {
        self.error_log().enabled(level)
    }

    /// The `error_log` of the location; of a subrequest, that of the client's request, which both belong to.
    fn error_log(&self) -> &ErrorLog {
        let main = self.main.map_or(self.location, |main| main.location);
        match self.site.locations.get(main as usize) {
            Some(location) => &location.core.error_log,
            None => &self.core().error_log,
        }
    }

    /// Writes a line to the location's `error_log`, with the client, server and request added as nginx adds them.
    pub fn error(&self, level: Level, message: std::fmt::Arguments<'_>) {
        let log = self.error_log();
        if log.enabled(level) {
            let context = super::response_context(self);
            log.write(
                level,
                Some(self.conn().serial),
                format_args!("{message}{context}"),
            );
        }
    }
}
