//! The HTTP/1 codec.

pub mod chunked;
pub mod response;
