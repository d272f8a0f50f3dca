//! Free ports on 127.0.0.1 that no other test on this machine is using.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// A reserved port; given back on drop.
///
/// The reservation is a bound abstract unix socket named after the port: the kernel gives it to one process only and
/// takes it back when that process dies. The range lies below Linux's ephemeral ports, so no outgoing connection can
/// take the port before the server binds it, and every number has five digits.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _guard: UnixListener,
}

impl Port {
    /// Reserves a port that is free for TCP and UDP.
    pub fn reserve() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let start = std::process::id().wrapping_mul(7919);
        for _ in 0..COUNT {
            let step = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let number = FIRST + (step % COUNT) as u16;
            let name = net::SocketAddr::from_abstract_name(format!("couloir-test-port-{number}"));
            let Ok(guard) = UnixListener::bind_addr(&name.expect("the name is short")) else {
                continue;
            };
            let any = SocketAddr::from(([0, 0, 0, 0], number));
            if TcpListener::bind(any).is_ok() && UdpSocket::bind(any).is_ok() {
                return Self {
                    number,
                    _guard: guard,
                };
            }
        }
        panic!(
            "no free port between {FIRST} and {}",
            u32::from(FIRST) + COUNT
        );
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

const FIRST: u16 = 11000;
const COUNT: u32 = 20000;
