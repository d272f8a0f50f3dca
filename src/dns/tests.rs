use super::*;
use tokio::net::UdpSocket;

/// A name server on loopback; counts the queries that it answered.
struct Server {
    addr: SocketAddr,
    queries: Arc<AtomicUsize>,
}

impl Server {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let queries = Arc::new(AtomicUsize::new(0));
        let counter = queries.clone();
        tokio::spawn(async move {
            let mut buf = [0; 1500];
            while let Ok((n, from)) = socket.recv_from(&mut buf).await {
                if let Some(reply) = reply(&buf[..n]) {
                    counter.fetch_add(1, Relaxed);
                    socket.send_to(&reply, from).await.unwrap();
                }
            }
        });
        Self { addr, queries }
    }

    fn resolver(&self, change: impl FnOnce(&mut ResolverConf)) -> Arc<Resolver> {
        let mut conf = ResolverConf::new(vec![self.addr]);
        change(&mut conf);
        Arc::new(Resolver::new(conf).unwrap())
    }
}

/// `two.test` has two A and one AAAA record, `four.test` one A, `short.test` TTL 0; `mute.test` gets
/// no answer, `broken.test` SERVFAIL and the rest NXDOMAIN.
fn reply(query: &[u8]) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    while query[at] != 0 {
        let len = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + len]).to_lowercase());
        at += len + 1;
    }
    let question = &query[12..at + 5];
    let kind = query[at + 2];
    let name = labels.join(".");
    let (a, aaaa) = (1, 28);
    let v4 = |last: u8| vec![127, 0, 0, last];
    let (rcode, ttl, data) = match (name.as_str(), kind) {
        ("mute.test", _) => return None,
        ("broken.test", _) => (2, 0, vec![]),
        ("two.test", k) if k == a => (0, 300, vec![v4(1), v4(2)]),
        ("two.test", k) if k == aaaa => {
            let mut v6 = vec![0; 15];
            v6.push(1);
            (0, 300, vec![v6])
        }
        ("four.test", k) if k == a => (0, 300, vec![v4(4)]),
        ("short.test", k) if k == a => (0, 0, vec![v4(5)]),
        ("four.test" | "short.test", _) => (0, 0, vec![]),
        _ => (3, 0, vec![]),
    };
    let mut out = query[..2].to_vec();
    out.extend([0x81, 0x80 | rcode, 0, 1, 0, data.len() as u8, 0, 0, 0, 0]);
    out.extend(question);
    for rdata in data {
        out.extend([0xc0, 12, 0, kind, 0, 1]);
        out.extend(u32::to_be_bytes(ttl));
        out.extend([0, rdata.len() as u8]);
        out.extend(rdata);
    }
    Some(out)
}

fn text(ips: Result<Vec<IpAddr>, ResolveError>) -> String {
    match ips {
        Ok(ips) => ips.iter().map(|ip| format!("{ip} ")).collect(),
        Err(e) => e.to_string(),
    }
}

#[tokio::test]
async fn both_families_rotated_and_kept() {
    let server = Server::start().await;
    let resolver = server.resolver(|_| ());
    let ask = |name: &'static str| {
        let resolver = resolver.clone();
        async move { text(resolver.resolve(name).await) }
    };
    assert_eq!(ask("two.test").await, "127.0.0.1 127.0.0.2 ::1 ");
    assert_eq!(ask("TWO.test").await, "127.0.0.2 ::1 127.0.0.1 ");
    assert_eq!(ask("two.test.").await, "::1 127.0.0.1 127.0.0.2 ");
    assert_eq!(server.queries.load(Relaxed), 2, "A and AAAA, once");
    assert_eq!(ask("four.test").await, "127.0.0.4 ");
    assert_eq!(ask("192.0.2.7").await, "192.0.2.7 ");
    assert_eq!(ask("[::1]").await, "::1 ");
}

#[tokio::test]
async fn families_can_be_off() {
    let server = Server::start().await;
    let v4 = server.resolver(|conf| conf.ipv6 = false);
    let v6 = server.resolver(|conf| conf.ipv4 = false);
    assert_eq!(text(v4.resolve("two.test").await), "127.0.0.1 127.0.0.2 ");
    assert_eq!(server.queries.load(Relaxed), 1);
    assert_eq!(text(v6.resolve("two.test").await), "::1 ");
    assert_eq!(
        text(v6.resolve("four.test").await),
        "four.test could not be resolved (3: Host not found)"
    );
}

#[tokio::test]
async fn ttl_and_valid() {
    let server = Server::start().await;
    let by_ttl = server.resolver(|conf| conf.ipv6 = false);
    by_ttl.resolve("short.test").await.unwrap();
    by_ttl.resolve("short.test").await.unwrap();
    assert_eq!(server.queries.load(Relaxed), 2, "TTL 0 is not kept");
    let by_valid = server.resolver(|conf| {
        conf.ipv6 = false;
        conf.valid = Some(Duration::from_secs(30));
    });
    by_valid.resolve("short.test").await.unwrap();
    by_valid.resolve("short.test").await.unwrap();
    assert_eq!(server.queries.load(Relaxed), 3);
}

#[tokio::test]
async fn requests_at_once_share_one_query() {
    let server = Server::start().await;
    let resolver = server.resolver(|conf| conf.ipv6 = false);
    let (a, b, c) = tokio::join!(
        resolver.resolve("four.test"),
        resolver.resolve("four.test"),
        resolver.resolve("FOUR.test"),
    );
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(server.queries.load(Relaxed), 1);
}

#[tokio::test]
async fn errors_read_as_in_nginx() {
    let server = Server::start().await;
    let resolver = server.resolver(|conf| conf.timeout = Duration::from_millis(200));
    let fail = |name: &'static str| {
        let resolver = resolver.clone();
        async move { text(resolver.resolve(name).await) }
    };
    assert_eq!(
        fail("none.test").await,
        "none.test could not be resolved (3: Host not found)"
    );
    assert_eq!(
        fail("mute.test").await,
        "mute.test could not be resolved (110: Operation timed out)"
    );
    assert_eq!(
        fail("a..b").await,
        "a..b could not be resolved (3: Host not found)"
    );
    assert_eq!(fail("").await, " could not be resolved (3: Host not found)");
    let patient = server.resolver(|_| ());
    assert_eq!(
        text(patient.resolve("broken.test").await),
        "broken.test could not be resolved (2: Server failure)"
    );
    let name = "x.test".to_owned();
    assert_eq!(
        ResolveError::NoResolver { name }.to_string(),
        "no resolver defined to resolve x.test"
    );
}

#[test]
fn a_resolver_needs_servers_and_a_family() {
    assert!(Resolver::new(ResolverConf::new(vec![])).is_err());
    let mut conf = ResolverConf::new(vec!["127.0.0.1:53".parse().unwrap()]);
    (conf.ipv4, conf.ipv6) = (false, false);
    assert!(Resolver::new(conf).is_err());
}

#[test]
fn names_at_load() {
    let found = resolve_at_load("localhost", 80).unwrap();
    assert_eq!(found[0], "127.0.0.1:80".parse().unwrap());
    assert_eq!(
        resolve_at_load("::1", 80).unwrap(),
        ["[::1]:80".parse().unwrap()]
    );
    let e = resolve_at_load("no such host", 80).unwrap_err();
    assert_eq!(e.to_string(), "host not found");
}
