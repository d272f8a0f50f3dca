//! `location`, `limit_except`, `root` and `alias`.

use super::http::HttpDirectives;
use super::once;
use crate::config::Result;
use crate::contract::{BlockId, BlockKind, Build, LocationName, Place, Root, Statement};
use crate::http::method::Method;
use std::collections::HashSet;

/// The names of the locations in each block: none may be given twice.
#[derive(Default)]
struct Seen(HashSet<(BlockId, u8, Box<[u8]>)>);

pub(super) fn location(_c: &mut HttpDirectives, s: &Statement, b: &mut Build) -> Result<()> {
    let name = name(s, b)?;
    let outer = b.block();
    if let BlockKind::Location(parent) = b.kind() {
        let parent_text = String::from_utf8_lossy(parent.text()).into_owned();
        let text = String::from_utf8_lossy(name.text()).into_owned();
        match parent {
            LocationName::Exact(_) => {
                return Err(s.error(format!(
                    "location \"{text}\" cannot be inside the exact location \"{parent_text}\""
                )));
            }
            LocationName::Named(_) => {
                return Err(s.error(format!(
                    "location \"{text}\" cannot be inside the named location \"{parent_text}\""
                )));
            }
            _ if matches!(name, LocationName::Named(_)) => {
                return Err(s.error(format!(
                    "named location \"{text}\" can be on the server level only"
                )));
            }
            LocationName::Prefix(p, _)
                if !matches!(name, LocationName::Pattern(_)) && !name.text().starts_with(p) =>
            {
                return Err(s.error(format!(
                    "location \"{text}\" is outside location \"{parent_text}\""
                )));
            }
            _ => {}
        }
    }
    let kind = match name {
        LocationName::Exact(_) => Some(0),
        LocationName::Prefix(..) => Some(1),
        LocationName::Named(_) => Some(2),
        LocationName::Pattern(_) => None,
    };
    if let Some(kind) = kind
        && !b
            .shared::<Seen>()
            .0
            .insert((outer, kind, name.text().into()))
    {
        let shown = String::from_utf8_lossy(name.text()).into_owned();
        let text = format!("duplicate location \"{shown}\"");
        if !matches!(name, LocationName::Named(_)) {
            return Err(s.error(text));
        }
        // nginx takes the first one, and says nothing
        b.warn(s.warn(format!("{text}, ignored")));
    }
    b.enter(s, Place::LOCATION, BlockKind::Location(name))?;
    Ok(())
}

/// `location` accepts the modifier as a word of its own or glued to the name.
fn name(s: &Statement, b: &mut Build) -> Result<LocationName> {
    let first = s.arg(0);
    if s.len() == 2 {
        let text = s.arg(1).to_vec();
        return match first {
            b"=" => Ok(LocationName::Exact(text.into())),
            b"^~" => Ok(LocationName::Prefix(text.into(), true)),
            b"~" => Ok(LocationName::Pattern(b.pattern(s, &text, false)?)),
            b"~*" => Ok(LocationName::Pattern(b.pattern(s, &text, true)?)),
            _ => Err(s.error(format!(
                "invalid location modifier \"{}\"",
                String::from_utf8_lossy(first)
            ))),
        };
    }
    Ok(match first {
        [b'=', rest @ ..] => LocationName::Exact(rest.into()),
        [b'^', b'~', rest @ ..] => LocationName::Prefix(rest.into(), true),
        [b'~', b'*', rest @ ..] => LocationName::Pattern(b.pattern(s, rest, true)?),
        [b'~', rest @ ..] => LocationName::Pattern(b.pattern(s, rest, false)?),
        [b'@', ..] => LocationName::Named(first.into()),
        _ => LocationName::Prefix(first.into(), false),
    })
}

pub(super) fn limit_except(_c: &mut HttpDirectives, s: &Statement, b: &mut Build) -> Result<()> {
    let outer = b.block();
    let is_limit = |id: &BlockId| matches!(b.kind_of(*id), BlockKind::LimitExcept(_));
    if b.children_of(outer).iter().any(is_limit) {
        return Err(s.duplicate());
    }
    let mut methods = 0u32;
    for i in 0..s.len() {
        let m = Method::of(&s.arg(i).to_ascii_uppercase());
        if m == Method::Unknown {
            return Err(s.error_at(
                i,
                format!("invalid method \"{}\"", String::from_utf8_lossy(s.arg(i))),
            ));
        }
        methods |= m.bit();
        // who may GET may HEAD
        if m == Method::Get {
            methods |= Method::Head.bit();
        }
    }
    b.enter(s, Place::LIMIT_EXCEPT, BlockKind::LimitExcept(methods))?;
    Ok(())
}

pub(super) fn root(c: &mut HttpDirectives, s: &Statement, b: &mut Build) -> Result<()> {
    set_root(c, s, b, false)
}

pub(super) fn alias(c: &mut HttpDirectives, s: &Statement, b: &mut Build) -> Result<()> {
    if let BlockKind::Location(LocationName::Named(_)) = b.kind() {
        return Err(s.error("the \"alias\" directive cannot be used inside the named location"));
    }
    set_root(c, s, b, true)
}

fn set_root(c: &mut HttpDirectives, s: &Statement, b: &mut Build, alias: bool) -> Result<()> {
    if let Some(old) = &c.root {
        if old.alias == alias {
            return Err(s.duplicate());
        }
        return Err(s.error(format!(
            "\"{}\" directive is duplicate, \"{}\" directive was specified earlier",
            s.name(),
            if old.alias { "alias" } else { "root" }
        )));
    }
    for bad in [
        "$document_root",
        "${document_root}",
        "$realpath_root",
        "${realpath_root}",
    ] {
        if s.str(0)?.contains(bad) {
            let name = bad.trim_matches(|ch| "${}".contains(ch));
            return Err(s.error_at(
                0,
                format!(
                    "the ${name} variable cannot be used in the \"{}\" directive",
                    s.name()
                ),
            ));
        }
    }
    let mut text = s.arg(0).to_vec();
    if !text.starts_with(b"$") {
        let full = b.prefixed(s.str(0)?);
        text = std::os::unix::ffi::OsStrExt::as_bytes(full.as_os_str()).to_vec();
        // Path::join drops a trailing slash only if there was none to begin with; alias needs it kept
        if s.arg(0).ends_with(b"/") && !text.ends_with(b"/") {
            text.push(b'/');
        }
    }
    if !alias && text.ends_with(b"/") {
        text.pop();
    }
    let path = b.template_of(s, &text)?;
    let replaces = match b.kind() {
        _ if !alias => 0,
        BlockKind::Location(LocationName::Pattern(_)) => Root::WHOLE,
        BlockKind::Location(name) => name.text().len(),
        _ => 0,
    };
    once(
        &mut c.root,
        s,
        Root {
            path,
            alias,
            replaces,
        },
    )
}
