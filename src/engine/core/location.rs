//! `location`, `limit_except`, `root` and `alias`.

use super::http::HttpWritten;
use super::once;
use crate::config::Result;
use crate::http::method::Method;
use crate::module::{BlockId, BlockKind, Build, LocationName, Place, Root, Statement};

/// The locations of each block, in order, as `location` found them.
#[derive(Default)]
pub struct Locations {
    /// Block and its outer block.
    pub list: Vec<(BlockId, BlockId)>,
    /// `limit_except` blocks with their locations.
    pub limits: Vec<(BlockId, BlockId)>,
}

pub(super) fn location(_c: &mut HttpWritten, s: &Statement, b: &mut Build) -> Result<()> {
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
    let duplicate = b
        .shared::<Locations>()
        .list
        .iter()
        .filter(|(_, o)| *o == outer)
        .map(|(id, _)| *id)
        .collect::<Vec<_>>();
    for id in duplicate {
        if let BlockKind::Location(other) = b.kind_of(id)
            && same(other, &name)
        {
            return Err(s.error(format!(
                "duplicate location \"{}\"",
                String::from_utf8_lossy(name.text())
            )));
        }
    }
    let id = b.enter(s, Place::LOCATION, BlockKind::Location(name))?;
    b.shared::<Locations>().list.push((id, outer));
    Ok(())
}

fn same(a: &LocationName, b: &LocationName) -> bool {
    match (a, b) {
        (LocationName::Exact(x), LocationName::Exact(y))
        | (LocationName::Named(x), LocationName::Named(y)) => x == y,
        (LocationName::Prefix(x, _), LocationName::Prefix(y, _)) => x == y,
        _ => false,
    }
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

pub(super) fn limit_except(_c: &mut HttpWritten, s: &Statement, b: &mut Build) -> Result<()> {
    let outer = b.block();
    if b.shared::<Locations>()
        .limits
        .iter()
        .any(|(_, o)| *o == outer)
    {
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
    let id = b.enter(s, Place::LIMIT_EXCEPT, BlockKind::LimitExcept(methods))?;
    b.shared::<Locations>().limits.push((id, outer));
    Ok(())
}

pub(super) fn root(c: &mut HttpWritten, s: &Statement, b: &mut Build) -> Result<()> {
    set_root(c, s, b, false)
}

pub(super) fn alias(c: &mut HttpWritten, s: &Statement, b: &mut Build) -> Result<()> {
    if let BlockKind::Location(LocationName::Named(_)) = b.kind() {
        return Err(s.error("the \"alias\" directive cannot be used inside the named location"));
    }
    set_root(c, s, b, true)
}

fn set_root(c: &mut HttpWritten, s: &Statement, b: &mut Build, alias: bool) -> Result<()> {
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
