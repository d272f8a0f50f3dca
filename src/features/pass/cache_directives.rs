//! The cache's directives, each written once for every prefix.

/// A directive that stores one value of the cache's settings once.
macro_rules! cached {
    ($p:literal, $name:literal, $args:expr, $field:ident, $read:ident, $syntax:literal, $meaning:literal) => {
        $crate::contract::Directive::new(
            concat!($p, $name),
            $crate::contract::Place::ANY_HTTP,
            $args,
            concat!("`", $p, $name, $syntax, "`", $meaning),
            |c, s, _| $crate::contract::once(&mut c.pass.cache.$field, s, s.$read(0)?),
        )
    };
}

/// The directives of the cache; `$key` is what the help says of the default key.
macro_rules! cache_directives {
    ($p:literal, $conf:ty, $key:literal) => {{
        use $crate::contract::{Args, Directive};
        use $crate::features::pass as set;
        const TABLE: &[Directive<$conf>] = &[
            $crate::features::pass::directives::written!(
                $p,
                "_store",
                Args::Exactly(1),
                concat!("`", $p, "_store on|off|string;` Keeps a copy of every complete response of status 200, in the file that the URI stands for or the string names. Default: off."),
                |c, s, b| set::store(&mut c.pass, s, b, concat!($p, "_cache"))
            ),
            $crate::features::pass::directives::written!(
                $p,
                "_store_access",
                Args::Between(1, 3),
                concat!("`", $p, "_store_access users:permissions …;` Permissions of these files and of new directories. Default: user:rw."),
                |c, s, _| $crate::contract::once(&mut c.pass.store_access, s, $crate::features::dav::access(s)?)
            ),
            Directive::new(concat!($p, "_cache_path"), $crate::contract::Place::HTTP, Args::AtLeast(2), concat!("`", $p, "_cache_path path keys_zone=name:size [levels=levels] [inactive=time] [max_size=size] [min_free=size] [use_temp_path=on|off] [manager_files=number] [manager_sleep=time] [manager_threshold=time] [loader_files=number] [loader_sleep=time] [loader_threshold=time] [memory=size];` A folder of stored responses. Objects of up to 128k that are often asked for are kept in memory, too: `memory` (Couloir's own) bounds them. Defaults: inactive=10m, memory=16m."), |_, s, b| set::cache_path(s, b, $p, concat!($p, "_cache_path"))),
            $crate::features::pass::directives::written!($p, "_cache", Args::Exactly(1), concat!("`", $p, "_cache zone|off;` Stores responses in a zone; the name may have variables. Default: off."), |c, s, b| {
                    if matches!(c.pass.store, Some(Some(_))) {
                        let name = concat!($p, "_cache");
                        let other = concat!($p, "_store");
                        return Err(s.error(format!(
                            "\"{name}\" directive is incompatible with \"{other}\""
                        )));
                    }
                    set::off_or_zone(&mut c.pass.cache, s, b, $p)
                }),
            $crate::features::pass::directives::written!($p, "_cache_key", Args::Exactly(1), concat!("`", $p, "_cache_key string;` What tells responses apart.", $key), |c, s, b| set::template(&mut c.pass.cache.key, s, b)),
            $crate::features::pass::directives::written!($p, "_cache_valid", Args::AtLeast(1), concat!("`", $p, "_cache_valid [code …|any] time;` How long responses are fresh whose headers do not say so. Without codes: 200, 301 and 302."), |c, s, _| set::cache_valid(&mut c.pass.cache, s)),
            $crate::features::pass::directives::written!($p, "_cache_methods", Args::AtLeast(1), concat!("`", $p, "_cache_methods GET|HEAD|POST …;` GET and HEAD are always among them. Default: GET HEAD."), |c, s, b| set::cache_methods(&mut c.pass.cache, s, b)),
            $crate::features::pass::cache_directives::cached!($p, "_cache_min_uses", Args::Exactly(1), min_uses, number, " number;", " How often a response must be asked for before it is stored. Default: 1."),
            $crate::features::pass::directives::written!($p, "_cache_bypass", Args::AtLeast(1), concat!("`", $p, "_cache_bypass string …;` Asks the origin where one of them is neither empty nor `0`; the response is stored all the same."), |c, s, b| set::predicate(&mut c.pass.cache.bypass, s, b)),
            $crate::features::pass::directives::written!($p, "_no_cache", Args::AtLeast(1), concat!("`", $p, "_no_cache string …;` Does not store the response where one of them is neither empty nor `0`."), |c, s, b| set::predicate(&mut c.pass.cache.no_cache, s, b)),
            $crate::features::pass::cache_directives::cached!($p, "_cache_lock", Args::Flag, lock, flag, " on|off;", " Of several requests for a response that is not stored yet one asks the origin, the others wait. Default: off."),
            $crate::features::pass::cache_directives::cached!($p, "_cache_lock_timeout", Args::Exactly(1), lock_timeout, msec, " time;", " How long they wait; their own answers are not stored then. Default: 5s."),
            $crate::features::pass::cache_directives::cached!($p, "_cache_lock_age", Args::Exactly(1), lock_age, msec, " time;", " After this time another one asks the origin too. Default: 5s."),
            Directive::own(
                concat!($p, "_cache_lock_stream"),
                $crate::contract::Place::ANY_HTTP,
                Args::Flag,
                concat!("`", $p, "_cache_lock_stream on|off;` Requests that wait because of `", $p, "_cache_lock` are sent what has come of the response as soon as its head shows that it is stored; `", $p, "_cache_lock_age` then counts from its last piece. Where off they wait for its end. Default: on."),
                |c, s, _| $crate::contract::once(&mut c.pass.cache.lock_stream, s, s.flag(0)?)
            ),
            $crate::features::pass::directives::written!($p, "_cache_use_stale", Args::AtLeast(1), concat!("`", $p, "_cache_use_stale error|timeout|invalid_header|updating|http_500|http_502|http_503|http_504|http_403|http_404|http_429|off …;` When a response may be served although its time is over. Default: off."), |c, s, b| set::bits(&mut c.pass.cache.use_stale, s, b, set::STALE)),
            $crate::features::pass::cache_directives::cached!($p, "_cache_background_update", Args::Flag, background_update, flag, " on|off;", " Serves what may be stale at once and asks the origin meanwhile. Default: off."),
            $crate::features::pass::cache_directives::cached!($p, "_cache_revalidate", Args::Flag, revalidate, flag, " on|off;", " Asks the origin with If-Modified-Since and If-None-Match whether a response whose time is over has changed. Default: off."),
            $crate::features::pass::cache_directives::cached!($p, "_cache_max_range_offset", Args::Exactly(1), max_range_offset, offset, " number;", " Requests for ranges that begin later are passed to the origin and not stored."),
            $crate::features::pass::directives::written!($p, "_cache_purge", Args::AtLeast(1), concat!("`", $p, "_cache_purge string …;` Purges the response of the request's key where one of them is neither empty nor `0`, and all whose keys begin with what precedes a `*` at its end; answers 204, or 404 where there was none."), |c, s, b| { set::cache_named(b, $p); set::predicate(&mut c.pass.cache.purge, s, b) }),
            Directive::own(concat!($p, "_cache_purge_soft"), $crate::contract::Place::ANY_HTTP, Args::AtLeast(1), concat!("`", $p, "_cache_purge_soft string …;` Where one of them is neither empty nor `0`, purging marks responses as stale instead of removing them."), |c, s, b| set::predicate(&mut c.pass.cache.purge_soft, s, b)),
            Directive::own(concat!($p, "_cache_purge_tags"), $crate::contract::Place::ANY_HTTP, Args::Exactly(1), concat!("`", $p, "_cache_purge_tags string;` Purges by these tags, separated by spaces, instead of by key, where it is not empty."), |c, s, b| { set::cache_named(b, $p); set::template(&mut c.pass.cache.purge_tags, s, b) }),
            Directive::own(concat!($p, "_cache_tag"), $crate::contract::Place::ANY_HTTP, Args::Exactly(1), concat!("`", $p, "_cache_tag string;` Tags of a response, separated by spaces, by which it can be purged, such as `$upstream_http_surrogate_key`."), |c, s, b| { set::cache_named(b, $p); set::template(&mut c.pass.cache.tag, s, b) }),
            Directive::own(
                concat!($p, "_cache_rfc9111"),
                $crate::contract::Place::ANY_HTTP,
                Args::Flag,
                concat!("`", $p, "_cache_rfc9111 on|off;` Caches as RFC 9111 says where nginx does otherwise: Age is sent and counted, Cache-Control is read as a list, Authorization keeps responses out, a 304 renews stored headers, unsafe methods invalidate. Default: off."),
                |c, s, b| {
                    set::cache_named(b, $p);
                    $crate::contract::once(&mut c.pass.cache.rfc9111, s, s.flag(0)?)
                }
            ),
        ];
        TABLE
    }};
}

pub(crate) use {cache_directives, cached};
