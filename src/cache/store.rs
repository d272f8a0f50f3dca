//! Objects: read from their files, and written while a response passes.

use super::file::{self, Damage, Meta};
use super::key::Digest;
use super::live::Live;
use super::zone::{Zone, reason};
use crate::files::{Spool, TempPath};
use crate::http::h1::response::UpstreamHead;
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Files up to this size are read at once and may be kept in memory, bytes.
pub const SMALL: usize = 128 * 1024;

/// How much of a larger file is read for its header, bytes.
const START: usize = 8 * 1024;

/// A cached response.
#[derive(Debug)]
pub struct Object {
    /// What is known of it.
    pub meta: Meta,
    /// Its head as the origin sent it.
    pub head: UpstreamHead,
    /// Its body.
    pub body: Content,
    /// Tells it from others of the same key ([`super::index::Found::Cached`]).
    pub generation: u64,
    /// The file's number, by which a replaced one is told; 0 where it is not known.
    pub inode: u64,
}

/// The body of a cached response.
#[derive(Debug)]
pub enum Content {
    /// In memory.
    Memory(Bytes),
    /// In its file: where it begins and how long it is.
    File(Arc<File>, u64, u64),
}

impl Content {
    /// How long it is, bytes.
    pub fn len(&self) -> u64 {
        match self {
            Content::Memory(b) => b.len() as u64,
            Content::File(_, _, len) => *len,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Object {
    /// What it takes in memory, bytes; `None` where its body is in a file.
    pub fn in_memory_size(&self) -> Option<u64> {
        match &self.body {
            Content::Memory(b) => {
                let head: usize = self
                    .head
                    .headers
                    .iter()
                    .map(|(n, v)| n.len() + v.len() + 16)
                    .sum();
                Some((b.len() + head + self.meta.key.len() + 256) as u64)
            }
            Content::File(..) => None,
        }
    }
}

/// Why an object could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// There is no file.
    Missing,
    /// The file is no object of this key, or broken.
    Damaged(Damage),
    /// The file is of another key.
    Collision,
    /// The folder cannot be read.
    Io(io::Error),
}

impl Zone {
    /// Reads an object's file; `key` is compared with the one stored.
    ///
    /// # Errors
    /// There is none that can be served.
    pub fn read(&self, digest: Digest, key: &[u8], generation: u64) -> Result<Object, ReadError> {
        let path = self.path(digest);
        let object = read(&path, generation)?;
        if object.meta.key == key {
            Ok(object)
        } else {
            Err(ReadError::Collision)
        }
    }

    /// Writes changed times into an object's file, if that still is the same one.
    pub fn rewrite(&self, digest: Digest, object: &Object, meta: &Meta) -> io::Result<()> {
        let path = self.path(digest);
        let file = match std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
        {
            Ok(f) => f,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let mut header = Vec::new();
        file::write(meta, &object.head, object.body.len(), &mut header);
        let info = file.metadata()?;
        let same = (object.inode == 0 || info.ino() == object.inode)
            && info.len() == header.len() as u64 + object.body.len();
        if same {
            file.write_all_at(&header, 0)?;
        }
        Ok(())
    }
}

/// Reads a file, whatever its key.
///
/// # Errors
/// There is none, or it is broken.
pub fn read(path: &Path, generation: u64) -> Result<Object, ReadError> {
    let file = File::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ReadError::Missing,
        _ => ReadError::Io(e),
    })?;
    let info = file.metadata().map_err(ReadError::Io)?;
    let small = info.len() <= SMALL as u64;
    let mut bytes = vec![0; if small { info.len() as usize } else { START }];
    fill(&file, &mut bytes, 0)?;
    let header_len = file::header_len(&bytes).map_err(ReadError::Damaged)?;
    if !small && header_len > bytes.len() {
        let have = bytes.len();
        bytes.resize(header_len, 0);
        fill(
            &file,
            bytes.get_mut(have..).unwrap_or_default(),
            have as u64,
        )?;
    }
    let header = file::read(&bytes, info.len()).map_err(ReadError::Damaged)?;
    let body = if small {
        Content::Memory(Bytes::from(bytes).split_off(header_len))
    } else {
        Content::File(Arc::new(file), header.body_start, header.body_len)
    };
    Ok(Object {
        meta: header.meta,
        head: header.head,
        body,
        generation,
        inode: info.ino(),
    })
}

fn fill(file: &File, bytes: &mut [u8], at: u64) -> Result<(), ReadError> {
    file.read_exact_at(bytes, at).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => ReadError::Damaged(Damage::Short),
        _ => ReadError::Io(e),
    })
}

/// An object being written; dropped before [`Fill::finish`] it leaves nothing behind.
pub struct Fill {
    zone: Arc<Zone>,
    digest: Digest,
    meta: Meta,
    head: UpstreamHead,
    /// The header, and the body while it is small.
    bytes: Vec<u8>,
    header_len: usize,
    body_len: u64,
    file: Option<(Arc<File>, PathBuf)>,
    temp: Arc<TempPath>,
    /// Where others read it meanwhile.
    live: Option<Arc<Live>>,
    begun: Instant,
}

impl Fill {
    /// Begins to write an object. `temp` is where temporary files go with `use_temp_path`.
    pub fn new(
        zone: Arc<Zone>,
        digest: Digest,
        meta: Meta,
        head: UpstreamHead,
        temp: Arc<TempPath>,
    ) -> Fill {
        let mut bytes = Vec::with_capacity(1024 + meta.key.len());
        file::write(&meta, &head, 0, &mut bytes);
        if let Some(len) = head.content_length.filter(|n| *n <= SMALL as u64) {
            bytes.reserve_exact(len as usize);
        }
        Fill {
            zone,
            digest,
            meta,
            head,
            header_len: bytes.len(),
            bytes,
            body_len: 0,
            file: None,
            temp,
            live: None,
            begun: Instant::now(),
        }
    }

    /// Lets others read the object while it is written; before the first byte of the body.
    pub fn share(&mut self) -> Arc<Live> {
        let make = || Arc::new(Live::new(self.meta.clone(), self.head.clone()));
        self.live.get_or_insert_with(make).clone()
    }

    /// Bytes of the body so far.
    pub fn len(&self) -> u64 {
        self.body_len
    }

    /// Whether there is no body yet.
    pub fn is_empty(&self) -> bool {
        self.body_len == 0
    }

    /// Appends to the body.
    ///
    /// # Errors
    /// What the file gives; the fill is then to be dropped.
    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        if self.file.is_none() && self.bytes.len() + data.len() > SMALL {
            let (file, path) = self.create()?;
            file.write_all_at(&self.bytes, 0)
                .map_err(|e| named("pwrite()", &path, &e))?;
            self.bytes.truncate(self.header_len);
            self.file = Some((file, path));
        }
        match &self.file {
            Some((file, path)) => file
                .write_all_at(data, self.header_len as u64 + self.body_len)
                .map_err(|e| named("pwrite()", path, &e))?,
            None => self.bytes.extend_from_slice(data),
        }
        self.body_len += data.len() as u64;
        match (&self.live, &self.file) {
            (Some(live), Some((file, _))) => {
                live.spilled(file, self.header_len as u64, self.body_len);
            }
            (Some(live), None) => live.append(data),
            (None, _) => {}
        }
        Ok(())
    }

    /// Gives the object its name, and tells the table. The entry must be held meanwhile.
    ///
    /// # Errors
    /// What the file system gives; nothing is stored then.
    pub fn finish(mut self) -> io::Result<()> {
        if let Some(live) = &self.live {
            live.end(true);
        }
        // the folder is another process's by now
        if !self.zone.is_serving() {
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        file::seal(
            bytes.get_mut(..self.header_len).unwrap_or_default(),
            self.body_len,
        );
        let small = self.file.is_none();
        if small {
            self.file = Some(self.create()?);
        }
        let Some((file, temp)) = &self.file else {
            return Ok(());
        };
        file.write_all_at(&bytes, 0)
            .map_err(|e| named("pwrite()", temp, &e))?;
        let info = file.metadata()?;
        let path = self.zone.path(self.digest);
        let blocks = self.zone.blocks(&info);
        self.zone.make_space(blocks);
        place(temp, &path)?;
        let generation = self.zone.index.stored(self.digest, blocks);
        // it has its name: nothing is left to remove
        self.file = None;
        self.zone
            .names
            .lock()
            .insert(self.digest, &self.meta.key, &self.meta.tags);
        if small && self.zone.fits_memory(bytes.len() as u64) {
            // it stays in memory as it is
            bytes.shrink_to_fit();
            let object = Object {
                meta: std::mem::take(&mut self.meta),
                head: std::mem::take(&mut self.head),
                body: Content::Memory(Bytes::from(bytes).split_off(self.header_len)),
                generation,
                inode: info.ino(),
            };
            self.zone.remember(self.digest, &Arc::new(object));
        } else {
            self.zone.forget(self.digest);
        }
        let counts = &self.zone.counts;
        counts.stored.fetch_add(1, Ordering::Relaxed);
        counts
            .fill_ms
            .fetch_add(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.zone.check_size();
        Ok(())
    }

    fn create(&self) -> io::Result<(Arc<File>, PathBuf)> {
        let (file, path) = match self.zone.params().use_temp_path {
            true => Spool::create(&self.temp)?,
            false => temporary(&self.zone.path(self.digest))?,
        };
        Ok((Arc::new(file), path))
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        if let Some(live) = &self.live {
            live.end(false);
        }
        if let Some((_, path)) = self.file.take() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Makes a file beside `path`: its name with a dot and ten digits, as nginx names them.
fn temporary(path: &Path) -> io::Result<(File, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut open = std::fs::OpenOptions::new();
    open.read(true).write(true).create_new(true).mode(0o600);
    let mut made = false;
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed) % 10_000_000_000;
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n:010}"));
        let name = PathBuf::from(name);
        match open.open(&name) {
            Ok(f) => return Ok((f, name)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound && !made => {
                made = true;
                make_folder(path)?;
            }
            Err(e) => return Err(named("open()", &name, &e)),
        }
    }
}

/// Renames a temporary file; makes folders that are missing, copies where it is on another device.
pub fn place(temp: &Path, path: &Path) -> io::Result<()> {
    let mut result = std::fs::rename(temp, path);
    if matches!(&result, Err(e) if e.kind() == io::ErrorKind::NotFound) {
        make_folder(path)?;
        result = std::fs::rename(temp, path);
    }
    match result {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let (mut to, name) = temporary(path)?;
            let copied = File::open(temp)
                .and_then(|mut from| io::copy(&mut from, &mut to))
                .and_then(|_| std::fs::rename(&name, path));
            if let Err(e) = copied {
                let _ = std::fs::remove_file(&name);
                return Err(named("rename()", path, &e));
            }
            let _ = std::fs::remove_file(temp);
            Ok(())
        }
        Err(e) => Err(named("rename()", path, &e)),
        Ok(()) => Ok(()),
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    let mut make = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(make.recursive(true), 0o700);
    make.create(folder)
        .map_err(|e| named("mkdir()", folder, &e))
}

/// An error with what failed on which file, as nginx words it.
fn named(call: &str, path: &Path, e: &io::Error) -> io::Error {
    let text = format!("{call} \"{}\" failed ({})", path.display(), reason(e));
    io::Error::new(e.kind(), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::index::Found;
    use crate::http::h1::response::{Parser, Progress};

    fn zone(root: &Path, levels: &[u8]) -> Arc<Zone> {
        let zone = Zone::new("z", root, levels);
        zone.set_params(&crate::cache::zone::Params {
            use_temp_path: false,
            ..Default::default()
        });
        zone.serving.store(true, Ordering::Relaxed);
        Arc::new(zone)
    }

    fn head() -> UpstreamHead {
        let mut head = UpstreamHead::default();
        let done = Parser::default().parse(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n", 99, &mut head);
        assert!(matches!(done, Progress::Done { .. }));
        head
    }

    fn begin(zone: &Arc<Zone>, key: &[u8]) -> Fill {
        let digest = Digest::of(key);
        assert_eq!(
            zone.index.enter(digest, 0, 1, 1, 9, false),
            Some(Found::New)
        );
        let meta = Meta {
            key: key.to_vec(),
            valid: 5,
            ..Meta::default()
        };
        let temp = TempPath {
            path: zone.root.join("temp"),
            levels: vec![1, 2],
        };
        Fill::new(zone.clone(), digest, meta, head(), Arc::new(temp))
    }

    fn files(root: &Path) -> usize {
        std::fs::read_dir(root).map_or(0, |d| {
            d.flatten()
                .map(|e| match e.file_type() {
                    Ok(t) if t.is_dir() => files(&e.path()),
                    _ => 1,
                })
                .sum()
        })
    }

    #[test]
    fn small_and_large_objects_are_read_back() {
        let d = tempfile::tempdir().unwrap();
        for (levels, len) in [(&[1u8, 2][..], 10usize), (&[], SMALL * 2 + 7), (&[2], 0)] {
            let root = d.path().join(len.to_string());
            let zone = zone(&root, levels);
            let mut fill = begin(&zone, b"key");
            let body: Vec<u8> = (0..len).map(|i| i as u8).collect();
            for piece in body.chunks(40_000) {
                fill.write(piece).unwrap();
            }
            fill.finish().unwrap();
            let digest = Digest::of(b"key");
            let object = zone.read(digest, b"key", 7).unwrap();
            assert_eq!((object.body.len(), object.meta.valid), (len as u64, 5));
            match &object.body {
                Content::Memory(b) => assert_eq!(**b, *body),
                Content::File(f, at, n) => {
                    let mut got = vec![0; *n as usize];
                    f.read_exact_at(&mut got, *at).unwrap();
                    assert_eq!(got, body);
                }
            }
            assert!(matches!(
                zone.read(digest, b"other", 7),
                Err(ReadError::Collision)
            ));
            let later = Meta {
                valid: 99,
                ..object.meta.clone()
            };
            zone.rewrite(digest, &object, &later).unwrap();
            assert_eq!(zone.read(digest, b"key", 7).unwrap().meta.valid, 99);
            assert!(zone.index.blocks() > 0);
            assert!(zone.remove(digest));
            assert_eq!(files(&root), 0);
        }
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let d = tempfile::tempdir().unwrap();
        let zone = zone(d.path(), &[1]);
        let mut fill = begin(&zone, b"key");
        fill.write(&vec![1; SMALL + 1]).unwrap();
        assert_eq!(files(d.path()), 1);
        drop(fill);
        assert_eq!(files(d.path()), 0);
        assert!(matches!(
            zone.read(Digest::of(b"key"), b"key", 1),
            Err(ReadError::Missing)
        ));
    }

    #[test]
    fn files_that_are_cut_short_are_told() {
        let d = tempfile::tempdir().unwrap();
        let zone = zone(d.path(), &[]);
        for len in [100, SMALL + 1] {
            let key = len.to_string().into_bytes();
            let mut fill = begin(&zone, &key);
            fill.write(&vec![1; len]).unwrap();
            fill.finish().unwrap();
            let digest = Digest::of(&key);
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(zone.path(digest))
                .unwrap();
            let n = file.metadata().unwrap().len();
            file.set_len(n - 1).unwrap();
            assert!(matches!(
                zone.read(digest, &key, 1),
                Err(ReadError::Damaged(Damage::Short))
            ));
            file.set_len(n).unwrap();
        }
    }
}
