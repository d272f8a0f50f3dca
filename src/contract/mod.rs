//! The module contract: everything that a feature is written against.
//!
//! A module declares its directives and variables, owns one configuration type, and attaches its
//! hooks to the locations that use it. The built-in modules register through the same
//! [`ModuleRegistry`] as a user's own filter; there is no private door.

mod background;
mod balance;
mod block;
mod build;
mod caching;
mod conf;
mod copy;
mod core_conf;
mod directive;
mod directive_index;
mod dispatch;
mod docs;
mod downstream;
pub mod files;
mod head_value;
mod hook;
pub mod inert;
mod late;
mod literal_prefilter;
mod log_sink;
mod output;
mod pass;
pub mod paths;
mod pattern;
mod pattern_list;
mod peer_selector;
mod registry;
mod request;
mod request_filter;
mod response;
mod site;
mod slot;
mod stats;
pub mod subrequest;
mod template;
mod tls;
mod trace;
mod upstream_tls;
mod value;
mod variable;

pub use crate::files::{Spool, TempPath};
pub use crate::upstream::{UpstreamState, ignore, next};
pub(crate) use background::in_site;
pub use background::{Background, background_site};
pub use balance::{BalanceKey, BalanceMethod, Unsupported};
pub use block::{BlockId, BlockKind, LocationName};
pub(crate) use build::IfBlocks;
pub use build::{Build, LocCell};
pub use caching::{CacheCall, CacheChoice, CachePurge, CacheSettings};
pub use conf::{AnyConf, Conf};
pub use copy::StoredCopy;
pub use core_conf::*;
pub use directive::{Args, Directive, Place, once};
pub use directive_index::{InForce, Written, WrittenList};
pub use dispatch::{Dispatch, Serving};
pub use docs::directives_markdown;
pub(crate) use downstream::DetachedConn;
pub use downstream::{
    BodyRead, ConnInfo, Downstream, Framing, ProxyProtocol, Remote, TcpInfo, TlsInfo,
};
pub use head_value::{BadValue, check_header_name, has_break};
pub use hook::{
    Attached, Body, BodyFilter, Content, EarlyFilter, Handler, HeadFilter, Hooks, Include, Keep,
    Level, Logger, Next, PassEnd, Phase, Prepare, RedirectTo, StatusText,
};
pub use log_sink::LogSink;
pub use output::Output;
pub(crate) use output::{Cut, Stage};
pub use pass::*;
pub use pattern::{Captures, Pattern};
pub use pattern_list::PatternList;
pub use peer_selector::PeerSelector;
pub use registry::{AnyModule, DirectiveInfo, ModuleRegistry, Order};
pub(crate) use request::Panicked;
pub use request::{BodyState, MainRequest, Request};
pub use request_filter::RequestBodyFilter;
pub use response::ResponseHead;
pub use site::*;
pub use slot::Slot;
pub use stats::{Gauge, Stat};
pub use template::{PathTemplate, Template};
pub use tls::{
    DynamicCertificates, MakeContext, Renew, ServerContext, SharedTls, TlsListener, TlsServer,
    VerifyClient,
};
pub use trace::{Candidate, Step, Trace};
pub use upstream_tls::UpstreamTls;
pub use value::{Small, Val};
pub use variable::{Evaluate, VarDef, VarId, VarKind, Variable};

pub use crate::config::{Diag, Result as ConfResult, Statement};
pub use pingora_core::server::ShutdownWatch;
pub use pingora_core::services::background::BackgroundService;

use std::sync::Arc;

/// A feature: its name, its directives, its variables and the hooks that it leaves in a location.
///
/// ```ignore
/// impl Module for Hello {
///     const NAME: &'static str = "hello";
///     type Conf = HelloConf;
///     const DIRECTIVES: &'static [Directive<HelloConf>] = &[Directive::new(
///         "hello", Place::ANY_HTTP, Args::Exactly(1), "text: answers every request with text",
///         |c, s, b| { c.text = Some(b.template(s, 0)?); Ok(()) })];
///     fn attach(conf: &Arc<HelloConf>, on: &mut Hooks) -> ConfResult<()> { /* on.content(…) */ Ok(()) }
/// }
/// ```
pub trait Module: Send + Sync + 'static {
    /// The module's name, in the form of nginx's (`http_headers`, `http_access`).
    const NAME: &'static str;
    /// What the directives of one block write, and what inner blocks inherit.
    type Conf: Conf;
    /// Whether [`Module::attach`] is called everywhere, with the defaults where nothing is written.
    const ALWAYS: bool = false;
    /// Where the module's hooks run among those of other modules. Where it says nothing, a module that is added to the
    /// built-in ones runs behind access control and the filters that change bodies, and in front of those that compress.
    const ORDER: &'static [Order] = &[];
    /// Whether its directives do something; `false` where they are known only to be refused with a reason.
    const OFFERED: bool = true;
    /// The directives, each with its own documentation.
    const DIRECTIVES: &'static [Directive<Self::Conf>];
    /// The variables that this module provides.
    const VARIABLES: &'static [Variable] = &[];

    /// Called once everything has been read, before inner blocks inherit: the place for defaults that need [`Build`].
    fn configured(b: &mut Build) -> ConfResult<()> {
        let _ = b;
        Ok(())
    }

    /// Called once servers and locations are assembled: the place for what a module keeps for each server, such as its
    /// TLS context. `ids` are the blocks of the servers; [`Build::effective`] gives their settings.
    fn assembled(b: &mut Build, ids: &[BlockId], servers: &mut [Server]) -> ConfResult<()> {
        let _ = (b, ids, servers);
        Ok(())
    }

    /// Leaves this module's hooks in one server or location whose effective settings are `conf`.
    ///
    /// Called only for blocks in which one of the module's directives is in force. A module that is
    /// not used must leave no hook; the compliance test holds every registered module to this.
    fn attach(conf: &Arc<Self::Conf>, on: &mut Hooks) -> ConfResult<()>;
}

/// `, client: …, server: …, request: "…", upstream: "…", host: "…"`: what nginx adds to an error line.
pub(crate) fn response_context(r: &Request) -> String {
    use std::fmt::Write;
    let text = crate::http::text::shown;
    let mut s = String::with_capacity(160);
    let _ = write!(s, ", client: {}", text(r.remote.text.as_bytes()));
    let _ = write!(s, ", server: {}", text(&r.server().name));
    if !r.head.line.is_empty() {
        let _ = write!(s, ", request: \"{}\"", text(&r.head.line));
    }
    if r.main.is_some() {
        let _ = write!(s, ", subrequest: \"{}\"", text(&r.uri));
    }
    if let Some(state) = r.upstream.states.last() {
        let scheme = r.upstream.scheme;
        let mark = if scheme.is_empty() { "" } else { "://" };
        let _ = write!(
            s,
            ", upstream: \"{scheme}{mark}{}{}{}\"",
            state.addr,
            // tells the URI from the path of the socket
            if state.addr.starts_with("unix:") {
                ":"
            } else {
                ""
            },
            text(&r.upstream.uri)
        );
    }
    if let Some(host) = r.head.headers.get(b"host") {
        let _ = write!(s, ", host: \"{}\"", text(host));
    }
    if let Some(referer) = r.head.headers.get(b"referer") {
        let _ = write!(s, ", referrer: \"{}\"", text(referer));
    }
    if !r.upstream.failing.is_empty() {
        let _ = write!(s, ", upstream_failure: {}", r.upstream.failing);
    }
    s
}
