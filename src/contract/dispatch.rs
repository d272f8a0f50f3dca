//! How the contract reaches the engine that serves requests.

use super::{Pass, Request};
use std::pin::Pin;
use std::sync::Arc;

/// A request being served, up to the end of its response.
pub type Serving<'r> = Pin<Box<dyn Future<Output = ()> + Send + 'r>>;

/// Serves the requests that a request makes of its own site. The engine implements it; a [`super::Site`] carries it.
pub trait Dispatch: Send + Sync {
    /// Serves a subrequest whose URI and server are known, from the server's rewrite phase on.
    fn subrequest<'r>(&self, r: &'r mut Request) -> Serving<'r>;

    /// Serves a subrequest that repeats its parent: in its location, from the content on.
    fn repeat<'r>(&self, r: &'r mut Request) -> Serving<'r>;

    /// Asks an origin anew for an object of the cache; nobody waits for the answer.
    fn refresh<'r>(&self, r: &'r mut Request, pass: &'r Arc<Pass>) -> Serving<'r>;
}
