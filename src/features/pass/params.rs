//! `fastcgi_param`, `uwsgi_param`, `scgi_param`, and the client's headers as `HTTP_…` parameters (RFC 3875, 4.1.18).
//!
//! A header never takes the place of a parameter that the configuration sets, however it is spelt: names are compared
//! in one case and with `-` for `_`. Where a client sends both `X-Name` and `X_Name` (`underscores_in_headers on`), the
//! one with `_` is dropped. `Proxy` would become HTTP_PROXY, which programs take for their own settings: it is never
//! passed, unless a parameter of that name says so. The latter two are stricter than nginx.

use crate::contract::*;
use crate::http::headers::Known;
use crate::http::names::NameSet;
use std::sync::Arc;

/// One `…_param`.
#[derive(Clone)]
pub struct Param {
    name: Box<[u8]>,
    value: Template,
    /// `if_not_empty`.
    skip_empty: bool,
}

/// What the `…_param` directives of one block wrote.
pub type Written = Option<Arc<Vec<Param>>>;

/// Reads one `…_param`.
///
/// # Errors
/// A third parameter other than `if_not_empty`.
pub fn read(slot: &mut Written, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if s.len() > 2 && s.arg(2) != b"if_not_empty" {
        return Err(s.invalid_parameter(2));
    }
    let param = Param {
        name: s.arg(0).into(),
        value: b.template(s, 1)?,
        skip_empty: s.len() > 2,
    };
    Arc::make_mut(slot.get_or_insert_default()).push(param);
    Ok(())
}

/// How a protocol writes one parameter; `value` appends its value.
pub trait Pairs {
    /// Appends the pair.
    fn pair(&mut self, name: &[u8], value: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>);
}

/// The parameters of a location.
pub struct Params {
    list: Box<[Param]>,
    /// Names that headers must not take, without `HTTP_` and with `-` for `_`.
    trusted: NameSet,
    /// `…_pass_request_headers`.
    headers: bool,
}

const PREFIX: &[u8] = b"HTTP_";

impl Params {
    /// From what was written; `host` is the value of HTTP_HOST where that is not.
    pub fn new(written: &Written, host: &Template, headers: bool) -> Params {
        let mut all: Vec<Param> = written.as_deref().cloned().unwrap_or_default();
        if !all
            .iter()
            .any(|p| p.name.eq_ignore_ascii_case(b"HTTP_HOST"))
        {
            all.push(Param {
                name: (*b"HTTP_HOST").into(),
                value: host.clone(),
                skip_empty: true,
            });
        }
        let mut trusted: NameSet = [&b"proxy"[..]].into_iter().collect();
        all.retain(|p| match p.name.strip_prefix(PREFIX) {
            Some(name) if !name.is_empty() => {
                trusted.insert(&dashed(name));
                // an empty one only keeps the header out
                !p.value.is(b"")
            }
            _ => true,
        });
        Params {
            list: all.into(),
            trusted,
            headers,
        }
    }

    /// Writes every parameter, then the client's headers.
    pub fn write(&self, r: &Request, pairs: &mut impl Pairs, out: &mut Vec<u8>) {
        for p in &self.list {
            let begin = out.len();
            let mut empty = false;
            pairs.pair(
                &p.name,
                |out| {
                    let at = out.len();
                    p.value.write(r, out);
                    empty = out.len() == at;
                },
                out,
            );
            if empty && p.skip_empty {
                out.truncate(begin);
            }
        }
        if let Some(m) = r.upstream.revalidating() {
            self.write_conditions(m, pairs, out);
        }
        if self.headers {
            self.write_headers(r, pairs, out);
        }
    }

    /// Every parameter on a line of its own, for `explain`.
    pub fn shown(&self, r: &Request) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(r, &mut Lines, &mut out);
        out
    }

    /// Asks whether the response in the cache still is the same.
    fn write_conditions(
        &self,
        old: &crate::cache::file::Meta,
        pairs: &mut impl Pairs,
        out: &mut Vec<u8>,
    ) {
        if old.last_modified >= 0 && !self.is_trusted(Known::IfModifiedSince, b"", false) {
            let date = crate::http::date::format(old.last_modified);
            let value = |out: &mut Vec<u8>| out.extend_from_slice(&date);
            pairs.pair(b"HTTP_IF_MODIFIED_SINCE", value, out);
        }
        if !old.etag.is_empty() && !self.is_trusted(Known::IfNoneMatch, b"", false) {
            let value = |out: &mut Vec<u8>| out.extend_from_slice(&old.etag);
            pairs.pair(b"HTTP_IF_NONE_MATCH", value, out);
        }
    }

    fn write_headers(&self, r: &Request, pairs: &mut impl Pairs, out: &mut Vec<u8>) {
        let headers = &r.head.headers;
        // what may be stored is asked for as a whole
        let whole = r.upstream.is_cacheable();
        for (i, (known, name, value)) in headers.entries().enumerate() {
            let odd = name.contains(&b'_');
            if self.is_trusted(known, name, odd) || (whole && is_condition(known)) {
                continue;
            }
            let same = |k: Known, n: &[u8]| {
                k == known && (k != Known::Other || n.eq_ignore_ascii_case(name))
            };
            // joined with the first of that name
            if headers.entries().take(i).any(|(k, n, _)| same(k, n)) {
                continue;
            }
            if odd && is_outdone(headers, name, i) {
                continue;
            }
            let mut buffer = [0u8; 128];
            let mut long = Vec::new();
            let name = variable_name(name, &mut buffer, &mut long);
            let separator: &[u8] = if known == Known::Cookie { b"; " } else { b", " };
            pairs.pair(
                name,
                |out| {
                    out.extend_from_slice(value);
                    for (k, n, more) in headers.entries().skip(i + 1) {
                        if same(k, n) {
                            out.extend_from_slice(separator);
                            out.extend_from_slice(more);
                        }
                    }
                },
                out,
            );
        }
    }

    fn is_trusted(&self, known: Known, name: &[u8], odd: bool) -> bool {
        if !odd {
            return self.trusted.contains(known, name);
        }
        let name = dashed(name);
        self.trusted.contains(Known::of(&name), &name)
    }
}

struct Lines;

impl Pairs for Lines {
    fn pair(&mut self, name: &[u8], value: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
        out.extend_from_slice(name);
        out.extend_from_slice(b": ");
        value(out);
        out.push(b'\n');
    }
}

/// Whether a header asks for a part of the response, or for it under conditions.
fn is_condition(known: Known) -> bool {
    matches!(
        known,
        Known::IfModifiedSince
            | Known::IfUnmodifiedSince
            | Known::IfNoneMatch
            | Known::IfMatch
            | Known::Range
            | Known::IfRange
    )
}

/// Whether another header would become the same parameter and goes first: one without `_`, or an earlier one.
fn is_outdone(headers: &crate::http::headers::Headers, name: &[u8], at: usize) -> bool {
    headers.entries().enumerate().any(|(i, (_, other, _))| {
        i != at
            && other.len() == name.len()
            && !other.eq_ignore_ascii_case(name)
            && dashed(other).eq_ignore_ascii_case(&dashed(name))
            && (i < at || !other.contains(&b'_'))
    })
}

fn dashed(name: &[u8]) -> Vec<u8> {
    name.iter()
        .map(|b| if *b == b'_' { b'-' } else { *b })
        .collect()
}

/// `HTTP_` and the name in capitals with `_` for `-`; in `small` where it fits.
fn variable_name<'b>(name: &[u8], small: &'b mut [u8], long: &'b mut Vec<u8>) -> &'b [u8] {
    let len = PREFIX.len() + name.len();
    let to = match small.get_mut(..len) {
        Some(to) => to,
        None => {
            long.resize(len, 0);
            &mut long[..]
        }
    };
    for (to, from) in to.iter_mut().zip(PREFIX.iter().chain(name)) {
        *to = match from {
            b'-' => b'_',
            b => b.to_ascii_uppercase(),
        };
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_headers() {
        let (mut small, mut long) = ([0u8; 16], Vec::new());
        assert_eq!(
            variable_name(b"x-Real_ip", &mut small, &mut long),
            b"HTTP_X_REAL_IP"
        );
        let name = [b'a'; 40];
        assert_eq!(variable_name(&name, &mut small, &mut long).len(), 45);
    }

    #[test]
    fn headers_of_trusted_parameters_stay_out() {
        let written = Some(Arc::new(vec![
            Param {
                name: (*b"HTTP_X_USER").into(),
                value: Template::literal(b""),
                skip_empty: false,
            },
            Param {
                name: (*b"REMOTE_ADDR").into(),
                value: Template::literal(b"1"),
                skip_empty: false,
            },
        ]));
        let p = Params::new(&written, &Template::literal(b"h"), true);
        let trusted = |name: &[u8]| p.is_trusted(Known::of(name), name, name.contains(&b'_'));
        for name in [
            &b"X-User"[..],
            b"x_user",
            b"X_USER",
            b"Proxy",
            b"proxy",
            b"Host",
        ] {
            assert!(trusted(name), "{}", String::from_utf8_lossy(name));
        }
        assert!(!trusted(b"X-Users") && !trusted(b"Cookie"));
        let names: Vec<_> = p.list.iter().map(|p| &*p.name).collect();
        assert_eq!(names, [&b"REMOTE_ADDR"[..], b"HTTP_HOST"]);
    }
}
