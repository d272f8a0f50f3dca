#!/usr/bin/env python3
"""Memory of connections that wait, by what they wait for: a request, the rest of a head or of a body, a client that does
not read, a WebSocket on which nothing is said.

    benches/idle.py --number 10000 target/release/couloir /usr/sbin/nginx

The first figure is the difference of PSS (master and workers) before and after, divided by the number of clients; the
last is how much more than before is left ten seconds after all clients have gone.
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
http { access_log off; keepalive_timeout 600s; keepalive_requests 1000000; client_header_timeout 600s;
  client_body_timeout 600s; send_timeout 600s; root %(folder)s;
  client_body_temp_path body_temp; proxy_temp_path proxy_temp;
  ssl_certificate %(folder)s/one.crt; ssl_certificate_key %(folder)s/one.key;
  server { listen 127.0.0.1:%(port)d backlog=4096 sndbuf=16k; listen 127.0.0.1:%(tls)d ssl backlog=4096;
    listen 127.0.0.1:%(http2)d http2 backlog=4096; listen 127.0.0.1:%(http2_tls)d ssl http2 backlog=4096;
    location / { return 200 "ok"; }
    location /files { alias %(folder)s; }
    location /proxy { proxy_pass http://127.0.0.1:%(origin)d; proxy_http_version 1.1; proxy_read_timeout 600s; }
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


HALF = PLAIN[:-2] + b"".join(b"X-Field-%02d: %s\r\n" % (i, b"v" * 40) for i in range(20))
BODY = b"POST /proxy HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n" + b"b" * 1000
MEGABYTE = b"m" * (1 << 20)


def origin(listening):
    """Answers upgrades, every frame with a pong, and /proxy with a megabyte."""
    many_files()
    poll = selectors.DefaultSelector()
    poll.register(listening, selectors.EVENT_READ, None)
    while True:
        for key, _ in poll.select():
            if key.data is None:
                s, _ = listening.accept()
                poll.register(s, selectors.EVENT_READ, True)
                continue
            try:
                data = key.fileobj.recv(4096)
            except OSError:
                data = b""
            if not data:
                poll.unregister(key.fileobj)
                key.fileobj.close()
            elif data.startswith(b"GET /proxy"):
                try:
                    key.fileobj.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(MEGABYTE) + MEGABYTE)
                except OSError:
                    pass
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


def connect(port):
    return socket.create_connection(("127.0.0.1", port), 20)


def asked(port, request, end):
    s = connect(port)
    s.sendall(request)
    if end:
        exactly(s, end)
    return s


def websocket(served):
    s = asked(served.port, UPGRADE, b"\r\n\r\n")
    s.sendall(PING)
    exactly(s, PONG)
    return s


def unread(served, path):
    """Asks for a megabyte and reads nothing of it."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.settimeout(20)
    s.connect(("127.0.0.1", served.port))
    s.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
    s.recv(1)
    return s


CONTEXT = ssl.create_default_context()
CONTEXT.check_hostname = False
CONTEXT.verify_mode = ssl.CERT_NONE


def tls(served, request, end=b""):
    s = CONTEXT.wrap_socket(connect(served.tls))
    s.sendall(request)
    if end:
        exactly(s, end)
    return s


def http2(s):
    s.sendall(HTTP2)
    exactly(s, b"ok")
    return s


def http2_tls(served):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return http2(context.wrap_socket(connect(served.http2_tls)))


# how a client is made, and which part of the number there are: those that are served a lot take longer
STATES = {
    "silent": (lambda served: connect(served.port), 1),
    "plain": (lambda served: asked(served.port, PLAIN, b"ok"), 1),
    "websocket": (websocket, 1),
    "http2": (lambda served: http2(connect(served.http2)), 1),
    "http2-tls": (http2_tls, 4),
    "byte": (lambda served: asked(served.port, b"G", b""), 1),
    "half": (lambda served: asked(served.port, HALF, b""), 1),
    "body": (lambda served: asked(served.port, BODY, b""), 1),
    "slow-proxy": (lambda served: unread(served, b"/proxy"), 8),
    "slow-file": (lambda served: unread(served, b"/files/megabyte"), 8),
    "tls": (lambda served: tls(served, PLAIN, b"ok"), 4),
    "tls-byte": (lambda served: tls(served, b"G"), 4),
}


def measure(name, binary, args, files, origin_port):
    make, part = STATES[name]
    number = args.number // part
    conf = dict(port=free_port(), tls=free_port(), http2=free_port(), http2_tls=free_port(), origin=origin_port, files=files, connections=2 * args.number + 1000,
                folder=args.folder)
    with Served(binary, CONF % conf, conf["port"]) as served:
        served.tls, served.http2, served.http2_tls = conf["tls"], conf["http2"], conf["http2_tls"]
        for s in [make(served) for _ in range(50)]:
            s.close()
        time.sleep(0.5)
        before = served.memory()
        clients = [make(served) for _ in range(number)]
        # longer than it takes to give back what a busy connection would need
        time.sleep(3)
        now = served.memory()
        for s in clients:
            s.close()
        time.sleep(10)
        left = served.memory() - before
        print(f"{name:10} {binary:40} {(now - before) / number:8.2f} KiB each, {now / 1024:.1f} MiB in all, "
              f"{left / 1024:.1f} MiB left", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binaries", nargs="+")
    parser.add_argument("--number", type=int, default=10000)
    parser.add_argument("--only", choices=list(STATES), action="append")
    args = parser.parse_args()
    files = many_files()
    if files < 2 * args.number + 100:
        raise SystemExit(f"{files} open files are too few")
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    peer = multiprocessing.Process(target=origin, args=(listening,), daemon=True)
    peer.start()
    with tempfile.TemporaryDirectory(prefix="couloir-idle-") as folder:
        os.chmod(folder, 0o755)
        args.folder = folder
        with open(os.path.join(folder, "megabyte"), "wb") as f:
            f.write(MEGABYTE)
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-subj", "/CN=localhost", "-keyout", f"{folder}/one.key", "-out", f"{folder}/one.crt"],
                       check=True, stderr=subprocess.DEVNULL)
        for name in args.only or STATES:
            for binary in args.binaries:
                measure(name, binary, args, files, listening.getsockname()[1])
    peer.terminate()


if __name__ == "__main__":
    main()
