//! uWSGI with Python, over its own protocol and SCGI.

use super::common::client::{Client, exchange, get};
use super::common::proc::{Couloir, Server, Setup};
use super::peers::Peer;

const APP: &str = r#"
def application(env, start):
    path = env.get('PATH_INFO', '')
    if path == '/large':
        start('200 OK', [('Content-Type', 'text/plain')])
        return (b'0123456789' * 6554 for _ in range(160))
    if path == '/moved':
        start('301 Gone There', [('Location', '/there'), ('X-Accel-Expires', '5')])
        return [b'']
    body = env['wsgi.input'].read()
    names = ['REQUEST_METHOD', 'QUERY_STRING', 'CONTENT_LENGTH', 'HTTP_HOST', 'HTTP_X_A', 'HTTP_PROXY', 'HTTP_COOKIE',
             'REMOTE_ADDR']
    start('200 OK', [('Content-Type', 'text/plain'), ('X-Made-By', 'python')])
    return [''.join(f'{n}={env.get(n, "-")}\n' for n in names).encode(), b'body=%d' % len(body)]
"#;

fn serve(peer: &Peer, protocol: &str) -> Server {
    Setup::new(&format!(
        "%%TEST_GLOBALS%% events {{ }}
         http {{ %%TEST_GLOBALS_HTTP%%
             server {{ listen 127.0.0.1:%%PORT_8080%%; server_name localhost;
                 location / {{ include %%CONF%%/{protocol}_params; {protocol}_param PATH_INFO $document_uri;
                     {protocol}_pass unix:%%SOCKET%%; }} }} }}"
    ))
    .set("SOCKET", peer.socket().display())
    .set("CONF", concat!(env!("CARGO_MANIFEST_DIR"), "/conf"))
    .start(&Couloir::program())
}

fn answers(protocol: &str) {
    let peer = Peer::python(protocol, APP);
    let server = serve(&peer, protocol);
    let request = "POST /x?y=z HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70000\r\nX-A: b\r\nX-A: c\r\nProxy: evil\r\n\
                   Cookie: a=b\r\nCookie: c=d\r\nConnection: close\r\n\r\n";
    let mut client = Client::connect(server.addr(8080));
    client.send(request).unwrap();
    client.send(vec![b'x'; 70_000]).unwrap();
    let page = client.response("POST").unwrap();
    assert_eq!(page.header("X-Made-By"), Some("python"));
    assert_eq!(
        page.text(),
        "REQUEST_METHOD=POST\nQUERY_STRING=y=z\nCONTENT_LENGTH=70000\nHTTP_HOST=localhost\nHTTP_X_A=b, c\n\
         HTTP_PROXY=-\nHTTP_COOKIE=a=b; c=d\nREMOTE_ADDR=127.0.0.1\nbody=70000"
    );
    let moved = get(server.addr(8080), "/moved", "localhost");
    assert_eq!(moved.status, 301);
    assert_eq!(moved.header("Location"), Some("/there"));
    assert_eq!(moved.header("X-Accel-Expires"), None);
    let large = get(server.addr(8080), "/large", "localhost");
    assert_eq!(large.body.len(), 65_540 * 160);
    let head = exchange(
        server.addr(8080),
        "HEAD /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    );
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[test]
fn uwsgi() {
    answers("uwsgi");
}

#[test]
fn scgi() {
    answers("scgi");
}
