//! Files, indexes and `try_files` from a configuration to the answer.

use crate::config::Reader;
use crate::contract::paths;
use crate::contract::subrequest::{self, Ask};
use crate::contract::*;
use crate::engine::{LoadOptions, load};
use crate::http::method::Method;
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

/// A server with `body` in it, below `prefix`.
fn site(prefix: &Path, body: &str) -> Result<SiteRef, String> {
    let options = LoadOptions {
        conf: prefix.join("nginx.conf"),
        prefix: prefix.into(),
        directives: Vec::new(),
        error_log: "stderr".into(),
        pid: "pid".into(),
        testing: true,
    };
    let text = format!(
        "events {{}}\nhttp {{ access_log off; absolute_redirect off; error_log stderr emerg; server {{ listen 127.0.0.1:1;\n{body}\n}} }}\n"
    );
    match load(&Arc::new(super::builtin()), &options, &Text(text)) {
        Ok(l) => Ok(SiteRef::new(Arc::new(l.site))),
        Err(e) => Err(e.diag.first_line()),
    }
}

/// What a request is answered: the status, then where it leads to or what it brings.
fn answer(site: &SiteRef, method: Method, target: &str) -> String {
    let mut parent = Request::new(site.clone(), Arc::new(DetachedConn::default()));
    parent.uri_changes = 11;
    let (uri, args) = crate::http::uri::split_args(target.as_bytes());
    let ask = Ask {
        uri,
        args,
        method,
        body: true,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let sub = runtime
        .block_on(subrequest::run(&mut parent, ask))
        .unwrap_or_else(|s| panic!("{s}"));
    let out = &sub.request.out;
    let text = match out.status {
        301 => String::from_utf8_lossy(&out.location).into_owned(),
        200 => String::from_utf8_lossy(&sub.body).into_owned(),
        _ => String::new(),
    };
    format!("{} {text}", sub.status()).trim_end().to_owned()
}

fn documents() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("html/sub/empty")).unwrap();
    for (name, text) in [
        ("index.html", "root index"),
        ("x.txt", "x"),
        ("sub/n.html", "n"),
        ("sub/zero", ""),
    ] {
        std::fs::write(dir.path().join("html").join(name), text).unwrap();
    }
    dir
}

#[test]
fn serves_files() {
    let dir = documents();
    let site = site(dir.path(), "location /list/ { alias html/sub/; autoindex on; autoindex_format json; } location /gif { empty_gif; }").unwrap();
    for (target, want) in [
        ("/x.txt", "200 x"),
        ("/", "200 root index"),
        ("/sub", "301 /sub/"),
        ("/sub?a=b", "301 /sub/?a=b"),
        ("/sub/", "403"),
        ("/sub/zero", "200"),
        ("/none", "404"),
        ("/none/", "404"),
        ("/x.txt/", "404"),
        ("/x.txt/y", "404"),
    ] {
        assert_eq!(answer(&site, Method::Get, target), want, "{target}");
    }
    assert!(
        answer(&site, Method::Get, "/list/")
            .starts_with("200 [\r\n{ \"name\":\"empty\", \"type\":\"directory\"")
    );
    assert_eq!(answer(&site, Method::Post, "/x.txt"), "405");
    assert_eq!(answer(&site, Method::Put, "/x.txt"), "405");
    assert_eq!(answer(&site, Method::Put, "/gif"), "405");
}

#[test]
fn finds_what_an_alias_stands_for() {
    let dir = documents();
    let site = site(
        dir.path(),
        "location /a/ { alias html/sub/; location /a/n { } }
         location /b { alias html/sub; }
         location = /exact { alias html/x.txt; }
         location ~ ^/re/(.+)$ { alias html/$1; }
         location ~ ^/rt/(.+)$ { alias html/$1; try_files $uri /x.txt =404; }
         location /rw/ { alias html/sub/; rewrite ^/rw/(.*) /q/$1 break; }",
    )
    .unwrap();
    for (target, want) in [
        ("/a/n.html", "200 n"),
        ("/a", "404"),
        ("/a/empty", "301 /a/empty/"),
        ("/b/n.html", "200 n"),
        ("/exact", "200 x"),
        ("/re/x.txt", "200 x"),
        ("/re/sub", "301 /re/sub/"),
        ("/rt/none", "404"),
        ("/rw/n.html", "500"),
    ] {
        assert_eq!(answer(&site, Method::Get, target), want, "{target}");
    }
}

#[test]
fn tries_files() {
    let dir = documents();
    let site = site(
        dir.path(),
        "location /f/ { try_files $uri $uri/ /index.html; }
         location /n/ { try_files /none @named; }
         location /u/ { try_files /none /x.txt?a=b; }
         location /d/ { try_files /sub =404; }
         location /e/ { try_files /sub/ =404; }
         location /c/ { try_files /none =418; }
         location /al/ { alias html/sub/; try_files $uri =404; }
         location /outer/ { try_files /none =418; location /outer/inner { } }
         location @named { return 200 named; }",
    )
    .unwrap();
    for (target, want) in [
        ("/f/none", "200 root index"),
        ("/n/x", "200 named"),
        ("/u/x", "200 x"),
        ("/d/x", "404"),
        ("/e/x", "301 /sub/"),
        ("/c/x", "418"),
        ("/al/n.html", "200 n"),
        ("/al/none", "404"),
        ("/outer/x", "418"),
        // not inherited
        ("/outer/inner", "404"),
    ] {
        assert_eq!(answer(&site, Method::Get, target), want, "{target}");
    }
}

#[test]
fn finds_indexes() {
    let dir = documents();
    let site = site(
        dir.path(),
        "location /sub/ { index none.html n.html; }
         location /v/ { alias html/sub/; index $arg_i; }
         location /abs/ { index none.html /x.txt; alias html/sub/; }
         location /loop/ { index /loop/; }",
    )
    .unwrap();
    for (target, want) in [
        ("/sub/", "200 n"),
        ("/v/?i=n.html", "200 n"),
        ("/v/?i=/x.txt", "200 x"),
        ("/sub/empty/", "403"),
        ("/abs/", "200 x"),
        ("/loop/", "500"),
    ] {
        assert_eq!(answer(&site, Method::Get, target), want, "{target}");
    }
}

#[test]
fn roots_are_what_nginx_makes_of_them() {
    let prefix = Path::new("/p");
    for (root, want) in [
        ("root html", "/p/html/u"),
        ("root html/", "/p/html/u"),
        ("root /", "/u"),
        ("root /a//", "/a//u"),
        ("root $arg_none", "/p//u"),
        ("root /v/$arg_none/", "/v//u"),
    ] {
        let site = site(prefix, &format!("{root};")).unwrap();
        let mut r = Request::new(site.clone(), Arc::new(DetachedConn::default()));
        r.location = site.servers[0].default_location;
        r.uri = b"/u".to_vec();
        assert_eq!(
            String::from_utf8(paths::map_path(&r)).unwrap(),
            want,
            "{root}"
        );
    }
}

#[test]
fn directives_are_refused_as_by_nginx() {
    for (body, want) in [
        (
            "try_files /a;",
            "invalid number of arguments in \"try_files\" directive",
        ),
        ("try_files /a =x;", "invalid code \"=x\""),
        ("try_files /a =1000;", "invalid code \"=1000\""),
        (
            "try_files /a /b; try_files /c /d;",
            "\"try_files\" directive is duplicate",
        ),
        (
            "index \"\";",
            "index \"\" in \"index\" directive is invalid",
        ),
        ("autoindex_format yaml;", "invalid value \"yaml\""),
        ("dav_access all:x;", "invalid value \"all:x\""),
        ("dav_methods GET;", "invalid value \"GET\""),
        (
            "random_index on;",
            "\"random_index\" directive is not allowed here",
        ),
    ] {
        let error = site(Path::new("/p"), body).err().unwrap_or_default();
        assert!(error.contains(want), "{body}: {error}");
    }
}
