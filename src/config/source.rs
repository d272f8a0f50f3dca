//! Where configuration text comes from: every file is read once and kept, with its name, for messages and `-T`.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::load_inputs;

/// Every text that a configuration was read from, in the order of first reading.
#[derive(Debug, Default)]
pub struct Sources {
    files: Vec<Arc<Source>>,
    /// Letter by letter: to nginx `a` and `./a` are two files, which a `PathBuf` as key would take for one.
    by_path: HashMap<OsString, FileId>,
}

impl Sources {
    /// The texts in the order of first reading.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.files.iter()
    }

    /// The text with this id.
    pub fn get(&self, id: FileId) -> Option<&Arc<Source>> {
        self.files.get(id.0 as usize)
    }

    /// The file that was read under exactly this path.
    pub fn find(&self, path: &Path) -> Option<&Arc<Source>> {
        self.get(*self.by_path.get(path.as_os_str())?)
    }

    /// Returns the file at `path`, reading it only if it has not been read before.
    pub(super) fn open(&mut self, path: &Path, reader: &dyn Reader) -> io::Result<Arc<Source>> {
        if let Some(known) = self.find(path) {
            return Ok(Arc::clone(known));
        }
        let bytes = reader.read(path)?;
        let source = self.add(&path.to_string_lossy(), bytes, SourceKind::File);
        self.by_path.insert(path.as_os_str().to_owned(), source.id);
        Ok(source)
    }

    /// Keeps a text under a name of its own.
    pub(super) fn add(&mut self, name: &str, bytes: Vec<u8>, kind: SourceKind) -> Arc<Source> {
        let source = Arc::new(Source {
            id: FileId(u32::try_from(self.files.len()).unwrap_or(u32::MAX)),
            name: name.into(),
            bytes: bytes.into(),
            kind,
        });
        self.files.push(Arc::clone(&source));
        source
    }
}

/// One configuration text.
#[derive(Debug)]
pub struct Source {
    /// Its place in [`Sources`].
    pub id: FileId,
    /// The name that messages show: the path as nginx would print it.
    pub name: Box<str>,
    /// The text, as read.
    pub bytes: Box<[u8]>,
    /// What the text is.
    pub kind: SourceKind,
}

/// What a configuration text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A configuration file.
    File,
    /// The argument of `-g`: no blocks, no line numbers, no limit on the length of a word.
    CommandLine,
}

/// Names one text of a [`Sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub u32);

/// A stretch of a configuration text.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The text.
    pub file: FileId,
    /// The 1-based line on which `start` stands.
    pub line: u32,
    /// The first byte.
    pub start: u32,
    /// The byte after the last one.
    pub end: u32,
}

/// The outside world as the parser sees it.
pub trait Reader {
    /// Reads a whole file. An error should carry the operating system's number, which is printed as nginx does.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Expands a glob(3) pattern, sorted by bytes; no match is an empty list.
    fn glob(&self, pattern: &str) -> io::Result<Vec<PathBuf>>;
}

/// Reads from the file system, or what [`outside`] has of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Reader for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        load_inputs::read(path)
    }

    fn glob(&self, pattern: &str) -> io::Result<Vec<PathBuf>> {
        load_inputs::glob(pattern, || {
            let found =
                glob::glob_with(&translate(pattern), GLOB_OPTIONS).map_err(io::Error::other)?;
            // glob(3) without GLOB_ERR passes over what it cannot read.
            let mut paths: Vec<PathBuf> = found.filter_map(std::result::Result::ok).collect();
            paths.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
            Ok(paths)
        })
    }
}

/// Reads from memory: for tests, and for parsing again what was read before, wherever it came from.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Memory {
    /// Adds a file, or replaces it.
    pub fn insert(&mut self, path: impl Into<PathBuf>, bytes: impl Into<Vec<u8>>) {
        self.files.insert(path.into(), bytes.into());
    }
}

impl From<&Sources> for Memory {
    fn from(sources: &Sources) -> Self {
        let files = sources
            .by_path
            .iter()
            .filter_map(|(path, id)| Some((path.into(), sources.get(*id)?.bytes.to_vec())));
        Self {
            files: files.collect(),
        }
    }
}

impl<P: Into<PathBuf>, B: Into<Vec<u8>>> FromIterator<(P, B)> for Memory {
    fn from_iter<I: IntoIterator<Item = (P, B)>>(files: I) -> Self {
        Self {
            files: files
                .into_iter()
                .map(|(path, bytes)| (path.into(), bytes.into()))
                .collect(),
        }
    }
}

impl Reader for Memory {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.files
            .get(path)
            .cloned()
            .ok_or_else(|| io::Error::from_raw_os_error(ENOENT))
    }

    fn glob(&self, pattern: &str) -> io::Result<Vec<PathBuf>> {
        let pattern = glob::Pattern::new(&translate(pattern)).map_err(io::Error::other)?;
        let mut paths: Vec<PathBuf> = self
            .files
            .keys()
            .filter(|path| pattern.matches_path_with(path, GLOB_OPTIONS))
            .cloned()
            .collect();
        paths.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
        Ok(paths)
    }
}

/// Says what went wrong as nginx does: `(2: No such file or directory)`.
pub(super) fn os_error(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(number) => {
            let text = text
                .strip_suffix(&format!(" (os error {number})"))
                .unwrap_or(&text);
            format!("({number}: {text})")
        }
        None => format!("({EINVAL}: {text})"),
    }
}

/// Puts `name` under `prefix` unless it is absolute, letter by letter as nginx does (`ngx_get_full_name`).
pub(super) fn full_name(prefix: &Path, name: &[u8]) -> PathBuf {
    let prefix = prefix.as_os_str().as_bytes();
    let mut full = Vec::with_capacity(prefix.len() + 1 + name.len());
    if !name.starts_with(b"/") && !prefix.is_empty() {
        full.extend_from_slice(prefix);
        if !prefix.ends_with(b"/") {
            full.push(b'/');
        }
    }
    full.extend_from_slice(name);
    PathBuf::from(OsStr::from_bytes(&full))
}

const ENOENT: i32 = 2;
const EINVAL: i32 = 22;

const GLOB_OPTIONS: glob::MatchOptions = glob::MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// Rewrites a glob(3) pattern for the `glob` crate, which has no backslash, gives `**` a meaning of its own, and
/// refuses a `[` that is never closed.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = after;
        match c {
            '*' => {
                rest = after.trim_start_matches('*');
                out.push('*');
            }
            '\\' => {
                if let Some(escaped) = after.chars().next() {
                    rest = &after[escaped.len_utf8()..];
                    out.push_str(&glob::Pattern::escape(escaped.encode_utf8(&mut [0; 4])));
                }
            }
            '[' => match bracket(after) {
                Some((negated, set, behind)) => {
                    out.push_str(if negated { "[!" } else { "[" });
                    out.push_str(set);
                    out.push(']');
                    rest = behind;
                }
                None => out.push_str("[[]"),
            },
            _ => out.push(c),
        }
    }
    out
}

/// Splits the text behind a `[` into negation, the set, and the text behind the `]`.
fn bracket(after: &str) -> Option<(bool, &str, &str)> {
    let inner = after.strip_prefix(['!', '^']);
    let (negated, inner) = (inner.is_some(), inner.unwrap_or(after));
    // A `]` in the first place is a member of the set.
    let first = inner.chars().next()?.len_utf8();
    let close = first + inner.get(first..)?.find(']')?;
    let (set, behind) = inner.split_at_checked(close)?;
    if set.contains('/') {
        return None;
    }
    Some((negated, set, behind.strip_prefix(']')?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_joined_letter_by_letter() {
        let full = |prefix: &str, name: &str| {
            full_name(Path::new(prefix), name.as_bytes())
                .display()
                .to_string()
        };
        assert_eq!(full("/etc/nginx", "mime.types"), "/etc/nginx/mime.types");
        assert_eq!(full("/etc/nginx/", "./a"), "/etc/nginx/./a");
        assert_eq!(full("/etc/nginx/", "/b"), "/b");
        assert_eq!(full("", "b"), "b");
        assert_eq!(full("/etc/nginx/", ""), "/etc/nginx/");
    }

    #[test]
    fn errors_read_as_nginx_prints_them() {
        assert_eq!(
            os_error(&io::Error::from_raw_os_error(2)),
            "(2: No such file or directory)"
        );
        assert_eq!(
            os_error(&io::Error::from_raw_os_error(13)),
            "(13: Permission denied)"
        );
    }

    #[test]
    fn patterns_keep_the_meaning_of_glob_3() {
        assert_eq!(translate("/a/*.conf"), "/a/*.conf");
        assert_eq!(translate("/a/**/b"), "/a/*/b");
        assert_eq!(translate("/a/[^b]"), "/a/[!b]");
        assert_eq!(translate("/a/[]b]"), "/a/[]b]");
        assert_eq!(translate("/a/[*"), "/a/[[]*");
        assert_eq!(translate("/a\\*/[b/c]?"), "/a[*]/[[]b/c]?");
        for odd in ["", "[", "[!", "[]", "[^]", "\\", "a[", "[é"] {
            assert!(glob::Pattern::new(&translate(odd)).is_ok(), "{odd}");
        }
    }

    #[test]
    fn globs_sort_by_bytes_and_pass_over_hidden_files() {
        let files = [
            "/c/b.conf",
            "/c/B.conf",
            "/c/.x.conf",
            "/c/a.conf",
            "/c/d/z.conf",
            "/c/a.txt",
        ];
        let memory: Memory = files.into_iter().map(|f| (f, "")).collect();
        let found = memory.glob("/c/*.conf").unwrap();
        assert_eq!(
            found,
            ["/c/B.conf", "/c/a.conf", "/c/b.conf"].map(PathBuf::from)
        );

        let dir = tempfile::tempdir().unwrap();
        for name in ["b.conf", "B.conf", ".x.conf", "a.conf", "a.txt"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let found = Disk
            .glob(&format!("{}/*.conf", dir.path().display()))
            .unwrap();
        assert_eq!(
            found,
            ["B.conf", "a.conf", "b.conf"].map(|n| dir.path().join(n))
        );
        assert!(
            Disk.glob(&format!("{}/none/*", dir.path().display()))
                .unwrap()
                .is_empty()
        );
    }
}
