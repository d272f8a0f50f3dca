//! The PID file (`pid`).

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::FileError;

/// Writes the number of this process.
///
/// # Errors
/// The file cannot be opened or written.
pub(super) fn write(path: &Path) -> Result<(), FileError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)
        .map_err(|e| FileError::new("open()", path, &e))?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
        .map_err(|e| FileError::new("write()", path, &e))
}

/// Whether [`write`] would succeed; leaves everything as it was.
///
/// # Errors
/// The file cannot be opened.
pub(super) fn rehearse(path: &Path) -> Result<(), FileError> {
    let failed = |e| FileError::new("open()", path, &e);
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
    {
        // nginx leaves an empty file behind, over which a later `-s` stumbles
        Ok(_) => fs::remove_file(path).map_err(|e| FileError::new("unlink()", path, &e)),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map(drop)
            .map_err(failed),
        Err(e) => Err(failed(e)),
    }
}

/// Removes the file when the process ends.
///
/// # Errors
/// It is gone already, for one.
pub(super) fn remove(path: &Path) -> Result<(), FileError> {
    fs::remove_file(path).map_err(|e| FileError::new("unlink()", path, &e))
}

/// As [`remove`], unless another process's number stands there: a later upgrade's.
///
/// # Errors
/// It is gone already, for one.
pub(super) fn remove_own(path: &Path) -> Result<(), FileError> {
    match read(path) {
        Ok(number) if u32::try_from(number) != Ok(std::process::id()) => Ok(()),
        _ => remove(path),
    }
}

/// Why there is no number.
pub(super) enum ReadError {
    /// The file cannot be read.
    File(FileError),
    /// What stands there instead of a number.
    Invalid(String),
}

/// The number that another process wrote.
///
/// # Errors
/// See [`ReadError`].
pub(super) fn read(path: &Path) -> Result<i32, ReadError> {
    let bytes = fs::read(path).map_err(|e| ReadError::File(FileError::new("open()", path, &e)))?;
    parse(&bytes)
        .ok_or_else(|| ReadError::Invalid(String::from_utf8_lossy(trimmed(&bytes)).into_owned()))
}

fn parse(bytes: &[u8]) -> Option<i32> {
    let digits = trimmed(bytes);
    let number = std::str::from_utf8(digits).ok()?;
    // `parse` would take a sign, and 0 and below name groups of processes
    number
        .parse()
        .ok()
        .filter(|n| *n > 0 && digits.iter().all(u8::is_ascii_digit))
}

/// At most as much as nginx looks at, without line ends.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let mut text = bytes.get(..22).unwrap_or(bytes);
    while let Some(rest) = text
        .strip_suffix(b"\n")
        .or_else(|| text.strip_suffix(b"\r"))
    {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(parse(b"123\n"), Some(123));
        assert_eq!(parse(b"7\r\n\n"), Some(7));
        for bad in ["", "\n", "0\n", "-1\n", "+1", "1 2", "x", "99999999999"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn life_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nginx.pid");
        rehearse(&path).unwrap();
        assert!(!path.exists());
        write(&path).unwrap();
        rehearse(&path).unwrap();
        assert_eq!(read(&path).ok(), i32::try_from(std::process::id()).ok());
        remove(&path).unwrap();
        assert!(matches!(read(&path), Err(ReadError::File(e)) if e.errno.0 == 2));
        assert_eq!(rehearse(&dir.path().join("no/x")).unwrap_err().errno.0, 2);
    }
}
