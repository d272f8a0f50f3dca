//! A body kept in memory up to a limit and in a temporary file beyond it.

use super::temp::TempPath;
use bytes::BytesMut;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Memory that is kept for the next use.
const KEPT: usize = 64 * 1024;

/// Bytes written at the end and read from the front: memory first, then a file.
#[derive(Default, Debug)]
pub struct Spool {
    memory: BytesMut,
    file: Option<Arc<File>>,
    /// Length of the part in the file, which follows nothing: once there is a file, all is in it.
    file_len: u64,
    path: Option<PathBuf>,
    keep: bool,
}

impl Spool {
    /// Bytes held.
    pub fn len(&self) -> u64 {
        if self.file.is_some() {
            self.file_len
        } else {
            self.memory.len() as u64
        }
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, where all are in memory.
    pub fn memory(&self) -> Option<&[u8]> {
        self.file.is_none().then_some(&self.memory)
    }

    /// The memory, to be appended to, while there are fewer than `limit` bytes and no file.
    pub fn memory_mut(&mut self, limit: usize) -> Option<&mut BytesMut> {
        (self.file.is_none() && self.memory.len() < limit).then_some(&mut self.memory)
    }

    /// The file, where there is one; it then holds everything.
    pub fn file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }

    /// Name of the temporary file, where there is one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Another reader of the same bytes; a temporary file stays this one's to remove.
    pub fn share(&self) -> Spool {
        Spool {
            memory: self.memory.clone(),
            file: self.file.clone(),
            file_len: self.file_len,
            path: None,
            keep: false,
        }
    }

    /// Appends; moves everything to a file once more than `limit` bytes are held.
    ///
    /// # Errors
    /// What creating or writing the file gives, a full disk for one; what was held stays readable.
    pub fn append(&mut self, data: &[u8], limit: usize, temp: &TempPath) -> io::Result<()> {
        if self.file.is_none() {
            if self.memory.len() + data.len() <= limit {
                self.memory.extend_from_slice(data);
                return Ok(());
            }
            self.spill(temp, false)?;
        }
        if let Some(f) = &self.file {
            f.write_all_at(data, self.file_len)
                .map_err(|e| named(&e, "pwrite()", self.path.as_deref()))?;
            self.file_len += data.len() as u64;
        }
        Ok(())
    }

    /// Moves everything to a file; `keep` leaves its name in place when the request ends.
    pub fn spill(&mut self, temp: &TempPath, keep: bool) -> io::Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        let (file, path) = create(temp)?;
        self.path = Some(path);
        self.keep = keep;
        file.write_all_at(&self.memory, 0)
            .map_err(|e| named(&e, "pwrite()", self.path.as_deref()))?;
        self.file_len = self.memory.len() as u64;
        self.memory = BytesMut::new();
        self.file = Some(Arc::new(file));
        Ok(())
    }

    /// Makes a temporary file that is the caller's to remove or to rename.
    ///
    /// # Errors
    /// What failed on which file, as nginx words it.
    pub fn create(temp: &TempPath) -> io::Result<(File, PathBuf)> {
        create(temp)
    }

    /// Copies from `offset` into `buf`; 0 at the end.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.file {
            Some(f) => {
                let left = self.file_len.saturating_sub(offset).min(buf.len() as u64) as usize;
                f.read_at(&mut buf[..left], offset)
            }
            None => {
                let from = self.memory.get(offset as usize..).unwrap_or_default();
                let n = from.len().min(buf.len());
                buf[..n].copy_from_slice(&from[..n]);
                Ok(n)
            }
        }
    }

    /// Forgets everything and keeps a little memory.
    pub fn clear(&mut self) {
        self.remove();
        if self.memory.capacity() > KEPT {
            self.memory = BytesMut::new();
        }
        self.memory.clear();
        self.file = None;
        self.file_len = 0;
    }

    fn remove(&mut self) {
        if let Some(p) = self.path.take()
            && !self.keep
        {
            let _ = std::fs::remove_file(p);
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.remove();
    }
}

/// An error with what failed on which file, as nginx words it.
fn named(e: &io::Error, call: &str, path: Option<&Path>) -> io::Error {
    let text = e.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let path = path.unwrap_or(Path::new("")).display();
    io::Error::new(
        e.kind(),
        format!(
            "{call} \"{path}\" failed ({}: {text})",
            e.raw_os_error().unwrap_or(0)
        ),
    )
}

/// Creates a file with a number as its name under the hashed levels of `temp`, as nginx names them.
fn create(temp: &TempPath) -> io::Result<(File, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..100 {
        let name = format!("{:010}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut path = temp.path.clone();
        let mut end = name.len();
        for level in &temp.levels {
            let begin = end.saturating_sub(*level as usize);
            path.push(&name[begin..end]);
            end = begin;
        }
        let mut open = std::fs::OpenOptions::new();
        open.read(true).write(true).create_new(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut open, 0o600);
        let full = path.join(&name);
        match open.open(&full) {
            Ok(f) => return Ok((f, full)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&path).map_err(|e| named(&e, "mkdir()", Some(&path)))?;
                return match open.open(&full) {
                    Ok(f) => Ok((f, full)),
                    Err(e) => Err(named(&e, "open()", Some(&full))),
                };
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(named(&e, "open()", Some(&full))),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AlreadyExists,
        "no free name for a temporary file",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_to_a_file_and_reads_back() {
        let d = tempfile::tempdir().unwrap();
        let temp = TempPath {
            path: d.path().into(),
            levels: vec![1, 2],
        };
        let mut s = Spool::default();
        s.append(b"hello ", 8, &temp).unwrap();
        assert_eq!(s.memory(), Some(&b"hello "[..]));
        s.append(b"world", 8, &temp).unwrap();
        assert!(s.memory().is_none());
        let path = s.path().unwrap().to_owned();
        assert!(path.exists());
        let mut b = [0; 32];
        assert_eq!(s.read_at(&mut b, 3).unwrap(), 8);
        assert_eq!(&b[..8], b"lo world");
        s.clear();
        assert!(!path.exists() && s.is_empty());
    }
}
