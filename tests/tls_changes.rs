//! TLS that changes while it serves, and what stands at the edge of a handshake: certificates replaced on disk, early
//! data, key exchange, key logs, hellos that are none.

mod common;

use common::client;
use common::proc::{Couloir, Server};
use common::tls::{Hello, authority, get, issued, pair, request, start, with_pairs};
use common::{DEADLINE, wait_for};
use openssl::ssl::SslVersion;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

const WATCHED: &str = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%% ssl_certificate_watch 50ms;
    server { listen 127.0.0.1:%%PORT_8443%% ssl; server_name one; ssl_certificate one.crt; ssl_certificate_key one.key;
        return 200 ok; }
    server { listen 127.0.0.1:%%PORT_8443%% ssl; server_name two; ssl_certificate two.crt; ssl_certificate_key two.key;
        return 200 ok; } }";

/// Puts a file in another's place at one blow.
fn replace(server: &Server, name: &str, text: impl AsRef<[u8]>) {
    server.write("new", text);
    std::fs::rename(server.dir().join("new"), server.dir().join(name)).unwrap();
}

fn serves(addr: SocketAddr, sni: &str, cn: &str) {
    let seen = wait_for(DEADLINE, || (get(addr, sni).cn == cn).then_some(()));
    assert!(seen.is_some(), "{cn} is not served");
}

#[test]
fn a_new_pair_serves_without_a_reload_and_a_broken_one_changes_nothing() {
    let server = start(WATCHED, &["one", "two"]);
    let addr = server.addr(8443);
    assert_eq!(get(addr, "one").cn, "one");
    let (cert, key) = pair("fresh");
    replace(&server, "one.key", key.private_key_to_pem_pkcs8().unwrap());
    replace(&server, "one.crt", cert.to_pem().unwrap());
    serves(addr, "one", "fresh");
    let log = server.wait_for_text("error.log", "one.crt\" was read anew, 1 servers use it");
    assert!(!log.contains("[emerg]"), "{log}");

    replace(&server, "one.crt", "no certificate");
    let log = server.wait_for_text("error.log", "stays in use");
    assert!(
        log.contains("[error]") && log.contains("one.crt\": PEM_read_bio_X509_AUX() failed (SSL: error:0480006C:PEM routines::no start line"),
        "{log}"
    );
    assert_eq!(get(addr, "one").cn, "fresh");

    // the other server's files are looked at all the same
    let (cert, key) = pair("other");
    replace(&server, "two.crt", cert.to_pem().unwrap());
    replace(&server, "two.key", key.private_key_to_pem_pkcs8().unwrap());
    serves(addr, "two", "other");
    let (cert, key) = pair("third");
    replace(&server, "one.crt", cert.to_pem().unwrap());
    replace(&server, "one.key", key.private_key_to_pem_pkcs8().unwrap());
    serves(addr, "one", "third");
    let log = server.log();
    assert_eq!(log.matches("no start line").count(), 1, "told once: {log}");
    assert!(server.stop().success());
}

/// Keys of root alone: the worker, which is not root, cannot read them.
#[test]
fn the_master_reads_what_the_worker_may_not() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let conf = WATCHED.replace("%%TEST_GLOBALS%%", "%%TEST_GLOBALS%% user nobody nogroup;");
    let server = with_pairs(&conf, &["one", "two"]).start(&Couloir::program());
    let addr = server.addr(8443);
    let (cert, key) = pair("fresh");
    for (name, pem) in [
        ("one.key", key.private_key_to_pem_pkcs8().unwrap()),
        ("one.crt", cert.to_pem().unwrap()),
    ] {
        server.write("new", pem);
        let new = server.dir().join("new");
        let only_root = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&new, only_root).unwrap();
        std::fs::rename(new, server.dir().join(name)).unwrap();
    }
    serves(addr, "one", "fresh");
    assert_eq!(get(addr, "two").cn, "two");
    assert!(server.stop().success());
}

#[test]
fn certificates_that_end_soon_are_told_of_once() {
    let server = start(WATCHED, &["one", "two"]);
    let log = server.wait_for_text("error.log", "two.crt\" expires in ");
    let line = log.lines().find(|l| l.contains("one.crt\"")).unwrap();
    assert!(line.contains("[warn]"), "{line}");
    let days = ["2", "3"].map(|n| format!(" expires in {n} days, at "));
    assert!(days.iter().any(|d| line.contains(d)), "{line}");
    assert!(server.stop().success());
}

#[test]
fn the_api_tells_until_when_certificates_are_good() {
    let conf = WATCHED.replace(
        "ssl_certificate_watch 50ms;",
        "ssl_certificate_watch 50ms; server { listen 127.0.0.1:%%PORT_8080%%; location /api { api; } }",
    );
    let server = start(&conf, &["one", "two"]);
    let expiry = || {
        let answer = client::get(
            server.addr(8080),
            "/api/9/ssl_certificate_expiry",
            "localhost",
        );
        assert_eq!(answer.status, 200);
        serde_json::from_str::<serde_json::Value>(&answer.text()).unwrap()
    };
    let name = |file: &str| server.dir().join(file).display().to_string();
    let days = |of: &serde_json::Value| of["seconds_left"].as_i64().unwrap() as f64 / 86_400.0;
    let told = expiry();
    assert_eq!(told.as_object().unwrap().len(), 2, "{told}");
    let one = &told[name("one.crt")];
    assert!((2.9..=3.0).contains(&days(one)), "{told}");
    let at = one["timestamp"].as_i64().unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert!((at - 3 * 86_400 - now.as_secs() as i64).abs() < 600);
    // one that is replaced counts at once
    let (cert, key) = issued("fresh", None, (0, 30));
    replace(&server, "one.key", key.private_key_to_pem_pkcs8().unwrap());
    replace(&server, "one.crt", cert.to_pem().unwrap());
    let longer = wait_for(DEADLINE, || {
        (days(&expiry()[name("one.crt")]) > 29.0).then_some(())
    });
    assert!(longer.is_some(), "{}", expiry());
    assert!(server.stop().success());
}

#[test]
fn requests_in_early_data() {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        server { listen 127.0.0.1:%%PORT_8443%% ssl; ssl_certificate one.crt; ssl_certificate_key one.key;
            ssl_early_data on; return 200 'early=$ssl_early_data reused=$ssl_session_reused'; }
        server { listen 127.0.0.1:%%PORT_8444%% ssl; ssl_certificate one.crt; ssl_certificate_key one.key;
            return 200 'early=$ssl_early_data reused=$ssl_session_reused'; } }";
    let server = start(conf, &["one"]);
    let ask = |port, session, early| {
        let hello = Hello {
            version: Some(SslVersion::TLS1_3),
            session,
            early,
            ..Hello::default()
        };
        request(server.addr(port), hello, "h", "/")
    };
    let first = ask(8443, None, false).unwrap();
    assert!(first.text.ends_with("early= reused=."), "{}", first.text);
    let resumed = ask(8443, first.session.clone(), false).unwrap();
    assert!(
        resumed.text.ends_with("early= reused=r"),
        "{}",
        resumed.text
    );
    let early = ask(8443, first.session, true).unwrap();
    assert!(early.text.ends_with("early=1 reused=r"), "{}", early.text);
    // a server that takes none says so in its tickets
    let other = ask(8444, None, false).unwrap();
    assert!(ask(8444, other.session, true).is_err());
    assert!(server.stop().success());
}

#[test]
fn the_hybrid_key_exchange_is_negotiated() {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        server { listen 127.0.0.1:%%PORT_8443%% ssl; ssl_certificate one.crt; ssl_certificate_key one.key;
            return 200 '$ssl_curve of $ssl_curves'; } }";
    let server = start(conf, &["one"]);
    let text = get(server.addr(8443), "one").text;
    assert!(
        text.contains("\r\n\r\nX25519MLKEM768 of X25519MLKEM768:"),
        "{text}"
    );
    assert!(server.stop().success());
}

#[test]
fn secrets_are_logged_where_that_is_asked_for() {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        server { listen 127.0.0.1:%%PORT_8443%% ssl; ssl_certificate one.crt; ssl_certificate_key one.key;
            ssl_key_log %%TESTDIR%%/keys; return 200 ok; } }";
    let server = start(conf, &["one"]);
    get(server.addr(8443), "one");
    let keys = server.wait_for_text("keys", "CLIENT_TRAFFIC_SECRET_0 ");
    assert!(keys.lines().all(|l| l.split(' ').count() == 3), "{keys}");
    assert!(server.stop().success());
}

#[test]
fn what_clients_do_wrong_gets_an_alert_and_one_line() {
    let conf = "%%TEST_GLOBALS%% events { } error_log %%TESTDIR%%/info.log info; http { %%TEST_GLOBALS_HTTP%%
        server { listen 127.0.0.1:%%PORT_8443%% ssl; ssl_certificate one.crt; ssl_certificate_key one.key;
            ssl_protocols TLSv1.2; ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256; return 200 ok; } }";
    let server = start(conf, &["one"]);
    let addr = server.addr(8443);
    let old = Hello {
        version: Some(SslVersion::TLS1_3),
        ..Hello::default()
    };
    let refused = request(addr, old, "h", "/").err().unwrap();
    assert!(refused.contains("protocol version"), "{refused}");
    let raw = |bytes: &[u8]| {
        let mut s = TcpStream::connect_timeout(&addr, DEADLINE).unwrap();
        s.set_read_timeout(Some(DEADLINE)).unwrap();
        s.write_all(bytes).unwrap();
        let mut got = Vec::new();
        let _ = s.read_to_end(&mut got);
        got
    };
    // a record of a handshake with nonsense in it: decode_error or unexpected_message, fatal
    let alert = raw(&[0x16, 3, 1, 0, 5, 9, 0, 0, 1, 0]);
    assert!(alert.starts_with(&[0x15, 3]), "{alert:x?}");
    assert_eq!(alert.get(5), Some(&2));
    let mut gone = TcpStream::connect_timeout(&addr, DEADLINE).unwrap();
    gone.write_all(&[0x16, 3, 1]).unwrap();
    drop(gone);
    server.wait_for_text("info.log", "peer closed connection in SSL handshake");
    let log = server.wait_for_text("info.log", "unsupported protocol");
    let lines: Vec<_> = log
        .lines()
        .filter(|l| l.contains("SSL handshaking") && !l.contains("client closed connection"))
        .collect();
    assert_eq!(lines.len(), 3, "{log}");
    for line in lines {
        assert!(
            line.contains("[info]")
                && line.contains("while SSL handshaking, client: 127.0.0.1, server: "),
            "{line}"
        );
    }
    let fine = Hello {
        version: Some(SslVersion::TLS1_2),
        ..Hello::default()
    };
    assert!(request(addr, fine, "h", "/").unwrap().text.ends_with("ok"));
    assert!(server.stop().success());
}

#[test]
fn a_key_that_does_not_fit_is_told_of_with_its_place() {
    let conf = "events { }\nhttp {\n server {\n listen 127.0.0.1:%%PORT_8443%% ssl;\n ssl_certificate one.crt;\n ssl_certificate_key two.key; } }";
    let (status, text) = with_pairs(conf, &["one", "two"]).test(&Couloir::program());
    assert_eq!(status.code(), Some(1));
    let line = text.lines().find(|l| l.contains("[emerg]")).unwrap();
    let why =
        "two.key\") failed (SSL: error:05800074:x509 certificate routines::key values mismatch)";
    assert!(line.ends_with(why), "{line}");
    let place = text.lines().find(|l| l.starts_with("  --> "));
    assert!(place.is_some_and(|l| l.ends_with("nginx.conf:6")), "{text}");
}

#[test]
fn a_client_without_a_shared_cipher_gets_an_alert_and_disturbs_nobody() {
    let conf = "%%TEST_GLOBALS%% events { } error_log %%TESTDIR%%/info.log info; http { %%TEST_GLOBALS_HTTP%%
        server { listen 127.0.0.1:%%PORT_8443%% ssl; ssl_certificate one.crt; ssl_certificate_key one.key;
            ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256; return 200 ok; } }";
    let server = start(conf, &["one"]);
    let addr = server.addr(8443);
    let hello = |ciphers| Hello {
        version: Some(SslVersion::TLS1_2),
        ciphers: Some(ciphers),
        ..Hello::default()
    };
    // half of a hello: another connection, which goes on when the other one has been refused
    let mut slow = TcpStream::connect_timeout(&addr, DEADLINE).unwrap();
    slow.write_all(&[0x16, 3, 1]).unwrap();
    let refused = request(addr, hello("ECDHE-ECDSA-CHACHA20-POLY1305"), "h", "/");
    let alert = refused.err().unwrap();
    assert!(alert.contains("handshake failure"), "{alert}");
    let log = server.wait_for_text("info.log", "no shared cipher");
    let lines: Vec<_> = log
        .lines()
        .filter(|l| l.contains("SSL handshaking") && !l.contains("client closed connection"))
        .collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(
        lines[0].contains("[info]")
            && lines[0].contains(
                "SSL_do_handshake() failed (SSL: error:0A0000C1:SSL routines::no shared cipher)"
            )
            && lines[0].contains(" while SSL handshaking, client: 127.0.0.1, server: "),
        "{log}"
    );
    let fine = request(addr, hello("ECDHE-ECDSA-AES128-GCM-SHA256"), "h", "/").unwrap();
    assert!(fine.text.ends_with("ok"), "{}", fine.text);
    slow.set_read_timeout(Some(DEADLINE)).unwrap();
    slow.write_all(&[0, 5, 9, 0, 0, 1, 0]).unwrap();
    let mut got = Vec::new();
    let _ = slow.read_to_end(&mut got);
    assert!(got.starts_with(&[0x15, 3]), "{got:x?}");
    assert!(server.stop().success());
}

#[test]
fn a_client_certificate_that_has_expired_is_495() {
    let conf = "%%TEST_GLOBALS%% events { } error_log %%TESTDIR%%/info.log info; http { %%TEST_GLOBALS_HTTP%%
        ssl_certificate one.crt; ssl_certificate_key one.key; ssl_client_certificate ca.crt; ssl_verify_client on;
        server { listen 127.0.0.1:%%PORT_8443%% ssl; return 200 ok; }
        server { listen 127.0.0.1:%%PORT_8444%% ssl; error_page 495 =200 /why;
            location / { return 200 ok; } location /why { return 200 '$ssl_client_verify'; } } }";
    let ca = authority("ca");
    let server = with_pairs(conf, &["one"])
        .file("ca.crt", ca.0.to_pem().unwrap(), None)
        .start(&Couloir::program());
    let ask = |port, certificate| {
        let hello = Hello {
            certificate: Some(certificate),
            ..Hello::default()
        };
        request(server.addr(port), hello, "h", "/").unwrap().text
    };
    let expired = issued("client", Some(&ca), (-3, -1));
    let page = ask(8443, &expired);
    assert!(
        page.starts_with("HTTP/1.1 400 ") && page.contains("The SSL certificate error"),
        "{page}"
    );
    let why = ask(8444, &expired);
    assert!(why.ends_with("FAILED:certificate has expired"), "{why}");
    let log = server.wait_for_text("info.log", "certificate verify error");
    let line = log
        .lines()
        .find(|l| l.contains("certificate verify error"))
        .unwrap();
    assert!(
        line.contains("[info]")
            && line.contains("client SSL certificate verify error: (10:certificate has expired)")
            && line.contains("client: 127.0.0.1"),
        "{line}"
    );
    assert!(ask(8443, &issued("client", Some(&ca), (0, 1))).ends_with("ok"));
    assert!(server.stop().success());
}

/// As in nginx with an OpenSSL that has no compression.
#[test]
fn compressed_certificates_need_an_openssl_that_has_compression() {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        server { listen 127.0.0.1:%%PORT_8443%% ssl; ssl_certificate one.crt; ssl_certificate_key one.key;
            ssl_certificate_compression on; return 200 ok; } }";
    let (status, text) = with_pairs(conf, &["one"]).test(&Couloir::program());
    assert!(status.success(), "{text}");
    assert!(
        text.contains("[warn] SSL_CTX_compress_certs() failed, ignored"),
        "{text}"
    );
}

/// Where no session is kept, no ticket is sent that would stand for one; `$ssl_session_id` has one all the same.
#[test]
fn tickets_are_sent_where_they_are_good_for_something() {
    let server = |more: &str, answer: &str| {
        format!("server {{ listen 127.0.0.1:%%PORT_{more} return 200 '{answer}'; }}")
    };
    let conf = |answer: &str| {
        let servers = [
            "8443%% ssl; ssl_session_tickets off;",
            "8444%% ssl; ssl_session_tickets off; ssl_session_cache off;",
            "8445%% ssl; ssl_session_tickets off; ssl_session_cache shared:tls:1m;",
            "8446%% ssl;",
        ]
        .map(|s| server(s, answer));
        format!(
            "%%TEST_GLOBALS%% events {{ }} http {{ %%TEST_GLOBALS_HTTP%% ssl_certificate one.crt; ssl_certificate_key one.key; {} }}",
            servers.concat()
        )
    };
    let mut server = start(&conf("ok"), &["one"]);
    let ask = |server: &Server, port| {
        let hello = Hello {
            version: Some(SslVersion::TLS1_3),
            ..Hello::default()
        };
        request(server.addr(port), hello, "h", "/").unwrap()
    };
    for (port, ticket) in [(8443, false), (8444, false), (8445, true), (8446, true)] {
        let answer = ask(&server, port);
        assert!(answer.text.ends_with("ok"), "{}", answer.text);
        assert_eq!(answer.session.is_some(), ticket, "{port}");
    }
    server.write_conf(&conf("id=$ssl_session_id"));
    server.reload();
    // a handshake that was made before the reload has none yet
    let id = wait_for(DEADLINE, || {
        let text = ask(&server, 8443).text;
        let (_, id) = text.split_once("id=")?;
        Some(id.len()).filter(|n| *n > 0)
    });
    assert_eq!(id, Some(64));
    assert!(server.stop().success());
}
