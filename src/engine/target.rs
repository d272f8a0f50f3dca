//! From the request line to `r.uri` and `r.args`.

use crate::contract::Request;
use crate::http::uri;

/// Normalises the target of the head into the request's URI.
///
/// # Errors
/// It is no URI, or leads out of the root; the status is 400.
pub fn apply(r: &mut Request, merge_slashes: bool) -> Result<(), uri::BadUri> {
    let head = &r.head;
    let raw = head.text(&head.uri);
    let (path, query) = match head.query {
        Some(q) => (
            head.line
                .get(head.uri.start..q.saturating_sub(1))
                .unwrap_or_default(),
            head.line.get(q..head.uri.end).unwrap_or_default(),
        ),
        None => (raw, &b""[..]),
    };
    r.args.clear();
    if head.empty_path {
        r.uri.clear();
        r.uri.push(b'/');
        // what follows `#` is no part of the request
        r.args
            .extend_from_slice(query.split(|b| *b == b'#').next().unwrap_or_default());
        r.valid_unparsed_uri = false;
        return Ok(());
    }
    if !head.complex {
        r.uri.clear();
        r.uri.extend_from_slice(path);
        r.args.extend_from_slice(query);
        r.valid_unparsed_uri = true;
        return Ok(());
    }
    let n = uri::normalize(raw, merge_slashes, &mut r.uri)?;
    if let Some(a) = n.args {
        r.args.extend_from_slice(raw.get(a).unwrap_or_default());
    }
    r.valid_unparsed_uri = n.valid_unparsed;
    Ok(())
}
