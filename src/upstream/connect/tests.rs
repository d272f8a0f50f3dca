use super::super::peer::PeerAddr;
use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

async fn connect(addr: PeerAddr, options: ConnectOptions) -> Result<UpConn, ConnectError> {
    let group = Group::single("x", vec![addr]).unwrap();
    let mut r = group.start();
    let picked = group.pick(&mut r).unwrap();
    Connector::new(1)
        .connect(&group, picked.peer(), 0, &options)
        .await
}

#[tokio::test]
async fn tcp_both_ways_with_bind_and_keepalive() {
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = ConnectOptions {
        bind: Some("127.0.0.2:0".parse().unwrap()),
        keepalive: true,
        ..ConnectOptions::default()
    };
    let addr = origin.local_addr().unwrap().into();
    let (conn, accepted) = tokio::join!(connect(addr, options), origin.accept());
    let (mut conn, (mut peer, from)) = (conn.unwrap(), accepted.unwrap());
    assert_eq!(from.ip().to_string(), "127.0.0.2");
    assert_eq!((conn.requests, conn.reused), (1, false));
    assert!(matches!(conn.io, Io::Plain(_)));

    conn.write_all(b"ping").await.unwrap();
    let mut buf = [0; 4];
    peer.read_exact(&mut buf).await.unwrap();
    peer.write_all(&buf).await.unwrap();
    conn.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"ping");
}

#[tokio::test]
async fn a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("origin.sock");
    let origin = UnixListener::bind(&path).unwrap();
    let connecting = connect(PeerAddr::Unix(path), ConnectOptions::default());
    let (conn, accepted) = tokio::join!(connecting, origin.accept());
    conn.unwrap();
    accepted.unwrap();
}

#[tokio::test]
async fn errors_read_as_in_nginx() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = unused.local_addr().unwrap();
    drop(unused);
    let e = connect(addr.into(), ConnectOptions::default())
        .await
        .unwrap_err();
    assert_eq!(
        e.to_string(),
        "connect() failed (111: Connection refused) while connecting to upstream"
    );
    assert!(!e.is_timeout() && !e.is_crit());

    let e = connect(
        PeerAddr::Unix("/nonexistent.sock".into()),
        ConnectOptions::default(),
    )
    .await
    .unwrap_err();
    assert_eq!(
        e.to_string(),
        "connect() to unix:/nonexistent.sock failed (2: No such file or directory) while connecting to upstream"
    );
    assert!(e.is_crit());

    let foreign = ConnectOptions {
        bind: Some("192.0.2.1:0".parse().unwrap()),
        ..ConnectOptions::default()
    };
    let e = connect(addr.into(), foreign).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        "bind(192.0.2.1) failed (99: Cannot assign requested address) while connecting to upstream"
    );
}

#[tokio::test]
async fn a_connect_that_hangs_times_out() {
    // A full backlog on loopback drops the SYN.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let origin = socket.listen(0).unwrap();
    let addr: PeerAddr = origin.local_addr().unwrap().into();
    let options = ConnectOptions {
        timeout: Duration::from_millis(100),
        ..ConnectOptions::default()
    };
    let mut held = Vec::new();
    let e = loop {
        assert!(held.len() < 16, "the backlog never filled");
        match connect(addr.clone(), options.clone()).await {
            Ok(conn) => held.push(conn),
            Err(e) => break e,
        }
    };
    assert!(e.is_timeout());
    assert_eq!(
        e.to_string(),
        "upstream timed out (110: Connection timed out) while connecting to upstream"
    );
}
