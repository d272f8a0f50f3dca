//! State that goes from one worker to the next: a reload's, or an upgrade's. The master passes it on and does not read it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::unistd::Pid;

use super::super::channel::Kind;
use super::super::control_socket::{Client, state_of};
use super::Master;
use super::workers::Phase;
use crate::log::Errno;

/// How long the old process of an upgrade may take; its worker has to answer, too.
const PATIENCE: Duration = Duration::from_millis(1500);

impl Master {
    /// Asks the worker that serves for its state; false where there is none that could answer.
    pub(super) fn ask_for_state(&self) -> bool {
        let serving = self.workers.iter().find(|w| w.phase == Phase::Serving);
        serving
            .and_then(|w| w.channel.as_ref())
            .is_some_and(|c| c.send(Kind::GiveState, 0, "", &[]).is_ok())
    }

    /// Asks the workers that another one takes the place of.
    pub(super) fn ask_others_for_state(&self, successor: Pid) {
        for worker in &self.workers {
            if worker.pid != successor
                && worker.phase == Phase::Serving
                && let Some(channel) = &worker.channel
            {
                // one that has gone has nothing to say
                let _ = channel.send(Kind::GiveState, 0, "", &[]);
            }
        }
    }

    /// A worker has said what the next is to know.
    pub(super) fn pass_state(&mut self, from: Pid, fds: Vec<OwnedFd>) {
        let state = fds.first().map(AsFd::as_fd);
        for client in std::mem::take(&mut self.state_clients) {
            client.answer_state(state);
        }
        let trying = self.pending.as_ref().and_then(|p| p.worker);
        let next = self.workers.iter().find(|w| {
            let takes = match trying {
                Some(pid) => w.pid == pid && w.phase == Phase::Starting,
                None => w.phase == Phase::Serving,
            };
            takes && w.pid != from
        });
        if let Some(channel) = next.and_then(|w| w.channel.as_ref()) {
            let fds: Vec<_> = state.into_iter().collect();
            if let Err(error) = channel.send(Kind::State, 0, "", &fds) {
                self.alert("sendmsg() to a worker failed", Errno::of(&error));
            }
        }
    }

    /// The new process of an upgrade asks for the worker's state.
    pub(super) fn want_state(&mut self, client: Client) {
        let heir = self.heir.and_then(|pid| u32::try_from(pid.as_raw()).ok());
        if heir == Some(client.pid) && self.ask_for_state() {
            self.state_clients.push(client);
        } else {
            client.answer_state(None);
        }
    }

    /// Gives a worker that waits for it the state of the old process's worker.
    pub(super) fn take_state_of(&self, elder: Pid, worker: Pid) {
        let state = state_of(elder, PATIENCE);
        let fds: Vec<_> = state.iter().map(AsFd::as_fd).collect();
        let worker = self.workers.iter().find(|w| w.pid == worker);
        if let Some(channel) = worker.and_then(|w| w.channel.as_ref())
            && let Err(error) = channel.send(Kind::State, 0, "", &fds)
        {
            self.alert("sendmsg() to a worker failed", Errno::of(&error));
        }
    }
}
