//! One name asked for: over UDP, again after five seconds of silence, over TCP where UDP is too small.

use super::message::{Refused, Response, Service, query};
use super::{NXDOMAIN, SERVFAIL};
use crate::error_log;
use crate::log::{Errno, Level, process_log};
use hickory_proto::rr::RecordType;
use std::fmt;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// The queries for one name, one per address family, and what has come back so far.
#[derive(Debug)]
pub(super) struct Lookup<'a> {
    servers: &'a [SocketAddr],
    name: &'a str,
    families: Vec<Family>,
    /// The last response code that was an error; 0 if none was.
    code: i32,
    cname: Option<String>,
    services: Vec<Service>,
    ttl: u32,
    /// How long a server may be silent before the next one is asked.
    resend: Duration,
}

impl<'a> Lookup<'a> {
    /// Fails with a response code if there is nothing to ask for `name`, which is in lower case.
    pub fn new(
        servers: &'a [SocketAddr],
        name: &'a str,
        kinds: impl IntoIterator<Item = RecordType>,
    ) -> Result<Self, i32> {
        let families = kinds.into_iter().map(|kind| {
            // An answer is only believed if it has this number; it must not be guessed.
            let mut id = [0; 2];
            openssl::rand::rand_bytes(&mut id).map_err(|_| SERVFAIL)?;
            let id = u16::from_be_bytes(id);
            Ok(Family {
                kind,
                id,
                packet: query(id, name, kind).ok_or(NXDOMAIN)?,
                over_tcp: false,
                ips: None,
            })
        });
        Ok(Self {
            servers,
            name,
            families: families.collect::<Result<_, i32>>()?,
            code: 0,
            cname: None,
            services: Vec::new(),
            ttl: u32::MAX,
            resend: RESEND,
        })
    }

    /// Asks the servers in turn, from the one at `start`, for as long as `is_wanted`; Err is a response code.
    pub async fn run(
        mut self,
        start: usize,
        is_wanted: impl Fn() -> bool,
    ) -> Option<Result<Found, i32>> {
        let mut link = Link::new(self.server(start)?);
        let mut turn = start;
        if !self.send(&mut link).await {
            turn = turn.wrapping_add(1);
            link = Link::new(self.server(turn)?);
            self.send(&mut link).await;
        }
        let mut resend_at = Instant::now() + self.resend;
        let mut buf = vec![0; UDP_SIZE];
        loop {
            let step = tokio::select! {
                received = receive(link.udp.as_ref(), &mut buf) => match received {
                    Ok(n) => self.accept(buf.get(..n).unwrap_or_default(), false),
                    Err(e) => {
                        complain_at(link.server, "recv() failed", &e);
                        link.udp = None;
                        Step::Wait
                    }
                },
                Some(received) = link.tcp.join_next() => match received {
                    Ok(Some(packet)) => self.accept(&packet, true),
                    _ => Step::Wait,
                },
                () = sleep_until(resend_at) => Step::Resend,
            };
            match step {
                Step::Wait => {}
                Step::Tcp(packet) => {
                    link.tcp.spawn(over_tcp(link.server, packet));
                    resend_at = Instant::now() + self.resend;
                }
                Step::Resend => {
                    if !is_wanted() {
                        return None;
                    }
                    turn = turn.wrapping_add(1);
                    let server = self.server(turn)?;
                    // With one server a late answer still counts.
                    if server != link.server {
                        link = Link::new(server);
                    }
                    self.send(&mut link).await;
                    resend_at = Instant::now() + self.resend;
                }
                Step::Done(result) => return Some(result),
            }
        }
    }

    fn server(&self, turn: usize) -> Option<SocketAddr> {
        self.servers
            .get(turn.checked_rem(self.servers.len())?)
            .copied()
    }

    /// Sends what is not answered yet; false if the system refused.
    async fn send(&self, link: &mut Link) -> bool {
        for family in self.families.iter().filter(|f| f.ips.is_none()) {
            if family.over_tcp {
                link.tcp.spawn(over_tcp(link.server, family.packet.clone()));
            } else if !link.send(&family.packet).await {
                return false;
            }
        }
        true
    }

    /// Takes an answer in, or complains about it and waits for a better one.
    fn accept(&mut self, packet: &[u8], over_tcp: bool) -> Step {
        let response = match Response::read(packet, over_tcp) {
            Ok(response) => response,
            Err(e) => {
                match e {
                    Refused::Code { id, .. } if self.families.iter().any(|f| f.id == id) => {
                        complain(format_args!("{e}, name:\"{}\"", self.name));
                    }
                    _ => complain(format_args!("{e}")),
                }
                return Step::Wait;
            }
        };
        let asked = self
            .families
            .iter_mut()
            .find(|f| f.kind == response.kind && f.ips.is_none())
            .filter(|_| response.name == self.name.as_bytes());
        let Some(family) = asked else {
            let name = response.name.escape_ascii();
            complain(format_args!("unexpected DNS response for {name}"));
            return Step::Wait;
        };
        if response.truncated && family.over_tcp {
            return Step::Wait;
        }
        if response.id != family.id {
            complain(format_args!(
                "wrong ident {} in DNS response for {}, expect {}",
                response.id, self.name, family.id
            ));
            return Step::Wait;
        }
        if response.truncated {
            family.over_tcp = true;
            return Step::Tcp(family.packet.clone());
        }

        if response.code != 0 {
            self.code = i32::from(response.code);
            family.ips = Some(Vec::new());
            return self.outcome();
        }
        match response.answers() {
            Ok(answers) => {
                for kind in &answers.unexpected {
                    complain(format_args!("unexpected RR type {kind} in DNS response"));
                }
                let nothing = answers.ips.is_empty() && answers.services.is_empty();
                if nothing && answers.cname.is_none() && !answers.is_empty {
                    let wanted = match family.kind {
                        RecordType::SRV => "SRV",
                        _ => "A",
                    };
                    complain(format_args!("no {wanted} or CNAME types in DNS response"));
                }
                self.services.extend(answers.services);
                self.ttl = self.ttl.min(answers.ttl);
                self.cname = answers.cname.or(self.cname.take());
                family.ips = Some(answers.ips);
                self.outcome()
            }
            Err(e) => {
                complain(format_args!("{e}"));
                Step::Wait
            }
        }
    }

    /// What the answers come to, once all are there: an error in one family is the error of both.
    fn outcome(&mut self) -> Step {
        if self.families.iter().any(|f| f.ips.is_none()) {
            return Step::Wait;
        }
        let ips: Vec<IpAddr> = self
            .families
            .iter_mut()
            .filter_map(|f| f.ips.take())
            .flatten()
            .collect();
        Step::Done(match self.cname.take() {
            _ if self.code != 0 => Err(self.code),
            _ if !ips.is_empty() => Ok(Found::Addrs(ips, self.ttl)),
            _ if !self.services.is_empty() => {
                let mut services = std::mem::take(&mut self.services);
                services.sort_by_key(|service| service.priority);
                Ok(Found::Services(services, self.ttl))
            }
            Some(cname) => Ok(Found::Cname(cname, self.ttl)),
            None => Err(NXDOMAIN),
        })
    }
}

/// What a name has; the number is the TTL in seconds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Never empty.
    Addrs(Vec<IpAddr>, u32),
    /// By priority, never empty.
    Services(Vec<Service>, u32),
    /// Another name, to be asked for.
    Cname(String, u32),
}

#[derive(Debug)]
struct Family {
    kind: RecordType,
    id: u16,
    packet: Vec<u8>,
    /// An answer over UDP was truncated.
    over_tcp: bool,
    /// The answer, once it is there.
    ips: Option<Vec<IpAddr>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Wait,
    Resend,
    /// Send this query over TCP.
    Tcp(Vec<u8>),
    Done(Result<Found, i32>),
}

/// The ways to one server.
struct Link {
    server: SocketAddr,
    /// A socket of its own for every lookup: its port is another thing to guess.
    udp: Option<UdpSocket>,
    tcp: JoinSet<Option<Vec<u8>>>,
}

impl Link {
    fn new(server: SocketAddr) -> Self {
        Self {
            server,
            udp: None,
            tcp: JoinSet::new(),
        }
    }

    async fn send(&mut self, packet: &[u8]) -> bool {
        if self.udp.is_none() {
            match connected(self.server).await {
                Ok(socket) => self.udp = Some(socket),
                Err(e) => {
                    complain_at(self.server, "connect() failed", &e);
                    return false;
                }
            }
        }
        let Some(socket) = &self.udp else {
            return false;
        };
        if let Err(e) = socket.send(packet).await {
            complain_at(self.server, "send() failed", &e);
            self.udp = None;
            return false;
        }
        true
    }
}

async fn connected(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // From now on the kernel drops what others send.
    socket.connect(server).await?;
    Ok(socket)
}

async fn receive(socket: Option<&UdpSocket>, buf: &mut [u8]) -> io::Result<usize> {
    match socket {
        Some(socket) => socket.recv(buf).await,
        None => pending().await,
    }
}

/// One query and its answer on a connection of its own; None, after a complaint, if that fails.
async fn over_tcp(server: SocketAddr, packet: Vec<u8>) -> Option<Vec<u8>> {
    let exchange = async {
        let mut stream = match TcpStream::connect(server).await {
            Ok(stream) => stream,
            Err(e) => {
                complain_at(server, &format!("connect() to {server} failed"), &e);
                return None;
            }
        };
        let talk = async {
            let len = u16::try_from(packet.len()).map_err(io::Error::other)?;
            let mut framed = len.to_be_bytes().to_vec();
            framed.extend(&packet);
            stream.write_all(&framed).await?;
            let mut answer = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut answer).await?;
            Ok(answer)
        };
        let answer: io::Result<_> = talk.await;
        match answer {
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => {
                complain_at(server, "recv() failed", &e);
                None
            }
            answer => answer.ok(),
        }
    };
    timeout(TCP_TIMEOUT, exchange).await.ok().flatten()
}

fn complain(message: fmt::Arguments<'_>) {
    error_log!(process_log(), Level::Error, None, "{message}");
}

fn complain_at(server: SocketAddr, what: &str, e: &io::Error) {
    let errno = Errno::of(e);
    complain(format_args!(
        "{what}{errno} while resolving, resolver: {server}"
    ));
}

const RESEND: Duration = Duration::from_secs(5);
const TCP_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer taken over UDP.
const UDP_SIZE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// An answer to `query` with A records of 127.0.0.0/24, TTL 60.
    fn answer(query: &[u8], flags: u16, last_octets: &[u8]) -> Vec<u8> {
        let mut out = query[..2].to_vec();
        out.extend(flags.to_be_bytes());
        out.extend([0, 1, 0, last_octets.len() as u8, 0, 0, 0, 0]);
        out.extend(&query[12..]);
        for last in last_octets {
            out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, *last]);
        }
        out
    }

    /// Answers the n-th query, from 0, with the packets that `script` gives.
    async fn server(script: impl Fn(usize, &[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buf = [0; 600];
            for n in 0.. {
                let (len, from) = socket.recv_from(&mut buf).await.unwrap();
                for packet in script(n, &buf[..len]) {
                    socket.send_to(&packet, from).await.unwrap();
                }
            }
        });
        addr
    }

    async fn ask(servers: &[SocketAddr]) -> Option<Result<Found, i32>> {
        let mut lookup = Lookup::new(servers, "a.test", [RecordType::A]).unwrap();
        lookup.resend = Duration::from_millis(50);
        lookup.run(0, || true).await
    }

    fn addrs(last: u8) -> Option<Result<Found, i32>> {
        Some(Ok(Found::Addrs(vec![[127, 0, 0, last].into()], 60)))
    }

    #[tokio::test]
    async fn answers_to_something_else_are_passed_over() {
        let server = server(|_, query| {
            let other = super::query(0, "b.test", RecordType::A).unwrap();
            let mut wrong_id = answer(query, 0x8180, &[2]);
            wrong_id[0] ^= 1;
            let mut wrong_name = answer(&other, 0x8180, &[3]);
            wrong_name[..2].copy_from_slice(&query[..2]);
            let good = answer(query, 0x8180, &[1]);
            vec![
                vec![],
                wrong_id,
                wrong_name,
                good[..good.len() - 1].into(),
                good,
            ]
        });
        assert_eq!(ask(&[server.await]).await, addrs(1));
    }

    #[tokio::test]
    async fn silence_and_format_errors_hand_on_to_the_next() {
        let mute = server(|_, _| vec![]).await;
        let bad = server(|_, query| vec![answer(query, 0x8181, &[])]).await;
        let good = server(|_, query| vec![answer(query, 0x8180, &[1])]).await;
        assert_eq!(ask(&[mute, bad, good]).await, addrs(1));
        let second = server(|n, query| match n {
            0 => vec![],
            _ => vec![answer(query, 0x8180, &[2])],
        });
        assert_eq!(ask(&[second.await]).await, addrs(2));
    }

    #[tokio::test]
    async fn other_errors_are_final() {
        let failing = server(|_, query| vec![answer(query, 0x8182, &[])]).await;
        let good = server(|_, query| vec![answer(query, 0x8180, &[1])]).await;
        let servers = [failing, good];
        let lookup = Lookup::new(&servers, "a.test", [RecordType::A]).unwrap();
        assert_eq!(lookup.run(0, || true).await, Some(Err(SERVFAIL)));
    }

    #[tokio::test]
    async fn truncated_answers_are_had_over_tcp() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(addr).await.unwrap();
        tokio::spawn(async move {
            let mut buf = [0; 600];
            let (len, from) = udp.recv_from(&mut buf).await.unwrap();
            let truncated = answer(&buf[..len], 0x8380, &[9]);
            udp.send_to(&truncated, from).await.unwrap();
        });
        tokio::spawn(async move {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            let answer = answer(&query, 0x8180, &[1]);
            stream.write_u16(answer.len() as u16).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        });
        assert_eq!(ask(&[addr]).await, addrs(1));
    }

    #[tokio::test]
    async fn stops_when_nobody_waits() {
        let mute = server(|_, _| vec![]).await;
        let servers = [mute];
        let mut lookup = Lookup::new(&servers, "a.test", [RecordType::A]).unwrap();
        lookup.resend = Duration::from_millis(1);
        assert_eq!(lookup.run(0, || false).await, None);
    }

    #[test]
    fn one_family_in_error_is_an_error() {
        let kinds = [RecordType::A, RecordType::AAAA];
        let mut lookup = Lookup::new(&[], "a.test", kinds).unwrap();
        let packets: Vec<_> = lookup.families.iter().map(|f| f.packet.clone()).collect();
        assert_eq!(
            lookup.accept(&answer(&packets[0], 0x8180, &[1]), false),
            Step::Wait
        );
        assert_eq!(
            lookup.accept(&answer(&packets[1], 0x8182, &[]), false),
            Step::Done(Err(SERVFAIL))
        );
        assert!(Lookup::new(&[], "a..test", kinds).is_err());
    }
}
