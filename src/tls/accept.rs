//! A handshake under way: the callbacks that every context has, and what they ask.

use super::ffi;
use super::session::Tickets;
use openssl::ex_data::Index;
use pingora::tls::error::ErrorStack;
use pingora::tls::ssl::SslContextRef;
use pingora::tls::ssl::{
    AlpnError, ClientHelloResponse, Ssl, SslAlert, SslContext, SslContextBuilder, SslRef,
    SslVerifyMode, select_next_proto,
};
use std::sync::LazyLock;

/// What the server behind a listener decides in a handshake.
pub trait Hooks: Send + Sync + 'static {
    /// Which context serves the name that the client asks for, if it asks for one.
    fn choose(&mut self, name: Option<&[u8]>) -> Choice;
    /// Gives the connection its certificates, where their names have variables.
    fn certificates(&mut self, ssl: &mut SslRef) -> bool;
    /// The protocols to choose from by ALPN, each behind its length.
    fn protocols(&self) -> &'static [u8];
    /// Whether anything asks for the id of the session, which one of TLS 1.3 has by its ticket.
    fn wants_id(&self) -> bool;
}

/// What [`Hooks::choose`] says.
pub enum Choice {
    /// The listener's own context.
    Keep,
    /// Another one.
    Use(SslContext),
    /// None: `unrecognized_name`.
    Reject,
}

/// What a connection carries while it is accepted.
pub struct Accepting {
    hooks: Option<Box<dyn Hooks>>,
    tickets: Option<Tickets>,
    aged: bool,
    decided: bool,
    /// Tickets that stand for a session kept here would stand for nothing.
    forgets: bool,
}

fn index() -> Option<Index<Ssl, Accepting>> {
    static INDEX: LazyLock<Option<Index<Ssl, Accepting>>> =
        LazyLock::new(|| Ssl::new_ex_index().ok());
    *INDEX
}

/// Prepares a connection to be accepted.
///
/// # Errors
/// What OpenSSL says.
pub fn begin(
    ctx: &SslContextRef,
    hooks: Box<dyn Hooks>,
    tickets: Option<Tickets>,
) -> Result<Ssl, ErrorStack> {
    let index = index().ok_or_else(ErrorStack::get)?;
    let mut ssl = Ssl::new(ctx)?;
    let forgets = !hooks.wants_id() && ffi::keeps_no_sessions(ctx);
    ssl.set_ex_data(
        index,
        Accepting {
            hooks: Some(hooks),
            tickets,
            aged: false,
            decided: false,
            forgets,
        },
    );
    ssl.set_accept_state();
    Ok(ssl)
}

/// Gives a context the callbacks; connections come from [`begin`].
pub fn install(ctx: &mut SslContextBuilder) {
    ctx.set_client_hello_callback(client_hello);
    // acknowledges the name
    ctx.set_servername_callback(|_, _| Ok(()));
    ctx.set_alpn_select_callback(|ssl, client| {
        let server = state(ssl)
            .and_then(|a| a.hooks.as_ref())
            .map_or(HTTP11, |h| h.protocols());
        select_next_proto(server, client).ok_or(AlpnError::ALERT_FATAL)
    });
    ffi::set_progress_callback(ctx);
}

/// `http/1.1` and its elders, for ALPN.
pub const HTTP11: &[u8] = b"\x08http/1.1\x08http/1.0\x08http/0.9";
/// The same behind `h2`.
pub const H2: &[u8] = b"\x02h2\x08http/1.1\x08http/1.0\x08http/0.9";

fn client_hello(ssl: &mut SslRef, alert: &mut SslAlert) -> Result<ClientHelloResponse, ErrorStack> {
    let Some(mut hooks) = state(ssl).filter(|a| !a.decided).and_then(|a| {
        a.decided = true;
        a.hooks.take()
    }) else {
        // the second hello after a retry
        return Ok(ClientHelloResponse::SUCCESS);
    };
    let choice = match ffi::client_hello_name(ssl) {
        Some(extension) => match server_name(extension) {
            Ok(name) => Ok(hooks.choose(Some(name))),
            Err(a) => Err(a),
        },
        None => Ok(hooks.choose(None)),
    };
    let mut forgets = false;
    if let Some(a) = state(ssl) {
        a.hooks = Some(hooks);
        forgets = a.forgets;
    }
    match choice {
        Ok(Choice::Keep) => {}
        Ok(Choice::Use(ctx)) => {
            ssl.set_ssl_context(&ctx)?;
            // the callback stays: every context has the same
            ssl.set_verify(ctx.verify_mode());
            ffi::adopt(ssl, &ctx);
        }
        Ok(Choice::Reject) => {
            *alert = SslAlert::UNRECOGNIZED_NAME;
            return Err(ErrorStack::get());
        }
        Err(refused) => {
            *alert = refused;
            return Err(ErrorStack::get());
        }
    }
    if forgets {
        ffi::send_no_empty_tickets(ssl);
    }
    Ok(ClientHelloResponse::SUCCESS)
}

/// The one host name of the extension (RFC 6066 section 3).
fn server_name(extension: &[u8]) -> Result<&[u8], SslAlert> {
    let name = match extension {
        [a, b, 0, c, d, name @ ..]
            if usize::from(*a) << 8 | usize::from(*b) == extension.len() - 2
                && usize::from(*c) << 8 | usize::from(*d) == name.len() =>
        {
            name
        }
        _ => return Err(SslAlert::DECODE_ERROR),
    };
    if name.len() > 255 || name.contains(&0) {
        return Err(SslAlert::UNRECOGNIZED_NAME);
    }
    Ok(name)
}

fn state(ssl: &mut SslRef) -> Option<&mut Accepting> {
    ssl.ex_data_mut(index()?)
}

/// Called when a certificate is needed and its name has variables.
pub(super) fn certificates(ssl: &mut SslRef) -> bool {
    let Some(mut hooks) = state(ssl).and_then(|a| a.hooks.take()) else {
        return false;
    };
    let found = hooks.certificates(ssl);
    if let Some(a) = state(ssl) {
        a.hooks = Some(hooks);
    }
    found
}

/// The handshake is over: a connection that stays does not hold the configuration that it began with.
pub(super) fn over(ssl: &mut SslRef) {
    if let Some(a) = state(ssl) {
        a.hooks = None;
    }
}

/// The keys of the context that the connection began with.
pub(super) fn tickets(ssl: &mut SslRef) -> Option<Tickets> {
    state(ssl)?.tickets.clone()
}

/// True once a connection.
pub(super) fn first_time(ssl: &mut SslRef) -> bool {
    state(ssl).is_some_and(|a| !std::mem::replace(&mut a.aged, true))
}

/// The session timeout in force, seconds.
pub(super) fn timeout(ssl: &mut SslRef) -> libc::c_long {
    ffi::timeout(ssl.ssl_context())
}

/// Has every chain accepted in the handshake: what is wrong with it is told by the result of the verification.
pub fn verify_later(ctx: &mut SslContextBuilder, mode: SslVerifyMode) {
    ctx.set_verify_callback(mode, |_, _| true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_extension() {
        assert_eq!(server_name(b"\x00\x06\x00\x00\x03a.b").unwrap(), b"a.b");
        for broken in [
            &b""[..],
            b"\x00",
            b"\x00\x06\x00\x00\x03a.",
            b"\x00\x06\x01\x00\x03a.b",
            b"\x00\x07\x00\x00\x03a.b",
            b"\x00\x06\x00\x00\x04a.b",
        ] {
            assert_eq!(server_name(broken).unwrap_err(), SslAlert::DECODE_ERROR);
        }
        assert_eq!(
            server_name(b"\x00\x06\x00\x00\x03a\x00b").unwrap_err(),
            SslAlert::UNRECOGNIZED_NAME
        );
    }
}
