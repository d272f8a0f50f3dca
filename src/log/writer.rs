//! Access logs: lines to a file, at once or through buffers that are flushed when full or old.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::{Condvar, Mutex};

use super::{LogFile, LogFiles, OpenError, WriteError, process_log};

/// A file that lines of access logs go to. All `access_log` directives of a configuration that name the
/// same path share one, as in nginx.
pub struct AccessWriter {
    me: Weak<Self>,
    file: Arc<LogFile>,
    /// Set while the configuration is read, at the latest by its last directive.
    buffer: OnceLock<Buffer>,
}

impl AccessWriter {
    fn new(file: Arc<LogFile>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            file,
            buffer: OnceLock::new(),
        })
    }

    /// The file below.
    pub fn file(&self) -> &Arc<LogFile> {
        &self.file
    }

    /// Writes `line`, which ends with its own line feed: into the thread's buffer if the log has buffers, by
    /// one `write(2)` and without a lock otherwise.
    ///
    /// # Errors
    /// A failure worth reporting with the request's context; see [`LogFile::append`].
    pub fn write(&self, line: &[u8]) -> Result<(), WriteError> {
        match self.buffer.get() {
            None => self.file.append(line),
            Some(buffer) => self.write_buffered(buffer, line),
        }
    }

    /// Writes out what all threads have buffered.
    ///
    /// # Errors
    /// The first failure worth reporting; the other buffers are written all the same.
    pub fn flush(&self) -> Result<(), WriteError> {
        let Some(buffer) = self.buffer.get() else {
            return Ok(());
        };
        let mut outcome = Ok(());
        for shard in &buffer.shards {
            outcome = outcome.and(self.drain(buffer, &mut shard.state.lock()));
        }
        outcome
    }

    fn write_buffered(&self, buffer: &Buffer, line: &[u8]) -> Result<(), WriteError> {
        let (index, shard) = buffer.mine();
        let size = buffer.params.size;
        let mut state = shard.state.lock();
        let mut outcome = Ok(());
        if line.len() > size.saturating_sub(state.lines.len()) {
            outcome = self.drain(buffer, &mut state);
        }
        if line.len() > size {
            return outcome.and(self.emit(buffer, line));
        }
        if state.lines.is_empty() {
            if state.lines.capacity() == 0 {
                state.lines.reserve(size.min(MAX_RESERVED));
            }
            if let Some(flush) = buffer.params.flush {
                let due = Instant::now().checked_add(flush);
                state.due = due;
                if let Some(due) = due
                    && !state.armed
                {
                    state.armed = FLUSHER.arm(due, self.me.clone(), index);
                }
            }
        }
        state.lines.extend_from_slice(line);
        outcome
    }

    /// Writes out one buffer if its time has come, or asks to be called again when it will.
    fn flush_due(&self, index: usize) {
        let Some(buffer) = self.buffer.get() else {
            return;
        };
        let Some(shard) = buffer.shards.get(index) else {
            return;
        };
        let mut state = shard.state.lock();
        let outcome = match state.due {
            Some(due) if due > Instant::now() => {
                state.armed = FLUSHER.arm(due, self.me.clone(), index);
                return;
            }
            _ => self.drain(buffer, &mut state),
        };
        state.armed = false;
        drop(state);
        report(outcome);
    }

    fn drain(&self, buffer: &Buffer, state: &mut Pending) -> Result<(), WriteError> {
        state.due = None;
        if state.lines.is_empty() {
            return Ok(());
        }
        let outcome = self.emit(buffer, &state.lines);
        // What could not be written is lost: keeping it would stop the log for good.
        state.lines.clear();
        outcome
    }

    fn emit(&self, buffer: &Buffer, lines: &[u8]) -> Result<(), WriteError> {
        let Some(level) = buffer.params.gzip else {
            return self.file.append(lines);
        };
        let mut member = GzEncoder::new(
            Vec::with_capacity(lines.len() / 4 + 64),
            Compression::new(level),
        );
        // Compressing into memory cannot fail.
        let Ok(()) = member.write_all(lines) else {
            return Ok(());
        };
        member
            .finish()
            .map_or(Ok(()), |bytes| self.file.append(&bytes))
    }
}

impl Drop for AccessWriter {
    fn drop(&mut self) {
        report(self.flush());
    }
}

impl fmt::Debug for AccessWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let buffering = self.buffer.get().map(|buffer| buffer.params);
        f.debug_struct("AccessWriter")
            .field("file", &self.file)
            .field("buffering", &buffering)
            .finish()
    }
}

/// Where there is no request to speak for.
fn report(outcome: Result<(), WriteError>) {
    if let Err(error) = outcome {
        process_log().write(error.level(), None, format_args!("{error}"));
    }
}

/// The parameters `buffer=`, `flush=` and `gzip=` of `access_log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffering {
    /// Bytes that each thread keeps before it writes; 64 KiB if only `gzip` is given.
    pub size: usize,
    /// The age at which lines are written although the buffer is not full.
    pub flush: Option<Duration>,
    /// Level 1 to 9; each write is a gzip member of its own (RFC 1952 section 2.2).
    pub gzip: Option<u32>,
}

/// Buffers for the threads that write; with as many threads as cores, each has one to itself.
struct Buffer {
    params: Buffering,
    shards: Box<[Shard]>,
}

/// On a cache line of its own, so that threads do not wait for one another's.
#[repr(align(128))]
#[derive(Default)]
struct Shard {
    state: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    lines: Vec<u8>,
    due: Option<Instant>,
    /// Whether the flusher has this shard in its queue, which it is in once at most.
    armed: bool,
}

/// Larger buffers grow into their size instead of taking it at once.
const MAX_RESERVED: usize = 64 * 1024;

impl Buffer {
    fn new(params: Buffering) -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        Self {
            params,
            shards: (0..threads).map(|_| Shard::default()).collect(),
        }
    }

    fn mine(&self) -> (usize, &Shard) {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        let index = THREAD.with(|number| number % self.shards.len());
        (index, &self.shards[index])
    }
}

static FLUSHER: Flusher = Flusher {
    queue: Mutex::new(Queue {
        due: BTreeMap::new(),
        serial: 0,
        running: false,
    }),
    wake: Condvar::new(),
};

/// Flushes buffers that have come of age, on one thread that begins with the first line that needs it.
struct Flusher {
    queue: Mutex<Queue>,
    wake: Condvar,
}

struct Queue {
    due: BTreeMap<(Instant, u64), (Weak<AccessWriter>, usize)>,
    serial: u64,
    running: bool,
}

impl Flusher {
    /// Queues a shard; false if there is no thread to serve it.
    fn arm(&'static self, due: Instant, writer: Weak<AccessWriter>, shard: usize) -> bool {
        let mut queue = self.queue.lock();
        if !queue.running {
            let spawned = thread::Builder::new()
                .name("log-flush".to_owned())
                .spawn(|| self.run());
            queue.running = spawned.is_ok();
            if !queue.running {
                return false;
            }
        }
        queue.serial += 1;
        let key = (due, queue.serial);
        queue.due.insert(key, (writer, shard));
        if queue
            .due
            .first_key_value()
            .is_some_and(|(first, _)| *first == key)
        {
            self.wake.notify_one();
        }
        true
    }

    fn run(&self) {
        loop {
            let (writer, shard) = self.next();
            if let Some(writer) = writer.upgrade() {
                writer.flush_due(shard);
            }
        }
    }

    fn next(&self) -> (Weak<AccessWriter>, usize) {
        let mut queue = self.queue.lock();
        loop {
            match queue.due.first_entry() {
                None => self.wake.wait(&mut queue),
                Some(entry) if entry.key().0 <= Instant::now() => return entry.remove(),
                Some(entry) => {
                    let due = entry.key().0;
                    self.wake.wait_until(&mut queue, due);
                }
            }
        }
    }
}

/// The access logs of one configuration in the making.
pub struct AccessLogs<'a> {
    files: &'a LogFiles,
    writers: HashMap<PathBuf, Arc<AccessWriter>>,
}

impl<'a> AccessLogs<'a> {
    /// None yet; their files will be among `files`.
    pub fn new(files: &'a LogFiles) -> Self {
        Self {
            files,
            writers: HashMap::new(),
        }
    }

    /// The writer for `path`, opened when it is first named. One directive with buffering makes it buffered for
    /// all others.
    ///
    /// # Errors
    /// [`AccessLogError::Open`], or [`AccessLogError::Conflict`] if another directive asked for another buffer.
    pub fn open(
        &mut self,
        path: &Path,
        buffering: Option<Buffering>,
    ) -> Result<Arc<AccessWriter>, AccessLogError> {
        let writer = match self.writers.get(path) {
            Some(writer) => writer.clone(),
            None => {
                let writer =
                    AccessWriter::new(self.files.open(path).map_err(AccessLogError::Open)?);
                self.files.watch_writer(&writer);
                self.writers.insert(path.to_owned(), writer.clone());
                writer
            }
        };
        if let Some(params) = buffering
            && writer.buffer.get_or_init(|| Buffer::new(params)).params != params
        {
            return Err(AccessLogError::Conflict);
        }
        Ok(writer)
    }
}

/// Why an `access_log` is refused.
#[derive(Debug)]
pub enum AccessLogError {
    /// The file cannot be opened.
    Open(OpenError),
    /// nginx: `access_log "X" already defined with conflicting parameters`, where X is the path as written.
    Conflict,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixDatagram;

    fn writer(path: &Path, buffering: Option<Buffering>) -> (LogFiles, Arc<AccessWriter>) {
        let files = LogFiles::default();
        let writer = AccessLogs::new(&files).open(path, buffering).unwrap();
        (files, writer)
    }

    fn plain(size: usize) -> Option<Buffering> {
        Some(Buffering {
            size,
            flush: None,
            gzip: None,
        })
    }

    /// Eight threads of a thousand lines each, every line recognisable.
    fn hammer(writer: &AccessWriter) {
        thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || {
                    for number in 0..1000 {
                        let fill = "x".repeat((thread * 131 + number * 17) % 300);
                        writer
                            .write(format!("{thread} {number} {fill} end\n").as_bytes())
                            .unwrap();
                    }
                });
            }
        });
    }

    fn assert_whole(text: &str) {
        let mut seen = std::collections::HashSet::new();
        for line in text.lines() {
            let mut words = line.split(' ');
            let thread: usize = words.next().unwrap().parse().unwrap();
            let number: usize = words.next().unwrap().parse().unwrap();
            assert_eq!(
                words.next().unwrap().len(),
                (thread * 131 + number * 17) % 300,
                "{line}"
            );
            assert_eq!((words.next(), words.next()), (Some("end"), None), "{line}");
            assert!(seen.insert((thread, number)), "twice: {line}");
        }
        assert_eq!(seen.len(), 8000);
    }

    #[test]
    fn lines_of_eight_threads_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        for (name, buffering) in [
            ("plain", None),
            ("buffered", plain(1000)),
            ("large", plain(1 << 20)),
        ] {
            let path = dir.path().join(name);
            let (_files, writer) = writer(&path, buffering);
            hammer(&writer);
            drop(writer);
            assert_whole(&std::fs::read_to_string(&path).unwrap());
        }
    }

    #[test]
    fn gzip_members_make_one_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.gz");
        let (_files, writer) = writer(
            &path,
            Some(Buffering {
                size: 4096,
                flush: None,
                gzip: Some(1),
            }),
        );
        hammer(&writer);
        writer.flush().unwrap();
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(std::fs::File::open(&path).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_whole(&text);
    }

    #[test]
    fn buffers_are_written_when_full_too_small_or_flushed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let read = || std::fs::read_to_string(&path).unwrap();
        let (files, writer) = writer(&path, plain(8));
        writer.write(b"one\n").unwrap();
        writer.write(b"two\n").unwrap();
        assert_eq!(read(), "");
        writer.write(b"six\n").unwrap();
        assert_eq!(read(), "one\ntwo\n");
        writer.write(b"longer than the buffer\n").unwrap();
        assert_eq!(read(), "one\ntwo\nsix\nlonger than the buffer\n");
        writer.write(b"end\n").unwrap();
        files.flush_all(&process_log());
        assert!(read().ends_with("end\n"));
    }

    #[test]
    fn reopening_flushes_into_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (files, writer) = writer(&path, plain(4096));
        writer.write(b"old\n").unwrap();
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        files.reopen_all(None, &process_log());
        writer.write(b"new\n").unwrap();
        drop(writer);
        assert_eq!(std::fs::read(dir.path().join("log.1")).unwrap(), b"old\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"new\n");
    }

    #[test]
    fn old_lines_are_flushed_by_themselves() {
        let (here, there) = UnixDatagram::pair().unwrap();
        there
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let file = Arc::new(LogFile::new(Path::new("pair"), here.into()));
        let writer = AccessWriter::new(file);
        let params = Buffering {
            size: 4096,
            flush: Some(Duration::from_millis(30)),
            gzip: None,
        };
        assert!(writer.buffer.set(Buffer::new(params)).is_ok());
        let mut buf = [0; 64];
        for round in 0..3 {
            let began = Instant::now();
            writer.write(format!("line {round}\n").as_bytes()).unwrap();
            assert_eq!(there.recv(&mut buf).unwrap(), 7);
            assert_eq!(&buf[..7], format!("line {round}\n").as_bytes());
            assert!(began.elapsed() >= Duration::from_millis(30));
        }
    }

    #[test]
    fn one_path_has_one_buffer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let files = LogFiles::default();
        let mut logs = AccessLogs::new(&files);
        let first = logs.open(&path, None).unwrap();
        assert!(Arc::ptr_eq(&first, &logs.open(&path, plain(64)).unwrap()));
        assert!(matches!(
            logs.open(&path, plain(65)),
            Err(AccessLogError::Conflict)
        ));
        first.write(b"kept back\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        let missing = logs.open(&dir.path().join("no/log"), None);
        assert!(matches!(missing, Err(AccessLogError::Open(_))));
    }

    #[test]
    fn full_disk_loses_lines_only() {
        let (_files, writer) = writer(Path::new("/dev/full"), plain(16));
        let failures = (0..1000)
            .filter(|_| writer.write(b"a line\n").is_err())
            .count();
        assert_eq!(failures, 1);
    }
}
