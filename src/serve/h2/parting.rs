//! The end of a connection without the loss of a request (RFC 9113, section 6.8), and what a reload changes.

use super::connection::{Conf, Connection};
use super::listener;
use crate::contract::{Downstream, Listener, Site, SiteRef, VerifyClient};
use crate::engine::lookup;
use crate::http::h2::{Code, MAX_WINDOW, frame};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How far a connection is on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Going {
    /// It serves every stream.
    No,
    /// The client has been told to open no more streams. Those that it opened before it knew are served: until it
    /// acknowledges a PING, or until this time.
    Told(Instant),
    /// GOAWAY has named the last stream.
    Gone,
}

/// The largest stream identifier: the first of two GOAWAY frames excludes none.
const EVERY: u32 = MAX_WINDOW;
/// How long the acknowledgement of the PING is waited for.
const ROUND_TRIP: Duration = Duration::from_secs(1);
/// The opaque data of the PING.
const PING: [u8; 8] = *b"goingout";

impl Connection {
    /// Ends the connection in two steps: says that it ends, and a round trip later which stream was the last. What a
    /// client sends before the first word has reached it is not lost.
    pub(super) fn part(&mut self) {
        if self.going != Going::No {
            return;
        }
        self.going = Going::Told(Instant::now() + ROUND_TRIP);
        let out = &mut *self.link.lock();
        frame::go_away(&mut out.buf, EVERY, Code::NO_ERROR);
        frame::ping(&mut out.buf, false, PING);
        out.touched();
    }

    /// The client has acknowledged a PING: what it opened before it was told has come, if the PING was ours.
    pub(super) fn acknowledged(&mut self, data: [u8; 8]) {
        if matches!(self.going, Going::Told(_)) && data == PING {
            self.go_away(Code::NO_ERROR);
        }
    }

    /// When the last stream is to be named though the PING was not acknowledged.
    pub(super) fn told_until(&self) -> Option<Instant> {
        match self.going {
            Going::Told(until) => Some(until),
            _ => None,
        }
    }

    /// Names the last stream, once, or the error with which the connection ends.
    pub(super) fn go_away(&mut self, code: Code) {
        let again = std::mem::replace(&mut self.going, Going::Gone) == Going::Gone;
        if !again || code != Code::NO_ERROR {
            let out = &mut *self.link.lock();
            frame::go_away(&mut out.buf, self.last, code);
            out.touched();
        }
    }

    /// Looks at the state of the process: another site may be in force, or the process may drain.
    ///
    /// The connection goes on with another site where that serves its address as before. Else it ends, and the streams
    /// that the client opens until it knows are served by the site that still had the address.
    pub(super) fn renew(&mut self) {
        if self.thread.draining.load(Ordering::Relaxed) {
            self.part();
        }
        if self.former.is_some() {
            return;
        }
        let site = self.thread.site();
        if site.serial != self.conf.site {
            match Conf::of(&site, &self.addr, self.conn.info()) {
                Some(conf) if conf.serves(&self.conf) => {
                    if !conf.announces(&self.conf) {
                        self.part_with_site();
                    }
                    self.conf = Conf {
                        max_concurrent_streams: self.conf.max_concurrent_streams,
                        preread: self.conf.preread,
                        ..conf
                    };
                }
                _ => {
                    self.conf.site = site.serial;
                    self.former = self.thread.former(&self.addr);
                    self.part_with_site();
                }
            }
        }
        self.site = Some(site);
    }

    /// Ends the connection because of the site in force: `worker_shutdown_timeout` bounds how long that takes.
    fn part_with_site(&mut self) {
        let epoch = self.thread.shared.epoch.load(Ordering::Acquire);
        self.conn.set_told(epoch);
        self.part();
        if epoch <= *self.thread.shared.cut_ended.borrow() {
            self.conn.cut();
        }
    }

    /// The site for streams that are opened now; [`Connection::renew`] has looked at it in this turn.
    pub(super) fn serving(&self) -> SiteRef {
        let known = self.former.as_ref().or(self.site.as_ref());
        known.cloned().unwrap_or_else(|| self.thread.site())
    }
}

/// What a site says of a connection that depends on what was settled when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settled {
    /// Whether the address begins with TLS.
    tls: bool,
    /// Whether HTTP/2 is spoken.
    http2: bool,
    /// `ssl_verify_client`: a connection cannot be asked for a certificate later.
    verify: VerifyClient,
}

impl Settled {
    pub(super) fn of(
        site: &Site,
        l: &Listener,
        info: &crate::contract::ConnInfo,
    ) -> Option<Settled> {
        let name = info.tls.get().and_then(|t| t.chosen_by.as_deref());
        // unlike the server of a connection's requests, that of a name which has gone is not the default one
        let index = match name {
            None => l.default_server,
            Some(name) => l.names.find_fixed(name).or_else(|| {
                let mut patterns = l.names.patterns.candidates(name);
                patterns.find(|(p, _)| p.is_match(name)).map(|(_, s)| *s)
            })?,
        };
        let server = site.servers.get(index as usize)?;
        Some(Settled {
            tls: l.tls.is_some(),
            http2: l.http2 || server.conf.http2.enable,
            verify: server.tls.as_ref().map(|t| t.verify).unwrap_or_default(),
        })
    }
}

impl Conf {
    /// The settings of the address in a site; `None` where it has no such address, or no such server any more.
    pub(super) fn of(
        site: &Site,
        addr: &crate::contract::ListenAddr,
        info: &crate::contract::ConnInfo,
    ) -> Option<Conf> {
        let (_, l, _) = listener(site, addr)?;
        let server = site.servers.get(lookup::of_connection(l, info) as usize)?;
        let core = &site.locations.get(server.default_location as usize)?.core;
        Some(Conf::new(
            site.serial,
            &server.conf,
            core,
            Settled::of(site, l, info)?,
        ))
    }

    /// Whether a connection that began with `before` may be served with these settings.
    fn serves(&self, before: &Conf) -> bool {
        self.settled == before.settled && self.settled.http2
    }

    /// Whether what was announced to the client still holds.
    fn announces(&self, before: &Conf) -> bool {
        self.max_concurrent_streams == before.max_concurrent_streams
            && self.preread == before.preread
    }
}
