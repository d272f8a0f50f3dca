//! `ProxyHttp`, in the order in which Pingora calls it.

use super::pingora_io::Handle;
use async_trait::async_trait;
use pingora_core::modules::http::HttpModules;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::{ProxyHttp, Session};

/// The proxy that Pingora drives: requests are served in `request_filter`, those of a client that follow each other
/// closely in one call.
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
        let Some(mut client) = conn.handover_slot.lock().take() else {
            return Err(Error::explain(
                ErrorType::InternalError,
                "a session without a client",
            ));
        };
        if client.serve(&conn).await {
            *conn.handover_slot.lock() = Some(client);
        }
        Ok(true)
    }

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        Err(Error::explain(
            ErrorType::InternalError,
            "the exchange is made in request_filter",
        ))
    }
}
