//! Reads the atoms of an MP4 file (ISO/IEC 14496-12, "boxes" there) that matter for cutting it by time.
//!
//! Sizes, counts and offsets in a file are hostile input: every one is checked against what is there, memory is bounded
//! by `mp4_max_buffer_size`, and arithmetic does not overflow. Which atoms are kept and which faults are told is nginx's.

use std::borrow::Cow;
use std::io;
use std::ops::Range;

/// Why a file cannot be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// To be logged as `"FILE" TEXT`.
    Of(Cow<'static, str>),
    /// To be logged as `TEXT in "FILE"`.
    In(Cow<'static, str>),
    /// Reading gave so many bytes instead of so many.
    Short(usize, usize),
    /// Reading failed.
    Read(i32),
}

impl Fault {
    fn of(text: impl Into<Cow<'static, str>>) -> Fault {
        Fault::Of(text.into())
    }

    pub(super) fn within(text: impl Into<Cow<'static, str>>) -> Fault {
        Fault::In(text.into())
    }
}

/// A file as bytes at offsets.
pub trait Source {
    /// Fills `buf` from `offset` as far as there are bytes; returns how many there were.
    ///
    /// # Errors
    /// What the system gives.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl Source for &[u8] {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.get(from..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }
}

impl Source for std::fs::File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            match FileExt::read_at(self, rest, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

/// Which part of a file is wanted, and how it may be read.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Where it begins, milliseconds.
    pub start: u64,
    /// How long it is, milliseconds; 0 is up to the end.
    pub length: u64,
    /// `mp4_start_key_frame`.
    pub key_frame: bool,
    /// `mp4_buffer_size`, bytes.
    pub buffer_size: u64,
    /// `mp4_max_buffer_size`, bytes.
    pub max_buffer_size: u64,
}

impl Wanted {
    /// The beginning in units of a time scale (units a second).
    pub(super) fn start_in(&self, timescale: u32) -> u64 {
        scaled(self.start, timescale)
    }

    /// The length in units of a time scale.
    pub(super) fn length_in(&self, timescale: u32) -> u64 {
        scaled(self.length, timescale)
    }

    /// What is left of a duration.
    fn cut(&self, duration: u64, timescale: u32) -> u64 {
        let rest = duration.saturating_sub(self.start_in(timescale));
        match self.length {
            0 => rest,
            _ => rest.min(self.length_in(timescale)),
        }
    }
}

fn scaled(milliseconds: u64, timescale: u32) -> u64 {
    let units = u128::from(milliseconds) * u128::from(timescale) / 1000;
    u64::try_from(units).unwrap_or(u64::MAX)
}

/// Bytes of the `moov` atom.
pub(super) type Span = Range<usize>;

/// A table in a track: the atom's header with what precedes the entries, and the entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub head: Span,
    pub data: Span,
    /// As the atom says.
    pub entries: u32,
}

/// The atoms of one track.
#[derive(Debug, Default, Clone)]
pub(super) struct Track {
    pub tkhd: Option<Span>,
    pub mdia: bool,
    pub mdhd: Option<Span>,
    pub hdlr: Option<Span>,
    pub minf: bool,
    pub vmhd: Option<Span>,
    pub smhd: Option<Span>,
    pub dinf: Option<Span>,
    pub stbl: bool,
    pub stsd: Option<Span>,
    pub stts: Option<Table>,
    pub stss: Option<Table>,
    pub ctts: Option<Table>,
    pub stsc: Option<Table>,
    pub stsz: Option<Table>,
    /// Whether `stsz` has no table: all samples have one size.
    pub uniform: bool,
    pub stco: Option<Table>,
    pub co64: Option<Table>,
    pub timescale: u32,
    /// Of the part, in units of the track's time scale.
    pub duration: u64,
    /// Of the part, in units of the movie's time scale.
    pub movie_duration: u64,
}

/// What of a file matters for cutting it.
#[derive(Debug, Default)]
pub(super) struct Movie {
    /// The `ftyp` atom, header included.
    pub ftyp: Option<Vec<u8>>,
    /// The contents of `moov`; headers of atoms in it have been made 8 bytes long, durations are those of the part.
    pub moov: Vec<u8>,
    pub mvhd: Option<Span>,
    pub tracks: Vec<Track>,
    /// Where the contents of `mdat` end in the file.
    pub mdat_end: Option<u64>,
    timescale: u32,
}

/// Reads a file; `None` where the part is the whole file as it stands.
pub(super) fn read(
    source: &dyn Source,
    size: u64,
    wanted: &Wanted,
) -> Result<Option<Movie>, Fault> {
    let mut reader = Reader {
        source,
        buf: Vec::new(),
        pos: 0,
        offset: 0,
        end: size,
        size: wanted.buffer_size,
    };
    let mut movie = Movie::default();
    let mut has_moov = false;
    while reader.offset < size {
        let Some(atom) = reader.header()? else {
            break;
        };
        let length = atom.size - atom.header;
        match &atom.name {
            b"ftyp" => {
                reader.skip(atom.header);
                if length > 1024 || reader.buffered() < length {
                    return Err(Fault::of(format!("mp4 ftyp atom is too large:{length}")));
                }
                if movie.ftyp.is_some() {
                    return Err(Fault::within("duplicate mp4 ftyp atom"));
                }
                let mut ftyp = Vec::with_capacity(8 + length as usize);
                ftyp.extend_from_slice(&(8 + length as u32).to_be_bytes());
                ftyp.extend_from_slice(b"ftyp");
                ftyp.extend_from_slice(reader.peek(length as usize));
                movie.ftyp = Some(ftyp);
                reader.skip(length);
            }
            b"moov" => {
                reader.skip(atom.header);
                let is_first = movie.mdat_end.is_none();
                if is_first && wanted.start == 0 && wanted.length == 0 {
                    return Ok(None);
                }
                if has_moov {
                    return Err(Fault::within("duplicate mp4 moov atom"));
                }
                has_moov = true;
                let mut moov = reader.moov(length, is_first, wanted.max_buffer_size)?;
                let whole = movie.moov(&mut moov, wanted)?;
                movie.moov = moov;
                reader.skip(length);
                // what follows a moov atom behind the data does not matter; an atom of size 0 ends everything
                if !is_first || !whole {
                    break;
                }
                reader.size = MOOV_EXCESS;
            }
            b"mdat" => {
                reader.skip(atom.header);
                if movie.mdat_end.is_some() {
                    return Err(Fault::within("duplicate mp4 mdat atom"));
                }
                movie.mdat_end = Some(reader.offset + length);
                if !movie.tracks.is_empty() {
                    break;
                }
                reader.skip(length);
            }
            _ => reader.skip(atom.size),
        }
    }
    if movie.tracks.is_empty() {
        return Err(Fault::of_none("trak atoms were"));
    }
    if movie.mdat_end.is_none() {
        return Err(Fault::of_none("mdat atom was"));
    }
    Ok(Some(movie))
}

impl Fault {
    pub(super) fn of_none(what: &str) -> Fault {
        Fault::within(format!("no mp4 {what} found"))
    }
}

/// A track beyond so many must have samples.
const MOST_EMPTY: usize = 64;

/// How much is read at once behind a moov atom that precedes the data.
const MOOV_EXCESS: u64 = 4096;

/// Reads the outermost atoms through a buffer.
struct Reader<'s> {
    source: &'s dyn Source,
    buf: Vec<u8>,
    pos: usize,
    offset: u64,
    end: u64,
    /// How much is read at once.
    size: u64,
}

/// The header of an atom.
struct Atom {
    name: [u8; 4],
    /// Header included.
    size: u64,
    header: u64,
}

impl Reader<'_> {
    fn buffered(&self) -> u64 {
        (self.buf.len() - self.pos.min(self.buf.len())) as u64
    }

    fn peek(&self, n: usize) -> &[u8] {
        let rest = self.buf.get(self.pos..).unwrap_or_default();
        rest.get(..n).unwrap_or(rest)
    }

    fn skip(&mut self, n: u64) {
        let n_here = n.min(self.buffered()) as usize;
        self.pos += n_here;
        self.offset = self.offset.saturating_add(n);
    }

    /// Has `n` bytes in the buffer.
    fn need(&mut self, n: u64) -> Result<(), Fault> {
        if self.buffered() >= n {
            return Ok(());
        }
        self.size = self.size.min(self.end.saturating_sub(self.offset));
        if self.size < n {
            return Err(Fault::of("mp4 file truncated"));
        }
        let size = usize::try_from(self.size).map_err(|_| Fault::of("mp4 file truncated"))?;
        self.buf.clear();
        self.buf.resize(size, 0);
        self.pos = 0;
        match self.source.read_at(&mut self.buf, self.offset) {
            Ok(n) if n == size => Ok(()),
            Ok(n) => Err(Fault::Short(n, size)),
            Err(e) => Err(Fault::Read(e.raw_os_error().unwrap_or(0))),
        }
    }

    /// The next atom's header, which stays in the buffer; `None` where an atom of size 0 ends the file.
    fn header(&mut self) -> Result<Option<Atom>, Fault> {
        self.need(4)?;
        let long = match u32_at(self.peek(4), 0) {
            Some(0) => return Ok(None),
            Some(1) => true,
            _ => false,
        };
        self.need(if long { 16 } else { 8 })?;
        let atom = Atom::of(self.peek(16))?;
        let Some(atom) = atom else { return Ok(None) };
        if atom.size > self.end.saturating_sub(self.offset) {
            return Err(too_large(atom.size));
        }
        Ok(Some(atom))
    }

    /// The contents of a moov atom; they stay in the buffer.
    fn moov(&mut self, length: u64, is_first: bool, max: u64) -> Result<Vec<u8>, Fault> {
        if length > self.size {
            if length > max {
                return Err(Fault::of(format!(
                    "mp4 moov atom is too large:{length}, you may want to increase mp4_max_buffer_size"
                )));
            }
            (self.buf, self.pos) = (Vec::new(), 0);
            self.size = length + if is_first { MOOV_EXCESS } else { 0 };
        }
        self.need(length)?;
        Ok(self.peek(length as usize).to_vec())
    }
}

fn too_large(size: u64) -> Fault {
    Fault::of(format!("mp4 atom too large:{size}"))
}

fn too_small(what: &str) -> Fault {
    Fault::of(format!("mp4 {what} atom too small"))
}

fn duplicate(what: &str) -> Fault {
    Fault::within(format!("duplicate mp4 {what} atom"))
}

impl Atom {
    /// Reads a header; `None` for the size 0.
    fn of(bytes: &[u8]) -> Result<Option<Atom>, Fault> {
        let truncated = || Fault::of("mp4 file truncated");
        let small = |n: u64| Fault::of(format!("mp4 atom is too small:{n}"));
        let short = u64::from(u32_at(bytes, 0).ok_or_else(truncated)?);
        let (size, header) = match short {
            0 => return Ok(None),
            1 => match u64_at(bytes, 8).ok_or_else(truncated)? {
                n if n < 16 => return Err(small(n)),
                n => (n, 16),
            },
            n if n < 8 => return Err(small(n)),
            n => (n, 8),
        };
        let name = bytes
            .get(4..8)
            .and_then(|n| n.try_into().ok())
            .ok_or_else(truncated)?;
        Ok(Some(Atom { name, size, header }))
    }
}

/// What reading a container came to.
enum Inner {
    /// All of it was read.
    Whole,
    /// An atom of size 0 was found: nothing that follows is read, in containers around it neither.
    Ended,
    /// The track has nothing in the part that is wanted.
    Left,
}

/// The atoms that contain others.
#[derive(Clone, Copy)]
enum Container {
    Moov,
    Trak,
    Mdia,
    Minf,
    Stbl,
}

impl Movie {
    /// Reads the contents of `moov`; false where an atom of size 0 ended it.
    fn moov(&mut self, moov: &mut [u8], wanted: &Wanted) -> Result<bool, Fault> {
        let all = 0..moov.len();
        let inner = self.inside(Container::Moov, moov, all, &mut Track::default(), wanted)?;
        Ok(!matches!(inner, Inner::Ended))
    }

    /// Reads a container whose contents are `span` of `moov`.
    fn inside(
        &mut self,
        container: Container,
        moov: &mut [u8],
        span: Span,
        track: &mut Track,
        wanted: &Wanted,
    ) -> Result<Inner, Fault> {
        let mut at = span.start;
        while at < span.end {
            let Some(atom) = Atom::of(moov.get(at..).unwrap_or_default())? else {
                return Ok(Inner::Ended);
            };
            let left = (span.end - at) as u64;
            if atom.size > left || atom.header > left {
                return Err(too_large(atom.size));
            }
            let data = at + atom.header as usize..at + atom.size as usize;
            at = data.end;
            let inner = match (container, &atom.name) {
                (Container::Moov, b"trak") => {
                    let mut track = Track::default();
                    let inner = self.inside(Container::Trak, moov, data, &mut track, wanted)?;
                    if matches!(inner, Inner::Left) {
                        continue;
                    }
                    // what has no samples is refused before many of them take memory
                    if track.stts.is_none() && self.tracks.len() >= MOST_EMPTY {
                        return Err(Fault::of_none("stts atoms were"));
                    }
                    self.tracks.push(track);
                    inner
                }
                (Container::Trak, b"mdia") => {
                    once(&mut track.mdia, "mdia")?;
                    self.inside(Container::Mdia, moov, data, track, wanted)?
                }
                (Container::Mdia, b"minf") => {
                    once(&mut track.minf, "minf")?;
                    self.inside(Container::Minf, moov, data, track, wanted)?
                }
                (Container::Minf, b"stbl") => {
                    once(&mut track.stbl, "stbl")?;
                    self.inside(Container::Stbl, moov, data, track, wanted)?
                }
                (_, name) => self.leaf(container, name, moov, data, track, wanted)?,
            };
            if !matches!(inner, Inner::Whole) {
                return Ok(inner);
            }
        }
        Ok(Inner::Whole)
    }

    /// Reads an atom that contains no others.
    fn leaf(
        &mut self,
        container: Container,
        name: &[u8; 4],
        moov: &mut [u8],
        data: Span,
        track: &mut Track,
        wanted: &Wanted,
    ) -> Result<Inner, Fault> {
        match (container, name) {
            (Container::Moov, b"mvhd") => {
                if self.mvhd.is_some() {
                    return Err(duplicate("mvhd"));
                }
                let times = Times::of(moov, &data, [100, 112], [16, 24], "mvhd")?;
                self.timescale = times.timescale(moov, &data, [12, 20]);
                if times.duration < wanted.start_in(self.timescale) {
                    return Err(Fault::of("mp4 start time exceeds file duration"));
                }
                times.set(moov, wanted.cut(times.duration, self.timescale));
                self.mvhd = Some(head(moov, &data, name));
            }
            (Container::Moov, b"cmov") => {
                return Err(Fault::of(
                    "mp4 compressed moov atom (cmov) is not supported",
                ));
            }
            (Container::Trak, b"tkhd") => {
                let times = Times::of(moov, &data, [84, 96], [20, 28], "tkhd")?;
                if times.duration <= wanted.start_in(self.timescale) {
                    return Ok(Inner::Left);
                }
                if track.tkhd.is_some() {
                    return Err(duplicate("tkhd"));
                }
                track.movie_duration = wanted.cut(times.duration, self.timescale);
                times.set(moov, track.movie_duration);
                track.tkhd = Some(head(moov, &data, name));
            }
            (Container::Mdia, b"mdhd") => {
                let times = Times::of(moov, &data, [24, 36], [16, 24], "mdhd")?;
                let timescale = times.timescale(moov, &data, [12, 20]);
                if times.duration <= wanted.start_in(timescale) {
                    return Ok(Inner::Left);
                }
                if track.mdhd.is_some() {
                    return Err(duplicate("mdhd"));
                }
                track.timescale = timescale;
                track.duration = wanted.cut(times.duration, timescale);
                track.mdhd = Some(head(moov, &data, name));
            }
            (Container::Mdia, b"hdlr") => plain(&mut track.hdlr, moov, &data, name, "hdlr")?,
            (Container::Minf, b"vmhd" | b"smhd") => {
                if track.vmhd.is_some() || track.smhd.is_some() {
                    return Err(duplicate("vmhd/smhd"));
                }
                let slot = match name {
                    b"vmhd" => &mut track.vmhd,
                    _ => &mut track.smhd,
                };
                *slot = Some(head(moov, &data, name));
            }
            (Container::Minf, b"dinf") => plain(&mut track.dinf, moov, &data, name, "dinf")?,
            (Container::Stbl, b"stsd") => {
                if data.len() < 16 {
                    return Err(too_small("stsd"));
                }
                plain(&mut track.stsd, moov, &data, name, "stsd")?;
            }
            (Container::Stbl, b"stts") => table(&mut track.stts, moov, &data, name, "stts", 8)?,
            (Container::Stbl, b"stss") => table(&mut track.stss, moov, &data, name, "stss", 4)?,
            (Container::Stbl, b"ctts") => table(&mut track.ctts, moov, &data, name, "ctts", 8)?,
            (Container::Stbl, b"stsc") => table(&mut track.stsc, moov, &data, name, "stsc", 12)?,
            (Container::Stbl, b"stsz") => sizes(track, moov, &data)?,
            (Container::Stbl, b"stco" | b"co64") => {
                if track.stco.is_some() || track.co64.is_some() {
                    return Err(duplicate("stco/co64"));
                }
                match name {
                    b"stco" => table(&mut track.stco, moov, &data, name, "stco", 4)?,
                    _ => table(&mut track.co64, moov, &data, name, "co64", 8)?,
                }
            }
            // what else there is does not survive
            _ => {}
        }
        Ok(Inner::Whole)
    }
}

/// A container that may stand once.
fn once(seen: &mut bool, what: &str) -> Result<(), Fault> {
    match std::mem::replace(seen, true) {
        true => Err(duplicate(what)),
        false => Ok(()),
    }
}

/// An atom that is kept as it is.
fn plain(
    slot: &mut Option<Span>,
    moov: &mut [u8],
    data: &Span,
    name: &[u8; 4],
    what: &str,
) -> Result<(), Fault> {
    if slot.is_some() {
        return Err(duplicate(what));
    }
    *slot = Some(head(moov, data, name));
    Ok(())
}

/// An atom that is a table with entries of `width` bytes.
fn table(
    slot: &mut Option<Table>,
    moov: &mut [u8],
    data: &Span,
    name: &[u8; 4],
    what: &str,
    width: u64,
) -> Result<(), Fault> {
    let length = data.len() as u64;
    let entries = u32_at(moov, data.start + 4).filter(|_| length >= 8);
    let entries = entries.ok_or_else(|| too_small(what))?;
    if 8 + u64::from(entries) * width > length {
        return Err(too_small(what));
    }
    if slot.is_some() {
        return Err(duplicate(what));
    }
    let from = head(moov, data, name).start;
    let begin = data.start + 8;
    *slot = Some(Table {
        head: from..begin,
        data: begin..begin + entries as usize * width as usize,
        entries,
    });
    Ok(())
}

/// `stsz`: a size for all samples, or a table of sizes.
fn sizes(track: &mut Track, moov: &mut [u8], data: &Span) -> Result<(), Fault> {
    let length = data.len() as u64;
    let both = u32_at(moov, data.start + 4).zip(u32_at(moov, data.start + 8));
    let (size, entries) = both
        .filter(|_| length >= 12)
        .ok_or_else(|| too_small("stsz"))?;
    if track.stsz.is_some() {
        return Err(duplicate("stsz"));
    }
    track.uniform = size != 0;
    let used = if track.uniform { 0 } else { entries };
    if 12 + u64::from(used) * 4 > length {
        return Err(too_small("stsz"));
    }
    let from = head(moov, data, b"stsz").start;
    let begin = data.start + 12;
    track.stsz = Some(Table {
        head: from..begin,
        data: begin..begin + used as usize * 4,
        entries,
    });
    Ok(())
}

/// Writes a header of 8 bytes right before the contents of an atom; the span is the atom's with it.
fn head(moov: &mut [u8], data: &Span, name: &[u8; 4]) -> Span {
    let begin = data.start.saturating_sub(8);
    // it fits: the contents lie in a moov atom that was bounded when it was read
    set_u32(moov, begin, (data.len() + 8) as u32);
    if let Some(to) = moov.get_mut(begin + 4..begin + 8) {
        to.copy_from_slice(name);
    }
    begin..data.end
}

/// Where an atom tells times: version 0 has 32 bits, others 64.
struct Times {
    version: usize,
    duration: u64,
    at: usize,
}

impl Times {
    /// `least` is how long the contents must be, `at` is where the duration stands, by version.
    fn of(
        moov: &[u8],
        data: &Span,
        least: [usize; 2],
        at: [usize; 2],
        what: &str,
    ) -> Result<Times, Fault> {
        let version = moov.get(data.start).map(|v| usize::from(*v != 0));
        let version = version
            .filter(|_| data.len() >= least[0])
            .ok_or_else(|| too_small(what))?;
        let duration = match version {
            0 => u32_at(moov, data.start + at[0]).map(u64::from),
            _ if data.len() < least[1] => None,
            _ => u64_at(moov, data.start + at[1]),
        };
        Ok(Times {
            version,
            duration: duration.ok_or_else(|| too_small(what))?,
            at: data.start + if version == 0 { at[0] } else { at[1] },
        })
    }

    fn timescale(&self, moov: &[u8], data: &Span, at: [usize; 2]) -> u32 {
        let at = if self.version == 0 { at[0] } else { at[1] };
        u32_at(moov, data.start + at).unwrap_or(0)
    }

    fn set(&self, moov: &mut [u8], duration: u64) {
        match self.version {
            0 => set_u32(moov, self.at, duration as u32),
            _ => set_u64(moov, self.at, duration),
        }
    }
}

/// The 32 bits at a place.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(four.try_into().ok()?))
}

/// The 64 bits at a place.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let eight = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(eight.try_into().ok()?))
}

/// Writes 32 bits, where there is room.
pub(super) fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(to) = bytes.get_mut(at..at.saturating_add(4)) {
        to.copy_from_slice(&value.to_be_bytes());
    }
}

/// Writes 64 bits, where there is room.
pub(super) fn set_u64(bytes: &mut [u8], at: usize, value: u64) {
    if let Some(to) = bytes.get_mut(at..at.saturating_add(8)) {
        to.copy_from_slice(&value.to_be_bytes());
    }
}
