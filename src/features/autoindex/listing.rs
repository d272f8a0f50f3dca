//! A directory's entries as HTML, JSON and XML, byte for byte as nginx writes them.

use crate::http::date;
use crate::http::escape::{self, Escape};
use std::io::Write;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Vec<u8>,
    /// What it is, or what its link leads to.
    pub kind: Kind,
    /// When it was changed, seconds since the epoch.
    pub mtime: i64,
    /// Bytes.
    pub size: u64,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// Anything else.
    Other,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Directory => "directory",
            Kind::File => "file",
            Kind::Other => "other",
        }
    }
}

/// How an HTML list looks.
#[derive(Clone, Copy, Debug)]
pub struct Html {
    /// Names are measured in characters, not bytes.
    pub utf8: bool,
    /// Sizes in bytes, not rounded.
    pub exact_size: bool,
    /// Seconds east of Greenwich.
    pub offset: i32,
}

/// Directories first, then by name.
pub fn sort(entries: &mut [Entry]) {
    entries.sort_by(|a, b| {
        let file = |e: &Entry| e.kind != Kind::Directory;
        file(a).cmp(&file(b)).then_with(|| a.name.cmp(&b.name))
    });
}

/// The page `Index of /uri/`.
pub fn html(uri: &[u8], entries: &[Entry], how: Html, out: &mut Vec<u8>) {
    out.extend_from_slice(b"<html>\r\n<head><title>Index of ");
    escape::html(uri, out);
    out.extend_from_slice(b"</title></head>\r\n<body>\r\n<h1>Index of ");
    escape::html(uri, out);
    out.extend_from_slice(b"</h1><hr><pre><a href=\"../\">../</a>\r\n");
    for e in entries {
        html_entry(e, how, out);
    }
    out.extend_from_slice(b"</pre><hr></body>\r\n</html>\r\n");
}

/// Characters of a name that are shown.
const WIDTH: usize = 50;

fn html_entry(e: &Entry, how: Html, out: &mut Vec<u8>) {
    let directory = e.kind == Kind::Directory;
    out.extend_from_slice(b"<a href=\"");
    escape::escape(Escape::UriComponent, &e.name, out);
    out.extend_from_slice(if directory { b"/\">" } else { b"\">" });

    let text = if how.utf8 {
        std::str::from_utf8(&e.name).ok()
    } else {
        None
    };
    let mut len = text.map_or(e.name.len(), |t| t.chars().count());
    if len > WIDTH {
        let cut = match text {
            Some(t) => t
                .char_indices()
                .nth(WIDTH - 3)
                .map_or(t.len(), |(at, _)| at),
            None => WIDTH - 3,
        };
        escape::html(e.name.get(..cut).unwrap_or_default(), out);
        out.extend_from_slice(b"..&gt;</a>");
    } else {
        escape::html(&e.name, out);
        if directory && len < WIDTH {
            out.push(b'/');
            len += 1;
        }
        out.extend_from_slice(b"</a>");
        out.resize(out.len() + (WIDTH - len), b' ');
    }

    let time = Moment::of(e.mtime.saturating_add(i64::from(how.offset))).listed();
    // writing to a Vec cannot fail
    let _ = match (how.exact_size, directory, rounded(e.size)) {
        (true, true, _) => write!(out, " {time} {:>19}\r\n", '-'),
        (true, false, _) => write!(out, " {time} {:>19}\r\n", e.size),
        (false, true, _) => write!(out, " {time} {:>7}\r\n", '-'),
        (false, false, Some((size, unit))) => write!(out, " {time} {size:>6}{unit}\r\n"),
        (false, false, None) => write!(out, " {time} {:>7}\r\n", e.size),
    };
}

/// A size rounded to K, M or G; `None` for one of up to four digits, which is shown as it is.
fn rounded(size: u64) -> Option<(u64, char)> {
    let (shift, unit) = match size {
        0..=9999 => return None,
        10_000..=0xf_ffff => (10, 'K'),
        0x10_0000..=0x3fff_ffff => (20, 'M'),
        _ => (30, 'G'),
    };
    let half_or_more = (size >> (shift - 1)) & 1;
    Some(((size >> shift) + half_or_more, unit))
}

/// The list as JSON, wrapped into a call where there is a callback.
pub fn json(entries: &[Entry], callback: Option<&[u8]>, out: &mut Vec<u8>) {
    if let Some(name) = callback {
        out.extend_from_slice(b"/* callback */\r\n");
        out.extend_from_slice(name);
        out.push(b'(');
    }
    out.push(b'[');
    for (i, e) in entries.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"\r\n{ \"name\":\"");
        escape::json(&e.name, out);
        let _ = write!(out, "\", \"type\":\"{}\", \"mtime\":\"", e.kind.name());
        out.extend_from_slice(&date::format(e.mtime));
        let _ = match e.kind {
            Kind::File => write!(out, "\", \"size\":{} }}", e.size),
            _ => write!(out, "\" }}"),
        };
    }
    out.extend_from_slice(b"\r\n]");
    if callback.is_some() {
        out.extend_from_slice(b");");
    }
}

/// The list as XML.
pub fn xml(entries: &[Entry], out: &mut Vec<u8>) {
    out.extend_from_slice(b"<?xml version=\"1.0\"?>\r\n<list>\r\n");
    for e in entries {
        let name = e.kind.name();
        let _ = write!(out, "<{name} mtime=\"{}\"", Moment::of(e.mtime).iso());
        if e.kind == Kind::File {
            let _ = write!(out, " size=\"{}\"", e.size);
        }
        out.push(b'>');
        escape::html(&e.name, out);
        let _ = write!(out, "</{name}>\r\n");
    }
    out.extend_from_slice(b"</list>\r\n");
}

/// A moment, by the parts of its HTTP date: `Sun, 06 Nov 1994 08:49:37 GMT`.
struct Moment(String);

impl Moment {
    fn of(sec: i64) -> Moment {
        Moment(String::from_utf8_lossy(&date::format(sec)).into_owned())
    }

    fn part(&self, from: usize, len: usize) -> &str {
        self.0.get(from..from + len).unwrap_or_default()
    }

    fn day(&self) -> &str {
        self.part(5, 2)
    }

    fn month(&self) -> &str {
        self.part(8, 3)
    }

    fn year(&self) -> &str {
        self.part(12, 4)
    }

    /// `06-Nov-1994 08:49`
    fn listed(&self) -> String {
        format!(
            "{}-{}-{} {}",
            self.day(),
            self.month(),
            self.year(),
            self.part(17, 5)
        )
    }

    /// `1994-11-06T08:49:37Z`
    fn iso(&self) -> String {
        let month = "JanFebMarAprMayJunJulAugSepOctNovDec"
            .find(self.month())
            .map_or(1, |at| at / 3 + 1);
        format!(
            "{}-{month:02}-{}T{}Z",
            self.year(),
            self.day(),
            self.part(17, 8)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: i64 = 784_111_777;
    const PLAIN: Html = Html {
        utf8: false,
        exact_size: true,
        offset: 0,
    };

    fn entry(name: &[u8], kind: Kind, size: u64) -> Entry {
        Entry {
            name: name.into(),
            kind,
            mtime: TIME,
            size,
        }
    }

    fn line(e: &Entry, how: Html) -> String {
        let mut out = Vec::new();
        html_entry(e, how, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn html_lines() {
        let file = entry(b"a<b&.txt", Kind::File, 12);
        assert_eq!(
            line(&file, PLAIN),
            "<a href=\"a%3Cb%26.txt\">a&lt;b&amp;.txt</a>                                           06-Nov-1994 08:49                  12\r\n"
        );
        let dir = entry(b"d", Kind::Directory, 4096);
        assert_eq!(
            line(&dir, PLAIN),
            "<a href=\"d/\">d/</a>                                                 06-Nov-1994 08:49                   -\r\n"
        );
        let rounded = Html {
            exact_size: false,
            offset: -3600,
            ..PLAIN
        };
        for (size, want) in [
            (9999, "   9999"),
            (10_000, "    10K"),
            (1_048_575, "  1024K"),
            (1_572_864, "     2M"),
            (3 << 30, "     3G"),
        ] {
            let text = line(&entry(b"f", Kind::File, size), rounded);
            assert_eq!(text.split_once("07:49 ").unwrap().1, format!("{want}\r\n"));
        }
        assert!(line(&dir, rounded).ends_with(" 06-Nov-1994 07:49       -\r\n"));
    }

    #[test]
    fn long_names_are_cut() {
        for (len, slash) in [(49, true), (50, false)] {
            let text = line(&entry(&vec![b'x'; len], Kind::Directory, 0), PLAIN);
            assert_eq!(text.contains("x/</a> 06-Nov"), slash, "{text}");
        }
        let text = line(&entry(&[b'>'; 51], Kind::File, 0), PLAIN);
        assert!(
            text.contains(&format!("\">{}..&gt;</a> 06-Nov", "&gt;".repeat(47))),
            "{text}"
        );
        let name = "\u{444}".repeat(51);
        let text = line(
            &entry(name.as_bytes(), Kind::File, 0),
            Html {
                utf8: true,
                ..PLAIN
            },
        );
        assert!(
            text.contains(&format!("\">{}..&gt;</a>", "\u{444}".repeat(47))),
            "{text}"
        );
        let text = line(
            &entry(b"\xff\xfe", Kind::File, 0),
            Html {
                utf8: true,
                ..PLAIN
            },
        );
        assert!(
            text.contains(&format!("</a>{}06-Nov", " ".repeat(49))),
            "{text}"
        );
    }

    #[test]
    fn directories_come_first() {
        let mut list = [
            entry(b"a", Kind::File, 0),
            entry(b"c", Kind::Directory, 0),
            entry(b"b", Kind::Directory, 0),
            entry(b"A", Kind::Other, 0),
        ];
        sort(&mut list);
        assert_eq!(list.map(|e| e.name), [b"b", b"c", b"A", b"a"]);
    }

    #[test]
    fn json_and_xml() {
        let list = [
            entry(b"d\"", Kind::Directory, 1),
            entry(b"f&", Kind::File, 2),
        ];
        let mut out = Vec::new();
        json(&list, None, &mut out);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "[\r\n{ \"name\":\"d\\\"\", \"type\":\"directory\", \"mtime\":\"Sun, 06 Nov 1994 08:49:37 GMT\" },\r\n\
             { \"name\":\"f&\", \"type\":\"file\", \"mtime\":\"Sun, 06 Nov 1994 08:49:37 GMT\", \"size\":2 }\r\n]"
        );
        out.clear();
        json(&[], Some(b"cb"), &mut out);
        assert_eq!(out, b"/* callback */\r\ncb([\r\n]);");
        out.clear();
        xml(&list, &mut out);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "<?xml version=\"1.0\"?>\r\n<list>\r\n<directory mtime=\"1994-11-06T08:49:37Z\">d&quot;</directory>\r\n\
             <file mtime=\"1994-11-06T08:49:37Z\" size=\"2\">f&amp;</file>\r\n</list>\r\n"
        );
    }
}
