//! A cache zone: its folder, its table, its share of memory, and what is counted. It outlives configurations.

use super::file::Meta;
use super::index::Saved;
use super::index::{Evicted, Index};
use super::key::Digest;
use super::names::Names;
use super::purged::{Purges, What};
use super::store::Object;
use crate::log::{Level, process_log};
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;
use tinyufo::TinyUfo;

/// How much the manager or the loader does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Files of one round.
    pub files: u64,
    /// Milliseconds between two rounds.
    pub sleep: u64,
    /// Milliseconds after which a round ends.
    pub threshold: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            files: 100,
            sleep: 50,
            threshold: 200,
        }
    }
}

/// What `proxy_cache_path` says of a zone; a reload may change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    /// `inactive`, seconds.
    pub inactive: i64,
    /// `max_size`, bytes.
    pub max_size: u64,
    /// `min_free`, bytes; 0 is not watched.
    pub min_free: u64,
    /// `use_temp_path`.
    pub use_temp_path: bool,
    /// `manager_files`, `manager_sleep`, `manager_threshold`.
    pub manager: Pace,
    /// `loader_files`, `loader_sleep`, `loader_threshold`.
    pub loader: Pace,
    /// `memory`, bytes; 0 keeps nothing in memory.
    pub memory: usize,
    /// How many keys `keys_zone` holds.
    pub keys: usize,
    /// Whether objects can be found by key and tag (purging).
    pub named: bool,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            inactive: 600,
            max_size: u64::MAX,
            min_free: 0,
            use_temp_path: true,
            manager: Pace::default(),
            loader: Pace::default(),
            memory: DEFAULT_MEMORY,
            keys: 8000,
            named: false,
        }
    }
}

/// `memory` where it is not given, bytes.
pub const DEFAULT_MEMORY: usize = 16 << 20;

/// What an object in memory takes at least, bytes; also the unit of its weight.
const UNIT: usize = 256;

/// How many objects a request evicts at most to make room for one.
const EVICTED_AT_ONCE: usize = 256;

/// What a zone counts.
#[derive(Default)]
pub struct Counts {
    /// Requests by status, in the order of [`super::Status`].
    pub status: [AtomicU64; 7],
    /// Objects dropped for want of space or of use.
    pub evicted: AtomicU64,
    /// Objects stored.
    pub stored: AtomicU64,
    /// Milliseconds from the first to the last byte of what was stored.
    pub fill_ms: AtomicU64,
    /// Objects purged.
    pub purged: AtomicU64,
}

/// A zone.
pub struct Zone {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub root: PathBuf,
    /// Lengths of the names of hashed folders.
    pub levels: Vec<u8>,
    /// Its objects.
    pub index: Index,
    /// What is counted.
    pub counts: Counts,
    /// Keys and tags of its objects, where they can be purged by them.
    pub names: Mutex<Names>,
    params: ArcSwap<Params>,
    memory: ArcSwapOption<TinyUfo<u128, Arc<Object>>>,
    /// Whether there may be files that the table does not know yet.
    pub(super) cold: AtomicBool,
    pub(super) serving: AtomicBool,
    /// Purges that the loader has to know of.
    pub(super) purges: Mutex<Purges>,
    pub(super) watermark: AtomicUsize,
    pub(super) lock: Mutex<Option<nix::fcntl::Flock<std::fs::File>>>,
    pub(super) manager: Mutex<Option<Thread>>,
    block: AtomicU64,
    owners: AtomicU64,
    told: AtomicI64,
}

impl Zone {
    /// A zone that is not in use yet ([`Zone::activate`]).
    pub fn new(name: &str, root: &Path, levels: &[u8]) -> Zone {
        Zone {
            name: name.to_owned(),
            root: root.to_owned(),
            levels: levels.to_owned(),
            index: Index::default(),
            counts: Counts::default(),
            names: Mutex::default(),
            params: ArcSwap::from_pointee(Params::default()),
            memory: ArcSwapOption::empty(),
            cold: AtomicBool::new(true),
            serving: AtomicBool::new(false),
            purges: Mutex::default(),
            watermark: AtomicUsize::new(usize::MAX),
            lock: Mutex::new(None),
            manager: Mutex::new(None),
            block: AtomicU64::new(4096),
            owners: AtomicU64::new(1),
            told: AtomicI64::new(i64::MIN),
        }
    }

    /// The settings in force.
    pub fn params(&self) -> Arc<Params> {
        self.params.load_full()
    }

    pub(super) fn set_params(&self, params: &Params) {
        let before = self.params.load();
        let resized = self.memory.load().is_none() || before.memory != params.memory;
        if resized {
            let made = (params.memory >= UNIT).then(|| {
                let units = params.memory / UNIT;
                Arc::new(TinyUfo::new(units, units.min(100_000)))
            });
            self.memory.store(made);
        }
        if before.named != params.named {
            self.names.lock().enable(params.named);
        }
        self.params.store(Arc::new(params.clone()));
        if let Ok(fs) = nix::sys::statvfs::statvfs(&self.root) {
            self.block
                .store(fs.fragment_size().max(512), Ordering::Relaxed);
        }
    }

    /// Whether the zone can be used: its folder is there and nobody else's.
    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed)
    }

    /// Whether files may be there that the table does not know yet.
    pub fn is_cold(&self) -> bool {
        self.cold.load(Ordering::Relaxed)
    }

    /// The file of an object.
    pub fn path(&self, key: Digest) -> PathBuf {
        key.path(&self.root, &self.levels)
    }

    /// A number for one who updates an object.
    pub fn owner(&self) -> u64 {
        self.owners.fetch_add(1, Ordering::Relaxed)
    }

    /// Blocks of the file system that a file takes.
    pub fn blocks(&self, file: &std::fs::Metadata) -> u32 {
        use std::os::unix::fs::MetadataExt;
        let block = self.block.load(Ordering::Relaxed);
        // some file systems allocate later, some far ahead
        let allocated = file.blocks().saturating_mul(512);
        let bytes = allocated.clamp(file.len(), file.len().saturating_add(8 * block));
        u32::try_from(bytes.div_ceil(block)).unwrap_or(u32::MAX)
    }

    /// The size of a block, bytes.
    pub fn block(&self) -> u64 {
        self.block.load(Ordering::Relaxed)
    }

    /// Bytes that the objects take on disk.
    pub fn size(&self) -> u64 {
        self.index.blocks().saturating_mul(self.block())
    }

    /// An object in memory, if it is the one of that generation.
    pub fn in_memory(&self, key: Digest, generation: u64) -> Option<Arc<Object>> {
        self.memory
            .load()
            .as_ref()?
            .get(&key.number())
            .filter(|o| o.generation == generation)
    }

    /// Whether an object of so many bytes may be kept in memory.
    pub fn fits_memory(&self, bytes: u64) -> bool {
        let memory = self.params.load().memory as u64;
        bytes <= super::store::SMALL as u64 && bytes <= memory / 8
    }

    /// Offers an object to the memory tier, which decides whether it is worth its space.
    pub fn remember(&self, key: Digest, object: &Arc<Object>) {
        let memory = self.memory.load();
        let (Some(memory), Some(bytes)) = (memory.as_ref(), object.in_memory_size()) else {
            return;
        };
        if self.fits_memory(bytes) {
            let weight = (bytes as usize / UNIT + 2).min(usize::from(u16::MAX));
            memory.put(key.number(), object.clone(), weight as u16);
        }
    }

    /// Drops an object from memory.
    pub fn forget(&self, key: Digest) {
        if let Some(memory) = self.memory.load().as_ref() {
            memory.remove(&key.number());
        }
    }

    /// Drops an object: from the table, from memory, from disk.
    pub fn remove(&self, key: Digest) -> bool {
        let existed = self.index.remove(key);
        self.forget(key);
        self.names.lock().remove(key);
        if existed {
            self.unlink(key);
        }
        existed
    }

    /// Finishes what [`Index::evict`] began.
    pub(super) fn evicted(&self, e: &Evicted) {
        self.forget(e.key);
        self.names.lock().remove(e.key);
        if e.exists {
            self.counts.evicted.fetch_add(1, Ordering::Relaxed);
            self.unlink(e.key);
        }
    }

    /// Makes room for one key where the table is full; false where every object is in use.
    pub fn make_room(&self) -> bool {
        let count = self.index.len();
        self.watermark.store(count - count / 8, Ordering::Relaxed);
        match self.index.evict(None) {
            Some(e) => {
                self.evicted(&e);
                true
            }
            None => false,
        }
    }

    /// Wakes the manager where more is stored than it should be.
    pub(super) fn check_size(&self) {
        let params = self.params.load();
        let max = params.max_size;
        let large = self.size() > max.saturating_add(self.slack(max));
        if (large || params.min_free > 0 && self.free() <= params.min_free)
            && let Some(t) = &*self.manager.lock()
        {
            t.unpark();
        }
    }

    /// How many bytes more than `max` may be stored for a moment. Very small sizes are kept in the manager's own time.
    pub(super) fn slack(&self, max: u64) -> u64 {
        match max / 200 {
            half if half < self.block() => 16 * self.block(),
            half => half,
        }
    }

    /// Makes room for an object of so many blocks where the manager does not keep up with what is stored.
    pub(super) fn make_space(&self, blocks: u32) {
        let max = self.params.load().max_size / self.block();
        let most = max.saturating_add(max / 128);
        if max < 200 || u64::from(blocks) > max {
            return;
        }
        for _ in 0..EVICTED_AT_ONCE {
            if self.index.blocks().saturating_add(blocks.into()) <= most {
                return;
            }
            match self.index.evict(None) {
                Some(e) => self.evicted(&e),
                None => return,
            }
        }
    }

    /// Counts a request.
    pub fn count(&self, status: super::Status) {
        if let Some(n) = self.counts.status.get(status as usize) {
            n.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Purges every variant of a key; how many objects there were. With `soft` they stay, as ones whose time is over.
    pub fn purge_key(&self, key: &[u8], soft: bool) -> usize {
        self.note_purge(|| What::Key(key.to_vec()), soft);
        let mut list = self.names.lock().with_key(key);
        let main = Digest::of(key);
        if self.is_cold() && !self.index.is_known(main) {
            self.find(main, key);
        }
        // names are not known of what the loader has not seen yet
        if !list.contains(&main) {
            list.push(main);
        }
        self.purge(&list, soft)
    }

    /// Purges objects whose keys begin so.
    pub fn purge_prefix(&self, prefix: &[u8], soft: bool) -> usize {
        self.note_purge(|| What::Prefix(prefix.to_vec()), soft);
        let list = self.names.lock().with_prefix(prefix);
        self.purge(&list, soft)
    }

    /// Purges objects that have one of these tags.
    pub fn purge_tags(&self, tags: &[u8], soft: bool) -> usize {
        self.note_purge(|| What::Tags(tags.to_vec()), soft);
        let names = self.names.lock();
        let mut list: Vec<Digest> = super::names::split(tags)
            .flat_map(|tag| names.with_tag(tag))
            .collect();
        drop(names);
        list.sort_unstable();
        list.dedup();
        self.purge(&list, soft)
    }

    fn note_purge(&self, what: impl FnOnce() -> What, soft: bool) {
        if self.is_cold() {
            let now = crate::http::date::now().sec;
            self.purges.lock().note(what(), soft, now);
        }
    }

    /// Tells the table of an object that the loader has not come to yet.
    fn find(&self, digest: Digest, key: &[u8]) {
        if let Ok(object) = self.read(digest, key, 0) {
            let blocks = object.body.len().div_ceil(self.block()) + 1;
            let saved = Saved {
                key: digest,
                expire: crate::http::date::now().sec + self.params().inactive,
                blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
                uses: 1,
                stale: false,
            };
            self.index.add(saved, usize::MAX);
        }
    }

    /// Purges an object that was found on disk if that was asked for before it was found; false where it is gone.
    pub fn survives_purges(&self, digest: Digest, meta: &Meta) -> bool {
        let purged = match self.is_cold() {
            true => self.purges.lock().soft(meta),
            false => None,
        };
        match purged {
            Some(false) => {
                self.remove(digest);
                false
            }
            Some(true) => {
                self.index.expire(digest);
                true
            }
            None => true,
        }
    }

    fn purge(&self, list: &[Digest], soft: bool) -> usize {
        let purged = list
            .iter()
            .filter(|d| {
                if soft {
                    self.index.expire(**d)
                } else {
                    self.remove(**d)
                }
            })
            .count();
        self.counts
            .purged
            .fetch_add(purged as u64, Ordering::Relaxed);
        purged
    }

    fn unlink(&self, key: Digest) {
        let path = self.path(key);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => self.trouble(format_args!(
                "unlink() \"{}\" failed ({})",
                path.display(),
                reason(&e)
            )),
            _ => {}
        }
    }

    /// Logs what is wrong with the folder, once a minute at most: requests go on without the cache.
    pub fn trouble(&self, message: fmt::Arguments<'_>) {
        let now = crate::http::date::now().sec;
        let before = self.told.load(Ordering::Relaxed);
        if now - before.max(0) >= 60
            && self
                .told
                .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            process_log().write(
                Level::Crit,
                None,
                format_args!("cache \"{}\": {message}", self.name),
            );
        }
    }
}

/// An error as nginx words it: `28: No space left on device`.
pub fn reason(e: &io::Error) -> String {
    let text = e.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    match e.raw_os_error() {
        Some(n) => format!("{n}: {text}"),
        None => text.to_owned(),
    }
}
