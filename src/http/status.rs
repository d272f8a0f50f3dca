//! Status lines and the built-in pages of error and redirect responses.

use super::escape::{Escape, escape};

/// The nginx release whose language and behaviour this build follows; tools parse it from `-v`.
pub const NGINX_VERSION: &str = "1.31.5";

/// What `Server` and the built-in pages say: the level of compatibility, which existing tools parse.
pub const SERVER: &str = "nginx/1.31.5";
/// The same with the build's name (`server_tokens build`).
pub const SERVER_BUILD: &str = concat!("nginx/1.31.5 (couloir/", env!("CARGO_PKG_VERSION"), ")");

/// The `server_tokens` directive, as far as pages show it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tokens {
    /// Name and version.
    #[default]
    On,
    /// The name alone.
    Off,
    /// Name, version and build name.
    Build,
}

/// Code and reason phrase, or none for a code that nginx has no phrase for (it sends the code, a space and nothing).
pub fn line(code: u16) -> Option<&'static str> {
    Some(match code {
        200 => "200 OK",
        201 => "201 Created",
        202 => "202 Accepted",
        204 => "204 No Content",
        206 => "206 Partial Content",
        301 => "301 Moved Permanently",
        302 => "302 Moved Temporarily",
        303 => "303 See Other",
        304 => "304 Not Modified",
        307 => "307 Temporary Redirect",
        308 => "308 Permanent Redirect",
        400 => "400 Bad Request",
        401 => "401 Unauthorized",
        402 => "402 Payment Required",
        403 => "403 Forbidden",
        404 => "404 Not Found",
        405 => "405 Not Allowed",
        406 => "406 Not Acceptable",
        407 => "407 Proxy Authentication Required",
        408 => "408 Request Time-out",
        409 => "409 Conflict",
        410 => "410 Gone",
        411 => "411 Length Required",
        412 => "412 Precondition Failed",
        413 => "413 Request Entity Too Large",
        414 => "414 Request-URI Too Large",
        415 => "415 Unsupported Media Type",
        416 => "416 Requested Range Not Satisfiable",
        421 => "421 Misdirected Request",
        429 => "429 Too Many Requests",
        500 => "500 Internal Server Error",
        501 => "501 Not Implemented",
        502 => "502 Bad Gateway",
        503 => "503 Service Temporarily Unavailable",
        504 => "504 Gateway Time-out",
        505 => "505 HTTP Version Not Supported",
        507 => "507 Insufficient Storage",
        _ => return None,
    })
}

/// The code that goes to the client: nginx's own 494 to 497 are sent as 400.
pub fn on_wire(code: u16) -> u16 {
    match code {
        494..=497 => 400,
        code => code,
    }
}

/// Appends the built-in `text/html` page of a status; false, and nothing written, if the response has no body.
///
/// `server_name_version` is the text under the rule, such as `nginx/1.31.5`; of it `Tokens::Off` shows what precedes
/// the `/`. `msie_padding` is nginx's directive and the client's kind taken together; redirects are never padded.
pub fn builtin_page(
    code: u16,
    tokens: Tokens,
    server_name_version: &str,
    msie_padding: bool,
    out: &mut Vec<u8>,
) -> bool {
    let Some(page) = page(code) else { return false };
    let server = match tokens {
        Tokens::On | Tokens::Build => server_name_version,
        Tokens::Off => server_name_version.split('/').next().unwrap_or_default(),
    };
    for text in [
        "<html>\r\n<head><title>",
        page.title,
        "</title></head>\r\n<body>\r\n<center><h1>",
        page.heading,
        "</h1></center>\r\n",
    ] {
        out.extend_from_slice(text.as_bytes());
    }
    if let Some(reason) = page.reason {
        for text in ["<center>", reason, "</center>\r\n"] {
            out.extend_from_slice(text.as_bytes());
        }
    }
    for text in [
        "<hr><center>",
        server,
        "</center>\r\n</body>\r\n</html>\r\n",
    ] {
        out.extend_from_slice(text.as_bytes());
    }
    if msie_padding && code >= 400 {
        for _ in 0..6 {
            out.extend_from_slice(
                b"<!-- a padding to disable MSIE and Chrome friendly error page -->\r\n",
            );
        }
    }
    true
}

/// Appends the page that `msie_refresh` sends, with status 200, in place of a redirect.
pub fn refresh_page(location: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"<html><head><meta http-equiv=\"Refresh\" content=\"0; URL=");
    escape(Escape::Refresh, location, out);
    out.extend_from_slice(b"\"></head><body></body></html>\r\n");
}

struct Page {
    title: &'static str,
    heading: &'static str,
    reason: Option<&'static str>,
}

fn page(code: u16) -> Option<Page> {
    let bad_request = |title: &'static str| Page {
        title,
        heading: "400 Bad Request",
        reason: title.split_once(' ').map(|(_, reason)| reason),
    };
    Some(match code {
        494 => bad_request("400 Request Header Or Cookie Too Large"),
        495 => bad_request("400 The SSL certificate error"),
        496 => bad_request("400 No required SSL certificate was sent"),
        497 => bad_request("400 The plain HTTP request was sent to HTTPS port"),
        _ => {
            let title = match code {
                // Pages and status lines differ in these two.
                302 => "302 Found",
                401 => "401 Authorization Required",
                // An upstream request that was cancelled.
                498 => "404 Not Found",
                301 | 303 | 307 | 308 | 400.. => line(code)?,
                _ => return None,
            };
            Page {
                title,
                heading: title,
                reason: None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(code: u16, tokens: Tokens, padding: bool) -> String {
        let mut out = Vec::new();
        assert_eq!(
            builtin_page(code, tokens, "nginx/1.31.5", padding, &mut out),
            !out.is_empty()
        );
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn writes_a_page() {
        assert_eq!(
            text(404, Tokens::On, false),
            "<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>\r\n<center><h1>404 Not Found</h1></center>\r\n\
             <hr><center>nginx/1.31.5</center>\r\n</body>\r\n</html>\r\n"
        );
        assert_eq!(
            text(497, Tokens::Off, false),
            "<html>\r\n<head><title>400 The plain HTTP request was sent to HTTPS port</title></head>\r\n<body>\r\n\
             <center><h1>400 Bad Request</h1></center>\r\n\
             <center>The plain HTTP request was sent to HTTPS port</center>\r\n\
             <hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
        );
    }

    #[test]
    fn pads_errors_only() {
        let plain = text(404, Tokens::On, false);
        let padded = text(404, Tokens::On, true);
        let padding = padded.strip_prefix(&plain).unwrap();
        assert_eq!(padding.lines().count(), 6);
        assert_eq!(padding.len(), 6 * 67);
        assert_eq!(text(302, Tokens::On, true), text(302, Tokens::On, false));
        assert!(text(494, Tokens::On, true).ends_with(padding));
    }

    #[test]
    fn knows_which_codes_have_pages() {
        let with_page: Vec<u16> = (0..1000)
            .filter(|&code| !text(code, Tokens::On, true).is_empty())
            .collect();
        let mut want = vec![301, 302, 303, 307, 308];
        want.extend(400..=416);
        want.extend([
            421, 429, 494, 495, 496, 497, 498, 500, 501, 502, 503, 504, 505, 507,
        ]);
        assert_eq!(with_page, want);
        assert!(text(302, Tokens::On, false).contains("<h1>302 Found</h1>"));
        assert!(text(401, Tokens::On, false).contains("<h1>401 Authorization Required</h1>"));
        assert!(text(498, Tokens::On, false).contains("<title>404 Not Found</title>"));
    }

    #[test]
    fn status_lines() {
        for code in 0..1000 {
            assert!(
                line(code).is_none_or(|text| text.starts_with(&format!("{code} "))),
                "{code}"
            );
        }
        assert_eq!(line(302), Some("302 Moved Temporarily"));
        assert_eq!(line(418), None);
        assert_eq!(line(203), None);
        assert_eq!(
            (on_wire(494), on_wire(497), on_wire(498), on_wire(404)),
            (400, 400, 498, 404)
        );
    }

    #[test]
    fn refreshes() {
        let mut out = Vec::new();
        refresh_page(b"http://h/\"x~%20", &mut out);
        assert_eq!(
            out,
            b"<html><head><meta http-equiv=\"Refresh\" content=\"0; URL=http://h/%22x%7E%20\"></head><body></body></html>\r\n"
        );
    }
}
