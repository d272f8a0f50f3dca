//! Scripted origins: they answer, dribble, stall, lie and break off, as told.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::client::find;
use super::{DEADLINE, wait_for};

/// An origin on a free port of 127.0.0.1; closed on drop.
pub struct Origin {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Origin {
    /// Answers every request with the request itself as `text/plain`, and with `headers` (`"Name: value"`).
    pub fn echo(headers: &[&str]) -> Self {
        let headers: String = headers
            .iter()
            .map(|header| format!("{header}\r\n"))
            .collect();
        Self::respond(move |request| {
            let mut response = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{headers}\r\n",
                request.raw.len()
            )
            .into_bytes();
            if request.method() != "HEAD" {
                response.extend_from_slice(&request.raw);
            }
            response
        })
    }

    /// Answers every request with the bytes that `handler` gives. The connection is kept, unless the request asks
    /// to close it or the response says that it closes or names no length.
    pub fn respond(handler: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::start(move |connection| {
            while let Some(request) = connection.request() {
                let response = handler(&request);
                if connection.stream.write_all(&response).is_err()
                    || request.closes()
                    || !keeps(&response)
                {
                    break;
                }
            }
        })
    }

    /// Plays one script per connection, in order of arrival; the last one repeats.
    pub fn script(scripts: Vec<Vec<Step>>) -> Self {
        Self::start(move |connection| {
            let index = connection.index.min(scripts.len().saturating_sub(1));
            for step in scripts.get(index).into_iter().flatten() {
                if !connection.play(step) {
                    return;
                }
            }
        })
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// The requests so far, in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// The requests so far, and forgets them.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut lock(&self.shared.requests))
    }

    /// Waits until `count` requests have come.
    pub fn wait_for_requests(&self, count: usize) -> Vec<Request> {
        let requests = wait_for(DEADLINE, || {
            Some(self.requests()).filter(|requests| requests.len() >= count)
        });
        requests.unwrap_or_else(|| panic!("{count} requests expected, have {:?}", self.requests()))
    }

    /// How many connections have been accepted.
    pub fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    fn start(serve: impl Fn(&mut Connection) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind an origin");
        let addr = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared::default());
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared, &Arc::new(serve))
        });
        Self {
            addr,
            shared,
            acceptor: Some(acceptor),
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        // wakes the accept
        let _ = TcpStream::connect(self.addr);
        for stream in lock(&self.shared.streams).iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// One thing that a scripted origin does on a connection.
#[derive(Clone, Debug)]
pub enum Step {
    /// Reads one whole request and records it; the script ends if none comes.
    Read,
    /// Reads a request's head only and records it.
    ReadHead,
    /// Reads so many bytes and forgets them.
    ReadBytes(usize),
    /// Sends back what it reads until the peer closes.
    Echo,
    /// Sends bytes.
    Send(Vec<u8>),
    /// Sends bytes in pieces of `size` with `every` between them.
    Dribble {
        /// What to send.
        bytes: Vec<u8>,
        /// Bytes per piece.
        size: usize,
        /// Time between pieces.
        every: Duration,
    },
    /// Does nothing until the gate opens.
    Wait(Gate),
    /// Opens a gate: tells the test that the script has come this far.
    Open(Gate),
    /// Does nothing until the peer closes.
    WaitForClose,
    /// Closes with a reset (SO_LINGER 0).
    Reset,
    /// Closes.
    Close,
}

impl Step {
    /// Sends a text.
    pub fn send(text: impl AsRef<[u8]>) -> Self {
        Self::Send(text.as_ref().to_vec())
    }
}

/// Holds a scripted origin until the test opens it.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens it for good.
    pub fn open(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open, or the deadline has passed; whether it is open.
    pub fn wait(&self) -> bool {
        let open = lock(&self.0.0);
        let waited = self.0.1.wait_timeout_while(open, DEADLINE, |open| !*open);
        waited.is_ok_and(|(open, _)| *open)
    }
}

/// A request as the origin received it.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Head and body, byte for byte.
    pub raw: Vec<u8>,
    /// Which connection it came on, from 0.
    pub connection: usize,
    head: usize,
}

impl Request {
    /// The request line.
    pub fn line(&self) -> String {
        self.head_text()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    /// The method.
    pub fn method(&self) -> String {
        self.line().split(' ').next().unwrap_or_default().to_owned()
    }

    /// The request target.
    pub fn target(&self) -> String {
        self.line().split(' ').nth(1).unwrap_or_default().to_owned()
    }

    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<String> {
        self.head_text().lines().skip(1).find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known
                .eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    }

    /// The body as it was framed.
    pub fn body(&self) -> &[u8] {
        &self.raw[self.head..]
    }

    fn head_text(&self) -> String {
        self.raw[..self.head]
            .iter()
            .map(|&byte| char::from(byte))
            .collect()
    }

    fn closes(&self) -> bool {
        let connection = self
            .header("Connection")
            .unwrap_or_default()
            .to_ascii_lowercase();
        connection.contains("close")
            || (self.line().ends_with("HTTP/1.0") && !connection.contains("keep-alive"))
    }
}

#[derive(Default)]
struct Shared {
    closing: AtomicBool,
    accepted: AtomicUsize,
    requests: Mutex<Vec<Request>>,
    streams: Mutex<Vec<TcpStream>>,
}

struct Connection {
    stream: TcpStream,
    index: usize,
    unread: Vec<u8>,
    shared: Arc<Shared>,
}

impl Connection {
    fn request(&mut self) -> Option<Request> {
        let mut request = self.read_head().ok()?;
        if self.read_body(&mut request).is_err() {
            request.raw.append(&mut self.unread);
            lock(&self.shared.requests).push(request);
            return None;
        }
        lock(&self.shared.requests).push(request.clone());
        Some(request)
    }

    fn read_head(&mut self) -> io::Result<Request> {
        let end = loop {
            if let Some(at) = find(&self.unread, b"\r\n\r\n") {
                break at + 4;
            }
            self.fill()?;
        };
        Ok(Request {
            raw: self.unread.drain(..end).collect(),
            connection: self.index,
            head: end,
        })
    }

    fn read_body(&mut self, request: &mut Request) -> io::Result<()> {
        let chunked = request
            .header("Transfer-Encoding")
            .is_some_and(|value| value.to_ascii_lowercase().ends_with("chunked"));
        if chunked {
            loop {
                let at = self.until(b"\r\n", 0)?;
                let line = String::from_utf8_lossy(&self.unread[..at]).into_owned();
                let size =
                    usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
                let size = size.map_err(|_| io::ErrorKind::InvalidData)?;
                let end = if size == 0 {
                    // the empty line after the trailers; the last chunk's own line end counts
                    self.until(b"\r\n\r\n", at)? + 4
                } else {
                    at + 2 + size + 2
                };
                while self.unread.len() < end {
                    self.fill()?;
                }
                request.raw.extend(self.unread.drain(..end));
                if size == 0 {
                    return Ok(());
                }
            }
        }
        let length = request
            .header("Content-Length")
            .and_then(|value| value.parse().ok());
        let length: usize = length.unwrap_or(0);
        while self.unread.len() < length {
            self.fill()?;
        }
        request.raw.extend(self.unread.drain(..length));
        Ok(())
    }

    fn until(&mut self, mark: &[u8], from: usize) -> io::Result<usize> {
        loop {
            if let Some(at) = find(&self.unread[from..], mark) {
                return Ok(from + at);
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16384];
        match self.stream.read(&mut chunk)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.unread.extend_from_slice(&chunk[..count]);
                Ok(())
            }
        }
    }

    /// Does one step; `false` ends the script.
    fn play(&mut self, step: &Step) -> bool {
        match step {
            Step::Read => self.request().is_some(),
            Step::ReadHead => match self.read_head() {
                Ok(request) => {
                    lock(&self.shared.requests).push(request);
                    true
                }
                Err(_) => false,
            },
            Step::ReadBytes(count) => {
                while self.unread.len() < *count {
                    if self.fill().is_err() {
                        return false;
                    }
                }
                self.unread.drain(..count);
                true
            }
            Step::Echo => loop {
                let bytes = std::mem::take(&mut self.unread);
                if self.stream.write_all(&bytes).is_err() || self.fill().is_err() {
                    return true;
                }
            },
            Step::Send(bytes) => self.stream.write_all(bytes).is_ok(),
            Step::Dribble { bytes, size, every } => bytes.chunks((*size).max(1)).all(|piece| {
                let sent = self.stream.write_all(piece).is_ok();
                thread::sleep(*every);
                sent
            }),
            Step::Wait(gate) => {
                let _ = gate.wait();
                true
            }
            Step::Open(gate) => {
                gate.open();
                true
            }
            Step::WaitForClose => {
                while self.fill().is_ok() {}
                true
            }
            Step::Reset => {
                let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
                lock(&self.shared.streams)
                    .retain(|known| known.peer_addr().ok() != self.stream.peer_addr().ok());
                false
            }
            Step::Close => false,
        }
    }
}

fn accept<F>(listener: &TcpListener, shared: &Arc<Shared>, serve: &Arc<F>)
where
    F: Fn(&mut Connection) + Send + Sync + 'static,
{
    for (index, stream) in listener.incoming().enumerate() {
        if shared.closing.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        let _ = stream.set_nodelay(true);
        if let Ok(copy) = stream.try_clone() {
            lock(&shared.streams).push(copy);
        }
        let mut connection = Connection {
            stream,
            index,
            unread: Vec::new(),
            shared: Arc::clone(shared),
        };
        let serve = Arc::clone(serve);
        thread::spawn(move || {
            serve(&mut connection);
            connection.leave();
        });
    }
}

impl Connection {
    /// Closes for the peer too: the list of streams holds a second descriptor.
    fn leave(self) {
        let linger = socket2::SockRef::from(&self.stream).linger().ok().flatten();
        if linger != Some(Duration::ZERO) {
            let _ = self.stream.shutdown(Shutdown::Write);
            // unread bytes would turn the close into a reset
            let mut rest = [0; 4096];
            let mut stream = &self.stream;
            let _ = stream.set_read_timeout(Some(DEADLINE));
            while matches!(stream.read(&mut rest), Ok(count) if count > 0) {}
        }
    }
}

fn keeps(response: &[u8]) -> bool {
    let head = response.get(..find(response, b"\r\n\r\n").unwrap_or(response.len()));
    let head = String::from_utf8_lossy(head.unwrap_or_default()).to_ascii_lowercase();
    let sized = head.contains("content-length:") || head.contains("transfer-encoding:");
    let bare = ["204", "304"]
        .iter()
        .any(|code| head.split(' ').nth(1) == Some(code));
    (sized || bare) && !head.contains("connection: close")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
