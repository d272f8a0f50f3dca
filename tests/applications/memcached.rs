//! memcached.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use super::common::client::{exchange, get};
use super::common::proc::{Couloir, Setup};
use super::peers::Peer;

#[test]
fn values_pages_and_ranges() {
    let peer = Peer::memcached();
    let mut store = TcpStream::connect(("127.0.0.1", peer.port())).unwrap();
    let large = "0123456789".repeat(50_000);
    for (key, value) in [
        ("/a.txt", "the value"),
        ("/with%20space", "spaced"),
        ("/large", &large),
    ] {
        write!(store, "set {key} 0 0 {}\r\n{value}\r\n", value.len()).unwrap();
        let mut line = String::new();
        BufReader::new(&store).read_line(&mut line).unwrap();
        assert_eq!(line, "STORED\r\n");
    }
    let server = Setup::new(
        "%%TEST_GLOBALS%% events { }
         http { %%TEST_GLOBALS_HTTP%%
             types { text/x-test txt; } default_type application/x-other;
             upstream cache { server 127.0.0.1:%%MEMCACHED%%; keepalive 4; }
             server { listen 127.0.0.1:%%PORT_8080%%; server_name localhost;
                 location / { set $memcached_key $uri; memcached_pass cache; error_page 404 = @made; }
                 location /unset { memcached_pass cache; }
                 location @made { return 200 'made: $upstream_status'; } } }",
    )
    .set("MEMCACHED", peer.port())
    .start(&Couloir::program());
    let page = get(server.addr(8080), "/a.txt", "localhost");
    assert_eq!((page.status, page.text().as_str()), (200, "the value"));
    assert_eq!(page.header("Content-Type"), Some("text/x-test"));
    assert_eq!(page.header("Content-Length"), Some("9"));
    assert_eq!(
        get(server.addr(8080), "/with%20space", "localhost").text(),
        "spaced"
    );
    assert_eq!(get(server.addr(8080), "/large", "localhost").text(), large);
    assert_eq!(
        get(server.addr(8080), "/none", "localhost").text(),
        "made: 404"
    );
    let range = exchange(
        server.addr(8080),
        "GET /a.txt HTTP/1.1\r\nHost: localhost\r\nRange: bytes=4-\r\nConnection: close\r\n\r\n",
    );
    assert_eq!((range.status, range.text().as_str()), (206, "value"));
    assert_eq!(get(server.addr(8080), "/unset", "localhost").status, 500);
    assert!(
        server
            .log()
            .contains("the \"$memcached_key\" variable is not set")
    );
}
