//! TLS with clients: names, certificates, sessions, verification, and what is said of mistakes.

mod common;

use std::fs;

use common::DEADLINE;
use common::client;
use common::proc::Couloir;
use common::tls::{Hello, get, pair, request, start, with_pairs};
use openssl::ssl::SslVersion;

const NAMES: &str = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
    ssl_certificate one.crt; ssl_certificate_key one.key;
    server { listen 127.0.0.1:%%PORT_8443%% ssl; server_name one;
        return 200 '1 $scheme $https $ssl_server_name $ssl_protocol'; }
    server { listen 127.0.0.1:%%PORT_8443%% ssl; server_name two *.two;
        ssl_certificate two.crt; ssl_certificate_key two.key; ssl_protocols TLSv1.2; return 200 '2 $ssl_protocol'; }
    server { listen 127.0.0.1:%%PORT_8443%% ssl; server_name ~^(?<who>.+)\\.re$; return 200 '3 $who'; }
    server { listen 127.0.0.1:%%PORT_8443%% ssl; server_name refused; ssl_reject_handshake on; }
    server { listen 127.0.0.1:%%PORT_8443%% ssl; server_name moved; error_page 497 =200 /p; rewrite ^/d$ /e permanent;
        location = /p { return 200 'plain $scheme'; } } }";

#[test]
fn the_name_chooses_certificate_protocols_and_server() {
    let server = start(NAMES, &["one", "two"]);
    let addr = server.addr(8443);
    let one = get(addr, "one");
    assert!(
        one.text.ends_with("\r\n\r\n1 https on one TLSv1.3"),
        "{}",
        one.text
    );
    assert_eq!(one.cn, "one");
    let two = get(addr, "a.two");
    assert!(two.text.ends_with("2 TLSv1.2"), "{}", two.text);
    assert_eq!(two.cn, "two");
    assert!(get(addr, "x.re").text.ends_with("3 x"));
    assert_eq!(get(addr, "unknown").cn, "one");
    let nameless = request(addr, Hello::default(), "two", "/").unwrap();
    assert_eq!(nameless.cn, "one");
    assert!(nameless.text.ends_with("2 TLSv1.3"), "{}", nameless.text);
    assert!(server.stop().success());
}

#[test]
fn refused_names_redirects_and_plain_http() {
    let server = start(NAMES, &["one", "two"]);
    let addr = server.addr(8443);
    let refused = request(
        addr,
        Hello {
            sni: Some("refused"),
            ..Hello::default()
        },
        "refused",
        "/",
    );
    let text = refused.err().expect("an alert");
    assert!(text.contains("unrecognized name"), "{text}");
    let plain = client::get(addr, "/", "one");
    assert_eq!(plain.status, 400);
    assert!(
        plain
            .text()
            .contains("The plain HTTP request was sent to HTTPS port"),
        "{}",
        plain.text()
    );
    assert_eq!(client::get(addr, "/", "moved").text(), "plain http");
    let moved = request(
        addr,
        Hello {
            sni: Some("moved"),
            ..Hello::default()
        },
        "moved",
        "/d",
    )
    .unwrap();
    assert!(
        moved
            .text
            .contains(&format!("Location: https://moved:{}/e\r\n", addr.port())),
        "{}",
        moved.text
    );
    assert_eq!(get(addr, "one").cn, "one");
    assert!(server.stop().success());
}

#[test]
fn alpn_offers_what_the_listener_speaks() {
    let server = start(NAMES, &["one", "two"]);
    let addr = server.addr(8443);
    let alpn = |alpn| {
        request(
            addr,
            Hello {
                sni: Some("one"),
                alpn,
                ..Hello::default()
            },
            "one",
            "/",
        )
    };
    assert_eq!(
        alpn(b"\x02h2\x08http/1.1").unwrap().alpn.as_deref(),
        Some(&b"http/1.1"[..])
    );
    let none = alpn(b"\x02h2").err().expect("an alert");
    assert!(none.contains("no application protocol"), "{none}");
    assert!(server.stop().success());
}

#[test]
fn certificates_by_variables_are_found_and_found_anew() {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        server { listen 127.0.0.1:%%PORT_8443%% ssl; ssl_certificate $ssl_server_name.crt;
            ssl_certificate_key $ssl_server_name.key; return 200 ok; } }";
    let server = start(conf, &["one", "two"]);
    let addr = server.addr(8443);
    assert_eq!(
        (get(addr, "one").cn, get(addr, "two").cn),
        ("one".into(), "two".into())
    );
    assert!(
        request(
            addr,
            Hello {
                sni: Some("three"),
                ..Hello::default()
            },
            "three",
            "/"
        )
        .is_err()
    );
    let log = server.wait_for_text("error.log", "cannot load certificate");
    assert!(
        log.contains("three.crt\": BIO_new_file() failed (SSL: error:"),
        "{log}"
    );
    assert!(
        log.contains(" while SSL handshaking, client: 127.0.0.1, server: "),
        "{log}"
    );
    let (cert, key) = pair("three");
    server.write("three.key", key.private_key_to_pem_pkcs8().unwrap());
    server.write("three.crt", cert.to_pem().unwrap());
    assert_eq!(get(addr, "three").cn, "three");
    assert!(server.stop().success());
}

#[test]
fn sessions_live_on_through_a_reload() {
    let conf = "%%TEST_GLOBALS%% worker_processes 2; events { } http { %%TEST_GLOBALS_HTTP%%
        ssl_certificate one.crt; ssl_certificate_key one.key; ssl_session_cache shared:tls:1m; ssl_session_tickets %%TICKETS%%;
        server { listen 127.0.0.1:%%PORT_8443%% ssl; return 200 $ssl_session_reused; }
        server { listen 127.0.0.1:%%PORT_8080%%; return 200 %%GENERATION%%; } }";
    for (tickets, version) in [
        ("on", SslVersion::TLS1_3),
        ("off", SslVersion::TLS1_3),
        ("on", SslVersion::TLS1_2),
        ("off", SslVersion::TLS1_2),
    ] {
        let conf = conf.replace("%%TICKETS%%", tickets);
        let mut server = start(&conf.replace("%%GENERATION%%", "old"), &["one"]);
        let addr = server.addr(8443);
        let hello = |session| Hello {
            version: Some(version),
            session,
            ..Hello::default()
        };
        let first = request(addr, hello(None), "h", "/").unwrap();
        assert!(first.text.ends_with("\r\n\r\n."), "{}", first.text);
        server.write_conf(&conf.replace("%%GENERATION%%", "new"));
        server.reload();
        let plain = server.addr(8080);
        let reloaded = common::wait_for(DEADLINE, || {
            (client::get(plain, "/", "h").text() == "new").then_some(())
        });
        assert!(reloaded.is_some());
        let second = request(addr, hello(first.session), "h", "/").unwrap();
        assert!(
            second.text.ends_with("\r\n\r\nr"),
            "{tickets} {version:?}: {}",
            second.text
        );
        assert!(server.stop().success());
    }
}

#[test]
fn clients_are_verified() {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        ssl_certificate one.crt; ssl_certificate_key one.key; ssl_client_certificate client.crt;
        server { listen 127.0.0.1:%%PORT_8443%% ssl; server_name open; return 200 '$ssl_client_verify'; }
        server { listen 127.0.0.1:%%PORT_8443%% ssl; server_name closed; ssl_verify_client on;
            return 200 '$ssl_client_verify $ssl_client_s_dn $ssl_client_serial'; }
        server { listen 127.0.0.1:%%PORT_8443%% ssl; server_name lax; ssl_verify_client optional_no_ca;
            return 200 '$ssl_client_verify'; } }";
    let client = pair("client");
    let stranger = pair("stranger");
    let server = with_pairs(conf, &["one"])
        .file("client.crt", client.0.to_pem().unwrap(), None)
        .start(&Couloir::program());
    let addr = server.addr(8443);
    let ask = |sni, certificate, host| {
        request(
            addr,
            Hello {
                sni: Some(sni),
                certificate,
                ..Hello::default()
            },
            host,
            "/",
        )
        .unwrap()
        .text
    };
    assert!(ask("open", Some(&client), "open").ends_with("NONE"));
    assert!(ask("closed", None, "closed").contains("No required SSL certificate was sent"));
    assert!(ask("closed", Some(&stranger), "closed").contains("The SSL certificate error"));
    let good = ask("closed", Some(&client), "closed");
    assert!(good.ends_with("SUCCESS CN=client 00"), "{good}");
    let lax = ask("lax", Some(&stranger), "lax");
    assert!(lax.ends_with("FAILED:self-signed certificate"), "{lax}");
    // a name that was not negotiated does not open the door
    assert!(ask("open", None, "closed").starts_with("HTTP/1.1 421 "));
    assert!(ask("closed", Some(&client), "open").ends_with("SUCCESS"));
    assert!(server.stop().success());
}

#[test]
fn mistakes_are_told_in_nginx_s_words() {
    let say = |directives: &str| {
        let conf = format!(
            "events {{ }}\nhttp {{\n server {{\n listen 127.0.0.1:%%PORT_8443%% ssl;\n {directives} }} }}"
        );
        let (status, text) = with_pairs(&conf, &["one", "two"])
            .file("none.crt", "", None)
            .test(&Couloir::program());
        (status.code(), text)
    };
    for (directives, expected) in [
        (
            "",
            "no \"ssl_certificate\" is defined for the \"listen ... ssl\" directive in ",
        ),
        (
            "ssl_certificate one.crt;",
            "no \"ssl_certificate_key\" is defined for certificate \"one.crt\"",
        ),
        (
            "ssl_certificate x.crt; ssl_certificate_key one.key;",
            "x.crt\": BIO_new_file() failed (SSL: error:80000002:system library::No such file or directory:calling fopen(",
        ),
        (
            "ssl_certificate none.crt; ssl_certificate_key one.key;",
            "none.crt\": PEM_read_bio_X509_AUX() failed (SSL: error:0480006C:PEM routines::no start line",
        ),
        (
            "ssl_certificate one.crt; ssl_certificate_key two.key;",
            "two.key\") failed (SSL: error:05800074:x509 certificate routines::key values mismatch)",
        ),
        (
            "ssl_certificate one.crt; ssl_certificate_key one.key; ssl_ciphers x;",
            "SSL_CTX_set_cipher_list(\"x\") failed (SSL: error:0A0000B9:SSL routines::no cipher match",
        ),
        (
            "ssl_certificate one.crt; ssl_certificate_key one.key; ssl_verify_client on;",
            "no ssl_client_certificate or ssl_trusted_certificate for ssl_verify_client",
        ),
        (
            "ssl_certificate one.crt; ssl_certificate_key one.key; ssl_conf_command X y;",
            "SSL_CONF_cmd(\"X\", \"y\") failed (SSL: error:",
        ),
        ("ssl_protocols TLSv1.4;", "invalid value \"TLSv1.4\" in "),
        (
            "ssl_session_cache shared:a:1k;",
            "session cache \"shared:a:1k\" is too small in ",
        ),
        (
            "ssl_session_cache shared:a;",
            "invalid session cache \"shared:a\" in ",
        ),
        (
            "ssl_certificate_cache off max=1 x;",
            "invalid parameter \"x\" in ",
        ),
    ] {
        let (code, text) = say(directives);
        assert_eq!(code, Some(1), "{directives}");
        assert!(text.contains(expected), "{directives}: {text}");
    }
    let (code, text) =
        say("ssl_certificate one.crt; ssl_certificate_key one.key; ssl_stapling on;");
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains(
            "[warn] \"ssl_stapling\" ignored, issuer certificate not found for certificate "
        ),
        "{text}"
    );
}

#[test]
fn large_bodies_pass_in_both_directions() {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        server { listen 127.0.0.1:%%PORT_8443%% ssl; ssl_certificate one.crt; ssl_certificate_key one.key; ssl_buffer_size 1k; root %%TESTDIR%%; } }";
    let server = start(conf, &["one"]);
    let body: Vec<u8> = (0..3_000_000u32).map(|n| b'a' + (n % 26) as u8).collect();
    fs::write(server.dir().join("big"), &body).unwrap();
    let got = request(server.addr(8443), Hello::default(), "h", "/big")
        .unwrap()
        .text;
    let (_, text) = got.split_once("\r\n\r\n").unwrap();
    assert!(text.as_bytes() == body);
    assert!(server.stop().success());
}

#[test]
fn ssl_on_makes_plain_listens_speak_tls() {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        ssl_certificate one.crt; ssl_certificate_key one.key;
        server { listen 127.0.0.1:%%PORT_8443%%; server_name one; ssl on; return 200 'tls $scheme'; }
        server { listen 127.0.0.1:%%PORT_8080%%; ssl off; return 200 'plain $scheme'; } }";
    let server = start(conf, &["one"]);
    let one = get(server.addr(8443), "one");
    assert!(one.text.ends_with("tls https"), "{}", one.text);
    assert_eq!(
        client::get(server.addr(8080), "/", "one").text(),
        "plain http"
    );
    let (status, text) = with_pairs(conf, &["one"]).test(&Couloir::program());
    assert!(status.success(), "{text}");
    for said in [
        "[warn] the \"ssl\" directive is deprecated, use the \"listen ... ssl\" directive instead in ",
        "help: write \"ssl\" behind the address, as in \"listen 443 ssl;\"",
    ] {
        assert!(text.contains(said), "{text}");
    }
    assert!(server.stop().success());
}
