//! The HTTP/1 codec.

pub mod chunked;
pub mod chunked_strict;
pub mod response;
