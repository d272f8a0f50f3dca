//! The API: peers that come, go and change while requests are served.

use super::common::client::exchange;
use super::*;

fn call(server: &Server, method: &str, path: &str, body: &str) -> Response {
    let request = format!(
        "{method} /api/9/http/upstreams/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    exchange(server.addr(8080), &request)
}

fn refusal(server: &Server, method: &str, path: &str, body: &str) -> (u16, String) {
    let r = call(server, method, path, body);
    let page = json(&r);
    assert_eq!(page["error"]["status"], r.status);
    assert_eq!(page["request_id"].as_str().map(str::len), Some(32));
    assert!(
        page["error"]["text"]
            .as_str()
            .is_some_and(|t| !t.is_empty())
    );
    (r.status, page["error"]["code"].as_str().unwrap().to_owned())
}

#[test]
fn servers_come_and_go_by_the_api() {
    let (a, b) = (named("a"), named("b"));
    let http = "upstream app { zone app 64k; state %%TESTDIR%%/app.state; }
         upstream fixed { server 127.0.0.1:1; }
         server { listen 127.0.0.1:%%PORT_8080%%;
             location / { proxy_pass http://app; }
             location /fixed { proxy_pass http://fixed; }
             location /api { api write=on; }
             location /read { api; } }";
    let mut server = start(http, &[]);
    assert_eq!(get(server.addr(8080), "/", "h").status, 502);

    let post = |body: &str| call(&server, "POST", "app/servers/", body);
    let added = post(&format!("{{\"server\":\"{}\",\"weight\":2}}", a.addr()));
    assert_eq!(added.status, 201, "{added:?}");
    assert!(
        added
            .header("Location")
            .is_some_and(|l| l.ends_with("/api/9/http/upstreams/app/servers/0"))
    );
    let view = json(&added);
    assert_eq!((&view["id"], &view["weight"]), (&0.into(), &2.into()));
    assert_eq!(
        (&view["fail_timeout"], &view["slow_start"]),
        (&"10s".into(), &"0s".into())
    );
    // the very next request sees it
    assert_eq!(body(&server), "a");
    assert_eq!(
        post(&format!("{{\"server\":\"{}\"}}", b.addr())).status,
        201
    );
    let names: Vec<_> = (0..6).map(|_| body(&server)).collect();
    assert_eq!(names.iter().filter(|n| *n == "a").count(), 4, "{names:?}");

    // one is taken out and the other one stays
    let patched = call(&server, "PATCH", "app/servers/0", "{\"down\":true}");
    assert_eq!(
        (patched.status, &json(&patched)["down"]),
        (200, &true.into())
    );
    assert!(all_from(&server, "b"));
    assert_eq!(
        call(&server, "PATCH", "app/servers/0", "{\"drain\":true}").status,
        200
    );
    let peers = json(&call(&server, "GET", "app/", ""))["peers"].clone();
    assert_eq!(
        (&peers[0]["state"], &peers[1]["state"]),
        (&"draining".into(), &"up".into())
    );
    assert!(all_from(&server, "b"));
    assert_eq!(
        call(&server, "PATCH", "app/servers/0", "{\"drain\":false}").status,
        200
    );
    eventually("a again", || body(&server) == "a");

    // what is wrong changes nothing
    let before = call(&server, "GET", "app/servers", "").text();
    let wrong = [
        ("POST", "app/servers", "{", 415, "JsonError"),
        ("POST", "app/servers", "[]", 400, "UpstreamConfFormatError"),
        (
            "POST",
            "app/servers",
            "{\"weight\":1}",
            400,
            "UpstreamConfFormatError",
        ),
        (
            "POST",
            "app/servers",
            "{\"server\":\"127.0.0.1:99999\"}",
            400,
            "UpstreamBadAddress",
        ),
        (
            "POST",
            "app/servers",
            "{\"server\":\"app.test\"}",
            400,
            "UpstreamConfNoResolver",
        ),
        (
            "POST",
            "app/servers",
            "{\"server\":\"127.0.0.1\",\"weight\":0}",
            400,
            "UpstreamBadWeight",
        ),
        (
            "POST",
            "app/servers",
            "{\"server\":\"127.0.0.1\",\"max_conns\":-1}",
            400,
            "UpstreamBadMaxConns",
        ),
        (
            "POST",
            "app/servers",
            "{\"server\":\"127.0.0.1\",\"fail_timeout\":\"x\"}",
            400,
            "UpstreamBadFailTimeout",
        ),
        (
            "POST",
            "app/servers",
            "{\"server\":\"127.0.0.1\",\"colour\":1}",
            400,
            "UpstreamConfFormatError",
        ),
        (
            "POST",
            "app/servers",
            "{\"server\":\"127.0.0.1\",\"down\":{}}",
            400,
            "UpstreamConfFormatError",
        ),
        (
            "PATCH",
            "app/servers/0",
            "{\"weight\":5,\"down\":3}",
            400,
            "UpstreamConfFormatError",
        ),
        (
            "PATCH",
            "app/servers/77",
            "{\"weight\":5}",
            404,
            "UpstreamServerNotFound",
        ),
        (
            "DELETE",
            "app/servers/77",
            "",
            404,
            "UpstreamServerNotFound",
        ),
        ("GET", "app/servers/x", "", 400, "UpstreamBadServerId"),
        ("GET", "nobody", "", 404, "UpstreamNotFound"),
        ("GET", "app/colour", "", 404, "PathNotFound"),
        ("PUT", "app/servers/0", "{}", 405, "MethodDisabled"),
        ("GET", "fixed", "", 400, "UpstreamStatic"),
        (
            "POST",
            "fixed/servers",
            "{\"server\":\"127.0.0.1\"}",
            400,
            "UpstreamStatic",
        ),
    ];
    for (method, path, body, status, code) in wrong {
        assert_eq!(
            refusal(&server, method, path, body),
            (status, code.to_owned()),
            "{method} {path} {body}"
        );
    }
    let twice = format!("{{\"server\":\"{}\"}}", b.addr());
    assert_eq!(
        refusal(&server, "POST", "app/servers", &twice),
        (409, "EntryExists".into())
    );
    assert_eq!(call(&server, "GET", "app/servers", "").text(), before);
    let readonly = exchange(
        server.addr(8080),
        "DELETE /read/9/http/upstreams/app/servers/0 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(readonly.status, 405);

    // the file has it all, and a reload reads it
    let kept = format!("server {} weight=2;\nserver {};\n", a.addr(), b.addr());
    assert_eq!(server.read("app.state"), kept);
    let conf =
        format!("{HEAD}{http}}}").replace("location / {", "location / { add_header X-Conf 2;");
    server.write_conf(&conf);
    server.reload();
    eventually("the new configuration", || {
        get(server.addr(8080), "/", "h").header("X-Conf") == Some("2")
    });
    let names: Vec<_> = (0..6).map(|_| body(&server)).collect();
    assert_eq!(names.iter().filter(|n| *n == "a").count(), 4, "{names:?}");
    let left = call(&server, "DELETE", "app/servers/0", "");
    assert_eq!(
        (left.status, json(&left).as_array().map(Vec::len)),
        (200, Some(1))
    );
    assert!(all_from(&server, "b"));
    assert_eq!(server.read("app.state"), format!("server {};\n", b.addr()));
}

#[test]
fn the_api_shows_what_there_is() {
    let a = named("a");
    let server = start(
        "upstream app { zone app 64k; server %%A%%; }
         server { listen 127.0.0.1:%%PORT_8080%%; location / { proxy_pass http://app; } location /api/ { api; } }",
        &[("A", a.addr().to_string())],
    );
    let api = |path: &str| get(server.addr(8080), path, "localhost");
    assert_eq!(api("/api/").text(), "[1,2,3,4,5,6,7,8,9]");
    assert_eq!(
        api("/api/9/").text(),
        "[\"nginx\",\"processes\",\"connections\",\"http\",\"ssl_certificate_expiry\"]"
    );
    assert_eq!(api("/api/9/http").text(), "[\"requests\",\"upstreams\"]");
    assert_eq!(api("/api/10/nginx").status, 404);
    assert_eq!(
        json(&api("/api/9/nginx?fields=version")),
        serde_json::json!({ "version": "1.31.5" })
    );
    assert!(
        json(&api("/api/9/connections"))["active"]
            .as_u64()
            .is_some_and(|n| n >= 1)
    );
    assert_eq!(body(&server), "a");
    let all = json(&api("/api/9/http/upstreams"));
    let peer = &all["app"]["peers"][0];
    assert_eq!(
        (&all["app"]["zone"], &peer["requests"]),
        (&"app".into(), &1.into())
    );
    assert!(
        peer["sent"].as_u64() > Some(10) && peer["received"].as_u64() > Some(10),
        "{peer}"
    );
    assert!(peer["selected"].as_str().is_some_and(|t| t.ends_with('Z')));
    let brief = json(&api("/api/9/http/upstreams?fields=zone"));
    assert_eq!(brief, serde_json::json!({ "app": { "zone": "app" } }));
}

#[test]
fn the_api_is_for_this_machine_unless_rules_say_otherwise() {
    let server = start(
        "set_real_ip_from 127.0.0.1; real_ip_header X-Real-IP;
         server { listen 127.0.0.1:%%PORT_8080%%; location /api { api; }
             location /open { api; allow 192.0.2.0/24; deny all; } }",
        &[],
    );
    let from = |path: &str, ip: &str| {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Real-IP: {ip}\r\nConnection: close\r\n\r\n"
        );
        exchange(server.addr(8080), &request).status
    };
    assert_eq!(from("/api/", "127.0.0.9"), 200);
    assert_eq!(from("/api/", "192.0.2.1"), 403);
    assert_eq!(from("/open/", "192.0.2.1"), 200);
    assert_eq!(from("/open/", "198.51.100.1"), 403);
}

#[test]
fn changes_at_once_all_count() {
    let server = start(
        "upstream app { zone app 64k; server 127.0.0.1:1; }
         server { listen 127.0.0.1:%%PORT_8080%%; location /api { api write=on; } }",
        &[],
    );
    std::thread::scope(|scope| {
        for i in 0..8 {
            let server = &server;
            scope.spawn(move || {
                let body = format!("{{\"server\":\"127.0.0.1:{}\"}}", 1000 + i);
                assert_eq!(call(server, "POST", "app/servers", &body).status, 201);
            });
        }
    });
    let list = json(&call(&server, "GET", "app/servers", ""));
    let mut ids: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["id"].as_u64().unwrap())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..9).collect::<Vec<_>>());
    // one of several deletions of the same server succeeds
    let statuses = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| call(&server, "DELETE", "app/servers/3", "").status))
            .collect();
        let mut statuses: Vec<_> = tries.into_iter().map(|t| t.join().unwrap()).collect();
        statuses.sort_unstable();
        statuses
    });
    assert_eq!(statuses, [200, 404, 404, 404]);
}
