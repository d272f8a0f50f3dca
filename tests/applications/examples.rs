//! The configurations of conf/examples/, unchanged but for folders, sockets and ports.

use std::fs;
use std::path::Path;

use super::common::client::{exchange, get};
use super::common::proc::{Couloir, Server, Setup};
use super::peers::Peer;

const CONF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/conf");

/// A server with an example as its site; `changes` are made to the text, and each must find something to change.
fn site(example: &str, changes: &[(&str, &str)]) -> Server {
    let mut text = fs::read_to_string(Path::new(CONF).join("examples").join(example)).unwrap();
    let listen = ("listen 80;", "listen 127.0.0.1:%%PORT_8080%%;");
    for (from, to) in [listen].iter().chain(changes) {
        assert!(text.contains(from), "{example} has no {from}");
        text = text.replace(from, to);
    }
    let mut setup = Setup::new(&format!(
        "%%TEST_GLOBALS%% events {{ }}
         http {{ %%TEST_GLOBALS_HTTP%% include mime.types;\n{text} }}"
    ));
    for name in [
        "mime.types",
        "fastcgi_params",
        "fastcgi.conf",
        "uwsgi_params",
        "scgi_params",
        "snippets/fastcgi-php.conf",
    ] {
        let file = fs::read(Path::new(CONF).join(name)).unwrap();
        setup = setup.file(name, file, None);
    }
    setup.start(&Couloir::program())
}

/// Status and text of a page.
fn page(server: &Server, host: &str, path: &str) -> (u16, String) {
    let response = get(server.addr(8080), path, host);
    (response.status, response.text())
}

fn is(server: &Server, host: &str, path: &str, status: u16, text: &str) {
    assert_eq!(
        page(server, host, path),
        (status, text.to_owned()),
        "{path}"
    );
}

#[test]
fn wordpress() {
    let front = "<?php if ($_SERVER['QUERY_STRING'] === 'gone=1') http_response_code(404);
        echo 'front ', $_SERVER['REQUEST_URI'], ' ', $_SERVER['PATH_INFO'] ?? '';";
    let admin = "<?php echo 'admin ', $_SERVER['SCRIPT_NAME'], ' ', $_SERVER['PATH_INFO'];";
    let php = Peer::php(&[
        ("index.php", front),
        ("wp-admin/index.php", admin),
        ("wp-content/a.css", "css"),
        ("wp-content/uploads/x.php", "<?php echo 'run';"),
        (".git/config", "secret"),
    ]);
    let socket = format!("unix:{}", php.socket().display());
    let root = php.dir().display().to_string();
    let server = site(
        "wordpress.conf",
        &[
            ("unix:/run/php/php-fpm.sock", &socket),
            ("/var/www/wordpress", &root),
        ],
    );
    let is = |path, status, text| is(&server, "wordpress.example", path, status, text);
    is("/", 200, "front / ");
    is("/2024/a-post/?p=1", 200, "front /2024/a-post/?p=1 ");
    is("/nothing?gone=1", 404, "front /nothing?gone=1 ");
    is("/wp-admin/", 200, "admin /wp-admin/index.php ");
    is(
        "/wp-admin/index.php/more",
        200,
        "admin /wp-admin/index.php /more",
    );
    let css = get(server.addr(8080), "/wp-content/a.css", "wordpress.example");
    assert_eq!(css.text(), "css");
    assert_eq!(css.header("Cache-Control"), Some("max-age=2592000"));
    let refused = |path| page(&server, "wordpress.example", path).0;
    assert_eq!(refused("/.git/config"), 403);
    assert_eq!(refused("/wp-content/uploads/x.php"), 403);
    // a script that is not there does not reach PHP
    assert_eq!(refused("/none.php"), 404);
    assert_eq!(refused("/a.css/x.php"), 404);
}

#[test]
fn laravel() {
    let front = "<?php echo $_SERVER['SCRIPT_FILENAME'] === realpath(__FILE__) ? 'real ' : 'link ', $_SERVER['REQUEST_URI'];";
    let php = Peer::php(&[
        ("releases/1/public/index.php", front),
        ("releases/1/public/other.php", "<?php echo 'run';"),
        ("releases/1/public/app.js", "js"),
    ]);
    std::os::unix::fs::symlink("releases/1", php.dir().join("current")).unwrap();
    let socket = format!("unix:{}", php.socket().display());
    let root = format!("{}/current/public", php.dir().display());
    let server = site(
        "laravel.conf",
        &[
            ("unix:/run/php/php-fpm.sock", &socket),
            ("/var/www/laravel/public", &root),
        ],
    );
    let is = |path, status, text| is(&server, "laravel.example", path, status, text);
    is("/", 200, "real /");
    is("/users/1?x=y", 200, "real /users/1?x=y");
    is("/app.js", 200, "js");
    // the page for what is not found is the application's
    is("/other.php", 404, "real /other.php");
    let front = get(server.addr(8080), "/", "laravel.example");
    assert_eq!(front.header("X-Powered-By"), None);
    assert_eq!(front.header("X-Content-Type-Options"), Some("nosniff"));
}

#[test]
fn django() {
    let app = r#"
def application(env, start):
    path = env['PATH_INFO']
    if path.startswith('/file/'):
        start('200 OK', [('X-Accel-Redirect', '/protected/' + path[6:]), ('Content-Type', 'text/plain')])
        return [b'']
    start('200 OK', [('Content-Type', 'text/plain')])
    return [('%s %s %s' % (env['REQUEST_METHOD'], path, env['HTTP_HOST'])).encode()]
"#;
    let peer = Peer::python("uwsgi", app);
    for folder in ["static", "media", "protected"] {
        fs::create_dir(peer.dir().join(folder)).unwrap();
        fs::write(peer.dir().join(folder).join("a.txt"), folder).unwrap();
    }
    let socket = format!("unix:{}", peer.socket().display());
    let root = peer.dir().display().to_string();
    let server = site(
        "django.conf",
        &[
            ("unix:/run/django/uwsgi.sock", &socket),
            ("/var/www/django", &root),
        ],
    );
    let is = |path, status, text| is(&server, "django.example", path, status, text);
    is("/polls/1/", 200, "GET /polls/1/ django.example");
    is("/static/a.txt", 200, "static");
    is("/media/a.txt", 200, "media");
    is("/file/a.txt", 200, "protected");
    assert_eq!(page(&server, "django.example", "/protected/a.txt").0, 404);
}

#[test]
fn rails() {
    let app = r#"
def application(env, start):
    if env['PATH_INFO'] == '/broken':
        start('500 Oh', [('Content-Type', 'text/plain')])
        return [b'trace']
    start('200 OK', [('Content-Type', 'text/plain')])
    names = ['HTTP_HOST', 'HTTP_X_FORWARDED_FOR', 'HTTP_X_FORWARDED_PROTO', 'HTTP_UPGRADE']
    return [(env['PATH_INFO'] + ''.join(' ' + env.get(n, '-') for n in names)).encode()]
"#;
    let peer = Peer::python("http", app);
    let public = peer.dir().join("public");
    fs::create_dir_all(public.join("about")).unwrap();
    fs::write(public.join("about/index.html"), "about").unwrap();
    fs::create_dir(public.join("assets")).unwrap();
    fs::write(public.join("assets/a.js"), "js").unwrap();
    let socket = format!("unix:{}", peer.socket().display());
    let root = public.display().to_string();
    let server = site(
        "rails.conf",
        &[
            ("unix:/run/rails/puma.sock", &socket),
            ("/var/www/rails/public", &root),
        ],
    );
    let is = |path, status, text| is(&server, "rails.example", path, status, text);
    is("/about", 200, "about");
    is("/posts", 200, "/posts rails.example 127.0.0.1 http -");
    is("/broken", 500, "trace");
    let js = get(server.addr(8080), "/assets/a.js", "rails.example");
    assert_eq!(js.text(), "js");
    assert!(js.header("Expires").is_some());
    let cable = exchange(
        server.addr(8080),
        "GET /cable HTTP/1.1\r\nHost: rails.example\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    );
    assert_eq!(cable.text(), "/cable rails.example - - websocket");
}
