//! Named zones of memory that outlive a configuration: declared by directives, found again after a reload.

use crate::config::{Result, Statement, value};
use crate::contract::{Build, Diag};
use parking_lot::Mutex;
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

/// What a `zone=name:size` parameter declares.
pub struct ZoneSpec {
    /// Its name.
    pub name: String,
    /// Its size, bytes; at least eight pages.
    pub size: u64,
}

impl ZoneSpec {
    /// Reads parameter `i`, which begins with `zone=`.
    ///
    /// # Errors
    /// nginx's `invalid zone size` and `zone "…" is too small`.
    pub fn parse(s: &Statement, i: usize) -> Result<ZoneSpec> {
        let word = s.str(i)?;
        let text = word.strip_prefix("zone=").unwrap_or(word);
        let split = text
            .split_once(':')
            .and_then(|(name, size)| Some((name, value::parse_size(size.as_bytes())?)));
        let Some((name, size)) = split else {
            return Err(s.error_at(i, format!("invalid zone size \"{word}\"")));
        };
        if size < 8 * 4096 {
            return Err(s.error_at(i, format!("zone \"{word}\" is too small")));
        }
        Ok(ZoneSpec {
            name: name.to_owned(),
            size,
        })
    }
}

/// A zone that a directive names; known once the whole configuration has been read.
pub type ZoneRef<T> = Arc<OnceLock<Arc<T>>>;

/// The zones of one kind in a configuration, by name.
struct Zones<T>(HashMap<String, ZoneRef<T>>);

impl<T> Default for Zones<T> {
    fn default() -> Self {
        Zones(HashMap::new())
    }
}

/// Which kind of zone has a name, and its size where it has been declared: a name is good for one kind only.
#[derive(Default)]
struct Kinds(HashMap<String, (&'static str, Option<u64>)>);

/// Names a zone, which may be declared later. `kind` is the directive that declares it.
///
/// # Errors
/// nginx's messages about a name that another kind has, or that nothing declares (when all has been read).
pub fn reference<T: Send + Sync + 'static>(
    b: &mut Build,
    s: &Statement,
    kind: &'static str,
    name: &str,
) -> Result<ZoneRef<T>> {
    if name.is_empty() {
        return Err(Diag::plain("zero size shared memory zone \"\""));
    }
    if b.shared::<Kinds>()
        .0
        .entry(name.to_owned())
        .or_insert((kind, None))
        .0
        != kind
    {
        return Err(s.error(format!(
            "the shared memory zone \"{name}\" is already declared for a different use"
        )));
    }
    if let Some(zone) = b.shared::<Zones<T>>().0.get(name) {
        return Ok(zone.clone());
    }
    let zone = ZoneRef::<T>::default();
    b.shared::<Zones<T>>()
        .0
        .insert(name.to_owned(), zone.clone());
    let (name, check) = (name.to_owned(), zone.clone());
    b.at_end(move |_| match check.get() {
        Some(_) => Ok(()),
        None => Err(Diag::plain(format!(
            "zero size shared memory zone \"{name}\""
        ))),
    });
    Ok(zone)
}

/// Names a zone that the statement declares.
///
/// # Errors
/// Those of [`reference`], and nginx's message about another size.
pub fn declare<T: Send + Sync + 'static>(
    b: &mut Build,
    s: &Statement,
    kind: &'static str,
    name: &str,
    size: u64,
) -> Result<ZoneRef<T>> {
    let zone = reference(b, s, kind, name)?;
    if let Some((_, known)) = b.shared::<Kinds>().0.get_mut(name) {
        match *known {
            Some(old) if old != size => {
                return Err(s.error(format!("the size {size} of shared memory zone \"{name}\" conflicts with already declared size {old}")));
            }
            _ => *known = Some(size),
        }
    }
    Ok(zone)
}

/// The zone of a kind and name that an earlier configuration left, if `fits`; otherwise a new one.
pub fn keep<T: Send + Sync + 'static>(
    kind: &'static str,
    name: &str,
    fits: impl Fn(&T) -> bool,
    make: impl FnOnce() -> T,
) -> Arc<T> {
    static KEPT: Mutex<Option<Kept>> = Mutex::new(None);
    let mut kept = KEPT.lock();
    let kept = kept.get_or_insert_default();
    kept.retain(|_, zone| zone.strong_count() > 0);
    let key = (kind, name.to_owned());
    let old = kept
        .get(&key)
        .and_then(Weak::upgrade)
        .and_then(|z| z.downcast::<T>().ok());
    if let Some(zone) = old.filter(|z| fits(z)) {
        return zone;
    }
    let zone = Arc::new(make());
    let any: Arc<dyn Any + Send + Sync> = zone.clone();
    kept.insert(key, Arc::downgrade(&any));
    zone
}

type Kept = HashMap<(&'static str, String), Weak<dyn Any + Send + Sync>>;

/// How much of a zone's size its entries may take: the rest is nginx's page table.
pub fn usable(size: u64) -> u64 {
    // a page table entry of 16 bytes for every page, and the head of the zone in the first
    (size / (4096 + 16)).saturating_sub(1) * 4096
}

/// What nginx's slab allocator takes for `bytes`: a power of two.
pub fn slab_size(bytes: usize) -> u64 {
    bytes.next_power_of_two().max(8) as u64
}
