use super::*;
use crate::contract::Names;
use std::net::{SocketAddr, TcpListener, TcpStream};

fn listener(addr: ListenAddr) -> Listener {
    Listener {
        addr,
        options: ListenOptions::default(),
        default_server: 0,
        names: Arc::new(Names::default()),
        tls: None,
        proxy_protocol: false,
        http2: false,
    }
}

fn inet(text: &str) -> Listener {
    listener(ListenAddr::Inet(text.parse().unwrap()))
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

fn log() -> ErrorLog {
    ErrorLog::new([])
}

#[test]
fn wildcards_cover_addresses_of_their_port() {
    let all = ["0.0.0.0:80", "127.0.0.1:80", "127.0.0.1:81", "[::1]:80"].map(inet);
    let own: Vec<bool> = all.iter().map(|l| has_socket(l, &all)).collect();
    assert_eq!(own, [true, false, true, true]);
    let mut bound = all;
    bound[1].options.backlog = 1;
    assert!(has_socket(&bound[1], &bound));
}

#[test]
fn kept_over_a_reload_and_closed_when_not_named() {
    let (a, b) = (free_port(), free_port());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    // left behind by one who is no more
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let unix = ListenAddr::Unix(path.clone());
    let first = [listener(ListenAddr::Inet(a)), listener(unix)];
    let mut sockets = Sockets::default();
    let commit = |sockets: &mut Sockets, listeners: &[Listener]| {
        let prepared = sockets.prepare(listeners, 2, &log()).unwrap();
        let ids: Vec<u64> = sockets
            .handles(&prepared, listeners)
            .iter()
            .map(|h| h.id)
            .collect();
        sockets.commit(prepared, listeners, &log());
        ids
    };
    let ids = commit(&mut sockets, &first);
    assert_eq!(ids.len(), 2);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o666
    );
    TcpStream::connect(a).unwrap();
    UnixStream::connect(&path).unwrap();

    let second = [listener(ListenAddr::Inet(a)), listener(ListenAddr::Inet(b))];
    let later = commit(&mut sockets, &second);
    assert_eq!((later[0], later.len()), (ids[0], 2));
    assert!(!ids.contains(&later[1]));
    assert!(!path.exists());
    TcpStream::connect(b).unwrap();
    assert_eq!(sockets.numbers().len(), 2);
    sockets.close(true);
    assert!(TcpStream::connect(a).is_err());
}

#[test]
fn reuseport_has_a_socket_for_each_thread() {
    let mut l = [listener(ListenAddr::Inet(free_port()))];
    let mut sockets = Sockets::default();
    for (reuseport, threads, expected) in [(false, 3, 1), (true, 3, 3), (true, 4, 4), (false, 4, 1)]
    {
        l[0].options.reuseport = reuseport;
        let prepared = sockets.prepare(&l, threads, &log()).unwrap();
        sockets.commit(prepared, &l, &log());
        assert_eq!(sockets.open[0].fds.len(), expected);
    }
}

#[test]
fn what_is_inherited_is_not_opened_again() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap();
    let l = [listener(ListenAddr::Inet(addr))];
    let inherited = Inherited {
        addr: ListenAddr::Inet(addr),
        fds: vec![Arc::new(held.into())],
        foreign: true,
    };
    let mut sockets = Sockets::inheriting(vec![inherited]);
    let prepared = sockets.prepare(&l, 1, &log()).unwrap();
    sockets.commit(prepared, &l, &log());
    TcpStream::connect(addr).unwrap();
}

#[test]
fn a_test_takes_an_address_in_use_for_good() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = listener(ListenAddr::Inet(taken.local_addr().unwrap()));
    assert!(rehearse(std::slice::from_ref(&busy), &log()).is_ok());
    let foreign = inet("192.0.2.1:80");
    assert!(rehearse(&[foreign], &log()).is_err());
}
