//! Words for what hooks decide, for requests that are explained.

use super::selection;
use crate::contract::{Body, LocId, Next, RedirectTo, Request, Step};

/// What a step before the content decided, where it is more than to go on.
pub fn step(r: &Request, name: &'static str, next: &Next<'_>) {
    // the rewrite module tells of each directive itself
    let module = module_of(name);
    if module == "rewrite" || matches!(next, Next::Continue) {
        return;
    }
    r.explain(|| Step::new(module, decision(r, next)).by(module));
}

/// What a hook of the access phase decided.
pub fn access(name: &'static str, next: &Next<'_>) -> Step {
    let text = match next {
        Next::Continue => "has nothing against it".to_owned(),
        Next::Allow => "allows".to_owned(),
        Next::Status(s) => format!("refuses with {s}"),
        _ => "answers".to_owned(),
    };
    let module = module_of(name);
    Step::new("access", format!("{module}: {text}")).by(module)
}

/// What the location's content is.
pub fn content(r: &Request, name: &'static str, next: &Next<'_>) -> Step {
    let mut text = format!("{}: {}", module_of(name), decision(r, next));
    let length = match next {
        Next::Respond(Body::File { len, .. }) => Some(*len),
        Next::Respond(Body::Joined { head, len, .. }) => Some(head.len() as u64 + len),
        Next::Respond(Body::Bytes(bytes) | Body::Unsized(bytes)) => Some(bytes.len() as u64),
        _ => None,
    };
    if let Some(length) = length {
        text += &format!(", {length} bytes");
        if module_of(name) == "static_files" {
            let path = crate::contract::paths::map_path(r);
            text += &format!(" of \"{}\"", String::from_utf8_lossy(&path));
        }
    }
    Step::new("content", text).by(module_of(name))
}

/// An internal redirect.
pub fn redirect(to: &RedirectTo) -> Step {
    Step::new("redirect", target(to))
}

/// A URI without the slash of a location that passes requests on.
pub fn to_slash(r: &Request, id: LocId) -> Step {
    let site = &r.site;
    let (name, place) = match site.locations.get(id as usize) {
        Some(l) => (selection::name(l), l.place.clone()),
        None => Default::default(),
    };
    let text = format!("to the same with a slash: {name} passes requests on");
    Step::new("redirect", text).at(&place)
}

/// `limit_except` put its settings in place of the location's.
pub fn limit_except(r: &Request, other: LocId) -> Step {
    let step = Step::new(
        "limit_except",
        format!(
            "holds for {}: its settings are in force",
            String::from_utf8_lossy(r.method_text())
        ),
    );
    match r.site.locations.get(other as usize) {
        Some(l) => step.at(&l.place),
        None => step,
    }
}

/// The location in force, with its modifier.
pub fn location_name(r: &Request) -> String {
    r.site
        .locations
        .get(r.location as usize)
        .map(selection::name)
        .unwrap_or_default()
}

fn decision(r: &Request, next: &Next<'_>) -> String {
    match next {
        Next::Continue => "goes on".to_owned(),
        Next::Allow => "allows".to_owned(),
        Next::Done => "has answered".to_owned(),
        Next::Status(s) if r.out.location.is_empty() => format!("ends with {s}"),
        Next::Status(s) => format!(
            "ends with {s} to \"{}\"",
            String::from_utf8_lossy(&r.out.location)
        ),
        Next::Respond(_) => format!("answers {}", r.out.status),
        Next::Redirect(to) => target(to),
        Next::Relocate => format!("changes the URI to \"{}\"", String::from_utf8_lossy(&r.uri)),
        Next::Upstream(_) => "asks an origin".to_owned(),
        Next::Sleep(d) => format!("holds the request for {} ms", d.as_millis()),
        Next::Wait(_) => "decides later".to_owned(),
    }
}

fn target(to: &RedirectTo) -> String {
    let text = String::from_utf8_lossy;
    match to {
        RedirectTo::Uri(uri, args) if args.is_empty() => {
            format!("internally to \"{}\"", text(uri))
        }
        RedirectTo::Uri(uri, args) => {
            format!("internally to \"{}?{}\"", text(uri), text(args))
        }
        RedirectTo::Named(name) => format!("internally to {}", text(name)),
    }
}

/// `couloir::features::auth_basic::Check` is of `auth_basic`.
pub fn module_of(type_name: &'static str) -> &'static str {
    let inside = type_name
        .split_once("::features::")
        .map_or(type_name, |(_, rest)| rest);
    inside.split("::").next().unwrap_or(inside)
}

#[cfg(test)]
mod tests {
    use super::module_of;

    #[test]
    fn modules_are_named_by_their_folder() {
        assert_eq!(
            module_of("couloir::features::auth_basic::Check"),
            "auth_basic"
        );
        assert_eq!(module_of("couloir::features::ssi::filter::X"), "ssi");
        assert_eq!(module_of("hello_filter::Hello"), "hello_filter");
    }
}
