//! The glue to Pingora, thin: accepting, reading heads, `ProxyHttp`, the client's side of HTTP/1.

mod background;
pub mod certificates;
mod conn;
mod early;
mod front;
mod h2;
mod head_writer;
mod lingering;
mod opening;
mod pingora_io;
mod proxy;
pub(crate) mod proxy_protocol;
mod reusable;
mod socket;
mod tcp_info;
mod thread;
mod tls;
mod tls_socket;
mod transport;

pub use conn::Conn;
pub use proxy::Front;
pub use thread::{Listening, Shared, run_thread};
pub use transport::{AnyStream, Transport};
