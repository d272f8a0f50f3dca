//! Read and write buffers of a thread: connections that wait hold none.

use bytes::BytesMut;
use std::cell::RefCell;

/// Size of a buffer.
pub const SIZE: usize = 16 * 1024;

/// Buffers kept by a thread.
const KEPT: usize = 256;

thread_local! {
    static BUFFERS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer.
pub fn take() -> BytesMut {
    let kept = BUFFERS.try_with(|b| b.borrow_mut().pop()).ok().flatten();
    kept.unwrap_or_else(|| BytesMut::with_capacity(SIZE))
}

/// Gives a buffer back; larger ones, and those whose memory is still in use elsewhere, are freed.
pub fn give(mut b: BytesMut) {
    b.clear();
    if b.capacity() > 2 * SIZE || !b.try_reclaim(SIZE) {
        return;
    }
    let _ = BUFFERS.try_with(|list| {
        let mut list = list.borrow_mut();
        if list.len() < KEPT {
            list.push(b);
        }
    });
}
