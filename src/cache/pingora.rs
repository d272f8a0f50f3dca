//! A zone in Pingora's own seat: [`pingora_cache::Storage`], for services that let Pingora drive the cache.
//!
//! Our exchange does not go this way (docs/ARCHITECTURE.md says why); both share table, files and memory.

use super::file::Meta;
use super::index::Found;
use super::live::{Live, Piece};
use super::store::{Content, Fill, Object};
use super::{Digest, Entry, Zone};
use crate::files::TempPath;
use crate::http::h1::response::UpstreamHead;
use async_trait::async_trait;
use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType, Result};
use pingora_cache::key::{CacheHashKey, CompactCacheKey};
use pingora_cache::storage::{
    HandleHit, HandleMiss, HitHandler, MissFinishType, MissHandler, PurgeOutcome, PurgeTarget,
    PurgeType,
};
use pingora_cache::trace::SpanHandle;
use pingora_cache::{CacheKey, CacheMeta, Storage};
use std::any::Any;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A zone as Pingora's storage.
pub struct ZoneStorage {
    zone: Arc<Zone>,
    temp: Arc<TempPath>,
}

impl ZoneStorage {
    /// `temp` is where temporary files go, where the zone does not keep them in its own folder.
    pub fn new(zone: Arc<Zone>, temp: Arc<TempPath>) -> ZoneStorage {
        ZoneStorage { zone, temp }
    }

    fn enter(&self, key: Digest) -> Option<(Found, Entry)> {
        let params = self.zone.params();
        let now = crate::http::date::now().sec;
        let enter = || {
            self.zone
                .index
                .enter(key, now, params.inactive, 1, params.keys, false)
        };
        let found = enter().or_else(|| self.zone.make_room().then(enter).flatten())?;
        Some((found, Entry::new(self.zone.clone(), key, true)))
    }

    fn find(&self, key: &CacheKey) -> Option<Object> {
        let digest = Digest(key.combined_bin());
        let (found, _entry) = self.enter(digest)?;
        let Found::Cached { generation, stale } = found else {
            return None;
        };
        let mut object = self
            .zone
            .read(digest, key.combined().as_bytes(), generation)
            .ok()?;
        if stale {
            object.meta.valid = object.meta.valid.min(crate::http::date::now().sec - 1);
        }
        Some(object)
    }
}

#[async_trait]
impl Storage for ZoneStorage {
    async fn lookup(
        &'static self,
        key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        let Some(object) = self.find(key) else {
            return Ok(None);
        };
        let meta = to_pingora(&object.meta, &object.head)?;
        let end = object.body.len();
        let hit = Hit {
            body: object.body,
            at: 0,
            end,
        };
        Ok(Some((meta, Box::new(hit))))
    }

    async fn lookup_streaming_write(
        &'static self,
        key: &CacheKey,
        tag: Option<&[u8]>,
        trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        let Some(tag) = tag else {
            return self.lookup(key, trace).await;
        };
        let digest = Digest(key.combined_bin());
        let update = self.zone.index.updating(digest);
        let Some(live) = update.and_then(|u| u.live.filter(|_| u.owner.to_ne_bytes() == tag))
        else {
            return Ok(None);
        };
        let meta = to_pingora(&live.meta, &live.head)?;
        Ok(Some((meta, Box::new(Following { live, at: 0 }))))
    }

    fn support_streaming_partial_write(&self) -> bool {
        true
    }

    async fn get_miss_handler(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _trace: &SpanHandle,
    ) -> Result<MissHandler> {
        let digest = Digest(key.combined_bin());
        let Some((_, mut entry)) = self.enter(digest) else {
            return Error::e_explain(ErrorType::InternalError, "the keys zone is full");
        };
        let (own, head) = from_pingora(key, meta);
        let mut fill = Fill::new(self.zone.clone(), digest, own, head, self.temp.clone());
        let tag = entry.begin_update().then(|| {
            entry.publish(&fill.share());
            entry.owner().to_ne_bytes()
        });
        Ok(Box::new(Miss {
            fill,
            tag,
            _entry: entry,
        }))
    }

    async fn purge(
        &'static self,
        target: PurgeTarget<'_>,
        _purge_type: PurgeType,
        _trace: &SpanHandle,
    ) -> Result<PurgeOutcome> {
        Ok(match self.zone.remove(digest_of(target.key())) {
            true => PurgeOutcome::Purged(None),
            false => PurgeOutcome::NotFound,
        })
    }

    async fn expire(
        &'static self,
        target: PurgeTarget<'_>,
        _trace: &SpanHandle,
    ) -> Result<PurgeOutcome> {
        Ok(match self.zone.index.expire(digest_of(target.key())) {
            true => PurgeOutcome::Expired,
            false => PurgeOutcome::NotFound,
        })
    }

    async fn update_meta(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _trace: &SpanHandle,
    ) -> Result<bool> {
        let Some(object) = self.find(key) else {
            return Ok(false);
        };
        // the head may have another length: the file is written anew
        let digest = Digest(key.combined_bin());
        let Some((_, _entry)) = self.enter(digest) else {
            return Ok(false);
        };
        let (own, head) = from_pingora(key, meta);
        let mut fill = Fill::new(self.zone.clone(), digest, own, head, self.temp.clone());
        let mut hit = Hit {
            end: object.body.len(),
            body: object.body,
            at: 0,
        };
        while let Some(piece) = hit.next()? {
            fill.write(&piece).map_err(broken)?;
        }
        fill.finish().map_err(broken)?;
        Ok(true)
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

fn digest_of(key: &CompactCacheKey) -> Digest {
    Digest(key.combined_bin())
}

fn broken(e: std::io::Error) -> Box<Error> {
    Error::because(ErrorType::InternalError, "cache storage", e)
}

/// An object being read.
struct Hit {
    body: Content,
    at: u64,
    end: u64,
}

impl Hit {
    fn next(&mut self) -> Result<Option<Bytes>> {
        const PIECE: u64 = 64 * 1024;
        let end = self.end.min(self.body.len());
        if self.at >= end {
            return Ok(None);
        }
        let piece = match &self.body {
            Content::Memory(bytes) => bytes.slice(self.at as usize..end as usize),
            Content::File(file, start, _) => {
                let mut buffer = vec![0; (end - self.at).min(PIECE) as usize];
                file.read_exact_at(&mut buffer, start + self.at)
                    .map_err(broken)?;
                buffer.into()
            }
        };
        self.at += piece.len() as u64;
        Ok(Some(piece))
    }
}

#[async_trait]
impl HandleHit for Hit {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        self.next()
    }

    async fn finish(
        self: Box<Self>,
        _storage: &'static (dyn Storage + Sync),
        _key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<()> {
        Ok(())
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn seek(&mut self, start: usize, end: Option<usize>) -> Result<()> {
        if start as u64 >= self.body.len() {
            return Error::e_explain(ErrorType::InternalError, "seek beyond the end");
        }
        self.at = start as u64;
        self.end = end.map_or(self.body.len(), |e| e as u64);
        Ok(())
    }

    fn get_eviction_weight(&self) -> usize {
        self.body.len() as usize
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}

/// An object that is still being written, being read.
struct Following {
    live: Arc<Live>,
    at: u64,
}

#[async_trait]
impl HandleHit for Following {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.live.read(self.at, u64::MAX).into_memory() {
                Ok(Piece::Memory(bytes)) => {
                    self.at += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Ok(Piece::End) => return Ok(None),
                Ok(Piece::Pending) => self.live.wait(self.at).await,
                Ok(_) => {
                    return Error::e_explain(ErrorType::ReadError, "the write was broken off");
                }
                Err(e) => return Err(broken(e)),
            }
        }
    }

    async fn finish(
        self: Box<Self>,
        _storage: &'static (dyn Storage + Sync),
        _key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}

/// An object being written.
struct Miss {
    fill: Fill,
    /// By which those are told apart who write the same key.
    tag: Option<[u8; 8]>,
    _entry: Entry,
}

#[async_trait]
impl HandleMiss for Miss {
    async fn write_body(&mut self, data: Bytes, _eof: bool) -> Result<()> {
        self.fill.write(&data).map_err(broken)
    }

    fn streaming_write_tag(&self) -> Option<&[u8]> {
        self.tag.as_ref().map(|t| &t[..])
    }

    async fn finish(self: Box<Self>) -> Result<MissFinishType> {
        let size = self.fill.len() as usize;
        self.fill.finish().map_err(broken)?;
        Ok(MissFinishType::Created(size))
    }
}

fn to_pingora(meta: &Meta, stored: &UpstreamHead) -> Result<CacheMeta> {
    let time = |t: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(t).unwrap_or(0));
    let seconds = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
    let mut head = ResponseHeader::build(stored.status, None)?;
    for (name, value) in stored.headers.iter() {
        head.append_header(String::from_utf8_lossy(name).into_owned(), value)?;
    }
    // Pingora's times have no seconds of their own to spare: what is over is over
    Ok(CacheMeta::new(
        time(meta.valid),
        time(meta.date),
        seconds(meta.updating),
        seconds(meta.error),
        head,
    ))
}

fn from_pingora(key: &CacheKey, meta: &CacheMeta) -> (Meta, UpstreamHead) {
    let time = |t: SystemTime| {
        let since = t.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    };
    let mut head = UpstreamHead {
        status: meta.response_header().status.as_u16(),
        ..UpstreamHead::default()
    };
    for (name, value) in meta.response_header().headers.iter() {
        head.headers
            .append(name.as_str().as_bytes(), value.as_bytes());
    }
    let own = Meta {
        valid: time(meta.fresh_until()),
        updating: meta.stale_while_revalidate_sec().into(),
        error: meta.stale_if_error_sec().into(),
        last_modified: -1,
        date: time(meta.updated()),
        key: key.combined().into_bytes(),
        ..Meta::default()
    };
    (own, head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora_cache::trace::Span;

    #[tokio::test]
    async fn pingora_reads_what_it_wrote() {
        let d = tempfile::tempdir().unwrap();
        let zone = Arc::new(Zone::new("z", d.path(), &[1]));
        zone.activate(&super::super::Params {
            use_temp_path: false,
            ..Default::default()
        });
        let temp = Arc::new(TempPath {
            path: d.path().into(),
            levels: vec![],
        });
        let storage: &'static ZoneStorage = Box::leak(Box::new(ZoneStorage::new(zone, temp)));
        let trace = &Span::inactive().handle();
        let key = CacheKey::new("http://h/a", "");
        assert!(storage.lookup(&key, trace).await.unwrap().is_none());
        let mut head = ResponseHeader::build(200, None).unwrap();
        head.append_header("X-A", "b").unwrap();
        let now = SystemTime::now();
        let meta = CacheMeta::new(now + Duration::from_secs(60), now, 1, 2, head);
        let mut miss = storage.get_miss_handler(&key, &meta, trace).await.unwrap();
        miss.write_body(Bytes::from_static(b"hello "), false)
            .await
            .unwrap();
        let tag = miss.streaming_write_tag().map(<[u8]>::to_vec);
        let wrong = storage.lookup_streaming_write(&key, Some(b"other"), trace);
        assert!(wrong.await.unwrap().is_none());
        let (_, mut early) = storage
            .lookup_streaming_write(&key, tag.as_deref(), trace)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(early.read_body().await.unwrap().unwrap(), "hello ");
        miss.write_body(Bytes::from_static(b"world"), true)
            .await
            .unwrap();
        assert_eq!(early.read_body().await.unwrap().unwrap(), "world");
        assert!(matches!(
            miss.finish().await,
            Ok(MissFinishType::Created(11))
        ));
        assert!(early.read_body().await.unwrap().is_none());
        let (meta, mut hit) = storage.lookup(&key, trace).await.unwrap().unwrap();
        assert!(meta.is_fresh(SystemTime::now()));
        assert_eq!(meta.headers().get("x-a").unwrap(), "b");
        hit.seek(6, None).unwrap();
        assert_eq!(hit.read_body().await.unwrap().unwrap(), "world");
        assert!(hit.read_body().await.unwrap().is_none());
        assert!(storage.update_meta(&key, &meta, trace).await.unwrap());
        let compact = key.to_compact();
        let target = PurgeTarget::Active(&compact);
        assert_eq!(
            storage.expire(target, trace).await.unwrap(),
            PurgeOutcome::Expired
        );
        let (meta, _) = storage.lookup(&key, trace).await.unwrap().unwrap();
        assert!(!meta.is_fresh(SystemTime::now()));
        let purged = storage.purge(target, PurgeType::Invalidation, trace).await;
        assert_eq!(purged.unwrap(), PurgeOutcome::Purged(None));
        assert!(storage.lookup(&key, trace).await.unwrap().is_none());
    }
}
