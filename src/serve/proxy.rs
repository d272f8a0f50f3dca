//! `ProxyHttp`, in the order in which Pingora calls it.

use super::pingora_io::Handle;
use crate::engine::phases;
use async_trait::async_trait;
use pingora_core::modules::http::HttpModules;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::{ProxyHttp, Session};

/// The proxy that Pingora drives: the whole request is served in `request_filter`.
pub struct Front;

#[async_trait]
impl ProxyHttp for Front {
    type CTX = ();

    fn new_ctx(&self) {}

    /// No module of Pingora's: the default one makes a compression context for every request.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, _ctx: &mut ()) -> Result<bool> {
        let handle = session
            .as_downstream()
            .stream()
            .and_then(|s| s.as_any().downcast_ref::<Handle>());
        let Some(conn) = handle.map(|h| h.conn.clone()) else {
            return Err(Error::explain(
                ErrorType::InternalError,
                "a session without a connection of ours",
            ));
        };
        let Some(mut request) = conn.parked.lock().take() else {
            return Err(Error::explain(
                ErrorType::InternalError,
                "a session without a request",
            ));
        };
        phases::serve(&mut request).await;
        *conn.parked.lock() = Some(request);
        Ok(true)
    }

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        Err(Error::explain(
            ErrorType::InternalError,
            "the exchange is made in request_filter",
        ))
    }
}
