//! The body of a POST or PATCH: one flat JSON object.

use super::ApiError;
use crate::contract::Request;
use serde_json::{Map, Value};

/// Why there is no body to work with.
pub enum Unreadable {
    /// The request ends with this status.
    Status(u16),
    /// The client is told what is wrong.
    Error(ApiError),
}

/// The largest body taken, bytes; a server needs a few hundred.
const LARGEST: u64 = 64 * 1024;

/// The object in a body that has been read.
pub fn read(r: &Request) -> Result<Map<String, Value>, Unreadable> {
    let len = r.body.spool.len();
    if len > LARGEST {
        return Err(Unreadable::Status(413));
    }
    let mut held = Vec::new();
    let text = match r.body.spool.memory() {
        Some(text) => text,
        None => {
            held.resize(usize::try_from(len).unwrap_or(0), 0);
            let mut at = 0;
            while at < held.len() {
                let rest = held.get_mut(at..).unwrap_or_default();
                match r.body.spool.read_at(rest, at as u64) {
                    Ok(n) if n > 0 => at += n,
                    _ => {
                        let e = ApiError::new(400, "reading request body failed", "BodyReadError");
                        return Err(Unreadable::Error(e));
                    }
                }
            }
            &held
        }
    };
    parse(text).map_err(Unreadable::Error)
}

/// Reads one flat object.
///
/// # Errors
/// Plus's `json error` and its kin.
pub fn parse(text: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let format = |text: &str| ApiError::new(400, text, "UpstreamConfFormatError");
    match serde_json::from_slice(text) {
        Err(_) => Err(ApiError::new(415, "json error", "JsonError")),
        Ok(Value::Object(map)) => {
            if map.values().any(|v| v.is_object() || v.is_array()) {
                return Err(format("nested object or list"));
            }
            Ok(map)
        }
        Ok(_) => Err(format("an object is expected")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_flat_object() {
        assert!(parse(b"{}").unwrap().is_empty());
        assert_eq!(parse(b"{\"a\":1}").unwrap().len(), 1);
        let code = |text: &str| parse(text.as_bytes()).map_err(|e| (e.status, e.code));
        for bad in ["", "{", "{\"a\":}", "{} x", "\"\\ud800\""] {
            assert_eq!(code(bad), Err((415, "JsonError")), "{bad}");
        }
        for bad in ["[]", "1", "{\"a\":{}}", "{\"a\":[1]}"] {
            assert_eq!(code(bad), Err((400, "UpstreamConfFormatError")), "{bad}");
        }
        // deep nesting must not use up the stack
        assert_eq!(code(&"[".repeat(100_000)), Err((415, "JsonError")));
    }

    proptest! {
        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&text);
        }
    }
}
