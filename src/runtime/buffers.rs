//! Read and write buffers of a thread: connections that wait hold none.

use bytes::BytesMut;
use std::cell::RefCell;

/// Size of a buffer for bodies and responses.
pub const SIZE: usize = 16 * 1024;

/// Size of a buffer for a head: what a client that dribbles one makes us hold.
pub const SMALL: usize = 4 * 1024;

/// Buffers of each size kept by a thread.
const KEPT: usize = 256;

thread_local! {
    static BUFFERS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static SMALLS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer.
pub fn take() -> BytesMut {
    let kept = BUFFERS.try_with(|b| b.borrow_mut().pop()).ok().flatten();
    kept.unwrap_or_else(|| BytesMut::with_capacity(SIZE))
}

/// An empty buffer for a head.
pub fn take_small() -> BytesMut {
    let kept = SMALLS.try_with(|b| b.borrow_mut().pop()).ok().flatten();
    kept.unwrap_or_else(|| BytesMut::with_capacity(SMALL))
}

/// Gives a buffer back; larger ones, and those whose memory is still in use elsewhere, are freed.
pub fn give(mut b: BytesMut) {
    b.clear();
    if b.capacity() > 2 * SIZE {
        return;
    }
    let list = if b.try_reclaim(SIZE) {
        &BUFFERS
    } else if b.try_reclaim(SMALL) {
        &SMALLS
    } else {
        return;
    };
    let _ = list.try_with(|list| {
        let mut list = list.borrow_mut();
        if list.len() < KEPT {
            list.push(b);
        }
    });
}

/// Frees most of the buffers that the calling thread keeps.
pub fn trim() {
    for list in [&BUFFERS, &SMALLS] {
        let _ = list.try_with(|list| {
            let mut list = list.borrow_mut();
            list.truncate(KEPT / 8);
            list.shrink_to(KEPT / 8);
        });
    }
}
