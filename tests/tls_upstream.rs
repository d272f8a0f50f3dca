//! TLS towards origins: protocols, names, verification, certificates, sessions, and what is said of failures.

mod common;

use common::client;
use common::proc::{Couloir, Server};
use common::tls::{pair, start, with_pairs};
use std::net::{SocketAddr, TcpListener};

fn text(addr: SocketAddr, uri: &str) -> String {
    client::get(addr, uri, "h").text()
}

fn status(addr: SocketAddr, uri: &str) -> u16 {
    client::get(addr, uri, "h").status
}

/// A front on 8080 with these locations, and origins on 8443 (as named) and 8444.
fn front(locations: &str, origin: &str) -> Server {
    let conf = format!(
        "%%TEST_GLOBALS%% worker_processes 2; events {{ }} http {{ %%TEST_GLOBALS_HTTP%%
        server {{ listen 127.0.0.1:%%PORT_8080%%; {locations} }}
        server {{ listen 127.0.0.1:%%PORT_8443%% ssl; ssl_certificate one.crt; ssl_certificate_key one.key; {origin} }} }}"
    );
    start(&conf, &["one", "two"])
}

#[test]
fn protocols_ciphers_and_commands() {
    let server = front(
        "location /old { proxy_pass https://127.0.0.1:%%PORT_8443%%; proxy_ssl_protocols TLSv1.2;
            proxy_ssl_ciphers ECDHE-ECDSA-AES256-GCM-SHA384; }
        location /new { proxy_pass https://127.0.0.1:%%PORT_8443%%; }
        location /command { proxy_pass https://127.0.0.1:%%PORT_8443%%; proxy_ssl_conf_command Ciphersuites TLS_CHACHA20_POLY1305_SHA256; }
        location /none { proxy_pass https://127.0.0.1:%%PORT_8443%%; proxy_ssl_protocols TLSv1.2; proxy_ssl_ciphers AES128-SHA; }",
        "return 200 '$ssl_protocol $ssl_cipher';",
    );
    let addr = server.addr(8080);
    assert_eq!(text(addr, "/old"), "TLSv1.2 ECDHE-ECDSA-AES256-GCM-SHA384");
    assert_eq!(text(addr, "/new"), "TLSv1.3 TLS_AES_256_GCM_SHA384");
    assert_eq!(
        text(addr, "/command"),
        "TLSv1.3 TLS_CHACHA20_POLY1305_SHA256"
    );
    assert_eq!(status(addr, "/none"), 502);
    let log = server.wait_for_text(
        "error.log",
        "SSL_do_handshake() failed (SSL: error:0A000410:",
    );
    assert!(
        log.contains(" while SSL handshaking to upstream, client: 127.0.0.1"),
        "{log}"
    );
    assert!(server.stop().success());
}

#[test]
fn verification_and_names() {
    let pass = "proxy_pass https://127.0.0.1:%%PORT_8443%%; proxy_ssl_verify on; proxy_ssl_session_reuse off;";
    let server = front(
        &format!(
            "location /good {{ {pass} proxy_ssl_trusted_certificate one.crt; proxy_ssl_name one; proxy_ssl_server_name on; }}
        location /silent {{ {pass} proxy_ssl_trusted_certificate one.crt; proxy_ssl_name one:443; }}
        location /variable {{ {pass} proxy_ssl_trusted_certificate one.crt; proxy_ssl_name $arg_n; proxy_ssl_server_name on; }}
        location /untrusted {{ {pass} proxy_ssl_trusted_certificate two.crt; proxy_ssl_name one; }}"
        ),
        "return 200 'sni=$ssl_server_name';",
    );
    let addr = server.addr(8080);
    assert_eq!(text(addr, "/good"), "sni=one");
    assert_eq!(text(addr, "/silent"), "sni=");
    assert_eq!(text(addr, "/variable?n=one"), "sni=one");
    assert_eq!(status(addr, "/variable?n=other"), 502);
    server.wait_for_text(
        "error.log",
        "upstream SSL certificate does not match \"other\" while SSL handshaking to upstream, client: 127.0.0.1",
    );
    assert_eq!(status(addr, "/untrusted"), 502);
    server.wait_for_text(
        "error.log",
        "upstream SSL certificate verify error: (18:self-signed certificate) while SSL handshaking to upstream, client: ",
    );
    assert!(server.stop().success());
}

#[test]
fn sessions_are_resumed_by_every_thread() {
    let location = |name: &str, more: &str| {
        format!(
            "location /{name} {{ proxy_pass https://127.0.0.1:%%PORT_8443%%; proxy_set_header Connection close; {more} }}"
        )
    };
    let server = front(
        &[
            location("on", ""),
            location("old", "proxy_ssl_protocols TLSv1.2;"),
            location("off", "proxy_ssl_session_reuse off;"),
        ]
        .concat(),
        "ssl_session_cache shared:s:1m; return 200 $ssl_session_reused;",
    );
    let addr = server.addr(8080);
    for uri in ["/on", "/old"] {
        assert_eq!(text(addr, uri), ".", "{uri}");
        // each on a connection of its own, which either thread may accept
        for _ in 0..8 {
            assert_eq!(text(addr, uri), "r", "{uri}");
        }
    }
    for _ in 0..3 {
        assert_eq!(text(addr, "/off"), ".");
    }
    assert!(server.stop().success());
}

#[test]
fn certificates_for_the_origin() {
    let pass = "proxy_pass https://127.0.0.1:%%PORT_8443%%; proxy_set_header Connection close;";
    let server = front(
        &format!(
            "location /fixed {{ {pass} proxy_ssl_certificate two.crt; proxy_ssl_certificate_key two.key; }}
        location /none {{ {pass} }}
        location /empty {{ {pass} proxy_ssl_certificate ''; proxy_ssl_certificate_key ''; }}
        location /variable {{ {pass} proxy_ssl_certificate $arg_c.crt; proxy_ssl_certificate_key $arg_c.key;
            proxy_ssl_certificate_cache max=4 valid=60s; }}"
        ),
        "ssl_verify_client optional_no_ca; return 200 '$ssl_client_s_dn';",
    );
    let addr = server.addr(8080);
    assert_eq!(text(addr, "/fixed"), "CN=two");
    assert_eq!(text(addr, "/none"), "");
    assert_eq!(text(addr, "/empty"), "");
    assert_eq!(text(addr, "/variable?c=two"), "CN=two");
    assert_eq!(text(addr, "/variable?c=one"), "CN=one");
    assert_eq!(status(addr, "/variable?c=three"), 500);
    let log = server.wait_for_text("error.log", "cannot load certificate \"");
    assert!(
        log.contains("three.crt\": BIO_new_file() failed (SSL: error:80000002:"),
        "{log}"
    );
    // a session belongs to the certificate that it began with
    assert_eq!(text(addr, "/variable?c=two"), "CN=two");
    let (cert, key) = pair("three");
    server.write("three.key", key.private_key_to_pem_pkcs8().unwrap());
    server.write("three.crt", cert.to_pem().unwrap());
    assert_eq!(text(addr, "/variable?c=three"), "CN=three");
    assert!(server.stop().success());
}

#[test]
fn origins_that_do_not_answer_the_hello() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closing = TcpListener::bind("127.0.0.1:0").unwrap();
    let conf = format!(
        "%%TEST_GLOBALS%% events {{ }} http {{ %%TEST_GLOBALS_HTTP%%
        server {{ listen 127.0.0.1:%%PORT_8080%%; proxy_connect_timeout 200ms;
        location /silent {{ proxy_pass https://127.0.0.1:{}; }}
        location /closing {{ proxy_pass https://127.0.0.1:{}; }}
        location /plain {{ proxy_pass https://127.0.0.1:%%PORT_8080%%/; }}
        location / {{ return 200 ok; }} }} }}",
        silent.local_addr().unwrap().port(),
        closing.local_addr().unwrap().port(),
    );
    let server = start(&conf, &[]);
    let addr = server.addr(8080);
    let closer = std::thread::spawn(move || drop(closing.accept()));
    assert_eq!(status(addr, "/closing"), 502);
    server.wait_for_text(
        "error.log",
        "while SSL handshaking to upstream, client: 127.0.0.1, server: , request: \"GET /closing",
    );
    closer.join().unwrap();
    assert_eq!(status(addr, "/silent"), 504);
    server.wait_for_text(
        "error.log",
        "upstream timed out (110: Connection timed out) while SSL handshaking to upstream",
    );
    assert_eq!(status(addr, "/plain"), 502);
    server.wait_for_text(
        "error.log",
        "SSL_do_handshake() failed (SSL: error:0A00010B:SSL routines::wrong version number",
    );
    assert!(server.stop().success());
}

#[test]
fn secrets_are_logged_where_that_is_asked_for() {
    let server = front(
        "location / { proxy_pass https://127.0.0.1:%%PORT_8443%%; proxy_ssl_key_log %%TESTDIR%%/keys; }",
        "return 200 ok;",
    );
    assert_eq!(text(server.addr(8080), "/"), "ok");
    server.wait_for_text("keys", "CLIENT_TRAFFIC_SECRET_0 ");
    assert!(server.stop().success());
}

#[test]
fn mistakes_are_told_with_their_place() {
    let say = |directives: &str| {
        let conf = format!(
            "events {{ }}\nhttp {{\n server {{\n listen 127.0.0.1:%%PORT_8080%%;\n location / {{ proxy_pass https://127.0.0.1:1;\n {directives} }} }} }}"
        );
        let (status, text) = with_pairs(&conf, &["one", "two"])
            .file("none.crl", "", None)
            .test(&Couloir::program());
        (status.code(), text)
    };
    for (directives, expected) in [
        (
            "proxy_ssl_verify on;",
            "no proxy_ssl_trusted_certificate for proxy_ssl_verify\n  --> ",
        ),
        (
            "proxy_ssl_certificate one.crt;",
            "no \"proxy_ssl_certificate_key\" is defined for certificate \"one.crt\"\n  --> ",
        ),
        (
            "proxy_ssl_certificate one.crt; proxy_ssl_certificate_key two.key;",
            "two.key\") failed (SSL: error:05800074:x509 certificate routines::key values mismatch)\n  --> ",
        ),
        (
            "proxy_ssl_certificate x.crt; proxy_ssl_certificate_key two.key;",
            "x.crt\": BIO_new_file() failed (SSL: error:80000002:system library::No such file or directory:calling fopen(",
        ),
        (
            "proxy_ssl_verify on; proxy_ssl_trusted_certificate one.crt; proxy_ssl_crl none.crl;",
            "none.crl\": PEM_read_bio_X509_CRL() failed (SSL: error:0480006C:PEM routines::no start line",
        ),
        (
            "proxy_ssl_ciphers x;",
            "SSL_CTX_set_cipher_list(\"x\") failed (SSL: error:0A0000B9:SSL routines::no cipher match",
        ),
        (
            "proxy_ssl_conf_command X y;",
            "SSL_CONF_cmd(\"X\", \"y\") failed (SSL: error:",
        ),
        (
            "proxy_ssl_protocols TLSv1.4;",
            "invalid value \"TLSv1.4\" in ",
        ),
        (
            "proxy_ssl_certificate_cache valid=1s;",
            "\"proxy_ssl_certificate_cache\" must have the \"max\" parameter in ",
        ),
    ] {
        let (code, text) = say(directives);
        assert_eq!(code, Some(1), "{directives}: {text}");
        assert!(text.contains(expected), "{directives}: {text}");
    }
}

#[test]
fn the_hybrid_key_exchange_is_negotiated_with_an_origin() {
    let server = front(
        "location / { proxy_pass https://127.0.0.1:%%PORT_8443%%; }",
        "return 200 '$ssl_curve';",
    );
    assert_eq!(text(server.addr(8080), "/"), "X25519MLKEM768");
    assert!(server.stop().success());
}

/// Kept connections and sessions serve only requests that would have made the same ones.
#[test]
fn connections_are_shared_between_equals_only() {
    let server = start(
        "%%TEST_GLOBALS%% worker_processes 1; events { } http { %%TEST_GLOBALS_HTTP%%
        upstream u { server 127.0.0.1:%%PORT_8443%% max_fails=0; keepalive 32; }
        upstream other { server 127.0.0.1:%%PORT_8443%% max_fails=0; keepalive 32; }
        server { listen 127.0.0.1:%%PORT_8080%%; proxy_ssl_server_name on;
            location /one { proxy_pass https://u; proxy_ssl_name one; }
            location /same { proxy_pass https://u; proxy_ssl_name one; }
            location /two { proxy_pass https://u; proxy_ssl_name two; }
            location /named { proxy_pass https://u; proxy_ssl_name $arg_n; }
            location /silent { proxy_pass https://u; proxy_ssl_name one; proxy_ssl_server_name off; }
            location /shown { proxy_pass https://u; proxy_ssl_name one; proxy_ssl_certificate two.crt; proxy_ssl_certificate_key two.key; }
            location /old { proxy_pass https://u; proxy_ssl_name one; proxy_ssl_protocols TLSv1.2; }
            location /trusted { proxy_pass https://u; proxy_ssl_name one; proxy_ssl_verify on; proxy_ssl_trusted_certificate one.crt; }
            location /untrusted { proxy_pass https://u; proxy_ssl_name one; proxy_ssl_verify on; proxy_ssl_trusted_certificate two.crt; }
            location /wrong { proxy_pass https://u; proxy_ssl_name other; proxy_ssl_verify on; proxy_ssl_trusted_certificate one.crt; }
            location /bound { proxy_pass https://u; proxy_ssl_name one; proxy_bind 127.0.0.2; }
            location /bound-to { proxy_pass https://u; proxy_ssl_name one; proxy_bind $arg_b; }
            location /keepalive { proxy_pass https://u; proxy_ssl_name one; proxy_socket_keepalive on; }
            location /other { proxy_pass https://other; proxy_ssl_name one; }
            location /plain { proxy_pass http://u; }
        }
        server { listen 127.0.0.1:%%PORT_8443%% ssl; ssl_certificate one.crt; ssl_certificate_key one.key;
            ssl_verify_client optional_no_ca; ssl_session_cache shared:s:1m; default_type text/plain;
            return 200 '$connection:$ssl_server_name:$ssl_client_s_dn:$ssl_protocol:$remote_addr:$ssl_session_reused'; } }",
        &["one", "two"],
    );
    let addr = server.addr(8080);
    let kinds = [
        ("/one", ":one::TLSv1.3:127.0.0.1:"),
        ("/two", ":two::TLSv1.3:127.0.0.1:"),
        ("/named?n=one", ":one::TLSv1.3:127.0.0.1:"),
        ("/named?n=two", ":two::TLSv1.3:127.0.0.1:"),
        ("/silent", ":::TLSv1.3:127.0.0.1:"),
        ("/shown", ":one:CN=two:TLSv1.3:127.0.0.1:"),
        ("/old", ":one::TLSv1.2:127.0.0.1:"),
        ("/trusted", ":one::TLSv1.3:127.0.0.1:"),
        ("/bound", ":one::TLSv1.3:127.0.0.2:"),
        ("/bound-to?b=127.0.0.3", ":one::TLSv1.3:127.0.0.3:"),
        ("/bound-to?b=127.0.0.4", ":one::TLSv1.3:127.0.0.4:"),
        ("/keepalive", ":one::TLSv1.3:127.0.0.1:"),
        ("/other", ":one::TLSv1.3:127.0.0.1:"),
    ];
    let mut connections = std::collections::HashSet::new();
    let mut first = Vec::new();
    for (uri, rest) in kinds {
        // no session is resumed that another kind has begun
        let seen = text(addr, uri);
        let (connection, what) = seen.split_once(':').unwrap();
        assert_eq!(what, format!("{}.", &rest[1..]), "{uri}");
        assert!(connections.insert(connection.to_owned()), "{uri}: {seen}");
        first.push(seen);
    }
    // each finds its own again, whatever is kept beside it
    for ((uri, _), seen) in kinds.iter().zip(&first) {
        assert_eq!(&text(addr, uri), seen, "{uri}");
    }
    assert_eq!(text(addr, "/same"), first[0]);
    assert_eq!(status(addr, "/untrusted"), 502);
    assert_eq!(status(addr, "/wrong"), 502);
    assert_eq!(status(addr, "/plain"), 400);
    assert!(server.stop().success());
}
