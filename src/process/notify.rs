//! What a service manager is told: sd_notify(3).

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// The way to the service manager; says nothing where there is none.
#[derive(Default)]
pub(super) struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// The variables, for a program that takes this one's place.
    variables: Vec<(&'static str, OsString)>,
    /// How often it wants to hear that all is well, and when it is to hear so next.
    watchdog: Option<(Duration, Instant)>,
}

const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

impl Notify {
    /// By what the environment says. A process that an upgrade began speaks for the service, whose number is another's.
    pub fn new(upgrade: bool) -> Notify {
        let variables: Vec<_> = VARIABLES
            .into_iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)))
            .collect();
        let value = |name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v);
        let socket = value("NOTIFY_SOCKET").and_then(|path| {
            let address = match path.as_bytes().strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name),
                None => SocketAddr::from_pathname(path),
            };
            Some((UnixDatagram::unbound().ok()?, address.ok()?))
        });
        let number = |name| value(name)?.to_str()?.parse::<u64>().ok();
        let ours = upgrade
            || number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC")
            .filter(|usec| ours && *usec > 1)
            .map(|usec| (Duration::from_micros(usec / 2), Instant::now()));
        Notify {
            socket,
            variables,
            watchdog,
        }
    }

    /// What a program that takes this one's place must know.
    pub fn variables(&self) -> &[(&'static str, OsString)] {
        &self.variables
    }

    /// Everything serves; this process is the service's main one.
    pub fn ready(&self) {
        self.say(&format!("MAINPID={}\nREADY=1", std::process::id()));
    }

    /// A new configuration is being taken; [`Notify::ready`] ends that.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| {
            t.tv_sec() as i128 * 1_000_000 + t.tv_nsec() as i128 / 1000
        });
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// Another process is the main one from now on.
    pub fn hand_over(&self, pid: nix::unistd::Pid) {
        self.say(&format!("MAINPID={pid}"));
    }

    /// Says that all is well when that is due; the result is when it is due again.
    pub fn keep_alive(&mut self, now: Instant) -> Option<Instant> {
        let (period, due) = self.watchdog?;
        if now < due {
            return Some(due);
        }
        self.say("WATCHDOG=1");
        let next = now + period;
        self.watchdog = Some((period, next));
        Some(next)
    }

    fn say(&self, text: &str) {
        if let Some((socket, address)) = &self.socket {
            // a manager that does not listen is not told
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}
