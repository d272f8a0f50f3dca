//! Log files of modules.

use super::Build;
use crate::config::Diag;
use crate::log::{LogFile, LogFiles, WriteError};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// A log file that a directive names ([`Build::log_file`]).
#[derive(Clone, Default)]
pub struct LogSink(Arc<OnceLock<Arc<LogFile>>>);

impl LogSink {
    /// Appends bytes, one or more whole lines, by one `write(2)` without a lock.
    ///
    /// After a full disk nothing is written for a second; that is lost.
    ///
    /// # Errors
    /// A failure worth a line in the error log: at most one a minute and file.
    pub fn append(&self, bytes: &[u8]) -> Result<(), WriteError> {
        // set before the configuration serves
        self.0.get().map_or(Ok(()), |file| file.append(bytes))
    }
}

impl Build {
    /// Opens a log file for appending, once the whole configuration has been found right. A relative `path` is below the
    /// prefix.
    ///
    /// As `access_log`, it is opened with the rights of the master process, shared by all that name the same path, kept
    /// over a reload, and opened anew by `-s reopen`. Where it cannot be opened the configuration is refused.
    pub fn log_file(&mut self, path: &str) -> LogSink {
        let path = self.prefixed(path);
        let sink = LogSink::default();
        let cell = sink.0.clone();
        self.at_end(move |_| open(&path, &cell));
        sink
    }
}

fn open(path: &Path, cell: &OnceLock<Arc<LogFile>>) -> crate::config::Result<()> {
    let file = LogFiles::global().open(path);
    let file = file.map_err(|e| Diag::plain(e.to_string()))?;
    let _ = cell.set(file);
    Ok(())
}
