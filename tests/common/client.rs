//! A client that sends bytes as they are and reads responses with a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::DEADLINE;

/// One connection; what was received and not yet read as a response is kept for the next one.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    limit: Duration,
    partial: Option<Response>,
}

impl Client {
    /// Connects, with [`DEADLINE`] for each later step.
    pub fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&addr, DEADLINE)
            .unwrap_or_else(|error| panic!("connect to {addr}: {error}"));
        stream.set_nodelay(true).expect("nodelay");
        Self {
            stream,
            buffer: Vec::new(),
            limit: DEADLINE,
            partial: None,
        }
    }

    /// Sets how long one response, or the wait for a close, may take.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The connection's: a server may have answered and closed already.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends the end of the stream, keeps reading.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The socket, for options.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads one response; `to` is the request's method (HEAD has no body).
    ///
    /// # Errors
    /// `UnexpectedEof` when the connection ends before or within it, `TimedOut`, `InvalidData`.
    pub fn response(&mut self, to: &str) -> io::Result<Response> {
        let end = Instant::now() + self.limit;
        let head = self.head(end)?;
        let mut response = Response::parse(&head).inspect_err(|_| {
            self.buffer.splice(..0, head.iter().copied());
        })?;
        match self.body(&mut response, to, end) {
            Ok(body) => {
                response.body = body;
                Ok(response)
            }
            Err(error) => {
                self.partial = Some(response);
                Err(error)
            }
        }
    }

    /// The head of a response whose body could not be read; what came of the body is in [`Client::buffered`].
    pub fn partial(&mut self) -> Option<Response> {
        self.partial.take()
    }

    /// Reads one response's head: the status line and headers with their line ends.
    ///
    /// # Errors
    /// As [`Client::response`].
    pub fn response_head(&mut self) -> io::Result<Response> {
        let end = Instant::now() + self.limit;
        Response::parse(&self.head(end)?)
    }

    /// Takes exactly `count` bytes.
    ///
    /// # Errors
    /// As [`Client::response`].
    pub fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let end = Instant::now() + self.limit;
        self.exactly(count, end)
    }

    /// Everything until the server closes.
    ///
    /// # Errors
    /// `TimedOut`, or a reset.
    pub fn read_to_close(&mut self) -> io::Result<Vec<u8>> {
        let end = Instant::now() + self.limit;
        while self.fill(end)? {}
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Bytes received and not read yet.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    fn head(&mut self, end: Instant) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                return Ok(self.buffer.drain(..at + 4).collect());
            }
            if !self.fill(end)? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn body(&mut self, response: &mut Response, to: &str, end: Instant) -> io::Result<Vec<u8>> {
        let status = response.status;
        if to == "HEAD" || status == 204 || status == 304 || (100..200).contains(&status) {
            response.framing = Framing::None;
            return Ok(Vec::new());
        }
        if response
            .header("Transfer-Encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
        {
            response.framing = Framing::Chunked;
            return self.chunked(response, end);
        }
        if let Some(length) = response.header("Content-Length") {
            let length = length.parse().map_err(|_| ErrorKind::InvalidData)?;
            response.framing = Framing::Length;
            return self.exactly(length, end);
        }
        response.framing = Framing::Close;
        while self.fill(end)? {}
        Ok(std::mem::take(&mut self.buffer))
    }

    fn chunked(&mut self, response: &mut Response, end: Instant) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line(end)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| ErrorKind::InvalidData)?;
            if size == 0 {
                break;
            }
            body.extend(self.exactly(size, end)?);
            if !self.line(end)?.is_empty() {
                return Err(ErrorKind::InvalidData.into());
            }
        }
        loop {
            let line = self.line(end)?;
            if line.is_empty() {
                return Ok(body);
            }
            response.trailers.push(split_header(&line)?);
        }
    }

    fn line(&mut self, end: Instant) -> io::Result<String> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            if !self.fill(end)? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn exactly(&mut self, count: usize, end: Instant) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.fill(end)? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Reads what is there; `false` at the end of the stream.
    fn fill(&mut self, end: Instant) -> io::Result<bool> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut chunk = [0; 16384];
        match self.stream.read(&mut chunk) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::TimedOut.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// A response as it was on the wire.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// `HTTP/1.1 200 OK`, without the line end.
    pub line: String,
    /// The status code.
    pub status: u16,
    /// Names and values in order.
    pub headers: Vec<(String, String)>,
    /// How the body was delimited.
    pub framing: Framing,
    /// The body, chunks joined.
    pub body: Vec<u8>,
    /// Fields after a chunked body.
    pub trailers: Vec<(String, String)>,
}

impl Response {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether the server says that it will take another request on this connection.
    pub fn keeps_alive(&self) -> bool {
        let says = |word: &str| {
            self.header("Connection").is_some_and(|value| {
                value
                    .split(',')
                    .any(|token| token.trim().eq_ignore_ascii_case(word))
            })
        };
        self.framing != Framing::Close
            && !says("close")
            && (!self.line.starts_with("HTTP/1.0") || says("keep-alive"))
    }

    fn parse(head: &[u8]) -> io::Result<Self> {
        // latin-1, so that every byte stays visible
        let head: String = head.iter().map(|&byte| char::from(byte)).collect();
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut response = Self {
            status: status.ok_or(ErrorKind::InvalidData)?,
            line,
            ..Self::default()
        };
        for line in lines.filter(|line| !line.is_empty()) {
            response.headers.push(split_header(line)?);
        }
        Ok(response)
    }
}

/// How a response's body is delimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is none: HEAD, 1xx, 204, 304.
    #[default]
    None,
    /// By Content-Length.
    Length,
    /// By chunks.
    Chunked,
    /// By the end of the connection.
    Close,
}

/// One GET on a connection of its own.
pub fn get(addr: SocketAddr, uri: &str, host: &str) -> Response {
    exchange(
        addr,
        &format!("GET {uri} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
    )
}

/// Sends bytes on a connection of its own and reads the (final) response.
pub fn exchange(addr: SocketAddr, request: &str) -> Response {
    let mut client = Client::connect(addr);
    // an early answer may end the connection while we still send
    let _ = client.send(request);
    let method = request.split(' ').next().unwrap_or_default();
    loop {
        let response = client
            .response(method)
            .unwrap_or_else(|error| panic!("no response to {request:?}: {error}"));
        if response.status == 101 || response.status >= 200 {
            return response;
        }
    }
}

fn split_header(line: &str) -> io::Result<(String, String)> {
    let (name, value) = line.split_once(':').ok_or(ErrorKind::InvalidData)?;
    Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}

/// Where `needle` begins.
pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len())
        .position(|window| window == needle)
}
