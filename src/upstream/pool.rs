//! Idle connections to peers: a pool per thread, and the surplus in Pingora's pool for other threads.
//!
//! nginx keeps `keepalive N` connections per worker; a thread here is what a worker is there. With several
//! threads a quarter of that number is kept in Pingora's pool instead, so the sum over the process is the same.
//! No task watches a connection in the thread's pool: what the origin closed is seen at checkout, from tokio's
//! cached readiness and without a system call, and by one sweep per thread.

use super::coarse_millis;
use super::connect::{ConnectError, ConnectOptions, Connector, PoolKey, Tag, Target};
use super::connection::UpConn;
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
pub async fn get<'a>(
    connector: &Connector,
    group: &Group,
    peer: &Peer,
    tag: impl Into<Tag<'a>>,
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
pub fn take<'a>(group: &Group, peer: &Peer, tag: impl Into<Tag<'a>>) -> Option<UpConn> {
    if group.keepalive.connections == 0 {
        return None;
    }
    take_at(PoolKey::new(group, peer, tag.into()), coarse_millis())
}

/// An idle connection to `peer` that some thread had too many of.
pub async fn take_shared<'a>(
    connector: &Connector,
    group: &Group,
    peer: &Peer,
    tag: impl Into<Tag<'a>>,
) -> Option<UpConn> {
    if group.state.shared_idle.load(Relaxed) == 0 {
        return None;
    }
    let key = PoolKey::new(group, peer, tag.into());
    let target = Target::new(peer, key, &ConnectOptions::default());
    let stream = connector.transport.reused_stream(&target).await?;
    let parked = stream.into_any().downcast::<Parked>().ok()?;
    let conn = parked.conn;
    key.fits(&conn.key).then(|| conn.used_again())
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

fn take_at(key: PoolKey<'_>, now: u64) -> Option<UpConn> {
    POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        let idle = pool.get_mut(&key.group)?;
        loop {
            let at = idle.iter().rposition(|i| key.fits(&i.conn.key))?;
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
mod tests;
