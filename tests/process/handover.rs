//! What a worker knows goes to the one that takes its place: after a reload, and after an upgrade.

use std::net::SocketAddr;

use openssl::ssl::SslVersion;

use super::common::client::{self, Client};
use super::common::origin::Origin;
use super::common::ports::Port;
use super::common::proc::{Couloir, install};
use super::common::tls::{self, Hello};
use super::{Daemon, wait_for_end, worker_of};

/// Begins a session that is called what the request asks for, unless it names one.
fn origin(name: &'static str) -> Origin {
    Origin::respond(move |request| {
        let session = match request.header("Cookie") {
            Some(_) => String::new(),
            None => format!("Set-Cookie: s={}\r\n", request.target()),
        };
        format!("HTTP/1.1 200 OK\r\n{session}Content-Length: 1\r\n\r\n{name}").into_bytes()
    })
}

fn address() -> SocketAddr {
    ([127, 0, 0, 1], Port::reserve().number()).into()
}

fn handshake(addr: SocketAddr, version: SslVersion, session: Option<Vec<u8>>) -> tls::Answer {
    let hello = Hello {
        version: Some(version),
        session,
        ..Hello::default()
    };
    tls::request(addr, hello, "h", "/").unwrap()
}

#[test]
fn sticky_and_tls_sessions_go_to_the_next_worker() {
    let dir = tempfile::TempDir::new().unwrap();
    let program = dir.path().join("nginx");
    install(&Couloir::program(), &program);
    let (cert, key) = tls::pair("h");
    std::fs::write(dir.path().join("crt"), cert.to_pem().unwrap()).unwrap();
    let key = key.private_key_to_pem_pkcs8().unwrap();
    std::fs::write(dir.path().join("key"), key).unwrap();
    let origins = ["a", "b"].map(origin);
    let [a, b] = [0, 1].map(|n: usize| origins[n].addr());
    let (ids, tickets) = (address(), address());
    let dir = dir.path().display();
    let conf = format!(
        "pid nginx.pid; error_log error.log notice; reload_method replace; events {{ }}
         http {{ access_log off; ssl_certificate {dir}/crt; ssl_certificate_key {dir}/key;
           upstream u {{ zone u 64k; server {a}; server {b};
             sticky learn create=$upstream_cookie_s lookup=$cookie_s zone=z:1m; }}
           server {{ listen ADDR; location / {{ proxy_pass http://u; }} }}
           server {{ listen {ids} ssl; ssl_session_cache shared:i:1m; ssl_session_tickets off; return 200 $ssl_session_reused; }}
           server {{ listen {tickets} ssl; ssl_session_cache shared:t:1m; return 200 $ssl_session_reused; }} }}"
    );
    let daemon = Daemon::start(&program, &conf, address());
    let mut sessions: Vec<_> = (0..8)
        .map(|n| (n, client::get(daemon.addr, &format!("/{n}"), "h").text()))
        .collect();
    // not in turns: who does not know them would answer in turns
    sessions.sort_by(|one, other| one.1.cmp(&other.1));
    assert!(sessions[0].1 == "a" && sessions[7].1 == "b");
    let places = [(ids, SslVersion::TLS1_2), (tickets, SslVersion::TLS1_3)];
    let tls = places.map(|(addr, version)| {
        let answer = handshake(addr, version, None);
        assert!(answer.text.ends_with("\r\n\r\n."), "{}", answer.text);
        answer.session.expect("a session")
    });
    for command in ["reload", "upgrade"] {
        let before = worker_of(daemon.master());
        let (code, _, err) = daemon.folder.run_program(&program, &["-s", command]);
        assert_eq!(code, Some(0), "{err}\n{}", daemon.log());
        for (n, who) in &sessions {
            let mut client = Client::connect(daemon.addr);
            let request = format!("GET / HTTP/1.1\r\nHost: h\r\nCookie: s=/{n}\r\n\r\n");
            client.send(request).unwrap();
            let answer = client.response("GET").unwrap().text();
            assert_eq!(answer, *who, "{n} after {command}\n{}", daemon.log());
        }
        for ((addr, version), session) in places.into_iter().zip(&tls) {
            let answer = handshake(addr, version, Some(session.clone()));
            assert!(
                answer.text.ends_with("\r\n\r\nr"),
                "after {command}: {}\n{}",
                answer.text,
                daemon.log()
            );
        }
        wait_for_end(before);
        assert_ne!(worker_of(daemon.master()), before);
    }
    assert!(!daemon.log().contains("is lost"), "{}", daemon.log());
}
