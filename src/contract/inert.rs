//! Checks of directives that are accepted without meaning: what nginx refuses is refused here too.

use super::{BlockId, Build};
use crate::config::{Result, Statement, value};
use std::collections::HashSet;

/// Any parameters, any number of times.
pub fn anything(_: &Statement, _: &mut Build) -> Result<()> {
    Ok(())
}

/// The directives without meaning that have been met in each block.
#[derive(Default)]
struct Met(HashSet<(BlockId, String)>);

/// Refuses the second one of a block.
///
/// # Errors
/// `"…" directive is duplicate`
pub fn once(s: &Statement, b: &mut Build) -> Result<()> {
    let key = (b.block(), s.name().to_owned());
    match b.shared::<Met>().0.insert(key) {
        true => Ok(()),
        false => Err(s.duplicate()),
    }
}

/// `on` or `off`.
pub fn flag(s: &Statement, b: &mut Build) -> Result<()> {
    once(s, b)?;
    s.flag(0).map(drop)
}

/// A number.
pub fn number(s: &Statement, b: &mut Build) -> Result<()> {
    once(s, b)?;
    s.number(0).map(drop)
}

/// A size.
pub fn size(s: &Statement, b: &mut Build) -> Result<()> {
    once(s, b)?;
    s.size(0).map(drop)
}

/// A time.
pub fn msec(s: &Statement, b: &mut Build) -> Result<()> {
    once(s, b)?;
    s.msec(0).map(drop)
}

/// An offset.
pub fn offset(s: &Statement, b: &mut Build) -> Result<()> {
    once(s, b)?;
    s.offset(0).map(drop)
}

/// A number and a size of buffers.
pub fn buffers(s: &Statement, b: &mut Build) -> Result<()> {
    once(s, b)?;
    let of = |n: Result<u64>| n.is_ok_and(|n| n > 0);
    match of(s.number(0)) && of(s.size(1)) {
        true => Ok(()),
        false => Err(s.error(format!("\"{}\" directive invalid value", s.name()))),
    }
}

/// The event method, of which there is one on Linux.
pub fn event_method(s: &Statement, b: &mut Build) -> Result<()> {
    once(s, b)?;
    match s.arg(0) {
        b"epoll" => Ok(()),
        other => Err(s.error_at(
            0,
            format!("invalid event type \"{}\"", String::from_utf8_lossy(other)),
        )),
    }
}

/// `stop` or `abort`.
pub fn debug_points(s: &Statement, b: &mut Build) -> Result<()> {
    once(s, b)?;
    s.one_of(0, &[("stop", ()), ("abort", ())])
}

/// An address, a network or a name.
pub fn debug_connection(s: &Statement, b: &mut Build) -> Result<()> {
    let text = s.arg(0);
    if text == b"unix:" {
        return Ok(());
    }
    if let Some((_, low_bits)) = crate::config::addr::parse_cidr(text) {
        if low_bits {
            let shown = String::from_utf8_lossy(text);
            b.warn(s.warn_at(0, format!("low address bits of {shown} are meaningless")));
        }
        return Ok(());
    }
    let name = s.str(0)?;
    crate::dns::resolve_at_load(name, 0)
        .map(drop)
        .map_err(|_| s.error_at(0, format!("host not found in debug_connection \"{name}\"")))
}

/// `off` or an offset.
pub fn off_or_offset(s: &Statement, b: &mut Build) -> Result<()> {
    once(s, b)?;
    match s.arg(0) {
        b"off" => Ok(()),
        _ => s.offset(0).map(drop),
    }
}

/// A size for kqueue.
pub fn lowat(s: &Statement, b: &mut Build) -> Result<()> {
    size(s, b)?;
    b.warn(s.warn(format!("\"{}\" is not supported, ignored", s.name())));
    Ok(())
}

/// The size of a memory pool.
pub fn pool(s: &Statement, b: &mut Build) -> Result<()> {
    size(s, b)?;
    let size = s.size(0)?;
    if size < 112 {
        return Err(s.error("the pool size must be no less than 112"));
    }
    if size % 16 != 0 {
        return Err(s.error("the pool size must be a multiple of 16"));
    }
    Ok(())
}

/// `on`, `off` or `threads[=pool]`, where the pool must exist.
pub fn aio(s: &Statement, b: &mut Build) -> Result<()> {
    once(s, b)?;
    match s.arg(0) {
        b"off" | b"threads" => Ok(()),
        b"on" => Err(s.error("\"aio on\" is unsupported on this platform")),
        word => match word.strip_prefix(b"threads=") {
            None => Err(s.error(format!("\"{}\" directive invalid value", s.name()))),
            Some(pool) => {
                let pool = pool.to_vec();
                // a pool that variables name is looked for when a request needs it
                if b.template_of(s, &pool)?.as_literal().is_some() && pool != b"default" {
                    let at = s.clone();
                    let name = String::from_utf8_lossy(&pool).into_owned();
                    b.at_end(move |b| match b.shared::<Pools>().0.contains(&name) {
                        true => Ok(()),
                        false => Err(at.error(format!("unknown thread pool \"{name}\""))),
                    });
                }
                Ok(())
            }
        },
    }
}

/// The thread pools that have been declared.
#[derive(Default)]
struct Pools(HashSet<String>);

/// A name, `threads=` and `max_queue=`.
pub fn thread_pool(s: &Statement, b: &mut Build) -> Result<()> {
    let name = s.str(0)?.to_owned();
    let mut threads = false;
    for i in 1..s.len() {
        let word = s.str(i)?;
        if let Some(n) = word.strip_prefix("threads=") {
            threads = value::parse_number(n.as_bytes()).is_some_and(|n| n > 0);
            if !threads {
                return Err(s.error_at(i, format!("invalid threads value \"{word}\"")));
            }
        } else if let Some(n) = word.strip_prefix("max_queue=")
            && value::parse_number(n.as_bytes()).is_none()
        {
            return Err(s.error_at(i, format!("invalid max_queue value \"{word}\"")));
        }
    }
    if !b.shared::<Pools>().0.insert(name.clone()) {
        return Err(s.error(format!("duplicate thread pool \"{name}\"")));
    }
    match threads {
        true => Ok(()),
        false => Err(s.error(format!("\"{}\" must have \"threads\" parameter", s.name()))),
    }
}
