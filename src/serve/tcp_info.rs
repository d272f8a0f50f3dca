//! What the kernel knows of a TCP connection: one call that the safe wrappers do not have.
#![allow(unsafe_code)]

use crate::contract::TcpInfo;
use std::os::fd::RawFd;

/// `TCP_INFO` of a socket; `None` where it is no TCP socket.
pub(super) fn of(fd: RawFd) -> Option<TcpInfo> {
    // SAFETY: all fields are integers, of which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let out = (&raw mut info).cast();
    // SAFETY: `out` points to `len` writable bytes; the kernel writes no more than `len`.
    let result =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, out, &raw mut len) };
    (result == 0).then_some(TcpInfo {
        rtt: info.tcpi_rtt,
        rttvar: info.tcpi_rttvar,
        snd_cwnd: info.tcpi_snd_cwnd,
        rcv_space: info.tcpi_rcv_space,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn only_tcp_sockets_have_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(of(stream.as_raw_fd()).is_some_and(|i| i.snd_cwnd > 0 && i.rcv_space > 0));
        assert!(of(std::fs::File::open("/dev/null").unwrap().as_raw_fd()).is_none());
    }
}
