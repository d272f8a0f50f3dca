//! The directives that every prefix has, each written once: macros that make the tables for a prefix.
//!
//! `$conf` is the module's settings; they keep a [`super::PassWritten`] in a field `pass`.

/// A directive that stores one value once.
macro_rules! stored {
    ($p:literal, $name:literal, $args:expr, $field:ident, $read:ident, $syntax:literal, $meaning:literal) => {
        $crate::contract::Directive::new(
            concat!($p, $name),
            $crate::contract::Place::ANY_HTTP,
            $args,
            concat!("`", $p, $name, $syntax, "`", $meaning),
            |c, s, _| $crate::contract::once(&mut c.pass.$field, s, s.$read(0)?),
        )
    };
}

/// The same for sizes of buffers, which must agree with each other.
macro_rules! sized {
    ($p:literal, $name:literal, $field:ident, $meaning:expr) => {
        $crate::contract::Directive::new(
            concat!($p, $name),
            $crate::contract::Place::ANY_HTTP,
            $crate::contract::Args::Exactly(1),
            $meaning,
            |c, s, _| {
                c.pass.sizes_at = Some(std::sync::Arc::new(s.clone()));
                $crate::contract::once(&mut c.pass.$field, s, s.size(0)?)
            },
        )
    };
}

/// A directive with a setter of its own.
macro_rules! written {
    ($p:literal, $name:literal, $args:expr, $help:expr, $set:expr) => {
        $crate::contract::Directive::new(
            concat!($p, $name),
            $crate::contract::Place::ANY_HTTP,
            $args,
            $help,
            $set,
        )
    };
}

/// Connecting, the head of the answer, and when the next peer is asked: what every protocol has.
macro_rules! connect_directives {
    ($p:literal, $conf:ty, $next:expr, $conditions:literal) => {{
        use $crate::contract::{Args, Directive};
        use $crate::features::pass as set;
        const TABLE: &[Directive<$conf>] = &[
            $crate::features::pass::directives::written!(
                $p,
                "_bind",
                Args::Between(1, 2),
                concat!(
                    "`",
                    $p,
                    "_bind address [transparent]|off;` The local address of connections to the origin; a transparent one need not be this host's, which takes the privileges of root (CAP_NET_ADMIN) and routing to match."
                ),
                |c, s, b| set::bind(&mut c.pass, s, b)
            ),
            $crate::features::pass::directives::stored!(
                $p,
                "_socket_keepalive",
                Args::Flag,
                socket_keepalive,
                flag,
                " on|off;",
                " TCP keepalive towards the origin. Default: off."
            ),
            $crate::features::pass::directives::stored!(
                $p,
                "_connect_timeout",
                Args::Exactly(1),
                connect_timeout,
                msec,
                " time;",
                " Default: 60s."
            ),
            $crate::features::pass::directives::stored!(
                $p,
                "_send_timeout",
                Args::Exactly(1),
                send_timeout,
                msec,
                " time;",
                " Between two writes of the request. Default: 60s."
            ),
            $crate::features::pass::directives::stored!(
                $p,
                "_read_timeout",
                Args::Exactly(1),
                read_timeout,
                msec,
                " time;",
                " Between two reads of the response. Default: 60s."
            ),
            $crate::features::pass::directives::sized!(
                $p,
                "_buffer_size",
                buffer_size,
                concat!(
                    "`",
                    $p,
                    "_buffer_size size;` The head of the response must fit. Default: 4k."
                )
            ),
            $crate::features::pass::directives::written!(
                $p,
                "_next_upstream",
                Args::AtLeast(1),
                concat!(
                    "`",
                    $p,
                    "_next_upstream ",
                    $conditions,
                    " …;` When the next server is tried. Default: error timeout."
                ),
                |c, s, b| set::bits(&mut c.pass.next_upstream, s, b, $next)
            ),
            $crate::features::pass::directives::stored!(
                $p,
                "_next_upstream_tries",
                Args::Exactly(1),
                next_upstream_tries,
                number,
                " number;",
                " 0 is without limit. Default: 0."
            ),
            $crate::features::pass::directives::stored!(
                $p,
                "_next_upstream_timeout",
                Args::Exactly(1),
                next_upstream_timeout,
                msec,
                " time;",
                " 0 is without limit. Default: 0."
            ),
        ];
        TABLE
    }};
}

/// Sizes of the buffers of sockets: what every protocol has but memcached's.
macro_rules! socket_directives {
    ($p:literal, $conf:ty) => {{
        use $crate::contract::{Args, Directive};
        const TABLE: &[Directive<$conf>] = &[
            $crate::features::pass::directives::stored!(
                $p,
                "_socket_rcvbuf",
                Args::Exactly(1),
                socket_rcvbuf,
                size,
                " size;",
                " SO_RCVBUF of connections to the origin. Default: 0 (the system's)."
            ),
            $crate::features::pass::directives::stored!(
                $p,
                "_socket_sndbuf",
                Args::Exactly(1),
                socket_sndbuf,
                size,
                " size;",
                " SO_SNDBUF of connections to the origin. Default: 0 (the system's)."
            ),
        ];
        TABLE
    }};
}

/// The headers of the answer: what every protocol has whose answers are HTTP.
macro_rules! response_directives {
    ($p:literal, $conf:ty, $ignore:expr, $hidden:literal) => {{
        use $crate::contract::{Args, Directive};
        use $crate::features::pass as set;
        const TABLE: &[Directive<$conf>] = &[
            $crate::features::pass::directives::stored!(
                $p,
                "_intercept_errors",
                Args::Flag,
                intercept_errors,
                flag,
                " on|off;",
                " Statuses of 300 and above go to `error_page`. Default: off."
            ),
            $crate::features::pass::directives::written!(
                $p,
                "_hide_header",
                Args::Exactly(1),
                concat!(
                    "`",
                    $p,
                    "_hide_header field;` A header of the response that is not passed on, besides ",
                    $hidden,
                    "X-Accel-…."
                ),
                |c, s, _| set::name(&mut c.pass.hide, s)
            ),
            $crate::features::pass::directives::written!(
                $p,
                "_pass_header",
                Args::Exactly(1),
                concat!(
                    "`",
                    $p,
                    "_pass_header field;` Passes on a header that would be hidden."
                ),
                |c, s, _| set::name(&mut c.pass.pass_headers, s)
            ),
            $crate::features::pass::directives::written!(
                $p,
                "_ignore_headers",
                Args::AtLeast(1),
                concat!(
                    "`",
                    $p,
                    "_ignore_headers field …;` Headers of the response that are not obeyed."
                ),
                |c, s, b| set::bits(&mut c.pass.ignore, s, b, $ignore)
            ),
        ];
        TABLE
    }};
}

/// What of the request goes to the origin, and the buffers, files and pace of the answer.
macro_rules! buffer_directives {
    ($p:literal, $conf:ty) => {{
        use $crate::contract::{Args, Directive};
        use $crate::features::pass as set;
        const TABLE: &[Directive<$conf>] = &[
            $crate::features::pass::directives::stored!(
                $p,
                "_pass_request_headers",
                Args::Flag,
                pass_request_headers,
                flag,
                " on|off;",
                " Default: on."
            ),
            $crate::features::pass::directives::stored!(
                $p,
                "_pass_request_body",
                Args::Flag,
                pass_request_body,
                flag,
                " on|off;",
                " Default: on."
            ),
            $crate::features::pass::directives::stored!(
                $p,
                "_buffering",
                Args::Flag,
                buffering,
                flag,
                " on|off;",
                " Reads the response as fast as the origin sends it. Default: on."
            ),
            $crate::features::pass::directives::stored!(
                $p,
                "_request_buffering",
                Args::Flag,
                request_buffering,
                flag,
                " on|off;",
                " Reads the whole body before the origin is asked. Default: on."
            ),
            $crate::features::pass::directives::stored!(
                $p,
                "_ignore_client_abort",
                Args::Flag,
                ignore_client_abort,
                flag,
                " on|off;",
                " Goes on when the client has closed. Default: off."
            ),
            $crate::features::pass::directives::stored!(
                $p,
                "_force_ranges",
                Args::Flag,
                force_ranges,
                flag,
                " on|off;",
                " Serves ranges whatever Accept-Ranges says. Default: off."
            ),
            $crate::features::pass::directives::written!(
                $p,
                "_limit_rate",
                Args::Exactly(1),
                concat!(
                    "`",
                    $p,
                    "_limit_rate rate;` Bytes a second read from the origin. Default: 0 (no limit)."
                ),
                |c, s, b| set::limit_rate(&mut c.pass, s, b)
            ),
            $crate::features::pass::directives::written!(
                $p,
                "_buffers",
                Args::Exactly(2),
                concat!(
                    "`",
                    $p,
                    "_buffers number size;` Buffers of one response. Default: 8 4k."
                ),
                |c, s, b| set::buffers(&mut c.pass, s, b)
            ),
            $crate::features::pass::directives::sized!(
                $p,
                "_busy_buffers_size",
                busy_buffers_size,
                concat!(
                    "`",
                    $p,
                    "_busy_buffers_size size;` Checked as in nginx and not used: what is on its way is bounded by ",
                    $p,
                    "_buffers. Default: 8k."
                )
            ),
            $crate::features::pass::directives::sized!(
                $p,
                "_max_temp_file_size",
                max_temp_file_size,
                concat!(
                    "`",
                    $p,
                    "_max_temp_file_size size;` 0 keeps responses out of files. Default: 1024m."
                )
            ),
            $crate::features::pass::directives::sized!(
                $p,
                "_temp_file_write_size",
                temp_file_write_size,
                concat!(
                    "`",
                    $p,
                    "_temp_file_write_size size;` Checked as in nginx and not used: pieces are written as they come. \
                     Default: 8k."
                )
            ),
            $crate::features::pass::directives::written!(
                $p,
                "_temp_path",
                Args::Between(1, 4),
                concat!(
                    "`",
                    $p,
                    "_temp_path path [level1 [level2 [level3]]];` Default: ",
                    $p,
                    "_temp 1 2."
                ),
                |c, s, b| set::temp_path(&mut c.pass, s, b)
            ),
        ];
        TABLE
    }};
}

pub(crate) use {
    buffer_directives, connect_directives, response_directives, sized, socket_directives, stored,
    written,
};
