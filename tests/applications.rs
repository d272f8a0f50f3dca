//! Real applications behind Couloir: php-fpm, uWSGI with Python, memcached, as Debian has them; and the configurations
//! of conf/examples/, each with a small application behind it.

mod common;

#[path = "applications/examples.rs"]
mod examples;
#[path = "applications/memcached.rs"]
mod memcached;
#[path = "applications/peers.rs"]
mod peers;
#[path = "applications/php.rs"]
mod php;
#[path = "applications/python.rs"]
mod python;
