//! What becomes of a status: an `error_page`, the built-in page, or no answer at all.

use crate::contract::{Body, ErrorPage, PassEnd, RedirectTo, Request};
use crate::http::head::Version;
use crate::http::{status, uri};
use crate::log::Level;
use bytes::Bytes;

/// Decides how a request ends that was given a status; `None` where nothing more is to be sent.
pub async fn special(r: &mut Request, code: u16) -> Option<PassEnd> {
    if r.header_sent {
        // too late for another answer
        r.aborted = true;
        r.keepalive = false;
        r.down.abort();
        return None;
    }
    if matches!(code, 408 | 444 | 499) || r.client_closed {
        r.out.status = code;
        r.aborted = true;
        r.keepalive = false;
        r.down.abort();
        return None;
    }
    r.err_status = code;
    if matches!(code, 400 | 413 | 414 | 495 | 496 | 497 | 500 | 501) {
        r.keepalive = false;
    }
    r.out.content_type.clear();
    let core = r.location().core.clone();
    if !r.error_page && !core.error_pages.is_empty() && r.uri_changes != 0 {
        if !core.recursive_error_pages {
            r.error_page = true;
        }
        if let Some(page) = core.error_pages.iter().find(|p| p.status == code) {
            return Some(configured(r, page, code));
        }
    }
    r.body.continued = true;
    Some(builtin(r))
}

/// `error_page`: an internal redirect, or a redirect of the client.
///
/// The target is the URI as it stands: nothing is decoded in it. One that would leave the root is not followed; the
/// error keeps its own status and the built-in page.
fn configured(r: &mut Request, page: &ErrorPage, code: u16) -> PassEnd {
    if let Some(status) = page.overwrite {
        r.err_status = status.unwrap_or(0);
        if status.is_some_and(|s| s != 200) {
            r.body.continued = true;
        }
    }
    let mut target = Vec::new();
    page.target.write(r, &mut target);
    match target.first() {
        Some(b'/') => {
            let (path, args) = match (&page.args, memchr::memchr(b'?', &target)) {
                (Some(args), _) => (&target[..], args.clone()),
                (None, Some(at)) => {
                    let (path, args) = target.split_at(at);
                    (path, args.get(1..).unwrap_or_default().to_vec())
                }
                (None, None) => (&target[..], Vec::new()),
            };
            if !uri::is_safe(path) {
                r.error(
                    Level::Error,
                    format_args!(
                        "unsafe URI \"{}\" was detected",
                        crate::http::text::shown(&target)
                    ),
                );
                r.err_status = code;
                return builtin(r);
            }
            if !r.is_head() {
                r.method = crate::http::method::Method::Get;
            }
            PassEnd::Redirect(RedirectTo::Uri(path.to_vec(), args))
        }
        Some(b'@') => PassEnd::Redirect(RedirectTo::Named(target)),
        _ => {
            if let Err(status) = r.check_value("error_page", "its URL", &target) {
                r.err_status = status;
                return builtin(r);
            }
            r.out.clear_entity();
            r.out.location = target;
            r.body.continued = true;
            if !matches!(r.err_status, 301 | 302 | 303 | 307 | 308) {
                r.err_status = 302;
            }
            builtin(r)
        }
    }
}

/// The built-in page of `r.err_status`.
fn builtin(r: &mut Request) -> PassEnd {
    let core = r.location().core.clone();
    let location = std::mem::take(&mut r.out.location);
    // what a 416 tells of the length
    let range = r
        .out
        .headers
        .get(b"Content-Range")
        .filter(|_| r.err_status == 416)
        .map(<[u8]>::to_vec);
    r.out.clear_entity();
    r.out.location = location;
    if let Some(range) = range {
        r.out.headers.set(b"Content-Range", &range);
    }
    r.out.status = r.err_status;
    r.out.status_line.clear();
    let mut page = Vec::with_capacity(256);
    let agent = r.head.headers.get(b"user-agent").unwrap_or_default();
    let msie = memchr::memmem::find(agent, b"MSIE ").is_some();
    if core.msie_refresh && msie && matches!(r.err_status, 301 | 302) && !r.out.location.is_empty()
    {
        status::refresh_page(&r.out.location, &mut page);
        r.out.location.clear();
        r.err_status = 200;
        r.out.status = 200;
    } else {
        let chrome = memchr::memmem::find(agent, b"Chrome/").is_some() && !msie;
        let padding = core.msie_padding
            && (msie || chrome)
            && r.head.version >= Version::V10
            && r.err_status >= 400;
        let server = match core.server_tokens {
            crate::contract::Tokens::Build => crate::http::status::SERVER_BUILD,
            _ => crate::http::status::SERVER,
        };
        status::builtin_page(r.err_status, core.server_tokens, server, padding, &mut page);
    }
    // what is sent is what is logged
    r.err_status = status::on_wire(r.err_status);
    r.out.status = r.err_status;
    if page.is_empty() {
        return PassEnd::Respond(Body::Empty);
    }
    r.out.content_type.extend_from_slice(b"text/html");
    PassEnd::Respond(Body::Bytes(Bytes::from(page)))
}
