//! HTTP as such: pure helpers that know no runtime and no configuration.

pub mod date;
pub mod escape;
pub mod etag;
pub mod range;
pub mod status;
pub mod uri;
