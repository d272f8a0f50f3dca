//! What is refused, in nginx's words.

use super::common::proc::{Couloir, Setup};

#[test]
fn mistakes_are_named() {
    let http = |text: &str| {
        format!("%%TEST_GLOBALS%% events {{}} http {{ %%TEST_GLOBALS_HTTP%% {text} }}")
    };
    for (text, message) in [
        (
            "proxy_cache_path /c;",
            "invalid number of arguments in \"proxy_cache_path\" directive",
        ),
        (
            "proxy_cache_path /c levels=1:2;",
            "\"proxy_cache_path\" must have \"keys_zone\" parameter",
        ),
        (
            "proxy_cache_path /c keys_zone=z;",
            "invalid keys zone size \"keys_zone=z\"",
        ),
        (
            "proxy_cache_path /c keys_zone=z:4k;",
            "keys zone \"keys_zone=z:4k\" is too small",
        ),
        (
            "proxy_cache_path /c keys_zone=z:1m levels=3;",
            "invalid \"levels\" \"levels=3\"",
        ),
        (
            "proxy_cache_path /c keys_zone=z:1m levels=1:2:1:2;",
            "invalid \"levels\"",
        ),
        (
            "proxy_cache_path /c keys_zone=z:1m inactive=x;",
            "invalid inactive value \"inactive=x\"",
        ),
        (
            "proxy_cache_path /c keys_zone=z:1m max_size=x;",
            "invalid max_size value \"max_size=x\"",
        ),
        (
            "proxy_cache_path /c keys_zone=z:1m memory=x;",
            "invalid memory value \"memory=x\"",
        ),
        (
            "proxy_cache_path /c keys_zone=z:1m use_temp_path=yes;",
            "invalid use_temp_path value \"use_temp_path=yes\", it must be \"on\" or \"off\"",
        ),
        (
            "proxy_cache_path /c keys_zone=z:1m colour=red;",
            "invalid parameter \"colour=red\"",
        ),
        (
            "proxy_cache_path /c keys_zone=z:1m; proxy_cache_path /d keys_zone=z:1m;",
            "duplicate zone \"z\"",
        ),
        (
            "proxy_cache_path /c keys_zone=z:1m; proxy_cache_path /c keys_zone=y:1m;",
            "the same path name \"/c\" used in",
        ),
        (
            "limit_req_zone $uri zone=z:1m rate=1r/s; proxy_cache_path /c keys_zone=z:1m;",
            "the shared memory zone \"z\" is already declared for a different use",
        ),
        ("proxy_cache z;", "\"proxy_cache\" zone \"z\" is unknown"),
        (
            "proxy_cache off; proxy_cache off;",
            "\"proxy_cache\" directive is duplicate",
        ),
        (
            "proxy_cache_path /c keys_zone=z:1m; proxy_cache z; proxy_store on;",
            "\"proxy_store\" directive is incompatible with \"proxy_cache\"",
        ),
        ("proxy_cache_valid 200 x;", "invalid time value \"x\""),
        ("proxy_cache_valid 99 1m;", "invalid status \"99\""),
        ("proxy_cache_use_stale never;", "invalid value \"never\""),
        ("proxy_cache_methods PUT;", "invalid value \"PUT\""),
    ] {
        let (status, said) = Setup::new(&http(text)).test(&Couloir::program());
        assert!(
            !status.success() && said.contains(message),
            "{text}\n{said}"
        );
    }
    let good = "proxy_cache_path %%TESTDIR%%/c keys_zone=z:1m levels=2:2:1 max_size=1g min_free=1m manager_files=1
                manager_sleep=1 manager_threshold=1 loader_files=1 loader_sleep=1 loader_threshold=1 inactive=1y memory=0;
                proxy_cache_methods POST; proxy_cache_use_stale off; proxy_cache $host; proxy_cache_max_range_offset 0;";
    let (status, said) = Setup::new(&http(good)).test(&Couloir::program());
    assert!(status.success(), "{said}");
}
