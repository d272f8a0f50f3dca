//! What every module that talks to an origin shares: the settings of the exchange as written, the directives that write
//! them, each once and for every prefix (`proxy`, `fastcgi`, …), and the way from both to a [`ProxySettings`].
//!
//! A module keeps a [`PassWritten`] in a field `pass` of its settings and joins the tables of this module with its own.

mod cache;
mod cache_api;
pub(crate) mod cache_directives;
pub(crate) mod directives;
mod origin;
pub mod params;
mod set;
pub mod tls;

pub use origin::{Origin, Schemes, target};
pub use set::{
    IGNORE, NEXT, NEXT_CGI, STALE, bind, bits, buffers, limit_rate, name, store, temp_path,
    template,
};

use crate::contract::*;
use crate::http::names::NameSet;
use crate::inherit;
use std::sync::Arc;

/// What the directives of one prefix wrote in one block.
#[derive(Default, Clone)]
pub struct PassWritten {
    /// `…_hide_header`, in lower case.
    pub hide: Option<Vec<Box<[u8]>>>,
    /// `…_pass_header`, in lower case.
    pub pass_headers: Option<Vec<Box<[u8]>>>,
    /// `…_connect_timeout`, milliseconds.
    pub connect_timeout: Option<u64>,
    /// `…_send_timeout`, milliseconds.
    pub send_timeout: Option<u64>,
    /// `…_read_timeout`, milliseconds.
    pub read_timeout: Option<u64>,
    /// `…_next_upstream_timeout`, milliseconds.
    pub next_upstream_timeout: Option<u64>,
    /// `…_next_upstream_tries`.
    pub next_upstream_tries: Option<u64>,
    /// `…_next_upstream`: bits of [`next`].
    pub next_upstream: Option<u32>,
    /// `…_ignore_headers`: bits of [`ignore`].
    pub ignore: Option<u32>,
    /// `…_buffering`.
    pub buffering: Option<bool>,
    /// `…_request_buffering`.
    pub request_buffering: Option<bool>,
    /// `…_ignore_client_abort`.
    pub ignore_client_abort: Option<bool>,
    /// `…_intercept_errors`.
    pub intercept_errors: Option<bool>,
    /// `…_force_ranges`.
    pub force_ranges: Option<bool>,
    /// `…_pass_request_headers`.
    pub pass_request_headers: Option<bool>,
    /// `…_pass_request_body`.
    pub pass_request_body: Option<bool>,
    /// `…_socket_keepalive`.
    pub socket_keepalive: Option<bool>,
    /// `…_socket_rcvbuf`, bytes.
    pub socket_rcvbuf: Option<u64>,
    /// `…_socket_sndbuf`, bytes.
    pub socket_sndbuf: Option<u64>,
    /// `…_bind`; none inside where it is `off`.
    pub bind: Option<Option<Template>>,
    /// `…_bind … transparent`; goes with `bind`.
    pub bind_transparent: bool,
    /// `…_limit_rate`.
    pub limit_rate: Option<Template>,
    /// `…_buffer_size`, bytes.
    pub buffer_size: Option<u64>,
    /// `…_buffers`: number and size.
    pub buffers: Option<(u64, u64)>,
    /// `…_busy_buffers_size`, bytes.
    pub busy_buffers_size: Option<u64>,
    /// `…_max_temp_file_size`, bytes.
    pub max_temp_file_size: Option<u64>,
    /// `…_temp_file_write_size`, bytes.
    pub temp_file_write_size: Option<u64>,
    /// `…_temp_path`.
    pub temp_path: Option<Arc<TempPath>>,
    /// `…_store`: none inside where it is `off`, and no path where it is the URI's.
    pub store: Option<Option<Option<Template>>>,
    /// `…_store_access`: permission bits.
    pub store_access: Option<u32>,
    /// `…_cache` and its kin.
    pub cache: CacheWritten,
    /// The last directive about buffers: where a contradiction among them is reported.
    pub sizes_at: Option<Arc<Statement>>,
}

impl Conf for PassWritten {
    fn inherit(&mut self, outer: &Self) {
        if self.bind.is_none() {
            self.bind_transparent = outer.bind_transparent;
        }
        inherit!(self, outer; hide, pass_headers, connect_timeout, send_timeout, read_timeout, next_upstream_timeout,
            next_upstream_tries, next_upstream, ignore, buffering, request_buffering, ignore_client_abort,
            intercept_errors, force_ranges, pass_request_headers, pass_request_body, socket_keepalive, socket_rcvbuf,
            socket_sndbuf, bind,
            limit_rate, buffer_size, buffers, busy_buffers_size, max_temp_file_size, temp_file_write_size, temp_path,
            sizes_at, store_access);
        // what one says here takes the other one back
        if matches!(self.store, Some(Some(_))) {
            self.cache.choice = Some(None);
        }
        if self.cache.is_on() {
            self.store = Some(None);
        }
        inherit!(self, outer; store);
        self.cache.inherit(&outer.cache);
    }
}

/// Headers of the answer of an application that stay behind unless `…_pass_header` names them.
pub const HIDDEN_CGI: &[&[u8]] = &[
    b"status",
    b"x-accel-expires",
    b"x-accel-redirect",
    b"x-accel-limit-rate",
    b"x-accel-buffering",
    b"x-accel-charset",
];

/// A memory page: nginx's unit of buffers.
const PAGE: u64 = 4096;

/// Sizes of buffers, once they are known to agree with each other.
pub struct Buffers {
    size: usize,
    list: (usize, usize),
    busy: usize,
    max_temp_file: u64,
    temp_file_write: usize,
}

impl PassWritten {
    /// Works the sizes of buffers out.
    ///
    /// # Errors
    /// nginx's texts where they contradict each other.
    pub fn buffers(&self, prefix: &str) -> ConfResult<Buffers> {
        let error = |text: String| match &self.sizes_at {
            Some(s) => s.error(text),
            None => Diag::plain(text),
        };
        let head = self.buffer_size.unwrap_or(PAGE);
        let (number, each) = self.buffers.unwrap_or((8, PAGE));
        if number < 2 {
            return Err(error(format!(
                "there must be at least 2 \"{prefix}_buffers\""
            )));
        }
        let largest = head.max(each);
        let largest_of = format!(
            "the maximum of the value of \"{prefix}_buffer_size\" and one of the \"{prefix}_buffers\""
        );
        let busy = self.busy_buffers_size.unwrap_or(2 * largest);
        if busy < largest {
            return Err(error(format!(
                "\"{prefix}_busy_buffers_size\" must be equal to or greater than {largest_of}"
            )));
        }
        if busy > (number - 1).saturating_mul(each) {
            return Err(error(format!(
                "\"{prefix}_busy_buffers_size\" must be less than the size of all \"{prefix}_buffers\" minus one buffer"
            )));
        }
        let write = self.temp_file_write_size.unwrap_or(2 * largest);
        if write < largest {
            return Err(error(format!(
                "\"{prefix}_temp_file_write_size\" must be equal to or greater than {largest_of}"
            )));
        }
        let max_temp_file = self.max_temp_file_size.unwrap_or(1 << 30);
        if max_temp_file != 0 && max_temp_file < largest {
            return Err(error(format!(
                "\"{prefix}_max_temp_file_size\" must be equal to zero to disable temporary files usage or must be \
                 equal to or greater than {largest_of}"
            )));
        }
        Ok(Buffers {
            size: head as usize,
            list: (number as usize, each as usize),
            busy: busy as usize,
            max_temp_file,
            temp_file_write: write as usize,
        })
    }

    /// The buffers of a protocol that has but one, for the head.
    pub fn one_buffer(&self) -> Buffers {
        let head = self.buffer_size.unwrap_or(PAGE).max(1);
        Buffers {
            size: head as usize,
            list: (8, PAGE as usize),
            busy: 2 * PAGE as usize,
            max_temp_file: 0,
            temp_file_write: 2 * PAGE as usize,
        }
    }

    /// The settings for a protocol that has no key of its own for the cache. Without one nginx warns, and takes all
    /// responses for the same; here nothing is stored.
    pub fn conf_with_key(
        &self,
        prefix: &str,
        buffers: Buffers,
        hidden: &[&[u8]],
        temp_path: &Arc<TempPath>,
        on: &mut Hooks,
    ) -> ProxySettings {
        let mut conf = self.conf(buffers, hidden, temp_path);
        if self.cache.lacks_key() {
            on.warn(format!("no \"{prefix}_cache_key\" for \"{prefix}_cache\""));
            conf.cache = None;
        }
        conf
    }

    /// The settings of the exchange. `hidden` are the headers that stay behind by default, `temp_path` is where
    /// responses wait where the directive is not given.
    pub fn conf(
        &self,
        buffers: Buffers,
        hidden: &[&[u8]],
        temp_path: &Arc<TempPath>,
    ) -> ProxySettings {
        let next_upstream = match self.next_upstream.unwrap_or(next::ERROR | next::TIMEOUT) {
            bits if bits & next::OFF != 0 => next::OFF,
            bits => bits,
        };
        ProxySettings {
            connect_timeout: self.connect_timeout.unwrap_or(60_000),
            send_timeout: self.send_timeout.unwrap_or(60_000),
            read_timeout: self.read_timeout.unwrap_or(60_000),
            buffering: self.buffering.unwrap_or(true),
            request_buffering: self.request_buffering.unwrap_or(true),
            buffer_size: buffers.size,
            buffers: buffers.list,
            busy_buffers_size: buffers.busy,
            max_temp_file_size: buffers.max_temp_file,
            temp_file_write_size: buffers.temp_file_write,
            temp_path: self.temp_path.as_ref().unwrap_or(temp_path).clone(),
            limit_rate: self.limit_rate.clone(),
            ignore_client_abort: self.ignore_client_abort.unwrap_or(false),
            intercept_errors: self.intercept_errors.unwrap_or(false),
            next_upstream,
            next_upstream_tries: self
                .next_upstream_tries
                .map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)),
            next_upstream_timeout: self.next_upstream_timeout.unwrap_or(0),
            pass_request_body: self.pass_request_body.unwrap_or(true),
            pass_trailers: false,
            force_ranges: self.force_ranges.unwrap_or(false),
            socket_keepalive: self.socket_keepalive.unwrap_or(false),
            socket_rcvbuf: size(self.socket_rcvbuf),
            socket_sndbuf: size(self.socket_sndbuf),
            bind: self.bind.clone().flatten(),
            bind_transparent: self.bind_transparent,
            proxy_protocol: None,
            hide: Arc::new(self.hidden(hidden)),
            ignore: self.ignore.unwrap_or(0),
            tls: None,
            cache: self.cache.settings(),
            store: self.store.clone().flatten().map(|path| {
                Arc::new(Store {
                    path,
                    access: self.store_access.unwrap_or(0o600),
                })
            }),
        }
    }

    /// nginx's list of headers that stay behind, with `…_hide_header` and without `…_pass_header`.
    fn hidden(&self, default: &[&[u8]]) -> NameSet {
        let hide = self.hide.iter().flatten().map(|n| &**n);
        let mut set: NameSet = default.iter().copied().chain(hide).collect();
        for name in self.pass_headers.iter().flatten() {
            set.remove(name);
        }
        set
    }
}

/// A size; 0 leaves it to the system.
fn size(written: Option<u64>) -> Option<usize> {
    written.filter(|n| *n > 0).map(|n| n as usize)
}

/// Joins tables of directives into one.
macro_rules! join_directives {
    ($conf:ty; $($list:expr),+ $(,)?) => {{
        const LISTS: &[&[$crate::contract::Directive<$conf>]] = &[$($list),+];
        const ALL: [$crate::contract::Directive<$conf>; $crate::features::pass::total(LISTS)] =
            $crate::features::pass::joined(LISTS);
        &ALL
    }};
}
pub use cache::CacheWritten;
pub(crate) use cache::{
    methods as cache_methods, named as cache_named, off_or_zone, path as cache_path, predicate,
    valid as cache_valid,
};
pub(crate) use cache_directives::cache_directives;
pub(crate) use directives::{
    buffer_directives, connect_directives, response_directives, socket_directives,
};
pub(crate) use join_directives;

/// How many directives these tables hold.
pub const fn total<C>(lists: &[&[Directive<C>]]) -> usize {
    let (mut n, mut i) = (0, 0);
    while i < lists.len() {
        n += lists[i].len();
        i += 1;
    }
    n
}

/// All directives of these tables; `N` is their [`total`].
pub const fn joined<C, const N: usize>(lists: &[&[Directive<C>]]) -> [Directive<C>; N] {
    let mut all = [const { Directive::inert("", Place(0), Args::None, inert::anything, "") }; N];
    let (mut n, mut i) = (0, 0);
    while i < lists.len() {
        let mut k = 0;
        while k < lists[i].len() {
            all[n] = lists[i][k];
            n += 1;
            k += 1;
        }
        i += 1;
    }
    all
}

/// Gives the blocks inside the one being read settings of their own of module `M`, so that they do not take over its
/// `…_pass` with all the rest.
pub fn shield<M: Module>(b: &mut Build) {
    let outer = b.block();
    b.at_end(move |b| {
        let inner = b.children_of(outer).to_vec();
        for id in inner {
            let _ = b.conf_of::<M>(id);
        }
        Ok(())
    });
}
