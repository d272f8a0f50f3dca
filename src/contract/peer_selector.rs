//! How a request's own features decide which peer of a group it goes to.

use super::Request;
use crate::upstream::{Peer, PickState};

/// What of a request decides its peer (`hash`, `ip_hash`, `sticky`), and what an answer teaches.
pub trait PeerSelector: Send + Sync + 'static {
    /// Called once a request, before its first peer is picked: sets the key to be hashed, and the session's peer.
    fn begin(&self, r: &Request, pick: &mut PickState);

    /// A peer was picked.
    fn picked(&self, r: &mut Request, peer: &Peer) {
        let _ = (r, peer);
    }

    /// The head of the peer's response has come, and no other peer will be asked.
    fn head(&self, r: &mut Request, peer: &Peer) {
        let _ = (r, peer);
    }

    /// The peer has served the request.
    fn done(&self, r: &mut Request, peer: &Peer) {
        let _ = (r, peer);
    }
}
