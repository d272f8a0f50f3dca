//! A scripted name server on UDP.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What a name has.
#[derive(Clone, Debug)]
pub enum Records {
    /// A records.
    A(Vec<Ipv4Addr>),
    /// SRV records: priority, weight, port, target.
    Srv(Vec<(u16, u16, u16, String)>),
    /// A response code instead of an answer.
    Code(u8),
    /// No answer at all.
    Silence,
}

/// A name server on a free port of 127.0.0.1; it says NXDOMAIN of what it was not told.
pub struct Dns {
    addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    names: Mutex<HashMap<String, Records>>,
    queries: AtomicUsize,
    closing: AtomicBool,
}

impl Dns {
    /// Knows no name yet.
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind a name server");
        let poll = Some(Duration::from_millis(50));
        socket.set_read_timeout(poll).expect("set a timeout");
        let addr = socket.local_addr().expect("its address");
        let shared = Arc::new(Shared::default());
        let thread = thread::spawn({
            let shared = shared.clone();
            move || serve(&socket, &shared)
        });
        Self {
            addr,
            shared,
            thread: Some(thread),
        }
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on `name` has these records.
    pub fn set(&self, name: &str, records: Records) {
        let mut names = self.shared.names.lock();
        let names = names.as_mut().unwrap_or_else(|e| e.get_mut());
        names.insert(name.to_ascii_lowercase(), records);
    }

    /// How many queries have come.
    pub fn queries(&self) -> usize {
        self.shared.queries.load(Ordering::SeqCst)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, shared: &Shared) {
    let mut buf = [0; 1500];
    while !shared.closing.load(Ordering::SeqCst) {
        let Ok((len, from)) = socket.recv_from(&mut buf) else {
            continue;
        };
        shared.queries.fetch_add(1, Ordering::SeqCst);
        if let Some(answer) = answer(&buf[..len], shared) {
            let _ = socket.send_to(&answer, from);
        }
    }
}

fn answer(query: &[u8], shared: &Shared) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    while *query.get(at)? != 0 {
        let len = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(query.get(at + 1..at + 1 + len)?).to_lowercase());
        at += len + 1;
    }
    let question = query.get(12..at + 5)?;
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    let names = shared.names.lock().unwrap_or_else(PoisonError::into_inner);
    let (code, data) = match (names.get(&labels.join(".")), kind) {
        (None, _) => (3, vec![]),
        (Some(Records::Silence), _) => return None,
        (Some(Records::Code(code)), _) => (*code, vec![]),
        (Some(Records::A(ips)), 1) => (0, ips.iter().map(|ip| ip.octets().to_vec()).collect()),
        (Some(Records::Srv(list)), 33) => (0, list.iter().map(srv).collect()),
        (Some(_), _) => (0, vec![]),
    };
    let mut out = query[..2].to_vec();
    out.extend([0x81, 0x80 | code, 0, 1, 0, data.len() as u8, 0, 0, 0, 0]);
    out.extend(question);
    for data in data {
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 1]);
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
    }
    Some(out)
}

fn srv((priority, weight, port, target): &(u16, u16, u16, String)) -> Vec<u8> {
    let mut out = Vec::new();
    for n in [priority, weight, port] {
        out.extend(n.to_be_bytes());
    }
    for label in target.split('.') {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}
