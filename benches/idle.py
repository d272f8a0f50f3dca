#!/usr/bin/env python3
"""Memory of connections that wait: kept ones without a request, and WebSockets on which nothing is said.

    benches/idle.py --number 10000 target/release/couloir /usr/sbin/nginx

The figure is the difference of PSS (master and workers) before and after, divided by the number of clients.
"""

import argparse
import multiprocessing
import selectors
import socket
import time

from measured import Served, free_port, many_files

CONF = """daemon off; worker_processes 1; pid nginx.pid; error_log error.log crit;
worker_rlimit_nofile %(files)d;
events { worker_connections %(connections)d; }
http { access_log off; keepalive_timeout 600s; keepalive_requests 1000000;
  client_body_temp_path body_temp; proxy_temp_path proxy_temp;
  server { listen 127.0.0.1:%(port)d backlog=4096;
    location / { return 200 "ok"; }
    location /ws { proxy_pass http://127.0.0.1:%(origin)d; proxy_http_version 1.1; proxy_read_timeout 600s;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; } } }
"""

PLAIN = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = (b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
           b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
SWITCHED = (b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
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


def opened(port, number, websocket):
    for i in range(number):
        s = socket.create_connection(("127.0.0.1", port), 20)
        s.sendall(UPGRADE if websocket else PLAIN)
        exactly(s, b"\r\n\r\n" if websocket else b"ok")
        if websocket:
            s.sendall(PING)
            exactly(s, PONG)
        yield s


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binaries", nargs="+")
    parser.add_argument("--number", type=int, default=10000)
    parser.add_argument("--only", choices=["plain", "websocket"])
    args = parser.parse_args()
    files = many_files()
    if files < 2 * args.number + 100:
        raise SystemExit(f"{files} open files are too few")
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    peer = multiprocessing.Process(target=origin, args=(listening,), daemon=True)
    peer.start()
    for name, websocket in (("plain", False), ("websocket", True)):
        if args.only not in (None, name):
            continue
        for binary in args.binaries:
            conf = dict(port=free_port(), origin=listening.getsockname()[1], files=files,
                        connections=2 * args.number + 1000)
            with Served(binary, CONF % conf, conf["port"]) as served:
                for s in list(opened(served.port, 50, websocket)):
                    s.close()
                time.sleep(0.5)
                before = served.memory()
                clients = list(opened(served.port, args.number, websocket))
                time.sleep(1)
                each = (served.memory() - before) / args.number
                print(f"{name:10} {binary:40} {each:8.2f} KiB each, {served.memory() / 1024:.1f} MiB in all", flush=True)
                for s in clients:
                    s.close()
    peer.terminate()


if __name__ == "__main__":
    main()
