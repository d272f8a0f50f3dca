//! The serving threads, as one service of Pingora's server.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;

use async_trait::async_trait;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{
    ListenFds, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch,
};
use pingora_core::services::Service;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use super::serving::Event;
use crate::contract::CpuMask;
use crate::log::{Level, Record, process_log};
use crate::serve::{Listening, Shared, run_thread};

/// Threads to be started; each with its own runtime and the channel by which it is given sockets.
pub(super) struct Threads {
    shared: Arc<Shared>,
    channels: Vec<UnboundedReceiver<Listening>>,
    events: Sender<Event>,
}

impl Threads {
    /// Threads that will tell `events` of their start and end, and the other ends of their channels.
    pub fn new(
        shared: Arc<Shared>,
        count: usize,
        events: Sender<Event>,
    ) -> (Threads, Vec<UnboundedSender<Listening>>) {
        let (senders, channels) = (0..count).map(|_| unbounded_channel()).unzip();
        (
            Threads {
                shared,
                channels,
                events,
            },
            senders,
        )
    }

    /// Serves until `exit` has an exit code, which is returned.
    pub fn serve(self, exit: watch::Receiver<Option<i32>>) -> i32 {
        let conf = ServerConf {
            threads: 1,
            ..ServerConf::default()
        };
        let mut server = Server::new_with_opt_and_conf(None, conf);
        server.add_service(self);
        server.run(RunArgs {
            shutdown_signal: Box::new(Exit(exit.clone())),
        });
        let code = *exit.borrow();
        code.unwrap_or_default()
    }
}

#[async_trait]
impl Service for Threads {
    async fn start_service(
        &mut self,
        _fds: Option<ListenFds>,
        mut shutdown: ShutdownWatch,
        _per_fd: usize,
    ) {
        for (number, listeners) in self.channels.drain(..).enumerate() {
            let (shared, events) = (self.shared.clone(), self.events.clone());
            let affinity = &shared.site.load().main.worker_cpu_affinity;
            let cpus = affinity.as_ref().and_then(|a| a.of(number));
            let spawned = thread::Builder::new()
                .name(format!("worker {number}"))
                .spawn(move || {
                    if let Some(cpus) = cpus {
                        stay_on(cpus);
                    }
                    let end = catch_unwind(AssertUnwindSafe(|| run_thread(shared, listeners)));
                    let outcome = match end {
                        Ok(Ok(())) => Ok(()),
                        Ok(Err(error)) => Err(error.to_string()),
                        Err(_) => Err("a panic".to_owned()),
                    };
                    // the supervisor goes last
                    let _ = events.send(Event::Ended(number, outcome));
                });
            if let Err(error) = spawned {
                let _ = self
                    .events
                    .send(Event::Ended(number, Err(error.to_string())));
            }
        }
        let _ = self.events.send(Event::Started);
        // never raised: the threads drain by themselves and the process ends when they have
        let _ = shutdown.wait_for(|over| *over).await;
    }

    fn name(&self) -> &str {
        "couloir"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// Pingora's server ends when everything of ours has.
struct Exit(watch::Receiver<Option<i32>>);

#[async_trait]
impl ShutdownSignalWatch for Exit {
    async fn recv(&self) -> ShutdownSignal {
        // a supervisor that is gone is an end as well
        let _ = self.0.clone().wait_for(Option::is_some).await;
        ShutdownSignal::FastShutdown
    }
}

/// Keeps the calling thread on some processors (`worker_cpu_affinity`).
fn stay_on(cpus: CpuMask) {
    let mut set = nix::sched::CpuSet::new();
    for cpu in cpus.numbers() {
        // one beyond what the kernel's set holds does not exist
        let _ = set.set(cpu);
    }
    if let Err(errno) = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set) {
        process_log().record(&Record {
            errno: Some(errno.into()),
            ..Record::new(Level::Alert, format_args!("sched_setaffinity() failed"))
        });
    }
}
