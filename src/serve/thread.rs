//! A serving thread: its own runtime, accept loops and connections.

use super::conn::Conn;
use super::front;
use super::opening;
use super::proxy::Front;
use super::reusable::{Reusable, Roster};
use super::transport::Transport;
use crate::contract::{
    ConnInfo, Downstream, KeepaliveOption, ListenAddr, Remote, Request, Site, SiteRef, Stat,
};
use crate::log::{Errno, Level};
use crate::tls::empty_ca::EmptyCa;
use arc_swap::ArcSwap;
use bytes::BytesMut;
use nix::sys::resource::{Resource, getrlimit};
use parking_lot::Mutex;
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, watch};

/// What all threads share.
pub struct Shared {
    /// The configuration that new requests are served from.
    pub site: ArcSwap<Site>,
    /// Changes with every new site.
    pub epoch: AtomicU64,
    /// True once the process stops accepting and closes idle connections.
    pub draining: watch::Sender<bool>,
    /// Connections that a site up to this epoch ended are cut off (`worker_shutdown_timeout`); `u64::MAX`: all.
    pub cut_ended: watch::Sender<u64>,
    /// Tells threads that there is another site, so that those which have nothing to do let the old one go.
    pub renewed: watch::Sender<u64>,
    /// Open client connections.
    pub connections: AtomicUsize,
    /// The next `$connection`.
    pub serial: AtomicU64,
    /// Changes with every new site, for whom a look at `epoch` is not enough.
    pub replaced: watch::Sender<()>,
    /// Whether a thread runs the services of the site.
    pub(super) served: AtomicBool,
    /// Makes connections to origins.
    pub connector: crate::upstream::Connector,
}

impl Shared {
    /// State of a process that serves `site` on so many threads.
    pub fn new(site: Site, threads: usize) -> Shared {
        site.activate_caches();
        Shared {
            site: ArcSwap::from_pointee(site),
            epoch: AtomicU64::new(0),
            draining: watch::Sender::new(false),
            cut_ended: watch::Sender::new(0),
            renewed: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
            serial: AtomicU64::new(1),
            replaced: watch::Sender::new(()),
            served: AtomicBool::new(false),
            connector: crate::upstream::Connector::new(threads as u32),
        }
    }

    /// Serves new requests from another site; those that are under way end on theirs.
    pub fn replace(&self, site: Site) {
        site.activate_caches();
        let before = self.site.swap(Arc::new(site));
        let epoch = self.epoch.fetch_add(1, Ordering::Release) + 1;
        self.renewed.send_replace(epoch);
        self.replaced.send_replace(());
        crate::memory::retire(before);
    }
}

/// A listening socket for one thread; accepting ends when `stop` becomes true.
pub struct Listening {
    /// The address, by which the site's listener is found (its index may change with a reload).
    pub addr: ListenAddr,
    /// The socket, non-blocking.
    pub fd: OwnedFd,
    /// Tells that the address is no longer configured.
    pub stop: watch::Receiver<bool>,
}

/// What one thread holds.
pub(super) struct Thread {
    pub shared: Arc<Shared>,
    pub proxy: Arc<HttpProxy<Front>>,
    /// Pingora's own shutdown flag; never raised, because the front closes idle connections itself.
    pub shutdown: ShutdownWatch,
    /// Whether idle connections are closed and busy ones close when they are done.
    pub draining: AtomicBool,
    /// Connections, and work that runs without one.
    pub connections: AtomicUsize,
    /// Connections, and which of them give way to new ones.
    pub roster: Roster,
    /// The limit of open files of the process.
    files: u64,
    /// Connections that have ended since memory was last given back, and who waits for that to be many.
    ended: AtomicUsize,
    tidy: Notify,
    /// Every open connection by its number.
    open: Mutex<HashMap<u64, OpenConn, foldhash::fast::FixedState>>,
    site: Mutex<(u64, SiteRef)>,
    /// Sites that were replaced not long ago, for connections of HTTP/2 whose address the next one does not serve.
    former: Mutex<Vec<SiteRef>>,
    /// Connections of HTTP/2.
    pub http2: AtomicUsize,
    // boxed: a request changes hands as it is
    #[allow(clippy::vec_box)]
    pool: Mutex<Vec<Box<Request>>>,
    /// Memory that [`Thread::prefix`] gives away in pieces.
    prefixes: Mutex<BytesMut>,
}

/// An open connection, as drains and reloads see it.
struct OpenConn {
    addr: ListenAddr,
    /// The epoch of the first site without this address since a site had it; [`STAYS`] where the one in force has it.
    gone: u64,
    conn: Weak<Conn>,
}

/// The epoch in which a connection ends that no site has ended.
pub(super) const STAYS: u64 = u64::MAX;

/// How long a connection that was told to stay may bring another request after the drain began: whoever sends one at
/// that moment is answered, and told to go, where he would have found the connection closed.
pub(super) const DRAIN_GRACE: Duration = Duration::from_millis(250);

/// How long a thread keeps a site that was replaced: each connection has looked at the new one by then.
const FORMER: Duration = Duration::from_secs(1);

/// Bytes of a block that [`Thread::prefix`] divides.
const PREFIXES: usize = 8 * 1024;

/// Requests kept for reuse by a thread.
const POOLED: usize = 256;

impl Thread {
    /// The site in force.
    pub fn site(&self) -> SiteRef {
        let epoch = self.shared.epoch.load(Ordering::Acquire);
        let mut held = self.site.lock();
        if held.0 != epoch {
            let new = (epoch, SiteRef::new(self.shared.site.load_full()));
            let (_, before) = std::mem::replace(&mut *held, new);
            if self.http2.load(Ordering::Relaxed) > 0 {
                self.former.lock().push(before);
            }
            self.pool.lock().clear();
        }
        held.1.clone()
    }

    /// The newest of the sites before the one in force that has an address, if it was replaced just now.
    pub fn former(&self, addr: &ListenAddr) -> Option<SiteRef> {
        let former = self.former.lock();
        let has = |s: &&SiteRef| s.listeners.iter().any(|l| l.addr == *addr);
        former.iter().rev().find(has).cloned()
    }

    /// A request object for a connection: a used one where there is one.
    pub fn request(&self, site: &SiteRef, down: Arc<dyn Downstream>) -> Box<Request> {
        let pooled = self.pool.lock().pop();
        match pooled {
            Some(mut r) => {
                r.reset(site, down);
                r
            }
            None => {
                let mut r = Box::new(Request::new(site.clone(), down.clone()));
                r.reset(site, down);
                r
            }
        }
    }

    /// A copy of `text` that Pingora may own; memory comes back once the pieces of a block are gone.
    pub fn prefix(&self, text: &[u8]) -> BytesMut {
        let block = &mut *self.prefixes.lock();
        if block.capacity() < text.len() {
            block.reserve(PREFIXES.max(text.len()));
        }
        block.extend_from_slice(text);
        block.split()
    }

    /// Closes the connections that wait for a request.
    fn close_idle(&self) {
        for open in self.open.lock().values() {
            if let Some(conn) = open.conn.upgrade()
                && conn.is_idle()
            {
                conn.cut();
            }
        }
    }

    /// Goes over to the site in force, and closes what waits on an address that it no longer has.
    fn renew(&'static self) {
        let site = self.site();
        if !self.former.lock().is_empty() {
            let serial = site.serial;
            tokio::spawn(async move {
                tokio::time::sleep(FORMER).await;
                self.former.lock().retain(|s| s.serial >= serial);
            });
        }
        // a site that is newer than this epoch has its own call of this function
        let epoch = self.site.lock().0;
        for open in self.open.lock().values_mut() {
            if site.listeners.iter().any(|l| l.addr == open.addr) {
                open.gone = STAYS;
                continue;
            }
            open.gone = open.gone.min(epoch);
            if let Some(conn) = open.conn.upgrade()
                && conn.is_idle()
            {
                conn.cut();
            }
        }
    }

    /// Ends connections that the site of `epoch`, or one before it, ended, whatever they are doing: their address has gone,
    /// or they were told to go. What the site in force serves stays.
    fn cut_ended(&self, epoch: u64) {
        for open in self.open.lock().values() {
            if let Some(conn) = open.conn.upgrade()
                && open.gone.min(conn.told()) <= epoch
            {
                conn.cut();
            }
        }
    }

    /// Keeps a request object for later.
    pub fn recycle(&self, mut r: Box<Request>) {
        r.release();
        let fresh = r.site.same(&self.site.lock().1);
        let mut pool = self.pool.lock();
        if fresh && pool.len() < POOLED {
            pool.push(r);
        }
    }
}

/// Runs a serving thread until `listeners` is closed and every connection has ended.
///
/// # Errors
/// What creating the runtime gives.
pub fn run_thread(
    shared: Arc<Shared>,
    mut listeners: tokio::sync::mpsc::UnboundedReceiver<Listening>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (never, shutdown) = watch::channel(false);
    super::certificates::watch(&shared);
    let nobody = EmptyCa::new();
    let conf = ServerConf {
        ca_file: nobody.as_ref().map(EmptyCa::path),
        ..ServerConf::default()
    };
    let proxy = pingora_proxy::http_proxy(&Arc::new(conf), Front);
    drop(nobody);
    // threads live as long as the process: leaking their state once makes it reachable without counting
    let thread: &'static Thread = Box::leak(Box::new(Thread {
        site: Mutex::new((
            shared.epoch.load(Ordering::Acquire),
            SiteRef::new(shared.site.load_full()),
        )),
        shared,
        draining: AtomicBool::new(false),
        proxy: Arc::new(proxy),
        shutdown,
        former: Mutex::default(),
        http2: AtomicUsize::new(0),
        pool: Mutex::default(),
        prefixes: Mutex::default(),
        connections: AtomicUsize::new(0),
        roster: Roster::default(),
        files: getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft),
        ended: AtomicUsize::new(0),
        tidy: Notify::new(),
        open: Mutex::default(),
    }));
    crate::runtime::register(crate::runtime::ThreadState {
        draining: &thread.draining,
        busy: &thread.connections,
    });
    crate::upstream::register_connector(&thread.shared.connector);
    runtime.block_on(async move {
        if !thread.shared.served.swap(true, Ordering::Relaxed) {
            tokio::spawn(super::background::run(thread));
        }
        tokio::spawn(tidy(thread));
        let mut draining = thread.shared.draining.subscribe();
        let mut cut = thread.shared.cut_ended.subscribe();
        let mut renewed = thread.shared.renewed.subscribe();
        loop {
            tokio::select! {
                Ok(()) = renewed.changed() => {
                    renewed.mark_unchanged();
                    thread.renew();
                }
                Ok(()) = cut.changed() => {
                    // the site may be as new as this
                    thread.renew();
                    thread.cut_ended(*cut.borrow_and_update());
                }
                l = listeners.recv() => match l {
                    Some(listening) => drop(tokio::spawn(accept_loop(thread, listening))),
                    None => break,
                },
                _ = draining.wait_for(|d| *d) => break,
            }
        }
        // idle connections close soon, busy ones when their response is complete
        thread.draining.store(true, Ordering::Relaxed);
        // connections of HTTP/2 look at the flag then
        thread.shared.renewed.send_modify(|_| ());
        let begun = Instant::now();
        while thread.connections.load(Ordering::Relaxed) > 0 {
            if begun.elapsed() >= DRAIN_GRACE {
                thread.close_idle();
            }
            if cut.has_changed().unwrap_or(false) {
                thread.cut_ended(*cut.borrow_and_update());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        crate::upstream::pool::clear();
    });
    drop(never);
    Ok(())
}

/// Accepts connections of one address until it is told to stop.
async fn accept_loop(thread: &'static Thread, mut l: Listening) {
    let mut draining = thread.shared.draining.subscribe();
    let socket = match Socket::new(&l) {
        Ok(s) => s,
        Err(e) => {
            let site = thread.site();
            site.error_log.write(
                Level::Emerg,
                None,
                format_args!("listening on {} failed: {e}", l.addr),
            );
            return;
        }
    };
    loop {
        let accepted = tokio::select! {
            biased;
            _ = l.stop.wait_for(|s| *s) => return,
            _ = draining.wait_for(|d| *d) => return,
            a = socket.accept() => a,
        };
        match accepted {
            Ok((transport, peer)) => {
                if open(thread, &l.addr, transport, peer) {
                    // those that give way do so before the next one is accepted
                    tokio::task::yield_now().await;
                }
            }
            Err(e) => refused(thread, &e).await,
        }
    }
}

/// A connection could not be accepted: logs why, and waits where that will not change at once.
async fn refused(thread: &'static Thread, e: &std::io::Error) {
    let (level, pause) = match e.raw_os_error() {
        Some(libc::ECONNABORTED) => (Level::Error, Duration::ZERO),
        Some(libc::EMFILE | libc::ENFILE) => (Level::Crit, ACCEPT_DELAY),
        _ => (Level::Alert, ACCEPT_DELAY),
    };
    let (retired, first) = match level {
        Level::Crit => thread.roster.retire(),
        _ => (0, false),
    };
    if retired == 0 || first {
        thread.site().error_log.write(
            level,
            None,
            format_args!("accept4() failed{}", Errno::of(e)),
        );
    }
    // descriptors of those that give way are free once they have been told
    let pause = if retired > 0 { RETIRED } else { pause };
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

/// How long nothing is accepted after that failed (nginx's `accept_mutex_delay`).
const ACCEPT_DELAY: Duration = Duration::from_millis(500);
/// How long nothing is accepted where connections give way.
const RETIRED: Duration = Duration::from_millis(10);

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    fn new(l: &Listening) -> std::io::Result<Socket> {
        let fd = l.fd.try_clone()?;
        Ok(match l.addr {
            ListenAddr::Inet(_) => Socket::Tcp(TcpListener::from_std(fd.into())?),
            ListenAddr::Unix(_) => Socket::Unix(UnixListener::from_std(fd.into())?),
        })
    }

    async fn accept(&self) -> std::io::Result<(Transport, Option<SocketAddr>)> {
        match self {
            Socket::Tcp(s) => s.accept().await.map(|(s, a)| (Transport::Tcp(s), Some(a))),
            Socket::Unix(s) => s.accept().await.map(|(s, _)| (Transport::Unix(s), None)),
        }
    }
}

/// Takes a connection; whether others were told to give way to it.
fn open(
    thread: &'static Thread,
    addr: &ListenAddr,
    transport: Transport,
    peer: Option<SocketAddr>,
) -> bool {
    let site = thread.site();
    let mut local = None;
    let mut addr = addr.clone();
    if let (Transport::Tcp(s), ListenAddr::Inet(a)) = (&transport, &addr) {
        local = if a.ip().is_unspecified() {
            s.local_addr().ok()
        } else {
            Some(*a)
        };
        // a wildcard's socket takes the connections of addresses that have none of their own
        if let Some(local) = local
            && a.ip().is_unspecified()
            && site
                .listeners
                .iter()
                .any(|l| l.addr == ListenAddr::Inet(local))
        {
            addr = ListenAddr::Inet(local);
        }
    }
    let Some(index) = site.listeners.iter().position(|l| l.addr == addr) else {
        return false;
    };
    let Some(listener) = site.listeners.get(index) else {
        return false;
    };
    Stat::Accepted.up();
    let retired = make_room(thread, &site, transport.fd());
    if thread.roster.open() >= site.main.worker_connections {
        site.error_log.write(
            Level::Alert,
            None,
            format_args!(
                "{} worker_connections are not enough",
                site.main.worker_connections
            ),
        );
        return retired;
    }
    if let Transport::Tcp(s) = &transport {
        // known before the first request: the settings of the address's default server
        let server = site.servers.get(listener.default_server as usize);
        let location = server.and_then(|s| site.locations.get(s.default_location as usize));
        if location.is_none_or(|l| l.core.tcp_nodelay) {
            let _ = s.set_nodelay(true);
        }
        if let Some(k) = listener.options.keepalive {
            keepalive(s, k);
        }
    }
    let info = ConnInfo {
        serial: thread.shared.serial.fetch_add(1, Ordering::Relaxed),
        remote: peer.map_or_else(Remote::unix, Remote::new),
        local: local.map_or_else(Remote::unix, Remote::new),
        listener: AtomicUsize::new(index),
        start: Instant::now(),
        requests: AtomicU64::new(0),
        tls: OnceLock::new(),
        proxy: OnceLock::new(),
    };
    let counted = Counted::new(thread, info.serial, transport.fd());
    if listener.tls.is_none() && !listener.proxy_protocol {
        let conn = Arc::new(Conn::new(transport, info));
        tokio::spawn(run(thread, conn, addr, counted));
        return retired;
    }
    tokio::spawn(async move {
        let silent = || Reusable::new(&thread.roster, counted.id);
        // the site is held for the opening alone
        let opened = opening::open(&site, index, transport, &info, &silent).await;
        drop(site);
        if let Some(transport) = opened {
            let conn = Arc::new(Conn::new(transport, info));
            // in a task of its own: this one has room for a handshake
            tokio::spawn(run(thread, conn, addr, counted));
        }
    });
    retired
}

/// Tells reusable connections to give way where there is little room for others, as nginx does; whether there were any.
fn make_room(thread: &Thread, site: &Site, fd: RawFd) -> bool {
    let most = site.main.worker_connections;
    let free = most.saturating_sub(thread.roster.open());
    // descriptors are given out from the lowest on: the number tells how many there are
    let files = thread.files.saturating_sub(fd as u64);
    let (what, limit) = if free <= most / 16 {
        ("worker_connections", most as u64)
    } else if files <= thread.files / 16 {
        ("open files", thread.files)
    } else {
        return false;
    };
    let (retired, log) = thread.roster.retire();
    if log {
        site.error_log.write(
            Level::Warn,
            None,
            format_args!("{limit} {what} are not enough, reusing connections"),
        );
    }
    retired > 0
}

/// Gives memory back to the system when many connections have ended: the allocator keeps what was freed, and threads
/// keep buffers.
async fn tidy(thread: &'static Thread) {
    loop {
        thread.tidy.notified().await;
        // what ends together is freed together
        loop {
            let before = thread.ended.swap(0, Ordering::Relaxed);
            tokio::time::sleep(QUIET).await;
            if thread.ended.load(Ordering::Relaxed) <= before / 8 {
                break;
            }
        }
        thread.ended.store(0, Ordering::Relaxed);
        thread.pool.lock().truncate(POOLED / 8);
        crate::runtime::buffers::trim();
        crate::memory::give_back();
    }
}

/// So many connections must have ended before memory is given back.
const MANY: usize = 256;
/// How long few connections must have ended before that.
const QUIET: Duration = Duration::from_secs(2);

/// Serves a connection that has been opened, to its end.
///
/// Not an `async fn`: that would hold its parameters twice.
fn run(
    thread: &'static Thread,
    conn: Arc<Conn>,
    addr: ListenAddr,
    counted: Counted,
) -> impl Future<Output = ()> {
    counted.register(&conn, &addr);
    conn.enrol(&thread.roster, counted.id);
    async move {
        front::serve(thread, &conn, &addr).await;
        conn.goodbye().await;
        drop(conn);
        drop(counted);
    }
}

fn keepalive(s: &tokio::net::TcpStream, k: KeepaliveOption) {
    let socket = socket2::SockRef::from(s);
    let _ = socket.set_keepalive(k.on);
    if k.on {
        let mut t = socket2::TcpKeepalive::new();
        if let Some(n) = k.idle {
            t = t.with_time(Duration::from_secs(n.into()));
        }
        if let Some(n) = k.interval {
            t = t.with_interval(Duration::from_secs(n.into()));
        }
        if let Some(n) = k.count {
            t = t.with_retries(n);
        }
        let _ = socket.set_tcp_keepalive(&t);
    }
}

/// Counts a connection for as long as it lives, a panic of its task included.
struct Counted {
    thread: &'static Thread,
    serial: u64,
    /// Its number in the thread's roster.
    id: u32,
    /// In which the connection was accepted.
    epoch: u64,
}

impl Counted {
    fn new(thread: &'static Thread, serial: u64, fd: RawFd) -> Counted {
        thread.connections.fetch_add(1, Ordering::Relaxed);
        thread.shared.connections.fetch_add(1, Ordering::Relaxed);
        Stat::Handled.up();
        Stat::Active.up();
        Counted {
            thread,
            serial,
            id: thread.roster.add(fd),
            epoch: thread.shared.epoch.load(Ordering::Acquire),
        }
    }

    /// Makes the connection known to a drain.
    fn register(&self, conn: &Arc<Conn>, addr: &ListenAddr) {
        let mut gone = STAYS;
        // a reload during the handshake did not find the connection
        if self.thread.shared.epoch.load(Ordering::Acquire) != self.epoch {
            let site = self.thread.site();
            if !site.listeners.iter().any(|l| l.addr == *addr) {
                gone = self.thread.site.lock().0;
            }
        }
        if gone <= *self.thread.shared.cut_ended.borrow() {
            conn.cut();
        }
        let open = OpenConn {
            addr: addr.clone(),
            gone,
            conn: Arc::downgrade(conn),
        };
        self.thread.open.lock().insert(self.serial, open);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        Stat::Active.down();
        self.thread.open.lock().remove(&self.serial);
        self.thread.roster.remove(self.id);
        if self.thread.ended.fetch_add(1, Ordering::Relaxed) + 1 == MANY {
            self.thread.tidy.notify_one();
        }
        self.thread.connections.fetch_sub(1, Ordering::Relaxed);
        self.thread
            .shared
            .connections
            .fetch_sub(1, Ordering::Relaxed);
    }
}
