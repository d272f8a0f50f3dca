//! From a configuration to what the origin receives.

use crate::config::Reader;
use crate::contract::*;
use crate::engine::core::{Core, HttpCore, HttpServer};
use crate::engine::lookup::{self, Found};
use crate::engine::{LoadOptions, load, target};
use crate::features::upstream::HttpUpstream;
use crate::http::head::{Limits, Parser, Progress};
use std::path::{Path, PathBuf};
use std::sync::Arc;

struct Text(String);

impl Reader for Text {
    fn read(&self, _: &Path) -> std::io::Result<Vec<u8>> {
        Ok(self.0.clone().into_bytes())
    }
    fn glob(&self, _: &str) -> std::io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

fn site(http: &str) -> Result<Arc<Site>, String> {
    let options = LoadOptions {
        conf: "/t/nginx.conf".into(),
        prefix: "/t".into(),
        directives: Vec::new(),
        error_log: "stderr".into(),
        pid: "/t/pid".into(),
        testing: true,
    };
    let text = Text(format!("events {{}}\nhttp {{\n{http}\n}}\n"));
    let mut registry = ModuleRegistry::new();
    registry.add::<Core>().add::<HttpServer>().add::<HttpCore>();
    registry.add::<HttpUpstream>().add::<super::Proxy>();
    assert_eq!(registry.arrange(), Ok(()));
    match load(&Arc::new(registry), &options, &text) {
        Ok(l) => Ok(Arc::new(l.site)),
        Err(e) => Err(e.diag.first_line()),
    }
}

fn server(body: &str) -> Result<Arc<Site>, String> {
    site(&format!("server {{ listen 127.0.0.1:1;\n{body}\n}}"))
}

fn error(body: &str) -> String {
    server(body).err().unwrap_or_default()
}

/// A request that has found its location, and that location's pass.
fn arrive(site: &Arc<Site>, text: &str) -> (Request, Arc<Pass>) {
    let mut r = Request::new(
        SiteRef::new(site.clone()),
        Arc::new(DetachedConn::default()),
    );
    let raw = text.replace('\n', "\r\n");
    let parsed = Parser::default().parse(raw.as_bytes(), &Limits::default(), &mut r.head);
    assert!(matches!(parsed, Progress::Done { .. }), "not a whole head");
    r.method = r.head.method;
    target::apply(&mut r, true).unwrap();
    let Found::At(location) = lookup::location(&mut r) else {
        panic!("redirected to a slash")
    };
    r.location = location;
    let Some(Content::Upstream(pass)) = r.location().hooks.content.clone() else {
        panic!("no pass")
    };
    (r, pass)
}

fn write(r: &mut Request, pass: &Pass, body: BodyLength) -> String {
    let mut out = Vec::new();
    let evaluated = match &pass.target {
        PassTarget::Group(..) => None,
        PassTarget::Dynamic(url, _) => Some(pass.protocol.target(&url.eval(r)).unwrap()),
    };
    let to = match &evaluated {
        Some(t) => Destination {
            host: &t.host,
            port: &t.port,
            uri: Some(&t.uri),
            tls: t.tls,
        },
        None => Destination {
            host: b"",
            port: b"",
            uri: None,
            tls: false,
        },
    };
    pass.protocol.request(r, &to, body, &mut out).unwrap();
    String::from_utf8(out).unwrap().replace("\r\n", "\n")
}

fn sent(body: &str, request: &str) -> String {
    let site = server(body).unwrap();
    let (mut r, pass) = arrive(&site, request);
    write(&mut r, &pass, BodyLength::None)
}

fn line(body: &str, target: &str) -> String {
    let text = sent(body, &format!("GET {target} HTTP/1.1\nHost: h\n\n"));
    text.lines()
        .next()
        .unwrap()
        .strip_prefix("GET ")
        .unwrap()
        .strip_suffix(" HTTP/1.1")
        .unwrap()
        .to_owned()
}

#[test]
fn headers_of_a_plain_request() {
    let text = sent(
        "location / { proxy_pass http://127.0.0.1:8080; }",
        "GET /a?b HTTP/1.1\nHost: h\nConnection: keep-alive\nTE: trailers\nExpect: 100-continue\nUpgrade: x\nX-A: 1\nx-a: 2\n\n",
    );
    assert_eq!(
        text,
        "GET /a?b HTTP/1.1\nHost: 127.0.0.1:8080\nX-A: 1\nx-a: 2\n\n"
    );
}

#[test]
fn headers_that_are_set() {
    let site = server(
        "location / { proxy_pass http://127.0.0.1:80; proxy_set_header Host $host; proxy_set_header X-A \"\";
         proxy_set_header X-B $http_x_none; proxy_set_header X-C a$args; proxy_set_header Connection close; }",
    )
    .unwrap();
    let (mut r, pass) = arrive(
        &site,
        "POST /?q HTTP/1.1\nHost: Name:80\nX-A: 1\nX-B: 2\nX-C: 3\nContent-Length: 2\n\n",
    );
    let known = write(&mut r, &pass, BodyLength::Known(2));
    assert_eq!(
        known,
        "POST /?q HTTP/1.1\nHost: name\nX-C: aq\nConnection: close\nContent-Length: 2\n\n"
    );
    let chunked = write(&mut r, &pass, BodyLength::Chunked);
    assert!(
        chunked.ends_with("\nTransfer-Encoding: chunked\n\n"),
        "{chunked}"
    );
}

#[test]
fn old_version_method_and_no_headers() {
    let text = sent(
        "location / { proxy_pass http://127.0.0.1; proxy_http_version 1.0; proxy_method PUT; proxy_set_header Host \"\";
         proxy_pass_request_headers off; }",
        "GET / HTTP/1.1\nHost: h\nX: y\n\n",
    );
    assert_eq!(text, "PUT / HTTP/1.0\n\n");
}

#[test]
fn the_uri_is_passed_or_replaced() {
    let plain = "location / { proxy_pass http://127.0.0.1; }";
    assert_eq!(line(plain, "/x/../a%20b?c"), "/x/../a%20b?c");
    let replaced = "location /a/ { proxy_pass http://127.0.0.1/b/; }";
    assert_eq!(line(replaced, "/a/c?d"), "/b/c?d");
    assert_eq!(line(replaced, "/a/c%20d"), "/b/c%20d");
    assert_eq!(line(replaced, "/x/../a/%41"), "/b/A");
    let exact = "location = /a { proxy_pass http://127.0.0.1/?x=; }";
    assert_eq!(line(exact, "/a"), "/?x=");
    let regex = "location ~ ^/r { proxy_pass http://127.0.0.1; }";
    assert_eq!(line(regex, "/r%41"), "/r%41");
}

#[test]
fn the_uri_after_break() {
    let site = server("location /a/ { proxy_pass http://127.0.0.1/b/; }").unwrap();
    let (mut r, pass) = arrive(&site, "GET /a/x HTTP/1.1\nHost: h\n\n");
    r.set_uri(b"/new".to_vec(), b"k".to_vec());
    r.valid_location = false;
    let text = write(&mut r, &pass, BodyLength::None);
    assert!(text.starts_with("GET /new?k HTTP/1.1\n"), "{text}");
}

#[test]
fn targets_with_variables() {
    let with_uri = "location / { proxy_pass http://127.0.0.1:81$request_uri/x; }";
    assert_eq!(line(with_uri, "/a?b"), "/a?b/x");
    let without =
        "location / { set_test; }".replace("set_test;", "proxy_pass http://127.0.0.1:$arg_p;");
    assert_eq!(line(&without, "/%41?p=81"), "/%41?p=81");
    let args = "location / { proxy_pass http://127.0.0.1?$args; }";
    assert_eq!(line(args, "/a?b"), "/?b");

    let site = server("location / { proxy_pass $scheme://127.0.0.1:$arg_p; proxy_set_header X $proxy_host-$proxy_port; }").unwrap();
    let (mut r, pass) = arrive(&site, "GET /?p=81 HTTP/1.1\nHost: h\n\n");
    let text = write(&mut r, &pass, BodyLength::None);
    assert!(
        text.contains("\nHost: 127.0.0.1:81\nX: 127.0.0.1:81-81\n"),
        "{text}"
    );
    assert_eq!(
        pass.protocol.target(b"ftp://x").unwrap_err(),
        "invalid URL prefix in \"ftp://x\""
    );
    assert_eq!(
        pass.protocol.target(b"http://").unwrap_err(),
        "invalid URL prefix in \"http://\""
    );
    assert_eq!(
        pass.protocol.target(b"http://:1").unwrap_err(),
        "no host in upstream \":1\""
    );
}

#[test]
fn groups_are_found_wherever_they_stand() {
    let site = site(
        "server { listen 127.0.0.1:1; location /a { proxy_pass http://U; } location /b { proxy_pass http://u/; }
           location /c { proxy_pass http://127.0.0.1:9; } location /d { proxy_pass http://127.0.0.1:9/x; }
           location /v { proxy_pass http://$arg_n; } }
         upstream u { server 127.0.0.1:8 weight=3 max_fails=2 fail_timeout=5s max_conns=7; server unix:/x backup; keepalive 5; }",
    )
    .unwrap();
    let group = |path: &str| {
        let (_, pass) = arrive(&site, &format!("GET {path} HTTP/1.1\nHost: h\n\n"));
        match &pass.target {
            PassTarget::Group(g, false) => g.get().unwrap().clone(),
            _ => panic!("not a known group"),
        }
    };
    assert!(Arc::ptr_eq(&group("/a"), &group("/b")) && Arc::ptr_eq(&group("/c"), &group("/d")));
    let u = group("/a");
    assert_eq!((u.keepalive.connections, u.keepalive.local), (5, false));
    let peers: Vec<_> = u
        .peers()
        .map(|p| {
            (
                p.name.to_string(),
                p.weight,
                p.max_fails,
                p.fail_timeout,
                p.max_conns,
                p.backup,
            )
        })
        .collect();
    assert_eq!(
        peers,
        [
            ("127.0.0.1:8".to_owned(), 3, 2, 5, 7, false),
            ("unix:/x".to_owned(), 1, 1, 10, 0, true)
        ]
    );
    let (_, pass) = arrive(&site, "GET /v HTTP/1.1\nHost: h\n\n");
    let PassTarget::Dynamic(_, groups) = &pass.target else {
        panic!("not dynamic")
    };
    let groups = groups.get().unwrap();
    assert!(groups.find("U", 80, false).is_some() && groups.find("u", 80, true).is_none());
    assert!(
        groups.find("127.0.0.1", 9, true).is_some()
            && groups.find("127.0.0.1", 80, false).is_none()
    );
}

#[test]
fn rewriting() {
    let site = server(
        "location /l/ { proxy_pass http://127.0.0.1:8/b/; proxy_cookie_domain .o.test $host; proxy_cookie_path ~^/x(.*) /y$1;
           proxy_cookie_flags id secure samesite=lax; }
         location /v/ { proxy_pass http://127.0.0.1:8; proxy_redirect ~*^HTTP://[^/]+(?<tail>/.*) $scheme://n$tail; proxy_redirect / /z/; }
         location /o/ { proxy_pass http://127.0.0.1:8; proxy_redirect off; }",
    )
    .unwrap();
    let rewritten = |path: &str, name: &str, value: &str| {
        let (mut r, pass) = arrive(&site, &format!("GET {path} HTTP/1.1\nHost: h\n\n"));
        let to = Destination {
            host: b"",
            port: b"",
            uri: None,
            tls: false,
        };
        let mut out = Vec::new();
        pass.protocol
            .rewrite(&mut r, &to, name.as_bytes(), value.as_bytes(), &mut out)
            .then(|| String::from_utf8(out).unwrap())
    };
    let some = |s: &str| Some(s.to_owned());
    assert_eq!(
        rewritten("/l/", "Location", "http://127.0.0.1:8/b/c?d"),
        some("/l/c?d")
    );
    assert_eq!(
        rewritten("/l/", "Refresh", "7; url=http://127.0.0.1:8/b/c"),
        some("7; url=/l/c")
    );
    assert_eq!(rewritten("/l/", "Location", "http://127.0.0.1/b/c"), None);
    assert_eq!(
        rewritten("/l/", "X-Location", "http://127.0.0.1:8/b/c"),
        None
    );
    assert_eq!(
        rewritten("/v/", "Location", "http://a/t?u"),
        some("http://n/t?u")
    );
    assert_eq!(rewritten("/v/", "Location", "/t"), some("/z/t"));
    assert_eq!(rewritten("/o/", "Location", "http://127.0.0.1:8/t"), None);
    assert_eq!(
        rewritten("/l/", "Set-Cookie", "a=b; domain=.O.test; path=/xz"),
        some("a=b; domain=.h; path=/yz")
    );
    assert_eq!(
        rewritten("/l/", "Set-Cookie", "id=b; Path=/q"),
        some("id=b; Path=/q; Secure; SameSite=Lax")
    );
    assert_eq!(rewritten("/l/", "Set-Cookie", "a=b; path=/q"), None);
}

#[test]
fn inner_locations_do_not_inherit_the_pass() {
    let site = server(
        "location /a { proxy_pass http://127.0.0.1:8; proxy_buffering off; location /a/b { } }",
    )
    .unwrap();
    let mut passes = site.locations.iter().map(|l| {
        (
            String::from_utf8_lossy(&l.name).into_owned(),
            l.hooks.content.is_some(),
        )
    });
    assert!(passes.any(|p| p == ("/a".into(), true)));
    assert!(
        site.locations
            .iter()
            .any(|l| &*l.name == b"/a/b" && l.hooks.content.is_none())
    );
}

#[test]
fn refusals_in_nginx_words() {
    let uri = "\"proxy_pass\" cannot have URI part in location given by regular expression, or inside named location, \
               or inside \"if\" statement, or inside \"limit_except\" block in /t/nginx.conf:4";
    for (body, expected) in [
        (
            "location / { proxy_pass ftp://x; }",
            "invalid URL prefix in /t/nginx.conf:4",
        ),
        (
            "location / { proxy_pass http://; }",
            "no host in upstream \"\" in /t/nginx.conf:4",
        ),
        (
            "location / { proxy_pass http://127.0.0.1:0; }",
            "invalid port in upstream \"127.0.0.1:0\" in /t/nginx.conf:4",
        ),
        ("location ~ / { proxy_pass http://127.0.0.1/; }", uri),
        ("location @a { proxy_pass http://127.0.0.1/; }", uri),
        (
            "location / { proxy_pass http://no-such-host.invalid:1; }",
            "host not found in upstream \"no-such-host.invalid\" in /t/nginx.conf:4",
        ),
        (
            "location / { proxy_pass http://127.0.0.1; proxy_pass http://127.0.0.1; }",
            "\"proxy_pass\" directive is duplicate in /t/nginx.conf:4",
        ),
        (
            "location / { proxy_redirect default; }",
            "\"proxy_redirect default\" should be placed after the \"proxy_pass\" directive in /t/nginx.conf:4",
        ),
        (
            "proxy_redirect off; proxy_redirect off;",
            "\"proxy_redirect\" directive is duplicate in /t/nginx.conf:4",
        ),
        (
            "proxy_buffers 1 4k;",
            "there must be at least 2 \"proxy_buffers\" in /t/nginx.conf:6",
        ),
        (
            "proxy_busy_buffers_size 64k;",
            "\"proxy_busy_buffers_size\" must be less than the size of all \"proxy_buffers\" minus one buffer in /t/nginx.conf:6",
        ),
        (
            "proxy_next_upstream what;",
            "invalid value \"what\" in /t/nginx.conf:4",
        ),
        (
            "proxy_bind nowhere;",
            "invalid address \"nowhere\" in /t/nginx.conf:4",
        ),
        (
            "location / { proxy_pass https://127.0.0.1; proxy_ssl_verify on; }",
            "no proxy_ssl_trusted_certificate for proxy_ssl_verify",
        ),
    ] {
        assert_eq!(error(body), expected, "{body}");
    }
    let of = |http: &str| site(http).err().unwrap_or_default();
    assert_eq!(
        of("upstream u { }"),
        "no servers are inside upstream in /t/nginx.conf:3"
    );
    assert_eq!(
        of("upstream u { server 127.0.0.1; } upstream U { server 127.0.0.1; }"),
        "duplicate upstream \"U\" in /t/nginx.conf:3"
    );
    assert_eq!(
        of("upstream u { server 127.0.0.1 weight=0; }"),
        "invalid parameter \"weight=0\" in /t/nginx.conf:3"
    );
    assert_eq!(
        of("upstream u { server no-such-host.invalid; }"),
        "host not found in upstream \"no-such-host.invalid\" in /t/nginx.conf:3"
    );
    let port = "upstream \"u\" may not have port 81 in /t/nginx.conf:3";
    let (block, pass) = (
        "upstream u { server 127.0.0.1; }",
        "server { location / { proxy_pass http://u:81; } }",
    );
    assert_eq!(of(&format!("{block} {pass}")), port);
    assert_eq!(of(&format!("{pass} {block}")), port);
}
