//! One bad site does not stop the server: names that do not resolve, certificates that cannot be loaded.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::client;
use common::origin::Origin;
use common::proc::{Couloir, Setup};
use common::{DEADLINE, wait_for};
use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use openssl::x509::{X509, X509Name};

/// A name server that knows every name as 127.0.0.1, once it is told to.
struct NameServer {
    addr: SocketAddr,
    knows: Arc<AtomicBool>,
}

impl NameServer {
    fn start() -> NameServer {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (addr, knows) = (
            socket.local_addr().unwrap(),
            Arc::new(AtomicBool::new(false)),
        );
        let known = knows.clone();
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((n, from)) = socket.recv_from(&mut query) {
                let answer = answer(&query[..n], known.load(Ordering::SeqCst));
                let _ = socket.send_to(&answer, from);
            }
        });
        NameServer { addr, knows }
    }
}

fn answer(query: &[u8], known: bool) -> Vec<u8> {
    let mut out = query.to_vec();
    // no additional records are repeated
    let end = 12 + query[12..].iter().position(|b| *b == 0).unwrap() + 5;
    out.truncate(end);
    out[10..12].fill(0);
    out[2] = 0x81;
    out[3] = if known { 0x80 } else { 0x83 };
    let wants_a = query[end - 3] == 1;
    if known && wants_a {
        out[7] = 1;
        out.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\x05\0\x04\x7f\0\0\x01");
    }
    out
}

#[test]
fn a_name_that_does_not_resolve_costs_its_upstream_only_and_is_found_later() {
    let origin = Origin::respond(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback".to_vec());
    let names = NameServer::start();
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        resolver %%DNS%% ipv6=off;
        upstream app { server later.invalid:%%ORIGIN%%; }
        upstream both { server other.invalid:%%ORIGIN%% max_fails=3; server 127.0.0.1:%%ORIGIN%%; }
        server { listen 127.0.0.1:%%PORT_8080%%;
            location /app { proxy_pass http://app; }
            location /both { proxy_pass http://both; }
            location /direct { proxy_pass http://direct.invalid:%%ORIGIN%%/; }
            location /fine { return 200 fine; } } }
        start_degraded on;";
    let setup = |conf: &str| {
        Setup::new(conf)
            .set("ORIGIN", origin.port())
            .set("DNS", names.addr)
    };

    let (status, text) = setup(&conf.replace("start_degraded on;", "")).test(&Couloir::program());
    assert!(!status.success(), "{text}");
    let (status, text) = setup(conf).test(&Couloir::program());
    assert!(status.success(), "{text}");
    for host in ["later", "other", "direct"] {
        let line = text
            .lines()
            .find(|l| l.contains(&format!("host not found in upstream \"{host}.invalid")));
        assert!(
            line.is_some_and(|l| l.contains("[emerg]") && l.contains("nginx.conf:")),
            "{text}"
        );
    }

    let server = setup(conf).start(&Couloir::program());
    let get = |path: &str| client::get(server.addr(8080), path, "localhost");
    assert_eq!(get("/fine").text(), "fine");
    assert_eq!(get("/app").status, 502);
    assert_eq!(get("/direct").status, 502);
    assert_eq!(get("/both").text(), "back");
    assert!(server.log().contains("no live upstreams"));

    names.knows.store(true, Ordering::SeqCst);
    let served = |path: &str| (get(path).text() == "back").then_some(());
    for path in ["/app", "/direct"] {
        assert!(
            wait_for(DEADLINE, || served(path)).is_some(),
            "{path}: {}",
            server.log()
        );
    }
    server.wait_for_text(
        "error.log",
        "host \"later.invalid\" in upstream \"app\" is found now",
    );
    assert!(server.stop().success());
}

/// A certificate for `cn` and its key, self-signed, as PEM.
fn pair(cn: &str) -> (Vec<u8>, Vec<u8>) {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut name = X509Name::builder().unwrap();
    name.append_entry_by_text("CN", cn).unwrap();
    let name = name.build();
    let mut c = X509::builder().unwrap();
    c.set_subject_name(&name).unwrap();
    c.set_issuer_name(&name).unwrap();
    c.set_pubkey(&key).unwrap();
    c.set_not_before(&Asn1Time::days_from_now(0).unwrap())
        .unwrap();
    c.set_not_after(&Asn1Time::days_from_now(3).unwrap())
        .unwrap();
    c.sign(&key, MessageDigest::sha256()).unwrap();
    let pem = c.build().to_pem().unwrap();
    (pem, key.private_key_to_pem_pkcs8().unwrap())
}

/// The body of a response over TLS.
fn get(addr: SocketAddr, name: &str) -> Result<String, String> {
    let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
    builder.set_verify(SslVerifyMode::NONE);
    let tcp = TcpStream::connect_timeout(&addr, DEADLINE).unwrap();
    tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    let connected = builder.build().connect(name, tcp);
    let mut stream = connected.map_err(|e| e.to_string())?;
    let head = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .map_err(|e| e.to_string())?;
    Ok(text.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned())
}

#[test]
fn a_certificate_that_cannot_be_loaded_costs_its_server_only_and_is_found_later() {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        server { listen 127.0.0.1:%%PORT_8443%% ssl; server_name missing;
            ssl_certificate missing.crt; ssl_certificate_key missing.key; return 200 missing; }
        server { listen 127.0.0.1:%%PORT_8443%% ssl; server_name good;
            ssl_certificate good.crt; ssl_certificate_key good.key; return 200 good; }
        server { listen 127.0.0.1:%%PORT_8443%% ssl; server_name broken;
            ssl_certificate good.crt; ssl_certificate_key broken.key; return 200 broken; } }
        start_degraded on;";
    let (cert, key) = pair("good");
    let setup = |conf: &str| {
        Setup::new(conf)
            .file("good.crt", &cert, None)
            .file("good.key", &key, None)
            .file("broken.key", "nothing", None)
    };
    let (status, text) = setup(&conf.replace("start_degraded on", "")).test(&Couloir::program());
    assert!(!status.success(), "{text}");
    let (status, text) = setup(conf).test(&Couloir::program());
    assert!(status.success(), "{text}");
    for wrong in ["missing.crt", "broken.key"] {
        let mut lines = text.lines();
        let line = lines.find(|l| l.contains("cannot load certificate") && l.contains(wrong));
        assert!(line.is_some_and(|l| l.contains("[emerg]")), "{text}");
        // nginx names no place, so it stands on the next line
        let place = lines.next();
        assert!(
            place.is_some_and(|l| l.starts_with("  --> ") && l.contains("nginx.conf:")),
            "{text}"
        );
    }

    let server = setup(conf).start(&Couloir::program());
    let addr = server.addr(8443);
    assert_eq!(get(addr, "good").unwrap(), "good");
    assert!(get(addr, "missing").is_err());
    assert!(get(addr, "broken").is_err());
    // by the default server, which is broken
    assert!(get(addr, "unknown").is_err());
    assert_eq!(get(addr, "good").unwrap(), "good");

    let (other, other_key) = pair("missing");
    server.write("missing.key", other_key);
    server.write("missing.crt", other);
    server.write("broken.key", &key);
    for name in ["missing", "broken"] {
        let served = || (get(addr, name).as_deref() == Ok(name)).then_some(());
        let limit = DEADLINE.max(Duration::from_secs(10));
        assert!(
            wait_for(limit, served).is_some(),
            "{name}: {}",
            server.log()
        );
    }
    assert!(server.stop().success());
}

#[test]
fn a_reload_may_break_one_site_and_mend_it() {
    let conf = "%%TEST_GLOBALS%% events { } http { %%TEST_GLOBALS_HTTP%%
        server { listen 127.0.0.1:%%PORT_8080%%; location / { return 200 1; } } }";
    let mut server = Setup::new(conf).start(&Couloir::program());
    let worse = conf.replace(
        "return 200 1; }",
        "return 200 2; } location /x { proxy_pass http://nowhere.invalid; }",
    );
    server.write_conf(&worse);
    server.reload();
    server.wait_for_text(
        "error.log",
        "host not found in upstream \"nowhere.invalid\"",
    );
    let get = |server: &common::proc::Server, path: &str| {
        client::get(server.addr(8080), path, "localhost")
    };
    assert_eq!(get(&server, "/").text(), "1");

    server.write_conf(&worse.replace("events", "start_degraded on; events"));
    server.reload();
    server.wait_for_text("error.log", "main settings changed");
    assert_eq!(get(&server, "/").text(), "2");
    assert_eq!(get(&server, "/x").status, 502);
    server.write_conf(conf);
    server.reload();
    server.wait_for_text("error.log", "1 location removed, 1 location changed");
    assert_eq!(get(&server, "/").text(), "1");
    server.reload();
    server.wait_for_text("error.log", "reload: nothing changed, ");
    assert!(server.stop().success());
}
