#!/usr/bin/env python3
"""Memory of connections that wait: kept ones without a request, of HTTP/1 and HTTP/2, without and with TLS, and
WebSockets on which nothing is said.

    benches/idle.py --number 10000 target/release/couloir /usr/sbin/nginx

The figure is the difference of PSS (master and workers) before and after, divided by the number of clients.
"""

import argparse
import multiprocessing
import os
import selectors
import socket
import ssl
import subprocess
import tempfile
import time

from measured import Served, free_port, many_files

CONF = """daemon off; worker_processes 1; pid nginx.pid; error_log error.log crit;
worker_rlimit_nofile %(files)d;
events { worker_connections %(connections)d; }
http { access_log off; %(tls)s keepalive_timeout 600s; keepalive_requests 1000000;
  client_body_temp_path body_temp; proxy_temp_path proxy_temp;
  server { listen 127.0.0.1:%(port)d backlog=4096 %(listen)s;
    location / { return 200 "ok"; }
    location /ws { proxy_pass http://127.0.0.1:%(origin)d; proxy_http_version 1.1; proxy_read_timeout 600s;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; } } }
"""

PLAIN = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = (b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
           b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
SWITCHED = (b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
# SETTINGS, then GET / of localhost with fields as browsers send them, kept in the table
FIELDS = b"".join(b"\x40" + bytes([len(n)]) + n + bytes([len(v)]) + v for n, v in (
    (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    (b"accept-language", b"en-US,en;q=0.5"), (b"accept-encoding", b"gzip, deflate, br, zstd"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0")))
BLOCK = b"\x82\x86\x84\x41\x09localhost" + FIELDS
HTTP2 = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\0\x04\x01\0\0\0\0"
         + len(BLOCK).to_bytes(3, "big") + b"\x01\x05\0\0\0\x01" + BLOCK)
# a text frame each way, so that the path has been used: "ping", masked with zeros, and its echo
PING, PONG = b"\x81\x84\0\0\0\0ping", b"\x81\x04pong"


def origin(listening):
    """Answers upgrades, and every frame with a pong."""
    many_files()
    poll = selectors.DefaultSelector()
    poll.register(listening, selectors.EVENT_READ, None)
    while True:
        for key, _ in poll.select():
            if key.data is None:
                s, _ = listening.accept()
                poll.register(s, selectors.EVENT_READ, True)
                continue
            data = key.fileobj.recv(4096)
            if not data:
                poll.unregister(key.fileobj)
                key.fileobj.close()
            elif data.startswith(b"GET "):
                key.fileobj.sendall(SWITCHED)
            else:
                key.fileobj.sendall(PONG)


def exactly(s, end):
    got = b""
    while not got.endswith(end):
        more = s.recv(4096)
        if not more:
            raise RuntimeError(f"closed after {got!r}")
        got += more


def opened(port, number, kind):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2" if kind == "http2-tls" else "http/1.1"])
    for i in range(number):
        s = socket.create_connection(("127.0.0.1", port), 20)
        if kind.endswith("tls"):
            s = context.wrap_socket(s)
        s.sendall(UPGRADE if kind == "websocket" else HTTP2 if kind.startswith("http2") else PLAIN)
        exactly(s, b"\r\n\r\n" if kind == "websocket" else b"ok")
        if kind == "websocket":
            s.sendall(PING)
            exactly(s, PONG)
        yield s


KINDS = "plain", "tls", "http2", "http2-tls", "websocket"
TLS = "ssl_certificate %(folder)s/cert.pem; ssl_certificate_key %(folder)s/key.pem; ssl_session_tickets off;"


def certificate(folder):
    os.chmod(folder, 0o755)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=localhost"],
                   cwd=folder, check=True, capture_output=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binaries", nargs="+")
    parser.add_argument("--number", type=int, default=10000)
    parser.add_argument("--only", choices=KINDS)
    args = parser.parse_args()
    files = many_files()
    if files < 2 * args.number + 100:
        raise SystemExit(f"{files} open files are too few")
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    peer = multiprocessing.Process(target=origin, args=(listening,), daemon=True)
    peer.start()
    folder = tempfile.TemporaryDirectory(prefix="couloir-idle-")
    certificate(folder.name)
    for kind in KINDS:
        if args.only not in (None, kind):
            continue
        for binary in args.binaries:
            listen = ("ssl " if kind.endswith("tls") else "") + ("http2" if kind.startswith("http2") else "")
            conf = dict(port=free_port(), origin=listening.getsockname()[1], files=files, listen=listen,
                        connections=2 * args.number + 1000, tls=TLS % dict(folder=folder.name))
            with Served(binary, CONF % conf, conf["port"]) as served:
                for s in list(opened(served.port, 50, kind)):
                    s.close()
                time.sleep(0.5)
                before = served.memory()
                clients = list(opened(served.port, args.number, kind))
                # longer than it takes to give back what a busy connection would need
                time.sleep(3)
                each = (served.memory() - before) / args.number
                print(f"{kind:10} {binary:40} {each:8.2f} KiB each, {served.memory() / 1024:.1f} MiB in all", flush=True)
                for s in clients:
                    s.close()
    peer.terminate()


if __name__ == "__main__":
    main()
