//! The cache in the API, in the metrics, and from the command line.

use super::common::client::{Response, exchange};
use super::common::origin::Origin;
use super::common::proc::{Couloir, Server, run};
use super::common::{DEADLINE, wait_for};
use super::{ask, cached, get, objects, ok, status};
use serde_json::{Value, json};

/// What the location of the tests says, with another location behind it.
fn location(more: &str) -> String {
    format!(
        "proxy_cache_key $scheme$host$request_uri; proxy_cache_tag $upstream_http_surrogate_key; {more}"
    )
}

fn origin() -> Origin {
    Origin::respond(|r| {
        let target = r.target();
        ok(&format!("Surrogate-Key: all t{}\r\n", target.len()), target)
    })
}

fn server(origin: &Origin, api: &str) -> Server {
    let more = format!("}} location /api/ {{ {api}");
    cached(origin, "max_size=10m", &location(&more))
}

fn of_host(server: &Server, host: &str, uri: &str) -> Response {
    let request = format!("GET {uri} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    exchange(server.addr(8080), &request)
}

fn value(server: &Server, path: &str) -> Value {
    let r = get(server, &format!("/api/9/http/caches{path}"));
    assert_eq!(r.status, 200, "{}", r.text());
    serde_json::from_slice(&r.body).unwrap()
}

fn post(server: &Server, path: &str, body: &Value) -> Response {
    let body = body.to_string();
    exchange(
        server.addr(8080),
        &format!(
            "POST /api/9/http/caches{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
}

/// Purges, and says how many objects there were.
fn purge(server: &Server, what: Value) -> u64 {
    let r = post(server, "/z/purge", &what);
    assert_eq!(r.status, 200, "{}", r.text());
    let answer: Value = serde_json::from_slice(&r.body).unwrap();
    answer["purged"].as_u64().unwrap()
}

#[test]
fn zones_are_shown() {
    let origin = origin();
    let server = server(&origin, "api write=on;");
    for _ in 0..2 {
        get(&server, "/a");
    }
    let all = value(&server, "");
    let z = &all["z"];
    assert_eq!(*z, value(&server, "/z"));
    assert_eq!(
        (&z["hit"], &z["miss"]),
        (&json!({"responses": 1}), &json!({"responses": 1}))
    );
    assert_eq!(
        (&z["objects"], &z["stored"], &z["max_size"]),
        (&json!(1), &json!(1), &json!(10 << 20))
    );
    let file = objects(&server.dir().join("cache")).remove(0);
    let size = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512;
    assert_eq!(z["size"], json!(size));
    assert_eq!(get(&server, "/api/9/http/caches/none").status, 404);
    assert_eq!(
        ask(&server, "DELETE", "/api/9/http/caches/z", "").status,
        204
    );
    assert_eq!(value(&server, "/z")["hit"]["responses"], json!(0));
}

#[test]
fn purging_by_key_prefix_host_and_tag() {
    let origin = origin();
    let server = server(&origin, "api write=on;");
    let fill = || {
        for host in ["a.test", "b.test"] {
            for uri in ["/x/1", "/x/22", "/y"] {
                of_host(&server, host, uri);
                assert_eq!(status(&of_host(&server, host, uri)), "HIT");
            }
        }
    };
    fill();
    assert_eq!(purge(&server, json!({"key": "httpa.test/y"})), 1);
    assert_eq!(purge(&server, json!({"key": "httpa.test/y"})), 0);
    assert_eq!(status(&of_host(&server, "a.test", "/y")), "MISS");
    fill();
    assert_eq!(purge(&server, json!({"prefix": "httpa.test/x/"})), 2);
    assert_eq!(status(&of_host(&server, "b.test", "/x/1")), "HIT");
    fill();
    assert_eq!(purge(&server, json!({"host": "b.test"})), 3);
    assert_eq!(status(&of_host(&server, "b.test", "/y")), "MISS");
    assert_eq!(status(&of_host(&server, "a.test", "/y")), "HIT");
    fill();
    assert_eq!(purge(&server, json!({"tag": "t5"})), 2);
    assert_eq!(status(&of_host(&server, "a.test", "/x/22")), "MISS");
    fill();
    // marked, they are fetched anew when they are asked for
    assert_eq!(purge(&server, json!({"tag": "all", "soft": true})), 6);
    assert_eq!(objects(&server.dir().join("cache")).len(), 6);
    assert_eq!(status(&of_host(&server, "a.test", "/y")), "EXPIRED");
    assert_eq!(status(&of_host(&server, "a.test", "/y")), "HIT");
    assert_eq!(value(&server, "/z")["purged"], json!(14));
}

#[test]
fn purging_is_guarded() {
    let origin = origin();
    let reading = server(&origin, "api;");
    get(&reading, "/a");
    let what = json!({"prefix": ""});
    assert_eq!(post(&reading, "/z/purge", &what).status, 405);
    assert_eq!(status(&get(&reading, "/a")), "HIT");
    let closed = server(&origin, "api write=on; deny all;");
    assert_eq!(post(&closed, "/z/purge", &what).status, 403);
    let open = server(&origin, "api write=on;");
    assert_eq!(post(&open, "/z/purge", &json!({})).status, 400);
    assert_eq!(post(&open, "/z/purge", &json!({"key": 7})).status, 400);
    assert_eq!(post(&open, "/none/purge", &what).status, 404);
    assert_eq!(get(&open, "/api/9/http/caches/z/purge").status, 405);
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let origin = origin();
    let zones = format!(
        "max_size=10m; upstream u {{ zone u 64k; server {}; }}
         limit_req_zone $uri zone=r:1m rate=1r/m; limit_conn_zone $uri zone=c:1m",
        origin.addr()
    );
    let more = "} location = /limited { limit_req zone=r; limit_conn c 9; empty_gif; }
        location = /grouped { proxy_pass http://u; }
        location = /closed { metrics; deny all; }
        location = /metrics { metrics;";
    let server = cached(&origin, &zones, &location(more));
    for uri in ["/a", "/a", "/b", "/limited", "/limited", "/grouped"] {
        get(&server, uri);
    }
    let r = get(&server, "/metrics");
    assert_eq!(
        (r.status, r.header("Content-Type")),
        (200, Some("text/plain; version=0.0.4; charset=utf-8"))
    );
    let text = r.text();
    let mut typed = std::collections::HashMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(typed.insert(name, kind).is_none(), "{name} twice");
        } else if !line.starts_with("# HELP ") {
            let (sample, number) = line.rsplit_once(' ').unwrap();
            assert!(number.parse::<f64>().is_ok(), "{line}");
            let name = sample.split('{').next().unwrap();
            let counter = typed[name] == "counter";
            assert_eq!(counter, name.ends_with("_total"), "{name}");
        }
    }
    let peer = origin.addr();
    for line in [
        "couloir_cache_requests_total{zone=\"z\",status=\"hit\"} 1".to_owned(),
        "couloir_cache_requests_total{zone=\"z\",status=\"miss\"} 2".to_owned(),
        "couloir_cache_objects{zone=\"z\"} 2".to_owned(),
        "couloir_cache_max_size_bytes{zone=\"z\"} 10485760".to_owned(),
        "couloir_cache_evicted_total{zone=\"z\"} 0".to_owned(),
        "couloir_limit_req_requests_total{zone=\"r\",result=\"passed\"} 1".to_owned(),
        "couloir_limit_req_requests_total{zone=\"r\",result=\"rejected\"} 1".to_owned(),
        "couloir_limit_conn_requests_total{zone=\"c\",result=\"passed\"} 1".to_owned(),
        format!("couloir_upstream_peer_requests_total{{upstream=\"u\",peer=\"{peer}\"}} 1"),
        format!("couloir_upstream_peer_up{{upstream=\"u\",peer=\"{peer}\"}} 1"),
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    assert_eq!(get(&server, "/closed").status, 403);
    assert_eq!(ask(&server, "POST", "/metrics", "").status, 405);
    assert_eq!(ask(&server, "HEAD", "/metrics", "").body.len(), 0);
}

#[test]
fn the_command_lists_and_shows() {
    let origin = origin();
    let server = server(&origin, "api write=on;");
    for uri in ["/a", "/b/1", "/b/22"] {
        of_host(&server, "h", uri);
    }
    let conf = server.dir().join("nginx.conf").display().to_string();
    let prefix = server.dir().display().to_string();
    let command = |args: &[&str]| {
        let all = [&["cache", "-p", &prefix, "-c", &conf], args].concat();
        let (status, out, err) = run(&Couloir::program(), &all);
        (status.success(), out, err)
    };
    let keys = |args: &[&str]| -> Vec<String> {
        let (good, out, err) = command(args);
        assert!(good, "{err}");
        let last = |l: &str| l.rsplit(' ').next().unwrap_or_default().to_owned();
        let mut keys: Vec<String> = out.lines().map(last).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys(&["ls"]), ["httph/a", "httph/b/1", "httph/b/22"]);
    assert_eq!(
        keys(&["ls", "--zone", "z", "--key-prefix", "httph/b"]),
        ["httph/b/1", "httph/b/22"]
    );
    assert_eq!(keys(&["ls", "--tag", "t4"]), ["httph/b/1"]);
    let (good, out, err) = command(&["inspect", "httph/a"]);
    assert!(good, "{err}");
    for part in [
        "key: httph/a\n",
        "tags: all t2\n",
        "body: 2 bytes\n",
        "\n200 OK\n",
    ] {
        assert!(out.contains(part), "{part}{out}");
    }
    let digest = out.lines().next().unwrap().rsplit('/').next().unwrap();
    assert_eq!(command(&["inspect", digest]).1, out);
    for args in [
        &["inspect", "none"][..],
        &["ls", "--zone", "none"],
        &["wash"],
    ] {
        let (good, out, err) = command(args);
        assert!(!good && out.is_empty() && !err.is_empty(), "{args:?}");
    }
    // what is purged is no longer there
    assert_eq!(purge(&server, json!({"tag": "all"})), 3);
    let gone = wait_for(DEADLINE, || keys(&["ls"]).is_empty().then_some(()));
    assert!(gone.is_some());
}
