//! `proxy_store`: a copy of the response as a file that stays.

use super::{Pass, Request, Spool, Store, files, paths};
use crate::files::tree::{self, Journal, Rename};
use crate::http::date;
use crate::http::headers::Known;
use crate::log::Level;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

/// A copy that is being written; its temporary file goes with it unless it is placed.
pub struct StoredCopy {
    store: Arc<Store>,
    file: File,
    temp: Option<PathBuf>,
    len: u64,
}

impl StoredCopy {
    /// Begins a copy where the location and the answer want one.
    pub(crate) fn begin(r: &Request, pass: &Pass) -> Option<StoredCopy> {
        let store = pass.conf.store.as_ref()?;
        if r.upstream.head.status != 200 {
            return None;
        }
        match Spool::create(&pass.conf.temp_path) {
            Ok((file, temp)) => Some(StoredCopy {
                store: store.clone(),
                file,
                temp: Some(temp),
                len: 0,
            }),
            Err(e) => {
                r.error(Level::Crit, format_args!("{e} while reading upstream"));
                None
            }
        }
    }

    /// Appends to the copy.
    pub(crate) fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, self.len)?;
        self.len += data.len() as u64;
        Ok(())
    }

    /// Gives a whole copy its name, and the time of the response.
    pub(crate) fn place(mut self, r: &Request) {
        let head = &r.upstream.head;
        // an answer to HEAD, for one, is no whole response
        if head.content_length.is_some_and(|n| n != self.len) {
            return;
        }
        let path = match &self.store.path {
            Some(t) => t.eval(r).into_owned(),
            None => paths::map_path(r),
        };
        let Some(temp) = self.temp.take().filter(|_| !path.is_empty()) else {
            return;
        };
        let modified = head.headers.get_id(Known::LastModified);
        let how = Rename {
            access: self.store.access,
            folder_access: self.store.access,
            mtime: modified.and_then(date::parse),
            create_path: true,
            delete_source: true,
        };
        let mut journal = Journal::default();
        let _ = tree::put(temp.as_os_str().as_bytes(), &path, &how, &mut journal);
        files::log_lines(r, journal);
    }
}

impl Drop for StoredCopy {
    fn drop(&mut self) {
        if let Some(path) = self.temp.take() {
            let _ = std::fs::remove_file(path);
        }
    }
}
