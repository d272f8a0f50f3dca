//! Cuts an MP4 file by time: the tables of its tracks are cropped, its data is a part of the file's.

use super::atoms::{
    Fault, Source, Span, Table, Track, Wanted, read, set_u32, set_u64, u32_at, u64_at,
};

/// The part of a file that is sent: bytes that precede it, and which of the file's follow.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// `ftyp`, `moov` and the header of `mdat`.
    pub head: Vec<u8>,
    /// The first byte of the data in the file.
    pub start: u64,
    /// The one behind its last.
    pub end: u64,
}

/// Cuts a file of `size` bytes; `None` where the part is the whole file as it stands.
///
/// # Errors
/// What is wrong with the file, or with what is wanted of it.
pub fn cut(source: &dyn Source, size: u64, wanted: &Wanted) -> Result<Option<Part>, Fault> {
    let Some(mut movie) = read(source, size, wanted)? else {
        return Ok(None);
    };
    let mut moov = std::mem::take(&mut movie.moov);
    let mdat_end = movie.mdat_end.unwrap_or(0);
    let (mut start, mut end) = (size, 0);
    let mut length = 8 + movie.mvhd.as_ref().map_or(0, Span::len) as u64;
    let mut tracks = Vec::with_capacity(movie.tracks.len());
    for track in std::mem::take(&mut movie.tracks) {
        let mut t = Cropped::new(size, mdat_end, wanted, track);
        t.crop(&mut moov)?;
        start = start.min(t.start_offset);
        end = end.max(t.end_offset);
        length += t.length();
        tracks.push(t);
    }
    if end <= start {
        return Err(Fault::within("no data between start time and end time"));
    }
    if start >= mdat_end {
        return Err(Fault::within("start time is out mp4 mdat atom"));
    }
    let moov_size = u32::try_from(length).map_err(|_| Fault::within("too large mp4 moov atom"))?;
    let data = end - start;
    let ftyp = movie.ftyp.unwrap_or_default();
    let long = data > u64::from(u32::MAX) - 8;
    let mdat_head: u64 = if long { 16 } else { 8 };
    let before = ftyp.len() as u64 + u64::from(moov_size) + mdat_head;
    let moved = before.wrapping_sub(start);
    let mut head = ftyp;
    head.reserve(moov_size as usize + 16);
    atom(&mut head, moov_size, b"moov");
    if let Some(mvhd) = movie.mvhd {
        put(&mut head, &moov, &mvhd);
    }
    for t in &tracks {
        t.move_chunks(&mut moov, moved);
        t.write(&moov, &mut head);
    }
    if long {
        atom(&mut head, 1, b"mdat");
        head.extend_from_slice(&(16 + data).to_be_bytes());
    } else {
        atom(&mut head, (8 + data) as u32, b"mdat");
    }
    Ok(Some(Part { head, start, end }))
}

fn atom(out: &mut Vec<u8>, size: u32, name: &[u8; 4]) {
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(name);
}

fn put(out: &mut Vec<u8>, moov: &[u8], span: &Span) {
    out.extend_from_slice(moov.get(span.clone()).unwrap_or_default());
}

/// A track, and what cropping it brought out.
struct Cropped<'w> {
    /// Bytes of the file.
    size: u64,
    mdat_end: u64,
    wanted: &'w Wanted,
    track: Track,
    start_sample: u64,
    end_sample: u64,
    start_chunk: u64,
    end_chunk: u64,
    start_chunk_samples: u64,
    end_chunk_samples: u64,
    start_chunk_size: u64,
    end_chunk_size: u64,
    /// How much earlier the part begins than asked for, in the track's units: at a key frame.
    prefix: u64,
    start_offset: u64,
    end_offset: u64,
    /// Entries of `stsc` of their own, for a first or last chunk of which only a part is left.
    stsc_start: Option<[u32; 3]>,
    stsc_end: Option<[u32; 3]>,
    ctts_left: bool,
}

impl<'w> Cropped<'w> {
    fn new(size: u64, mdat_end: u64, wanted: &'w Wanted, track: Track) -> Cropped<'w> {
        Cropped {
            size,
            mdat_end,
            wanted,
            track,
            start_sample: 0,
            end_sample: 0,
            start_chunk: 0,
            end_chunk: 0,
            start_chunk_samples: 0,
            end_chunk_samples: 0,
            start_chunk_size: 0,
            end_chunk_size: 0,
            prefix: 0,
            start_offset: 0,
            end_offset: 0,
            stsc_start: None,
            stsc_end: None,
            ctts_left: true,
        }
    }

    fn has_end(&self) -> bool {
        self.wanted.length > 0
    }

    /// Crops every table, in the order in which one needs the other.
    fn crop(&mut self, moov: &mut [u8]) -> Result<(), Fault> {
        let Some(mut stts) = self.track.stts.take() else {
            return Err(Fault::of_none("stts atoms were"));
        };
        self.stts_start(moov, &mut stts)?;
        if self.has_end() {
            self.stts_end(moov, &mut stts);
        }
        close(moov, &mut stts, 8, 16);
        self.track.stts = Some(stts);
        if let Some(mut stss) = self.track.stss.take() {
            self.stss(moov, &mut stss);
            self.track.stss = Some(stss);
        }
        if let Some(mut ctts) = self.track.ctts.take() {
            self.ctts(moov, &mut ctts);
            self.track.ctts = Some(ctts).filter(|_| self.ctts_left);
        }
        let Some(mut stsc) = self.track.stsc.take() else {
            return Err(Fault::of_none("stsc atoms were"));
        };
        self.stsc(moov, &mut stsc)?;
        self.track.stsc = Some(stsc);
        if let Some(mut stsz) = self.track.stsz.take() {
            self.stsz(moov, &mut stsz)?;
            self.track.stsz = Some(stsz);
        }
        let (mut offsets, width) = match (self.track.co64.take(), self.track.stco.take()) {
            (Some(t), _) => (t, 8),
            (None, Some(t)) => (t, 4),
            (None, None) => return Err(Fault::of_none("stco atoms were")),
        };
        self.offsets(moov, &mut offsets, width)?;
        match width {
            8 => self.track.co64 = Some(offsets),
            _ => self.track.stco = Some(offsets),
        }
        if let Some(mdhd) = &self.track.mdhd {
            let duration = self.track.duration;
            match moov.get(mdhd.start + 8) {
                Some(0) => set_u32(moov, mdhd.start + 24, duration as u32),
                _ => set_u64(moov, mdhd.start + 32, duration),
            }
        }
        Ok(())
    }

    /// Finds the first sample.
    fn stts_start(&mut self, moov: &mut [u8], t: &mut Table) -> Result<(), Fault> {
        let mut time = self.wanted.start_in(self.track.timescale);
        let mut sample = 0u64;
        let mut at = t.data.start;
        let found = loop {
            if at >= t.data.end {
                break None;
            }
            let (count, duration) = pair(moov, at);
            let whole = u64::from(count) * u64::from(duration);
            if time < whole {
                break Some((count, duration, time / u64::from(duration)));
            }
            sample += u64::from(count);
            time -= whole;
            at += 8;
        };
        let Some((mut count, mut duration, mut rest)) = found else {
            return Err(Fault::within("start time is out mp4 stts samples"));
        };
        sample += rest;
        let mut back = self.to_key_frame(moov, sample)?;
        sample = sample.saturating_sub(back);
        while rest < back {
            self.prefix = (self.prefix).saturating_add(rest.saturating_mul(u64::from(duration)));
            back -= rest;
            at = match at.checked_sub(8) {
                Some(before) if before >= t.data.start => before,
                _ => return Err(Fault::within("start time is out mp4 stts samples")),
            };
            (count, duration) = pair(moov, at);
            rest = u64::from(count);
        }
        self.prefix = (self.prefix).saturating_add(back.saturating_mul(u64::from(duration)));
        self.track.duration = self.track.duration.saturating_add(self.prefix);
        rest -= back;
        set_u32(moov, at, count.wrapping_sub(rest as u32));
        t.data.start = at;
        self.start_sample = sample;
        Ok(())
    }

    /// How many samples before `sample` the last key frame is (`mp4_start_key_frame`).
    fn to_key_frame(&self, moov: &[u8], sample: u64) -> Result<u64, Fault> {
        let Some(stss) = self.track.stss.as_ref().filter(|_| self.wanted.key_frame) else {
            return Ok(0);
        };
        // the table counts from 1
        let sample = sample + 1;
        let mut back = 0;
        for at in stss.data.clone().step_by(4) {
            let key = u64::from(u32_at(moov, at).unwrap_or(0));
            if key == 0 {
                return Err(Fault::within("zero sync sample"));
            }
            if key > sample {
                break;
            }
            back = sample - key;
        }
        Ok(back)
    }

    /// Finds the sample behind the last.
    fn stts_end(&mut self, moov: &mut [u8], t: &mut Table) {
        let length = self.wanted.length_in(self.track.timescale);
        let mut time = length.saturating_add(self.prefix);
        let mut sample = 0u64;
        let mut at = t.data.start;
        while at < t.data.end {
            let (count, duration) = pair(moov, at);
            let whole = u64::from(count) * u64::from(duration);
            if time < whole {
                let rest = time / u64::from(duration);
                sample += rest;
                set_u32(moov, at, rest as u32);
                t.data.end = at + 8;
                break;
            }
            sample += u64::from(count);
            time -= whole;
            at += 8;
        }
        self.end_sample = self.start_sample + sample;
    }

    /// Key frames: those of the part, counted from its beginning.
    fn stss(&mut self, moov: &mut [u8], t: &mut Table) {
        let first_from = |moov: &[u8], span: &Span, sample: u64| {
            let mut all = span.clone().step_by(4);
            all.find(|at| u64::from(u32_at(moov, *at).unwrap_or(0)) >= sample)
                .unwrap_or(span.end)
        };
        t.data.start = first_from(moov, &t.data, self.start_sample + 1);
        if self.has_end() {
            t.data.end = first_from(moov, &t.data, self.end_sample + 1);
        }
        for at in t.data.clone().step_by(4) {
            let sample = u32_at(moov, at).unwrap_or(0);
            set_u32(moov, at, sample.wrapping_sub(self.start_sample as u32));
        }
        close(moov, t, 4, 16);
    }

    /// Offsets of composition; the table goes where nothing of it is left.
    fn ctts(&mut self, moov: &mut [u8], t: &mut Table) {
        let find = |moov: &[u8], span: &Span, mut sample: u64| {
            for at in span.clone().step_by(8) {
                let count = u64::from(u32_at(moov, at).unwrap_or(0));
                if sample <= count {
                    return Some((at, count, sample - 1));
                }
                sample -= count;
            }
            None
        };
        match find(moov, &t.data, self.start_sample + 1) {
            Some((at, count, rest)) => {
                set_u32(moov, at, (count - rest) as u32);
                t.data.start = at;
            }
            None => t.data.start = t.data.end,
        }
        if self.has_end() {
            let samples = self.end_sample.saturating_sub(self.start_sample);
            if let Some((at, _, rest)) = find(moov, &t.data, samples + 1) {
                set_u32(moov, at, rest as u32);
                t.data.end = at + 8;
            }
        }
        self.ctts_left = !t.data.is_empty();
        close(moov, t, 8, 16);
    }

    /// Which samples are in which chunk.
    fn stsc(&mut self, moov: &mut [u8], t: &mut Table) -> Result<(), Fault> {
        if t.entries == 0 {
            return Err(Fault::within("zero number of entries in stsc atom"));
        }
        let sample = self.start_sample;
        let f = self.find_chunk(moov, &t.data, sample, true)?;
        let samples = u64::from(f.samples);
        self.start_chunk = u64::from(f.chunk) - 1 + f.sample / samples;
        self.start_chunk_samples = f.sample % samples;
        t.data.start = f.at;
        set_u32(moov, f.at, (self.start_chunk + 1) as u32);
        if self.start_chunk_samples > 0 {
            let left = (samples - self.start_chunk_samples) as u32;
            if f.next.wrapping_sub(self.start_chunk) == 2 {
                // the entry is for this chunk alone
                set_u32(moov, f.at + 4, left);
            } else {
                self.stsc_start = Some([1, left, f.id]);
                set_u32(moov, f.at, (self.start_chunk + 2) as u32);
            }
        }
        if self.has_end() {
            self.stsc_end(moov, t)?;
        }
        for at in t.data.clone().step_by(12) {
            let chunk = u32_at(moov, at).unwrap_or(0);
            set_u32(moov, at, chunk.wrapping_sub(self.start_chunk as u32));
        }
        let own = u64::from(self.stsc_start.is_some()) + u64::from(self.stsc_end.is_some());
        let entries = (t.data.len() / 12) as u64 + own;
        set_u32(moov, t.head.start, 16 + entries as u32 * 12);
        set_u32(moov, t.head.start + 12, entries as u32);
        Ok(())
    }

    fn stsc_end(&mut self, moov: &mut [u8], t: &mut Table) -> Result<(), Fault> {
        let mut sample = self.end_sample.saturating_sub(self.start_sample);
        if let Some([_, samples, _]) = &mut self.stsc_start {
            if u64::from(*samples) > sample {
                *samples = sample as u32;
            }
            sample -= u64::from(*samples);
        }
        let f = self.find_chunk(moov, &t.data, sample, false)?;
        let samples = u64::from(f.samples);
        let target = u64::from(f.chunk) - 1 + f.sample / samples;
        let left = f.sample % samples;
        if f.sample > 0 {
            t.data.end = f.at + 12;
            self.end_chunk_samples = samples;
        } else {
            t.data.end = f.at;
            self.end_chunk_samples = u64::from(f.samples_before);
        }
        self.end_chunk = target;
        if left > 0 {
            self.end_chunk = target + 1;
            self.end_chunk_samples = left;
            if (u64::from(f.chunk) + 1).wrapping_sub(target) == 2 {
                set_u32(moov, f.at + 4, left as u32);
            } else {
                let chunk = self.end_chunk.wrapping_sub(self.start_chunk);
                self.stsc_end = Some([chunk as u32, left as u32, f.id]);
            }
        }
        Ok(())
    }

    /// The entry in which a sample is, counted from the first of `span`.
    fn find_chunk(
        &self,
        moov: &[u8],
        span: &Span,
        mut sample: u64,
        start: bool,
    ) -> Result<InChunks, Fault> {
        let unordered = || Fault::within("unordered mp4 stsc chunks");
        let entry = |at: usize| {
            let field = |i| u32_at(moov, at + i).unwrap_or(0);
            (field(0), field(4), field(8))
        };
        let mut at = span.start;
        let (mut chunk, mut samples, mut id) = entry(at);
        let mut samples_before = 0;
        let mut next;
        loop {
            let following = at + 12;
            let is_last = following >= span.end;
            next = match is_last {
                true => u64::from(self.chunks()) + 1,
                false => u64::from(entry(following).0),
            };
            let chunks = next.checked_sub(u64::from(chunk)).ok_or_else(unordered)?;
            let all = chunks * u64::from(samples);
            if sample < all {
                break;
            }
            if is_last {
                if sample > all {
                    let what = if start { "start" } else { "end" };
                    return Err(Fault::within(format!("{what} time is out mp4 stsc chunks")));
                }
                break;
            }
            sample -= all;
            if chunks > 0 {
                samples_before = samples;
            }
            at = following;
            (chunk, samples, id) = entry(at);
        }
        if samples == 0 {
            return Err(Fault::within("zero number of samples"));
        }
        if chunk == 0 {
            return Err(Fault::within("zero chunk"));
        }
        Ok(InChunks {
            at,
            chunk,
            samples,
            id,
            next,
            sample,
            samples_before,
        })
    }

    fn chunks(&self) -> u32 {
        let table = self.track.co64.as_ref().or(self.track.stco.as_ref());
        table.map_or(0, |t| t.entries)
    }

    /// Sizes of samples: how many bytes of the first chunk are left out, and how many of the last are wanted.
    fn stsz(&mut self, moov: &mut [u8], t: &mut Table) -> Result<(), Fault> {
        if self.track.uniform {
            set_u32(moov, t.head.start, t.head.len() as u32);
            return Ok(());
        }
        let entries = u64::from(t.entries);
        if self.start_sample >= entries {
            return Err(Fault::within("start time is out mp4 stsz samples"));
        }
        let all = t.data.clone();
        t.data.start = all.start + self.start_sample as usize * 4;
        let sum = |moov: &[u8], end: usize, samples: u64| {
            let back = usize::try_from(samples).unwrap_or(usize::MAX);
            let begin = end.saturating_sub(back.saturating_mul(4)).max(all.start);
            let sizes = (begin..end).step_by(4);
            sizes
                .map(|at| u64::from(u32_at(moov, at).unwrap_or(0)))
                .sum::<u64>()
        };
        self.start_chunk_size = sum(moov, t.data.start, self.start_chunk_samples);
        if self.start_chunk_size > self.size {
            return Err(Fault::within("too large mp4 start samples size"));
        }
        if self.has_end() {
            let wanted = self.end_sample.saturating_sub(self.start_sample);
            if wanted > entries - self.start_sample {
                return Err(Fault::within("end time is out mp4 stsz samples"));
            }
            t.data.end = t.data.start + wanted as usize * 4;
            self.end_chunk_size = sum(moov, t.data.end, self.end_chunk_samples);
            if self.end_chunk_size > self.size {
                return Err(Fault::within("too large mp4 end samples size"));
            }
        }
        set_u32(moov, t.head.start, (20 + t.data.len()) as u32);
        set_u32(moov, t.head.start + 16, (t.data.len() / 4) as u32);
        Ok(())
    }

    /// Offsets of chunks: where the data of the part begins and ends in the file.
    fn offsets(&mut self, moov: &mut [u8], t: &mut Table, width: usize) -> Result<(), Fault> {
        let name = if width == 8 { "co64" } else { "stco" };
        let out = |what| Fault::within(format!("{what} time is out mp4 {name} chunks"));
        let chunks = u64::from(t.entries);
        if self.start_chunk >= chunks {
            return Err(out("start"));
        }
        let size = self.size;
        let offset_of = |moov: &[u8], at: usize, samples: u64| {
            let offset = match width {
                8 => u64_at(moov, at),
                _ => u32_at(moov, at).map(u64::from),
            };
            let whole = offset
                .filter(|o| *o <= size.saturating_sub(samples))
                .map(|o| o + samples);
            whole
                .filter(|o| width == 8 || *o <= u64::from(u32::MAX))
                .ok_or_else(|| Fault::within("too large chunk offset"))
        };
        t.data.start += self.start_chunk as usize * width;
        self.start_offset = offset_of(moov, t.data.start, self.start_chunk_size)?;
        match width {
            8 => set_u64(moov, t.data.start, self.start_offset),
            _ => set_u32(moov, t.data.start, self.start_offset as u32),
        }
        let mut entries = chunks - self.start_chunk;
        self.end_offset = self.mdat_end;
        if self.has_end() {
            if self.end_chunk > chunks {
                return Err(out("end"));
            }
            entries = self
                .end_chunk
                .checked_sub(self.start_chunk)
                .ok_or_else(|| out("end"))?;
            t.data.end = t.data.start + entries as usize * width;
            if entries > 0 {
                self.end_offset = offset_of(moov, t.data.end - width, self.end_chunk_size)?;
            }
        }
        if entries == 0 {
            (self.start_offset, self.end_offset) = (self.size, 0);
        }
        set_u32(moov, t.head.start, (16 + t.data.len()) as u32);
        set_u32(moov, t.head.start + 12, entries as u32);
        Ok(())
    }

    /// Says where the chunks are in what is sent.
    fn move_chunks(&self, moov: &mut [u8], by: u64) {
        if let Some(t) = &self.track.co64 {
            for at in t.data.clone().step_by(8) {
                let offset = u64_at(moov, at).unwrap_or(0);
                set_u64(moov, at, offset.wrapping_add(by));
            }
        } else if let Some(t) = &self.track.stco {
            for at in t.data.clone().step_by(4) {
                let offset = u32_at(moov, at).unwrap_or(0);
                set_u32(moov, at, offset.wrapping_add(by as u32));
            }
        }
    }

    fn stbl(&self) -> u64 {
        let t = &self.track;
        let tables = [
            &t.stts, &t.stss, &t.ctts, &t.stsc, &t.stsz, &t.stco, &t.co64,
        ];
        let whole = |t: &Table| (t.head.len() + t.data.len()) as u64;
        let own = u64::from(self.stsc_start.is_some()) + u64::from(self.stsc_end.is_some());
        let tables: u64 = tables.iter().filter_map(|t| t.as_ref().map(whole)).sum();
        8 + span(&t.stsd) + tables + own * 12
    }

    fn minf(&self) -> u64 {
        let t = &self.track;
        8 + self.stbl() + span(&t.vmhd) + span(&t.smhd) + span(&t.dinf)
    }

    fn mdia(&self) -> u64 {
        8 + self.minf() + span(&self.track.mdhd) + span(&self.track.hdlr)
    }

    /// Bytes of the `trak` atom.
    fn length(&self) -> u64 {
        let edts = if self.prefix > 0 { EDTS + ELST } else { 0 };
        8 + self.mdia() + span(&self.track.tkhd) + u64::from(edts)
    }

    /// Writes the `trak` atom; it is shorter than the `moov` atom, whose length has been checked.
    fn write(&self, moov: &[u8], out: &mut Vec<u8>) {
        let t = &self.track;
        let put_all = |out: &mut Vec<u8>, spans: &[&Option<Span>]| {
            for span in spans.iter().filter_map(|s| s.as_ref()) {
                put(out, moov, span);
            }
        };
        let table = |out: &mut Vec<u8>, t: &Option<Table>| {
            if let Some(t) = t {
                put(out, moov, &t.head);
                put(out, moov, &t.data);
            }
        };
        atom(out, self.length() as u32, b"trak");
        put_all(out, &[&t.tkhd]);
        if self.prefix > 0 {
            atom(out, EDTS + ELST, b"edts");
            atom(out, ELST, b"elst");
            out.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 1]);
            out.extend_from_slice(&t.movie_duration.to_be_bytes());
            out.extend_from_slice(&self.prefix.to_be_bytes());
            out.extend_from_slice(&[0, 1, 0, 0]);
        }
        atom(out, self.mdia() as u32, b"mdia");
        put_all(out, &[&t.mdhd, &t.hdlr]);
        atom(out, self.minf() as u32, b"minf");
        put_all(out, &[&t.vmhd, &t.smhd, &t.dinf]);
        atom(out, self.stbl() as u32, b"stbl");
        put_all(out, &[&t.stsd]);
        for t in [&t.stts, &t.stss, &t.ctts] {
            table(out, t);
        }
        if let Some(stsc) = &t.stsc {
            put(out, moov, &stsc.head);
            for entry in self.stsc_start.iter().flatten() {
                out.extend_from_slice(&entry.to_be_bytes());
            }
            put(out, moov, &stsc.data);
            for entry in self.stsc_end.iter().flatten() {
                out.extend_from_slice(&entry.to_be_bytes());
            }
        }
        for t in [&t.stsz, &t.stco, &t.co64] {
            table(out, t);
        }
    }
}

/// Where a sample is.
struct InChunks {
    /// Of the entry.
    at: usize,
    chunk: u32,
    samples: u32,
    id: u32,
    /// The chunk with which the next entry begins.
    next: u64,
    /// The sample, counted from the entry's first.
    sample: u64,
    /// What the entry before had in each chunk.
    samples_before: u32,
}

/// Bytes of an `edts` atom's header, and of the `elst` atom in it.
const EDTS: u32 = 8;
const ELST: u32 = 36;

fn span(s: &Option<Span>) -> u64 {
    s.as_ref().map_or(0, Span::len) as u64
}

fn pair(moov: &[u8], at: usize) -> (u32, u32) {
    let field = |i| u32_at(moov, at + i).unwrap_or(0);
    (field(0), field(4))
}

/// Writes the size of a table and how many entries it has.
fn close(moov: &mut [u8], t: &mut Table, width: usize, head: usize) {
    set_u32(moov, t.head.start, (head + t.data.len()) as u32);
    t.entries = (t.data.len() / width) as u32;
    set_u32(moov, t.head.start + 12, t.entries);
}

#[cfg(test)]
#[path = "trim_tests.rs"]
mod tests;
