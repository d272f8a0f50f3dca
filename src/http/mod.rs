//! HTTP as such: pure helpers that know no runtime and no configuration.

pub mod cookie;
pub mod date;
pub mod escape;
pub mod etag;
pub mod field;
pub mod h1;
pub mod h2;
pub mod head;
pub mod headers;
pub mod host;
pub mod method;
pub mod names;
pub mod range;
pub mod request_line;
pub mod status;
pub mod uri;
