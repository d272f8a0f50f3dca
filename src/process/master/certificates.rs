//! Certificates and keys that change on disk: the master reads them with its own rights, and hands them to workers.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use nix::unistd::Pid;

use super::super::channel::Kind;
use super::super::handoff::seal_outside;
use super::Master;
use crate::config::load_inputs::Outside;
use crate::log::Errno;

impl Master {
    /// Looks at the files that are due, and hands over what has changed.
    pub(super) fn look_at_certificates(&mut self) {
        let now = Instant::now();
        if self.stopping() || self.certificates.due().is_none_or(|due| due > now) {
            return;
        }
        let changed = self.certificates.look(now);
        if changed.is_empty() {
            return;
        }
        let mut new = Outside::default();
        for path in changed {
            let read = std::fs::read(&path);
            let noted = read
                .as_deref()
                .map(Arc::from)
                .map_err(|e| e.raw_os_error().unwrap_or(nix::libc::EIO));
            new.files.insert(path.into(), noted);
        }
        self.hand_over(&new, None);
        self.renewed.files.append(&mut new.files);
    }

    /// Gives a worker all that has changed since its configuration was read.
    pub(super) fn catch_up(&self, worker: Pid) {
        if !self.renewed.files.is_empty() {
            self.hand_over(&self.renewed, Some(worker));
        }
    }

    fn hand_over(&self, files: &Outside, to: Option<Pid>) {
        let sealed = match seal_outside(files) {
            Ok(fd) => fd,
            Err(error) => return self.alert("memfd_create() failed", Errno::of(&error)),
        };
        for worker in self
            .workers
            .iter()
            .filter(|w| to.is_none_or(|t| t == w.pid))
        {
            if let Some(channel) = &worker.channel
                && let Err(error) = channel.send(Kind::Certificates, 0, "", &[sealed.as_fd()])
            {
                self.alert("sendmsg() to a worker failed", Errno::of(&error));
            }
        }
    }
}
