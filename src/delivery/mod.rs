//! How a response leaves, whichever part made it: conditions, head filters, ranges, body filters, `limit_rate`.

mod filters;
pub mod output;
mod redirect;
