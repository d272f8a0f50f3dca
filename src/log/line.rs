//! A line of the error log and what it is made of.

use std::cell::Cell;
use std::fmt::{self, Write};

use super::{DebugMask, Errno, Level, stamp};

/// The longest line of an error log in bytes, with its line feed.
pub const MAX_ERROR_STR: usize = 2048;

/// All that a line of the error log is made of.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    /// Severity.
    pub level: Level,
    /// For debug lines: the part of the server that speaks.
    pub part: DebugMask,
    /// The number of the connection.
    pub conn: Option<u64>,
    /// What happened.
    pub message: fmt::Arguments<'a>,
    /// The error of a failed system call; it keeps its place at the end of a message that is too long.
    pub errno: Option<Errno>,
    /// What was going on; debug lines do without.
    pub context: Option<&'a dyn Context>,
}

impl<'a> Record<'a> {
    /// A record of nothing but a message.
    pub fn new(level: Level, message: fmt::Arguments<'a>) -> Self {
        Self {
            level,
            part: DebugMask::ALL,
            conn: None,
            message,
            errno: None,
            context: None,
        }
    }
}

/// Appends what was going on to a line: ` while …, client: …`.
pub trait Context {
    /// Appends to `line`; what does not fit is cut off.
    fn append_to(&self, line: &mut Line);
}

/// The context of an HTTP request, in nginx's order. Bytes are as received; absent ones are left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestContext<'a> {
    /// `reading client request headers`: shown after `while`.
    pub action: Option<&'a str>,
    /// The client's address without port.
    pub client: &'a [u8],
    /// The server's name; before a request is known, the listening address.
    pub server: &'a [u8],
    /// The request line.
    pub request: Option<&'a [u8]>,
    /// The subrequest's URI.
    pub subrequest: Option<&'a [u8]>,
    /// Scheme, peer's address and URI: `http://127.0.0.1:8081/path`.
    pub upstream: Option<&'a [u8]>,
    /// The `Host` field.
    pub host: Option<&'a [u8]>,
    /// The `Referer` field.
    pub referrer: Option<&'a [u8]>,
}

impl Context for RequestContext<'_> {
    fn append_to(&self, line: &mut Line) {
        if let Some(action) = self.action {
            line.push(b" while ");
            line.push(action.as_bytes());
        }
        line.push(b", client: ");
        line.push(self.client);
        line.push(b", server: ");
        line.push(self.server);
        for (name, value) in [
            ("request", self.request),
            ("subrequest", self.subrequest),
            ("upstream", self.upstream),
            ("host", self.host),
            ("referrer", self.referrer),
        ] {
            if let Some(value) = value {
                line.push(b", ");
                line.push(name.as_bytes());
                line.push(b": \"");
                line.push(value);
                line.push(b"\"");
            }
        }
    }
}

/// A line in the making, on the stack. It takes [`MAX_ERROR_STR`] bytes and drops the rest.
///
/// A line feed is written as `\x0A`: what a client sends cannot begin a line of its own. Other bytes are written as
/// they are, as nginx writes them.
pub struct Line {
    bytes: [u8; MAX_ERROR_STR],
    len: usize,
}

impl Line {
    /// The bytes that an error number needs at the end of a full line.
    const ERRNO_ROOM: usize = 50;

    pub(super) fn new() -> Self {
        Self {
            bytes: [0; MAX_ERROR_STR],
            len: 0,
        }
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(at) = memchr::memchr(b'\n', rest) {
            let (clean, tail) = rest.split_at(at);
            self.push_raw(clean);
            self.push_raw(b"\\x0A");
            rest = tail.get(1..).unwrap_or_default();
        }
        self.push_raw(rest);
    }

    /// Appends text, in which characters of [`crate::http::text::shown`] stand for bytes.
    fn push_text(&mut self, text: &[u8]) {
        let mut rest = text;
        let mut from = 0;
        while let Some(at) = memchr::memchr(0xf4, rest.get(from..).unwrap_or_default()) {
            let (clean, tail) = rest.split_at(from + at);
            match crate::http::text::byte(tail) {
                Some(byte) => {
                    self.push(clean);
                    self.push(&[byte]);
                    rest = tail.get(4..).unwrap_or_default();
                    from = 0;
                }
                None => from += at + 1,
            }
        }
        self.push(rest);
    }

    fn push_raw(&mut self, text: &[u8]) {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let taken = room.len().min(text.len());
        for (slot, &byte) in room.iter_mut().zip(text) {
            *slot = byte;
        }
        self.len += taken;
    }

    /// Writes the whole line and returns where its message begins.
    pub(super) fn compose(&mut self, record: &Record<'_>) -> usize {
        let (pid, tid) = ids();
        self.push_raw(&stamp().error);
        // Writing to a `Line` cannot fail; what does not fit is dropped.
        let _ = write!(self, " [{}] {pid}#{tid}: ", record.level);
        if let Some(conn) = record.conn {
            let _ = write!(self, "*{conn} ");
        }
        let message_at = self.len;
        let _ = self.write_fmt(record.message);
        if let Some(errno) = record.errno {
            if self.len > MAX_ERROR_STR - Self::ERRNO_ROOM {
                self.len = MAX_ERROR_STR - Self::ERRNO_ROOM;
                self.push_raw(b"...");
            }
            let _ = write!(self, "{errno}");
        }
        if let Some(context) = record.context
            && record.level != Level::Debug
        {
            context.append_to(self);
        }
        self.len = self.len.min(MAX_ERROR_STR - 1);
        self.push_raw(b"\n");
        message_at
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push_text(text.as_bytes());
        Ok(())
    }
}

/// The process and the kernel's number of this thread.
fn ids() -> (u32, i32) {
    thread_local! {
        static TID: Cell<(u32, i32)> = const { Cell::new((0, 0)) };
    }
    let pid = std::process::id();
    match TID.get() {
        cached @ (owner, _) if owner == pid => cached,
        // A thread that was never asked, or the child of a fork.
        _ => {
            let fresh = (pid, nix::unistd::gettid().as_raw());
            TID.set(fresh);
            fresh
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn one_record_is_one_line(message in any::<String>(), client in any::<Vec<u8>>(), repeat in 1usize..200) {
            let message = message.repeat(repeat);
            let context = RequestContext { client: &client, ..RequestContext::default() };
            let mut line = Line::new();
            let at = line.compose(&Record {
                errno: Some(Errno(2)),
                context: Some(&context),
                ..Record::new(Level::Error, format_args!("{message}"))
            });
            let bytes = line.as_bytes();
            prop_assert!(at < bytes.len() && bytes.len() <= MAX_ERROR_STR);
            prop_assert_eq!(bytes.iter().position(|&byte| byte == b'\n'), Some(bytes.len() - 1));
        }
    }
}
