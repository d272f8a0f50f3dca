//! `ssl_certificate_expiry`: until when the certificates are good that are in use now.

use super::{Answer, ApiError, Ask, Endpoint};
use crate::http::date;
use crate::http::method::Method;
use crate::tls::ffi;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// By the name of the file, as the configuration resolves it; certificates whose names have variables are not there.
pub(super) struct Expiry;

impl Endpoint for Expiry {
    fn path(&self) -> &'static str {
        "ssl_certificate_expiry"
    }

    fn answer(&self, ask: &Ask<'_>) -> Result<Answer, ApiError> {
        if !matches!(ask.method, Method::Get) {
            return Err(ApiError::method_disabled());
        }
        if !ask.rest.is_empty() {
            return Err(ApiError::path_not_found());
        }
        let now = date::time().0;
        let mut all = Map::new();
        for server in &ask.site.servers {
            let Some(made) = server.tls.as_ref().and_then(|t| t.context.load_full()) else {
                continue;
            };
            for (name, cert) in &made.certificates {
                let Some(left) = ffi::remaining(cert) else {
                    continue;
                };
                let at = now.saturating_add(left);
                let text = Timestamp::from_second(at).map_or(Value::Null, super::status::time);
                let entry = json!({ "not_after": text, "timestamp": at, "seconds_left": left });
                all.insert(name.to_string(), entry);
            }
        }
        Ok(Answer::Value(Value::Object(all)))
    }
}
