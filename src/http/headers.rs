//! One header list for requests, upstream responses and our own responses.

use super::strict;
use memchr::memchr;

/// An ordered header list that keeps names as they were written and compares them without regard to case.
///
/// Names and values live in one arena, so a list that is reused after [`Headers::clear`] allocates nothing.
/// Replaced and removed fields leave their bytes in the arena until then.
#[derive(Default, Clone, Debug)]
pub struct Headers {
    arena: Vec<u8>,
    list: Vec<Entry>,
    /// One bit per [`Known`] id in the list, so that asking for an absent field costs no scan.
    seen: u128,
}

/// Where one field lives in the arena: the name at `at`, the value right behind it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u32,
    name_len: u32,
    value_len: u32,
    known: Known,
}

impl Headers {
    /// An empty list; allocates on the first append.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties the list and keeps its memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.list.clear();
        self.seen = 0;
    }

    /// Number of field lines.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is no field line.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Adds a field line at the end.
    pub fn append(&mut self, name: &[u8], value: &[u8]) {
        self.append_as(Known::of(name), name, value);
    }

    /// Adds a field line whose id the caller already knows; `known` must be `Known::of(name)`.
    pub(crate) fn append_as(&mut self, known: Known, name: &[u8], value: &[u8]) {
        if let Some(entry) = self.store(known, name, value) {
            self.list.push(entry);
        }
    }

    /// Adds a known field under its usual spelling. [`Known::Other`] has no name and is not added.
    pub fn append_id(&mut self, known: Known, value: &[u8]) {
        if known != Known::Other {
            self.append_as(known, known.name().as_bytes(), value);
        }
    }

    /// Replaces the first field of that name and drops the others; appends if there is none.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        let known = Known::of(name);
        let Some(first) = self.position(known, name) else {
            return self.append_as(known, name, value);
        };
        if let Some(entry) = self.store(known, name, value) {
            let arena = &self.arena;
            let mut index = 0;
            self.list.retain(|e| {
                index += 1;
                index - 1 <= first || !e.is(arena, known, name)
            });
            if let Some(slot) = self.list.get_mut(first) {
                *slot = entry;
            }
        }
    }

    /// [`Headers::set`] under the field's usual spelling.
    pub fn set_id(&mut self, known: Known, value: &[u8]) {
        if known != Known::Other {
            self.set(known.name().as_bytes(), value);
        }
    }

    /// Removes every field of that name; tells whether there was one.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        let known = Known::of(name);
        if known != Known::Other {
            return self.remove_id(known);
        }
        let (arena, before) = (&self.arena, self.list.len());
        self.list.retain(|e| !e.is(arena, known, name));
        self.list.len() != before
    }

    /// Removes every field of that id; tells whether there was one. [`Known::Other`] removes nothing.
    pub fn remove_id(&mut self, known: Known) -> bool {
        if !self.contains_id(known) {
            return false;
        }
        self.list.retain(|e| e.known != known);
        self.seen &= !known.bit();
        true
    }

    /// Keeps only the fields for which `keep(id, name, value)` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(Known, &[u8], &[u8]) -> bool) {
        let (arena, mut seen) = (&self.arena, 0);
        self.list.retain(|e| {
            let kept = keep(e.known, e.name(arena), e.value(arena));
            if kept {
                seen |= e.known.bit();
            }
            kept
        });
        self.seen = seen;
    }

    /// The first value of that name.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.get_all(name).next()
    }

    /// The first value of that id; `None` for [`Known::Other`].
    pub fn get_id(&self, known: Known) -> Option<&[u8]> {
        self.get_all_id(known).next()
    }

    /// Every value of that name, in order.
    pub fn get_all<'a>(&'a self, name: &[u8]) -> impl Iterator<Item = &'a [u8]> {
        let known = Known::of(name);
        let list = if known == Known::Other || self.contains_id(known) {
            &self.list[..]
        } else {
            &[]
        };
        list.iter()
            .filter(move |e| e.is(&self.arena, known, name))
            .map(|e| e.value(&self.arena))
    }

    /// Every value of that id, in order; nothing for [`Known::Other`].
    pub fn get_all_id(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        let list = if self.contains_id(known) {
            &self.list[..]
        } else {
            &[]
        };
        list.iter()
            .filter(move |e| e.known == known)
            .map(|e| e.value(&self.arena))
    }

    /// Whether a field of that name is present.
    pub fn contains(&self, name: &[u8]) -> bool {
        self.get(name).is_some()
    }

    /// Whether a field of that id is present; false for [`Known::Other`].
    pub fn contains_id(&self, known: Known) -> bool {
        known != Known::Other && self.seen & known.bit() != 0
    }

    /// Names (as written) and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.list
            .iter()
            .map(|e| (e.name(&self.arena), e.value(&self.arena)))
    }

    /// As [`Headers::iter`], with each field's id.
    pub fn entries(&self) -> impl Iterator<Item = (Known, &[u8], &[u8])> {
        self.list
            .iter()
            .map(|e| (e.known, e.name(&self.arena), e.value(&self.arena)))
    }

    /// Appends all values of that name to `out`, `sep` between them; false (and nothing written) if there is none.
    ///
    /// nginx joins `$http_cookie` with `"; "` and every other `$http_*` with `", "`.
    pub fn joined(&self, name: &[u8], sep: &[u8], out: &mut Vec<u8>) -> bool {
        join(self.get_all(name), sep, out)
    }

    /// The first value whose name is `suffix` once lower-cased and with `-` written as `_`: what follows `$http_`,
    /// `$sent_http_` or `$upstream_http_`.
    pub fn by_variable(&self, suffix: &[u8]) -> Option<&[u8]> {
        self.all_by_variable(suffix).next()
    }

    /// Every value that [`Headers::by_variable`] would match; nginx joins them with `", "`.
    pub fn all_by_variable<'a>(&'a self, suffix: &[u8]) -> impl Iterator<Item = &'a [u8]> {
        self.list
            .iter()
            .filter(move |e| {
                e.name_len as usize == suffix.len() && is_variable(e.name(&self.arena), suffix)
            })
            .map(|e| e.value(&self.arena))
    }

    /// As [`Headers::joined`], for a variable's suffix.
    pub fn joined_by_variable(&self, suffix: &[u8], sep: &[u8], out: &mut Vec<u8>) -> bool {
        join(self.all_by_variable(suffix), sep, out)
    }

    /// Appends every field as `Name: value CRLF`, without the empty line that ends a head.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        for (name, value) in self.iter() {
            out.extend_from_slice(name);
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Writes a space for every control character in a value other than HTAB, and cuts the spaces that then stand around
    /// the value. RFC 9110, section 5.5, has a recipient do so before it forwards a message that it does not refuse.
    pub fn clean(&mut self) {
        if strict::has_control(&self.arena) {
            self.clean_values();
        }
    }

    #[cold]
    fn clean_values(&mut self) {
        for e in &mut self.list {
            let begin = e.at as usize + e.name_len as usize;
            let Some(value) = self.arena.get_mut(begin..begin + e.value_len as usize) else {
                continue;
            };
            if !strict::has_control(value) {
                continue;
            }
            for b in value.iter_mut().filter(|b| strict::is_control(**b)) {
                *b = b' ';
            }
            let lead = value.iter().take_while(|b| **b == b' ').count();
            value.rotate_left(lead);
            let rest = value.get(..value.len() - lead).unwrap_or_default();
            let tail = rest.iter().rev().take_while(|b| **b == b' ').count();
            e.value_len -= (lead + tail) as u32;
        }
    }

    /// Whether a CR, LF or NUL stands anywhere in the list: none may be written.
    pub fn has_break(&self) -> bool {
        memchr::memchr3(b'\r', b'\n', 0, &self.arena).is_some()
    }

    fn position(&self, known: Known, name: &[u8]) -> Option<usize> {
        self.list
            .iter()
            .position(|e| e.is(&self.arena, known, name))
    }

    /// `None` past 4 GiB, which no head reaches: the limits on heads are far below.
    fn store(&mut self, known: Known, name: &[u8], value: &[u8]) -> Option<Entry> {
        let at = u32::try_from(self.arena.len()).ok()?;
        let name_len = u32::try_from(name.len()).ok()?;
        let value_len = u32::try_from(value.len()).ok()?;
        self.arena.extend_from_slice(name);
        self.arena.extend_from_slice(value);
        self.seen |= known.bit();
        Some(Entry {
            at,
            name_len,
            value_len,
            known,
        })
    }
}

impl Entry {
    fn name<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        let at = self.at as usize;
        arena
            .get(at..at + self.name_len as usize)
            .unwrap_or_default()
    }

    fn value<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        let at = self.at as usize + self.name_len as usize;
        arena
            .get(at..at + self.value_len as usize)
            .unwrap_or_default()
    }

    fn is(&self, arena: &[u8], known: Known, name: &[u8]) -> bool {
        self.known == known
            && (known != Known::Other || self.name(arena).eq_ignore_ascii_case(name))
    }
}

macro_rules! known {
    ($($id:ident $name:literal),+ $(,)?) => {
        /// The field names that the server itself looks at.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Known {
            /// Any other name.
            #[default]
            Other,
            $(#[doc = concat!("`", $name, "`")] $id,)+
        }

        /// Names by id; `Other` has none.
        const NAMES: &[&str] = &["", $($name),+];
        const IDS: &[Known] = &[Known::Other, $(Known::$id),+];
    };
}

known! {
    Host "Host", Connection "Connection", ContentLength "Content-Length", TransferEncoding "Transfer-Encoding",
    Upgrade "Upgrade", Expect "Expect", Range "Range", IfRange "If-Range", IfModifiedSince "If-Modified-Since",
    IfUnmodifiedSince "If-Unmodified-Since", IfMatch "If-Match", IfNoneMatch "If-None-Match",
    UserAgent "User-Agent", Referer "Referer", Cookie "Cookie", Authorization "Authorization",
    ProxyAuthorization "Proxy-Authorization", ProxyConnection "Proxy-Connection",
    ProxyAuthenticate "Proxy-Authenticate", XForwardedFor "X-Forwarded-For", XForwardedProto "X-Forwarded-Proto",
    XForwardedHost "X-Forwarded-Host", XRealIp "X-Real-IP", Accept "Accept", AcceptEncoding "Accept-Encoding",
    AcceptLanguage "Accept-Language", Via "Via", KeepAlive "Keep-Alive", Te "TE", Trailer "Trailer",
    Depth "Depth", Destination "Destination", Overwrite "Overwrite", Origin "Origin", Allow "Allow", Age "Age",
    ContentType "Content-Type", ContentEncoding "Content-Encoding", ContentRange "Content-Range",
    ContentDisposition "Content-Disposition", Date "Date", Server "Server", Status "Status", Location "Location",
    LastModified "Last-Modified", ETag "ETag", Expires "Expires", CacheControl "Cache-Control", Pragma "Pragma",
    SetCookie "Set-Cookie", AcceptRanges "Accept-Ranges", WwwAuthenticate "WWW-Authenticate", Vary "Vary",
    Link "Link", Refresh "Refresh", RetryAfter "Retry-After", AltSvc "Alt-Svc",
    StrictTransportSecurity "Strict-Transport-Security", XAccelRedirect "X-Accel-Redirect",
    XAccelBuffering "X-Accel-Buffering", XAccelLimitRate "X-Accel-Limit-Rate", XAccelExpires "X-Accel-Expires",
    XAccelCharset "X-Accel-Charset", XPoweredBy "X-Powered-By", XPad "X-Pad", XRequestId "X-Request-ID",
    EarlyData "Early-Data", SecWebSocketKey "Sec-WebSocket-Key",
}

impl Known {
    /// The id of a field name, in any case.
    pub fn of(name: &[u8]) -> Known {
        let (Some(&first), Some(&last)) = (name.first(), name.last()) else {
            return Known::Other;
        };
        let mut slot = slot(name.len(), first, last);
        loop {
            let id = TABLE[slot as usize] as usize;
            match (IDS.get(id), NAMES.get(id)) {
                (Some(&known), Some(text)) if id != 0 => {
                    if is_spelled(text.as_bytes(), name) {
                        return known;
                    }
                }
                _ => return Known::Other,
            }
            slot = slot.wrapping_add(1);
        }
    }

    /// The field's usual spelling; empty for [`Known::Other`].
    pub fn name(self) -> &'static str {
        NAMES.get(self as usize).copied().unwrap_or_default()
    }

    pub(super) fn bit(self) -> u128 {
        1 << self as u8
    }
}

const _: () = assert!(IDS.len() < 128, "the presence set has 128 bits");

/// Ids by [`slot`], open addressing, 0 for a free place.
static TABLE: [u8; 256] = table();

const fn table() -> [u8; 256] {
    let mut table = [0; 256];
    let mut id = 1;
    while id < NAMES.len() {
        let name = NAMES[id].as_bytes();
        let mut at = slot(name.len(), name[0], name[name.len() - 1]);
        while table[at as usize] != 0 {
            at = at.wrapping_add(1);
        }
        table[at as usize] = id as u8;
        id += 1;
    }
    table
}

const fn slot(len: usize, first: u8, last: u8) -> u8 {
    (len as u8)
        .wrapping_mul(37)
        .wrapping_add(first.to_ascii_lowercase().wrapping_mul(11))
        .wrapping_add(last.to_ascii_lowercase().wrapping_mul(5))
}

/// `eq_ignore_ascii_case` by eight bytes at a time. A byte of `text` with bit 6 is a letter, and there bit 5 is its case.
fn is_spelled(text: &[u8], name: &[u8]) -> bool {
    const LETTERS: u64 = 0x4040_4040_4040_4040;
    let word = |text: &[u8; 8], name: &[u8; 8]| {
        let text = u64::from_le_bytes(*text);
        (text ^ u64::from_le_bytes(*name)) & !((text & LETTERS) >> 1) == 0
    };
    if text.len() != name.len() {
        return false;
    }
    match (text.last_chunk(), name.last_chunk()) {
        // The last word overlaps the one before it.
        (Some(a), Some(b)) => {
            word(a, b)
                && text
                    .as_chunks()
                    .0
                    .iter()
                    .zip(name.as_chunks().0)
                    .all(|(a, b)| word(a, b))
        }
        _ => text.eq_ignore_ascii_case(name),
    }
}

fn join<'a>(values: impl Iterator<Item = &'a [u8]>, sep: &[u8], out: &mut Vec<u8>) -> bool {
    let mut any = false;
    for value in values {
        if any {
            out.extend_from_slice(sep);
        }
        out.extend_from_slice(value);
        any = true;
    }
    any
}

fn is_variable(name: &[u8], suffix: &[u8]) -> bool {
    name.iter().zip(suffix).all(|(&n, &s)| {
        s == if n == b'-' {
            b'_'
        } else {
            n.to_ascii_lowercase()
        }
    })
}

/// Whether `needle` (lower case) occurs in `hay` in any case: how nginx looks for `close` in `Connection`.
pub fn contains_ignore_case(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len().max(1))
        .any(|w| w.eq_ignore_ascii_case(needle))
}

/// Whether a comma-separated list holds `token`, in any case (RFC 9110, section 5.6.1).
pub fn has_token(mut list: &[u8], token: &[u8]) -> bool {
    loop {
        let (item, rest) = match memchr(b',', list) {
            Some(comma) => (list.get(..comma).unwrap_or_default(), list.get(comma + 1..)),
            None => (list, None),
        };
        if item.trim_ascii().eq_ignore_ascii_case(token) {
            return true;
        }
        match rest {
            Some(rest) => list = rest,
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_become_spaces() {
        let mut h = Headers::new();
        for (name, value) in [
            ("a", "plain"),
            ("b", "x\x01y\tz\x7f"),
            ("c", "\x0b \x0cz"),
            ("d", "\x01"),
            ("e", ""),
        ] {
            h.append(name.as_bytes(), value.as_bytes());
        }
        h.clean();
        let shown: Vec<_> = h
            .iter()
            .map(|(n, v)| [n, b"=", v].concat().escape_ascii().to_string())
            .collect();
        assert_eq!(shown, ["a=plain", "b=x y\\tz", "c=z", "d=", "e="]);
    }

    fn list(fields: &[(&str, &str)]) -> Headers {
        let mut h = Headers::new();
        for (n, v) in fields {
            h.append(n.as_bytes(), v.as_bytes());
        }
        h
    }

    fn text(h: &Headers) -> String {
        let mut out = Vec::new();
        h.write_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_known_name_finds_its_id_in_any_case() {
        for (id, name) in IDS.iter().zip(NAMES).skip(1) {
            assert_eq!(Known::of(name.as_bytes()), *id, "{name}");
            assert_eq!(Known::of(name.to_uppercase().as_bytes()), *id, "{name}");
            assert_eq!(Known::of(name.to_lowercase().as_bytes()), *id, "{name}");
            assert_eq!(
                Known::of(format!("{name}x").as_bytes()),
                Known::Other,
                "{name}"
            );
            assert_eq!(id.name(), *name);
            for at in 0..name.len() {
                for flip in [0x20, 0x01, 0x40, 0x80] {
                    let mut other = name.as_bytes().to_vec();
                    other[at] ^= flip;
                    let same = name.as_bytes().eq_ignore_ascii_case(&other);
                    assert_eq!(
                        is_spelled(name.as_bytes(), &other),
                        same,
                        "{}",
                        other.escape_ascii()
                    );
                }
            }
        }
        assert_eq!(Known::of(b""), Known::Other);
        assert_eq!(Known::of(b"X-Anything"), Known::Other);
    }

    #[test]
    fn probing_stays_short() {
        let longest = TABLE.split(|&id| id == 0).map(<[u8]>::len).max();
        assert!(longest < Some(12), "{longest:?}");
    }

    #[test]
    fn set_replaces_the_first_and_drops_the_rest() {
        let mut h = list(&[
            ("A", "1"),
            ("Vary", "x"),
            ("a", "2"),
            ("vary", "y"),
            ("A", "3"),
        ]);
        h.set(b"a", b"9");
        h.set(b"VARY", b"z");
        assert_eq!(text(&h), "a: 9\r\nVARY: z\r\n");
        h.set(b"New", b"");
        h.set_id(Known::Date, b"now");
        assert_eq!(text(&h), "a: 9\r\nVARY: z\r\nNew: \r\nDate: now\r\n");
    }

    #[test]
    fn remove_and_retain_forget_the_id() {
        let mut h = list(&[("Host", "a"), ("X", "1"), ("host", "b"), ("TE", "t")]);
        assert!(h.remove(b"HOST") && !h.remove(b"HOST") && !h.contains_id(Known::Host));
        assert!(h.remove(b"x") && !h.remove(b"x"));
        h.retain(|known, _, _| known != Known::Te);
        assert!(h.is_empty() && !h.contains(b"te"));
        h.append(b"te", b"u");
        assert_eq!(h.get_id(Known::Te), Some(&b"u"[..]));
        assert_eq!(h.get_id(Known::Other), None);
    }

    #[test]
    fn values_join_and_variables_match() {
        let h = list(&[
            ("Cookie", "a=1"),
            ("X-My_Thing", "p"),
            ("cookie", "b=2"),
            ("x-my-thing", "q"),
        ]);
        let mut out = Vec::new();
        assert!(h.joined(b"cookie", b"; ", &mut out));
        assert_eq!(out, b"a=1; b=2");
        assert_eq!(h.by_variable(b"x_my_thing"), Some(&b"p"[..]));
        out.clear();
        assert!(h.joined_by_variable(b"x_my_thing", b", ", &mut out));
        assert_eq!(out, b"p, q");
        assert!(!h.joined(b"absent", b", ", &mut out) && h.by_variable(b"x-my-thing").is_none());
    }

    #[test]
    fn tokens_and_substrings() {
        assert!(has_token(b"foo, Upgrade ,bar", b"upgrade") && has_token(b"upgrade", b"upgrade"));
        assert!(!has_token(b"h2-upgrade", b"upgrade") && !has_token(b"", b"upgrade"));
        assert!(
            contains_ignore_case(b"x-CLOSEd", b"close") && !contains_ignore_case(b"clos", b"close")
        );
    }

    proptest! {
        #[test]
        fn behaves_as_a_list_of_pairs(ops in prop::collection::vec((0u8..4, "[aA]|[hH]ost|X-[a-b]|", "[a-c]{0,3}"), 0..40)) {
            let (mut h, mut model) = (Headers::new(), Vec::<(String, String)>::new());
            for (op, name, value) in ops {
                let same = |n: &str| n.eq_ignore_ascii_case(&name);
                match op {
                    0 | 1 => { h.append(name.as_bytes(), value.as_bytes()); model.push((name, value)); }
                    2 => {
                        h.set(name.as_bytes(), value.as_bytes());
                        match model.iter().position(|(n, _)| same(n)) {
                            Some(first) => {
                                let mut i = 0;
                                model.retain(|(n, _)| { i += 1; i - 1 <= first || !same(n) });
                                model[first] = (name, value);
                            }
                            None => model.push((name, value)),
                        }
                    }
                    _ => {
                        let before = model.len();
                        model.retain(|(n, _)| !same(n));
                        prop_assert_eq!(h.remove(name.as_bytes()), model.len() != before);
                    }
                }
                let got: Vec<_> = h.iter().map(|(n, v)| (String::from_utf8_lossy(n).into_owned(), String::from_utf8_lossy(v).into_owned())).collect();
                prop_assert_eq!(&got, &model);
                prop_assert_eq!(h.contains_id(Known::Host), model.iter().any(|(n, _)| n.eq_ignore_ascii_case("host")));
            }
        }
    }
}
