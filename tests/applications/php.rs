//! php-fpm.

use super::common::client::{Client, exchange, get};
use super::common::proc::{Couloir, Server, Setup};
use super::peers::Peer;

/// A server in front of php-fpm, with these statements in its `server {}`.
fn serve(php: &Peer, server: &str) -> Server {
    Setup::new(&format!(
        "%%TEST_GLOBALS%% events {{ }}
         http {{ %%TEST_GLOBALS_HTTP%%
             underscores_in_headers on;
             upstream php {{ server unix:%%SOCKET%%; keepalive 4; }}
             server {{ listen 127.0.0.1:%%PORT_8080%%; server_name localhost;
                 root %%APP%%; include %%CONF%%/fastcgi.conf; client_max_body_size 20m;
                 {server} }} }}"
    ))
    .set("SOCKET", php.socket().display())
    .set("APP", php.dir().display())
    .set("CONF", concat!(env!("CARGO_MANIFEST_DIR"), "/conf"))
    .start(&Couloir::program())
}

const ECHO: &str = r#"<?php
foreach (["SCRIPT_FILENAME", "SCRIPT_NAME", "PATH_INFO", "PATH_TRANSLATED", "REQUEST_URI", "QUERY_STRING",
    "REQUEST_METHOD", "CONTENT_TYPE", "CONTENT_LENGTH", "HTTP_HOST", "HTTP_PROXY", "HTTP_X_USER", "HTTP_X_REAL_IP",
    "HTTP_COOKIE", "HTTPS"] as $name) {
    echo $name, "=", $_SERVER[$name] ?? "-", "\n";
}
echo "body=", md5(file_get_contents("php://input")), "\n";
"#;

/// The value that the page shows for a name.
fn value<'t>(text: &'t str, name: &str) -> &'t str {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[test]
fn scripts_are_found_through_root_alias_and_path_info() {
    let php = Peer::php(&[("a/echo.php", ECHO), ("other/in/index.php", ECHO)]);
    let server = serve(
        &php,
        "location ~ ^(.+\\.php)(/.*)?$ {
             fastcgi_split_path_info ^(.+\\.php)(/.*)$; fastcgi_param PATH_INFO $fastcgi_path_info;
             fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name;
             fastcgi_param SCRIPT_NAME $fastcgi_script_name; fastcgi_param REQUEST_URI $request_uri;
             fastcgi_param QUERY_STRING $query_string; fastcgi_param REQUEST_METHOD $request_method;
             fastcgi_pass php; }
         location /app/ { alias %%APP%%/other/in/; fastcgi_index index.php;
             fastcgi_param SCRIPT_FILENAME $request_filename$path; fastcgi_param REQUEST_METHOD GET;
             set $path ''; if ($uri = /app/) { set $path index.php; }
             fastcgi_pass php; }",
    );
    let page = get(
        server.addr(8080),
        "/a/echo.php/more/%20path?x=1",
        "localhost",
    )
    .text();
    let dir = php.dir().display();
    assert_eq!(value(&page, "SCRIPT_FILENAME"), format!("{dir}/a/echo.php"));
    assert_eq!(value(&page, "SCRIPT_NAME"), "/a/echo.php");
    assert_eq!(value(&page, "PATH_INFO"), "/more/ path");
    assert_eq!(value(&page, "REQUEST_URI"), "/a/echo.php/more/%20path?x=1");
    assert_eq!(value(&page, "QUERY_STRING"), "x=1");
    assert_eq!(value(&page, "HTTP_HOST"), "localhost");
    let page = get(server.addr(8080), "/app/", "localhost").text();
    assert_eq!(
        value(&page, "SCRIPT_FILENAME"),
        format!("{dir}/other/in/index.php")
    );
    // php-fpm's own 404
    let missing = get(server.addr(8080), "/a/none.php", "localhost");
    assert_eq!(
        (missing.status, missing.text().as_str()),
        (404, "File not found.\n")
    );
}

#[test]
fn headers_do_not_take_the_place_of_parameters() {
    let php = Peer::php(&[("echo.php", ECHO)]);
    let server = serve(
        &php,
        "location / { include %%CONF%%/fastcgi.conf; fastcgi_param HTTP_X_USER trusted; fastcgi_pass php; }",
    );
    let request = "GET /echo.php HTTP/1.1\r\nHost: localhost\r\nX-User: evil\r\nX_User: evil\r\nX_USER: evil\r\n\
                   Proxy: http://evil\r\nX_Real_Ip: evil\r\nX-Real-IP: 192.0.2.1\r\nCookie: a=b\r\nCookie: c=d\r\n\
                   Connection: close\r\n\r\n";
    let page = exchange(server.addr(8080), request).text();
    assert_eq!(value(&page, "HTTP_X_USER"), "trusted");
    assert_eq!(value(&page, "HTTP_PROXY"), "-");
    assert_eq!(value(&page, "HTTP_X_REAL_IP"), "192.0.2.1");
    assert_eq!(value(&page, "HTTP_COOKIE"), "a=b; c=d");
    // if_not_empty
    assert_eq!(value(&page, "HTTPS"), "-");
}

#[test]
fn bodies_come_whole_buffered_and_not() {
    let php = Peer::php(&[
        ("echo.php", ECHO),
        (
            "upload.php",
            "<?php echo $_FILES['f']['name'], ' ', $_FILES['f']['size'], ' ', $_POST['t'];",
        ),
    ]);
    let server = serve(
        &php,
        "location / { fastcgi_pass php; fastcgi_keep_conn on; }
         location /now/ { fastcgi_pass php; fastcgi_request_buffering off; rewrite ^/now(/.*) $1 break; }",
    );
    let body = "0123456789abcdef".repeat(12_345);
    let send = |path: &str, framing: &str, body: &str| {
        let mut client = Client::connect(server.addr(8080));
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\nConnection: close\r\n\r\n"
        );
        client.send(head).unwrap();
        client.send(body).unwrap();
        client.response("POST").unwrap().text()
    };
    let length = format!("Content-Length: {}", body.len());
    let first = send("/echo.php", &length, &body);
    assert_eq!(value(&first, "CONTENT_LENGTH"), body.len().to_string());
    let sum = value(&first, "body").to_owned();
    let chunks: String = body
        .as_bytes()
        .chunks(40_000)
        .map(|piece| {
            format!(
                "{:x}\r\n{}\r\n",
                piece.len(),
                String::from_utf8_lossy(piece)
            )
        })
        .chain(["0\r\n\r\n".to_owned()])
        .collect();
    let chunked = send("/echo.php", "Transfer-Encoding: chunked", &chunks);
    assert_eq!(value(&chunked, "body"), sum);
    assert_eq!(value(&chunked, "CONTENT_LENGTH"), body.len().to_string());
    let unbuffered = send("/now/echo.php", &length, &body);
    assert_eq!(value(&unbuffered, "body"), sum);
    let empty = send("/echo.php", "Content-Length: 0", "");
    assert_eq!(value(&empty, "body"), "d41d8cd98f00b204e9800998ecf8427e");
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"t\"\r\n\r\ntext\r\n--b\r\n\
         Content-Disposition: form-data; name=\"f\"; filename=\"f.txt\"\r\n\r\n{body}\r\n--b--\r\n"
    );
    let kind = format!(
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {}",
        form.len()
    );
    assert_eq!(
        send("/upload.php", &kind, &form),
        format!("f.txt {} text", body.len())
    );
}

#[test]
fn output_streams_and_large_answers_come_whole() {
    let php = Peer::php(&[
        (
            "stream.php",
            "<?php header('X-Accel-Buffering: no'); echo 'one'; flush(); while (!file_exists(__DIR__ . '/go')) usleep(1000); echo 'two';",
        ),
        (
            "large.php",
            "<?php $p = str_repeat('0123456789', 6554); for ($i = 0; $i < 1600; $i++) echo $p;",
        ),
    ]);
    let server = serve(
        &php,
        "location / { fastcgi_pass php; fastcgi_keep_conn on; }",
    );
    let mut client = Client::connect(server.addr(8080));
    client
        .send("GET /stream.php HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    client.response_head().unwrap();
    // the first part comes before the second is made
    assert_eq!(client.take(8).unwrap(), b"3\r\none\r\n");
    std::fs::write(php.dir().join("go"), "").unwrap();
    assert_eq!(client.read_to_close().unwrap(), b"3\r\ntwo\r\n0\r\n\r\n");
    // 100 MB
    let large = get(server.addr(8080), "/large.php", "localhost");
    assert_eq!(large.body.len(), 65_540 * 1600);
    assert!(large.body.chunks(10).all(|piece| piece == b"0123456789"));
}

#[test]
fn x_accel_redirect_statuses_and_error_output() {
    let php = Peer::php(&[
        (
            "go.php",
            "<?php header('X-Accel-Redirect: /files/a.txt'); header('Content-Type: text/x'); header('X-Gone: 1');",
        ),
        (
            "status.php",
            "<?php http_response_code(418); error_log('said something.'); header('Set-Cookie: a=b'); echo 'tea';",
        ),
        ("move.php", "<?php header('Location: /there');"),
        ("files/a.txt", "the file"),
    ]);
    let server = serve(
        &php,
        "location ~ \\.php$ { fastcgi_pass php; fastcgi_keep_conn on; fastcgi_hide_header X-Powered-By; }
         location /files/ { internal; }",
    );
    let file = get(server.addr(8080), "/go.php", "localhost");
    assert_eq!((file.status, file.text().as_str()), (200, "the file"));
    assert!(
        file.header("Content-Type")
            .is_some_and(|t| t.starts_with("text/x"))
    );
    assert_eq!(file.header("X-Gone"), None);
    let tea = get(server.addr(8080), "/status.php", "localhost");
    assert_eq!((tea.status, tea.text().as_str()), (418, "tea"));
    assert_eq!(tea.header("Status"), None);
    assert_eq!(tea.header("X-Powered-By"), None);
    assert_eq!(tea.header("Set-Cookie"), Some("a=b"));
    let log = server.wait_for_text("error.log", "said something");
    assert!(
        log.contains("FastCGI sent in stderr: \"PHP message: said something\" while "),
        "{log}"
    );
    let moved = get(server.addr(8080), "/move.php", "localhost");
    assert_eq!(moved.status, 302);
    assert_eq!(moved.header("Location"), Some("/there"));
    let head = exchange(
        server.addr(8080),
        "HEAD /status.php HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    );
    assert_eq!((head.status, head.body.len()), (418, 0));
}
