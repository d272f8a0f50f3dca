//! Idle connections to peers: a pool per thread, and the surplus in Pingora's pool for other threads.
//!
//! nginx keeps `keepalive N` connections per worker; a thread here is what a worker is there. With several
//! threads a quarter of that number is kept in Pingora's pool instead, so the sum over the process is the same.
//! No task watches a connection in the thread's pool: what the origin closed is seen at checkout, from tokio's
//! cached readiness and without a system call, and by one sweep per thread.

use super::coarse_millis;
use super::connect::{ConnectError, ConnectOptions, Connector, PoolKey, Tag, Target, UpConn};
use super::group::Group;
use super::peer::{GroupState, Peer};
use async_trait::async_trait;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID,
};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, sleep};

/// An idle connection to `peer`, or a new one.
pub async fn get(
    connector: &Connector,
    group: &Group,
    peer: &Peer,
    tag: impl Into<Tag>,
    options: &ConnectOptions,
) -> Result<UpConn, ConnectError> {
    let tag = tag.into();
    if let Some(conn) = take(group, peer, tag) {
        return Ok(conn);
    }
    if let Some(conn) = take_shared(connector, group, peer, tag).await {
        return Ok(conn);
    }
    connector.connect(group, peer, tag, options).await
}

/// This thread's idle connection to `peer` that was used last.
pub fn take(group: &Group, peer: &Peer, tag: impl Into<Tag>) -> Option<UpConn> {
    if group.keepalive.connections == 0 {
        return None;
    }
    take_at(PoolKey::new(group, peer, tag.into()), coarse_millis())
}

/// An idle connection to `peer` that some thread had too many of.
pub async fn take_shared(
    connector: &Connector,
    group: &Group,
    peer: &Peer,
    tag: impl Into<Tag>,
) -> Option<UpConn> {
    if group.state.shared_idle.load(Relaxed) == 0 {
        return None;
    }
    let key = PoolKey::new(group, peer, tag.into());
    let target = Target::new(peer, key, &ConnectOptions::default());
    let stream = connector.transport.reused_stream(&target).await?;
    let parked = stream.into_any().downcast::<Parked>().ok()?;
    let conn = parked.conn;
    (conn.key == key).then(|| conn.used_again())
}

/// Keeps `conn` for a later request; false if it was closed instead.
///
/// The caller answers for the protocol: the response was read to its end and the origin keeps the connection.
pub fn park(connector: &Connector, group: &Group, conn: UpConn) -> bool {
    let conf = &group.keepalive;
    let now = coarse_millis();
    let age = Duration::from_millis(now.saturating_sub(conn.opened_ms));
    // Bytes beyond the response are nobody's answer.
    let fit = conn.rbuf.is_empty()
        && !conn.single_use
        && conn.requests < conf.requests
        && age <= conf.time;
    if !fit || conf.connections == 0 {
        return false;
    }

    let (own, shared) = shares(conf.connections, connector.threads);
    let expires = now.saturating_add(u64::try_from(conf.timeout.as_millis()).unwrap_or(u64::MAX));
    let Some(surplus) = park_at(Idle { conn, expires }, own) else {
        sweep_later();
        return true;
    };
    if group.state.shared_idle.load(Relaxed) < shared {
        let rest = Duration::from_millis(surplus.expires.saturating_sub(now));
        share(connector, group, surplus.conn, rest);
    }
    sweep_later();
    true
}

/// Closes this thread's idle connections; for the end of the thread and for tests.
pub fn clear() {
    let idle = POOL.try_with(|pool| std::mem::take(&mut *pool.borrow_mut()));
    drop(idle);
}

/// How many idle connections this thread holds.
pub fn idle() -> usize {
    POOL.try_with(|pool| pool.borrow().values().map(VecDeque::len).sum())
        .unwrap_or(0)
}

thread_local! {
    /// Per group, the connection parked last at the back.
    static POOL: RefCell<HashMap<u32, VecDeque<Idle>, foldhash::fast::RandomState>> = RefCell::default();
    static SWEEPING: Cell<bool> = const { Cell::new(false) };
}

#[derive(Debug)]
struct Idle {
    conn: UpConn,
    expires: u64,
}

impl Idle {
    fn is_good(&mut self, now: u64) -> bool {
        now < self.expires && is_quiet(&mut self.conn)
    }
}

impl UpConn {
    fn used_again(mut self) -> Self {
        self.requests += 1;
        self.reused = true;
        self
    }
}

fn take_at(key: PoolKey, now: u64) -> Option<UpConn> {
    POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        let idle = pool.get_mut(&key.group)?;
        loop {
            let at = idle.iter().rposition(|i| i.conn.key == key)?;
            let mut found = idle.remove(at)?;
            if found.is_good(now) {
                return Some(found.conn.used_again());
            }
        }
    })
    .ok()
    .flatten()
}

/// Returns the connection that has been idle longest if there are more than `limit`.
fn park_at(idle: Idle, limit: usize) -> Option<Idle> {
    POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        let group = pool.entry(idle.conn.key.group).or_default();
        group.push_back(idle);
        (group.len() > limit).then(|| group.pop_front()).flatten()
    })
    .ok()
    .flatten()
}

/// What of `keepalive N` one thread keeps, and what all threads of the group may share.
fn shares(connections: u32, threads: u32) -> (usize, u32) {
    if threads <= 1 {
        return (usize::try_from(connections).unwrap_or(usize::MAX), 0);
    }
    let given = connections / 4;
    let own = usize::try_from(connections - given).unwrap_or(usize::MAX);
    (own, given.saturating_mul(threads))
}

/// Nothing to read and not closed, as far as the reactor knows: mostly without a system call.
fn is_quiet(conn: &mut UpConn) -> bool {
    let mut byte = [0; 1];
    let mut context = Context::from_waker(Waker::noop());
    Pin::new(conn)
        .poll_read(&mut context, &mut ReadBuf::new(&mut byte))
        .is_pending()
}

/// Starts this thread's sweep unless it runs; it ends when nothing is idle any more.
fn sweep_later() {
    let running = SWEEPING.try_with(|s| s.replace(true)).unwrap_or(true);
    if running {
        return;
    }
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(sweep_until_empty(Sweeping))),
        Err(_) => drop(Sweeping),
    }
}

async fn sweep_until_empty(sweeping: Sweeping) {
    let mut pause = Some(Duration::ZERO);
    while let Some(wait) = pause {
        sleep(wait.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
        let now = coarse_millis();
        pause = sweep(now).map(|next| Duration::from_millis(next.saturating_sub(now)));
    }
    drop(sweeping);
}

/// Bounds how long a connection that the origin closed lingers.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// Closes what is over or broken; returns when the next one is over, `None` if nothing is idle.
fn sweep(now: u64) -> Option<u64> {
    POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        pool.retain(|_, group| {
            group.retain_mut(|idle| idle.is_good(now));
            !group.is_empty()
        });
        pool.values().flatten().map(|idle| idle.expires).min()
    })
    .ok()
    .flatten()
}

/// Clears the thread's flag also when its runtime is shut down under the sweep.
struct Sweeping;

impl Drop for Sweeping {
    fn drop(&mut self) {
        let _ = SWEEPING.try_with(|s| s.set(false));
    }
}

fn share(connector: &Connector, group: &Group, conn: UpConn, rest: Duration) {
    let key = conn.key.hash();
    group.state.shared_idle.fetch_add(1, Relaxed);
    let parked = Parked {
        conn,
        rest: Box::pin(sleep(rest)),
        _counted: Counted(group.state.clone()),
    };
    // No idle timeout of Pingora's: it would start its timer thread. `Parked` ends itself.
    connector
        .transport
        .release_stream(Box::new(parked), key, None);
}

/// One of the group's shared idle connections.
#[derive(Debug)]
struct Counted(Arc<GroupState>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.shared_idle.fetch_sub(1, Relaxed);
    }
}

/// A connection in Pingora's pool. It keeps its age and count, and ends (EOF) when `rest` is over,
/// which makes the pool drop it.
#[derive(Debug)]
struct Parked {
    conn: UpConn,
    rest: Pin<Box<Sleep>>,
    _counted: Counted,
}

impl AsyncRead for Parked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.conn).poll_read(cx, buf)
    }
}

impl AsyncWrite for Parked {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.conn).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Parked {
    async fn shutdown(&mut self) {
        let _ = AsyncWriteExt::shutdown(&mut self.conn).await;
    }
}

impl UniqueID for Parked {
    fn id(&self) -> i32 {
        self.conn.id()
    }
}

impl Ssl for Parked {}

#[async_trait]
impl Peek for Parked {}

impl GetTimingDigest for Parked {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.conn.stream().get_timing_digest()
    }
}

impl GetProxyDigest for Parked {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.conn.stream().get_proxy_digest()
    }
}

impl GetSocketDigest for Parked {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.conn.stream().get_socket_digest()
    }
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::{group, spec};
    use super::super::group::{KeepaliveConf, Outcome};
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
        let key = conn.key;
        assert!(site.park(conn));
        assert!(sweep(coarse_millis() + 4900).is_some());
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
            picked.done(Outcome::Ok, &mut r);
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
}
