use super::super::group::tests::{group, spec};
use super::super::group::{AttemptVerdict, KeepaliveConf};
use super::super::peer::ServerSpec;
use super::*;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

struct Site {
    origin: TcpListener,
    group: Group,
    connector: Connector,
}

impl Site {
    async fn new(threads: u32, keepalive: KeepaliveConf) -> Self {
        let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut group, _) = group(vec![spec(origin.local_addr().unwrap().port())]);
        group.keepalive = keepalive;
        Self {
            origin,
            group,
            connector: Connector::new(threads),
        }
    }

    async fn connect(&self, tag: u64) -> (UpConn, TcpStream) {
        let options = ConnectOptions::default();
        let connecting = self
            .connector
            .connect(&self.group, self.peer(), tag, &options);
        let (conn, accepted) = tokio::join!(connecting, self.origin.accept());
        (conn.unwrap(), accepted.unwrap().0)
    }

    fn peer(&self) -> &Peer {
        self.group.peers().next().unwrap()
    }

    fn park(&self, conn: UpConn) -> bool {
        park(&self.connector, &self.group, conn)
    }

    fn take(&self, tag: u64) -> Option<UpConn> {
        take(&self.group, self.peer(), tag)
    }
}

fn keep(connections: u32) -> KeepaliveConf {
    KeepaliveConf {
        connections,
        ..KeepaliveConf::default()
    }
}

#[tokio::test]
async fn the_last_one_parked_is_the_first_one_taken() {
    let site = Site::new(1, keep(2)).await;
    let mut held = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let (conn, peer) = site.connect(0).await;
        ids.push(conn.id());
        held.push((Some(conn), peer));
    }
    for (conn, _) in &mut held {
        assert!(site.park(conn.take().unwrap()));
    }
    assert_eq!(idle(), 2);
    // The one idle longest was closed.
    assert_eq!(held[0].1.read(&mut [0; 1]).await.unwrap(), 0);
    let taken = site.take(0).unwrap();
    assert_eq!(
        (taken.id(), taken.requests, taken.reused),
        (ids[2], 2, true)
    );
    assert_eq!(site.take(0).unwrap().id(), ids[1]);
    assert!(site.take(0).is_none());
}

#[tokio::test]
async fn closed_or_talking_connections_are_not_given_out() {
    let site = Site::new(1, keep(4)).await;
    let (closed, peer) = site.connect(0).await;
    let (mut chatty, mut talker) = site.connect(0).await;
    site.park(closed);
    drop(peer);
    talker.write_all(b"HTTP/1.1 408 \r\n").await.unwrap();
    // Wait for the bytes themselves; peeking leaves them where checkout must find them.
    readable(&mut chatty).await;
    site.park(chatty);
    // The FIN came before those bytes were sent.
    tokio::task::yield_now().await;
    assert!(site.take(0).is_none());
    assert_eq!(idle(), 0);
}

/// Waits until the reactor has seen something to read, without reading it.
async fn readable(conn: &mut UpConn) {
    std::future::poll_fn(|cx| Pin::new(&mut *conn).poll_read(cx, &mut ReadBuf::new(&mut [])))
        .await
        .unwrap();
}

#[tokio::test]
async fn limits_of_requests_age_and_idle_time() {
    let (mut requests, mut time, mut timeout) = (keep(4), keep(4), keep(4));
    requests.requests = 2;
    time.time = Duration::from_secs(10);
    timeout.timeout = Duration::from_secs(5);

    let mut site = Site::new(1, requests).await;
    let (conn, _peer) = site.connect(0).await;
    assert!(site.park(conn));
    let conn = site.take(0).unwrap();
    assert!(!site.park(conn), "two requests are all");

    site.group.keepalive = time;
    let (mut conn, _peer) = site.connect(0).await;
    conn.opened_ms -= 10_100;
    assert!(!site.park(conn), "too old");

    site.group.keepalive = timeout;
    let (conn, mut peer) = site.connect(0).await;
    assert!(site.park(conn));
    assert!(sweep(coarse_millis() + 4900).is_some());
    let key = PoolKey::new(&site.group, site.peer(), 0.into());
    assert!(take_at(key, coarse_millis() + 5100).is_none());
    assert_eq!(peer.read(&mut [0; 1]).await.unwrap(), 0);

    let (conn, mut peer) = site.connect(0).await;
    assert!(site.park(conn));
    assert!(sweep(coarse_millis() + 5100).is_none());
    assert_eq!(peer.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn what_was_not_asked_for_is_not_parked() {
    let site = Site::new(1, keep(4)).await;
    let (mut conn, _peer) = site.connect(0).await;
    conn.rbuf.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    assert!(!site.park(conn));
    let mut none = Site::new(1, KeepaliveConf::off()).await;
    let (conn, _peer) = none.connect(0).await;
    assert!(!none.park(conn));
    none.group.keepalive = keep(1);
    assert!(none.take(0).is_none());
}

#[tokio::test]
async fn local_connections_stay_with_their_location() {
    let mut site = Site::new(1, keep(4)).await;
    let (conn, _peer) = site.connect(7).await;
    site.park(conn);
    assert!(site.take(8).is_none());
    assert!(site.take(7).is_some());

    site.group.keepalive.local = false;
    let (conn, _peer) = site.connect(7).await;
    site.park(conn);
    assert!(site.take(8).is_some());
}

#[tokio::test]
async fn another_peer_of_the_group_does_not_get_it() {
    let site = Site::new(1, keep(4)).await;
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let servers: Vec<ServerSpec> = [&site.origin, &other]
        .map(|l| spec(l.local_addr().unwrap().port()))
        .into();
    let (group, _) = group(servers);
    let peers: Vec<_> = group.peers().collect();
    let options = ConnectOptions::default();
    let conn = site.connector.connect(&group, peers[0], 0, &options).await;
    park(&site.connector, &group, conn.unwrap());
    assert!(take(&group, peers[1], 0).is_none());
    assert!(take(&group, peers[0], 0).is_some());
}

#[tokio::test]
async fn the_surplus_goes_to_other_threads() {
    let site = Arc::new(Site::new(2, keep(4)).await);
    // Pingora's pool loses a connection if another thread asks just as its idle task lets go of it.
    for _ in 0..50 {
        if surplus_is_found(&site).await {
            return;
        }
    }
    panic!("no other thread ever got the connection");
}

async fn surplus_is_found(site: &Arc<Site>) -> bool {
    clear();
    let mut peers = Vec::new();
    let mut conns = Vec::new();
    for _ in 0..4 {
        let (conn, peer) = site.connect(0).await;
        peers.push(peer);
        conns.push(conn);
    }
    let first = conns[0].id();
    for conn in conns {
        assert!(site.park(conn));
    }
    assert_eq!(idle(), 3);
    assert_eq!(site.group.state.shared_idle.load(Relaxed), 1);

    let (tell, told) = tokio::sync::oneshot::channel();
    let there = site.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let got = runtime.block_on(async {
            assert!(there.take(0).is_none(), "not this thread's");
            let conn = take_shared(&there.connector, &there.group, there.peer(), 0).await;
            if let Some(mut conn) = conn {
                conn.write_all(b"x").await.unwrap();
                Some((conn.id(), conn.reused, conn.requests))
            } else {
                None
            }
        });
        tell.send(got).unwrap();
    });
    let got = told.await.unwrap();
    thread.join().unwrap();
    // Either way nothing is left behind, and the origin sees the end.
    let read = peers[0].read(&mut [0; 1]).await.unwrap();
    assert_eq!(site.group.state.shared_idle.load(Relaxed), 0);
    assert_eq!(read, usize::from(got.is_some()));
    got.is_some_and(|got| {
        assert_eq!(got, (first, true, 2));
        true
    })
}

#[tokio::test]
async fn a_shared_connection_ends_with_its_idle_time() {
    let mut conf = keep(4);
    conf.timeout = Duration::from_millis(50);
    let site = Site::new(2, conf).await;
    let (conn, mut peer) = site.connect(0).await;
    share(
        &site.connector,
        &site.group,
        conn,
        Duration::from_millis(50),
    );
    assert_eq!(site.group.state.shared_idle.load(Relaxed), 1);
    assert_eq!(peer.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(site.group.state.shared_idle.load(Relaxed), 0);
}

#[test]
fn an_exchange_may_hold_all_of_it_across_an_await() {
    fn is_send<T: Send>(_: T) {}
    let (group, _) = group(vec![spec(1), spec(2)]);
    let connector = Connector::new(1);
    is_send(async {
        let mut r = group.start();
        let picked = group.pick(&mut r)?;
        let options = ConnectOptions::default();
        let conn = get(&connector, &group, picked.peer(), 0, &options).await;
        picked.done(AttemptVerdict::Ok, &mut r);
        conn.ok().map(|conn| park(&connector, &group, conn))
    });
}

#[test]
fn the_sum_over_all_threads_is_nginx_s() {
    for (n, threads) in [(1, 1), (1, 4), (32, 1), (32, 4), (5, 2)] {
        let (own, shared) = shares(n, threads);
        let total = u32::try_from(own).unwrap() * threads + shared;
        assert_eq!(total, n * threads);
        assert!(own > 0);
    }
}

/// A connection serves only what is equal in every part of its identity.
#[tokio::test]
async fn identities_are_not_mixed() {
    use super::super::identity::{Identity, Settings, TlsSettings};
    let site = Site::new(1, keep(8)).await;
    let options = ConnectOptions::default();
    let plain = Settings {
        protocol: "http/1",
        ..Settings::default()
    };
    let tls = |tls: TlsSettings| Settings {
        tls: Some(tls),
        ..plain.clone()
    };
    let kinds = [
        plain.clone(),
        Settings {
            protocol: "h2",
            ..plain.clone()
        },
        Settings {
            bind: Some((*b"127.0.0.2").into()),
            ..plain.clone()
        },
        Settings {
            transparent: true,
            ..plain.clone()
        },
        Settings {
            keepalive: true,
            ..plain.clone()
        },
        Settings {
            rcvbuf: Some(4096),
            ..plain.clone()
        },
        Settings {
            sndbuf: Some(4096),
            ..plain.clone()
        },
        Settings {
            proxy_header: true,
            ..plain.clone()
        },
        tls(TlsSettings::default()),
        tls(TlsSettings {
            context: 1,
            ..TlsSettings::default()
        }),
        tls(TlsSettings {
            send_name: true,
            ..TlsSettings::default()
        }),
        tls(TlsSettings {
            name: Some((*b"a").into()),
            ..TlsSettings::default()
        }),
        tls(TlsSettings {
            alpn: b"\x02h2",
            ..TlsSettings::default()
        }),
    ];
    let identities: Vec<_> = kinds.iter().cloned().map(Identity::new).collect();
    for (i, identity) in identities.iter().enumerate() {
        for own in [&b""[..], b"x"] {
            let tag = Tag {
                location: 0,
                identity,
                own,
            };
            let connecting = site
                .connector
                .connect(&site.group, site.peer(), tag, &options);
            let (conn, _accepted) = tokio::join!(connecting, site.origin.accept());
            assert!(site.park(conn.unwrap()));
            for (j, other) in kinds.iter().enumerate() {
                // another object of the same settings is the same identity
                let other = Identity::new(other.clone());
                for other_own in [&b""[..], b"x"] {
                    let tag = Tag {
                        location: 0,
                        identity: &other,
                        own: other_own,
                    };
                    let taken = take(&site.group, site.peer(), tag);
                    let expected = i == j && own == other_own;
                    assert_eq!(taken.is_some(), expected, "{i} {j}");
                    if let Some(conn) = taken {
                        assert!(site.park(conn));
                    }
                }
            }
            clear();
        }
    }
}
