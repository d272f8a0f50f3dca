#!/usr/bin/env python3
"""Mixed traffic with a reload again and again: how many requests of each kind are lost. Each must be 0.

    benches/soak.py --duration 180 --interval 5 target/release/couloir

HTTP/1 on kept and on new connections, uploads, HTTP/2 without TLS and with it, HTTP/1 over TLS, WebSockets. No client
repeats a request: what gets no whole answer is lost, a stream that is refused or taken back by GOAWAY included. Each
reload changes the configuration; every third one changes what HTTP/2 announces, so that its connections end, and every
fourth one takes an address away or adds it. With `--replace` workers are replaced instead of changed.

Ends with 1 where something was lost, or a kind of traffic did not get through at all.
"""

import argparse
import asyncio
import base64
import collections
import os
import signal
import ssl
import struct
import subprocess
import sys
import tempfile
import time

from measured import Served, free_port

CONF = """daemon off; worker_processes 2; pid nginx.pid; error_log error.log error; %(main)s
events { worker_connections 1024; }
http { access_log off; keepalive_timeout 60s; keepalive_requests %(requests)d; client_max_body_size 0;
  client_body_temp_path body_temp; proxy_temp_path proxy_temp; client_body_buffer_size 64k;
  ssl_certificate %(folder)s/cert.pem; ssl_certificate_key %(folder)s/key.pem;
  http2_max_concurrent_streams %(streams)d;
  map $http_upgrade $wanted { default upgrade; '' ''; }
  proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $wanted;
  upstream origin { server 127.0.0.1:%(origin)d; keepalive 16; }
  server { listen 127.0.0.1:%(port)d http2; listen 127.0.0.1:%(tls)d ssl http2; %(extra)s
    add_header X-Round %(round)d;
    location / { return 200 "round %(round)d"; }
    location /big { return 200 "%(big)s"; }
    location /pass { proxy_pass http://origin; } } }
"""

DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 1, 1, 4
EVERY = 2**31 - 1
LIMIT = 30


class Lost(Exception):
    pass


class Tally:
    def __init__(self):
        self.done = collections.Counter()
        self.lost = collections.Counter()
        self.why = collections.Counter()

    def count(self, kind, error=None):
        if error is None:
            self.done[kind] += 1
        else:
            self.lost[kind] += 1
            self.why[f"{kind}: {error}"] += 1


async def origin(reader, writer):
    """Answers with the size of the body; an upgrade is followed by an echo."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
            if fields.get(b"upgrade"):
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
                return
            left = size = int(fields.get(b"content-length", 0))
            while left:
                piece = await reader.read(min(left, 65536))
                if not piece:
                    return
                left -= len(piece)
            body = b"%d" % size
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass
    finally:
        writer.close()


async def response(reader):
    """The body of a response, and whether the connection stays."""
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise Lost(head.split(b"\r\n")[0].decode())
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    body = await reader.readexactly(int(fields[b"content-length"]))
    return body, fields.get(b"connection") != b"close"


async def http1(tally, over, kind, connect, request, keep, size=None):
    kept = None
    while not over.is_set():
        try:
            async with asyncio.timeout(LIMIT):
                if kept is None:
                    kept = await connect()
                reader, writer = kept
                writer.write(request)
                body, stays = await response(reader)
                if size is not None and body != b"%d" % size:
                    raise Lost(f"{body!r}")
            tally.count(kind)
            if keep and stays:
                continue
            writer.close()
        except (Lost, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            tally.count(kind, repr(error))
        kept = None


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def block(path, method, length=None):
    text = lambda s: bytes([len(s)]) + s
    fields = bytes([method, 0x86, 0x04]) + text(path) + b"\x01" + text(b"localhost")
    if length is not None:
        # content-length, not indexed
        fields += b"\x0f\x0d" + text(b"%d" % length)
    return fields


def is_200(block):
    """Whether a response's block begins with status 200, behind updates of the table's size."""
    at = 0
    while block[at] & 0xe0 == 0x20:
        more = block[at] & 0x1f == 0x1f
        at += 1
        while more:
            more = block[at] & 0x80
            at += 1
    return block[at] == 0x88


class Http2:
    """A connection on which several requests are always under way, until the server says that it ends."""

    def __init__(self, tally, over, kind, streams, upload):
        self.tally, self.over, self.kind, self.streams, self.upload = tally, over, kind, streams, upload
        self.next, self.open, self.going = 1, {}, False
        self.window, self.each, self.initial = 65535, {}, 65535
        self.wait = asyncio.Event()

    async def run(self, reader, writer):
        self.writer = writer
        # large windows for what comes
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, EVERY))
                     + frame(WINDOW, 0, 0, struct.pack(">I", EVERY - 65535)))
        try:
            async with asyncio.timeout(LIMIT) as limit:
                # nothing is sent before the server has said what it allows
                while True:
                    if not self.going and not self.over.is_set() and self.next > 0:
                        while self.settled and len(self.open) < self.streams:
                            self.request()
                    elif not self.open:
                        break
                    head = await reader.readexactly(9)
                    payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                    limit.reschedule(asyncio.get_running_loop().time() + LIMIT)
                    self.take(head[3], head[4], int.from_bytes(head[5:], "big") & EVERY, payload)
                    try:
                        await writer.drain()
                    except ConnectionError:
                        # the server has closed; what it sent before is still to be read
                        pass
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            for _ in self.open:
                self.tally.count(self.kind, repr(error))
            if not self.open and not self.going:
                self.tally.count(self.kind, f"closed without GOAWAY: {error!r}")
        writer.close()

    settled = False

    def request(self):
        n, self.next = self.next, self.next + 2
        self.open[n] = [False, 0]
        if self.upload:
            size = 200_000
            self.writer.write(frame(HEADERS, END_HEADERS, n, block(b"/pass", 0x83, size)))
            self.each[n] = [self.initial, size]
            self.fill()
        else:
            path = (b"/", b"/big", b"/pass")[n // 2 % 3]
            self.writer.write(frame(HEADERS, END_HEADERS | END_STREAM, n, block(path, 0x82)))

    def fill(self):
        for n, (window, left) in list(self.each.items()):
            while left and (room := min(window, self.window, left, 16384)) > 0:
                left -= room
                window -= room
                self.window -= room
                self.writer.write(frame(DATA, 0 if left else END_STREAM, n, bytes(room)))
            self.each[n] = [window, left]

    def take(self, kind, flags, n, payload):
        if kind == HEADERS and n in self.open and is_200(payload):
            self.open[n][0] = True
        elif kind == DATA and n in self.open:
            self.open[n][1] += len(payload)
        elif kind == RESET and n in self.open:
            self.end(n, f"RST_STREAM {int.from_bytes(payload, 'big')}")
        elif kind == SETTINGS and not flags & ACK:
            self.settled = True
            for at in range(0, len(payload), 6):
                key, value = struct.unpack_from(">HI", payload, at)
                if key == 4:
                    for each in self.each.values():
                        each[0] += value - self.initial
                    self.initial = value
            self.writer.write(frame(SETTINGS, ACK, 0))
            self.fill()
        elif kind == WINDOW:
            more = int.from_bytes(payload, "big")
            if n == 0:
                self.window += more
            elif n in self.each:
                self.each[n][0] += more
            self.fill()
        elif kind == PING and not flags & ACK:
            self.writer.write(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self.going = True
            last, code = struct.unpack_from(">II", payload)
            for n in [n for n in self.open if n > last]:
                self.end(n, f"GOAWAY {code}")
        if kind in (DATA, HEADERS) and flags & END_STREAM and n in self.open:
            ok, size = self.open[n]
            self.end(n, None if ok and size else "no body")

    def end(self, n, error):
        self.open.pop(n)
        self.each.pop(n, None)
        self.tally.count(self.kind, error)


async def http2(tally, over, kind, connect, streams, upload=False):
    while not over.is_set():
        try:
            reader, writer = await connect()
        except OSError as error:
            tally.count(kind, repr(error))
            continue
        await Http2(tally, over, kind, streams, upload).run(reader, writer)


async def websocket(tally, over, connect):
    """Each message must come back; a connection lasts over several reloads."""
    kind = "WebSocket"
    while not over.is_set():
        try:
            async with asyncio.timeout(LIMIT) as limit:
                reader, writer = await connect()
                key = base64.b64encode(os.urandom(16))
                writer.write(b"GET /pass HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                             b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"HTTP/1.1 101 "):
                    raise Lost(head.split(b"\r\n")[0].decode())
                for n in range(2000):
                    if over.is_set():
                        break
                    message = b"\x82\x88\0\0\0\0" + struct.pack(">Q", n)
                    writer.write(message)
                    if await reader.readexactly(len(message)) != message:
                        raise Lost("another message")
                    tally.count(kind)
                    limit.reschedule(asyncio.get_running_loop().time() + LIMIT)
                    await asyncio.sleep(0.01)
                writer.close()
        except (Lost, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            tally.count(kind, repr(error))


def conf(args, ports, folder, number):
    extra = f"listen 127.0.0.1:{ports['extra']} http2;" if number % 4 else ""
    streams = 128 + number // 3 % 2
    main = "reload_method replace;" if args.replace else ""
    return CONF % dict(ports, folder=folder, round=number, streams=streams, extra=extra, big="x" * 2000, main=main,
                       requests=args.requests)


async def soak(args, ports, folder, served):
    tally, over = Tally(), asyncio.Event()
    listening = await asyncio.start_server(origin, "127.0.0.1", ports["origin"], backlog=1024)
    plain = lambda: asyncio.open_connection("127.0.0.1", ports["port"])
    extra = lambda: asyncio.open_connection("127.0.0.1", ports["extra"])

    def tls(*protocols):
        context = ssl.create_default_context(cafile=os.path.join(folder, "cert.pem"))
        context.set_alpn_protocols(protocols)
        return lambda: asyncio.open_connection("127.0.0.1", ports["tls"], ssl=context, server_hostname="localhost")

    get = lambda path: b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path
    size = 300_000
    post = b"POST /pass HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    work = [
        http1(tally, over, "HTTP/1 kept", plain, get(b"/"), True),
        http1(tally, over, "HTTP/1 kept", plain, get(b"/pass"), True),
        http1(tally, over, "HTTP/1 new", plain, get(b"/"), False),
        http1(tally, over, "HTTP/1 new", plain, get(b"/pass"), False),
        http1(tally, over, "HTTP/1 over TLS", tls("http/1.1"), get(b"/pass"), True),
        http1(tally, over, "HTTP/1 over TLS, new", tls("http/1.1"), get(b"/"), False),
        http1(tally, over, "HTTP/1 upload", plain, post, True, size),
        http1(tally, over, "HTTP/1 upload over TLS", tls("http/1.1"), post, True, size),
        http2(tally, over, "HTTP/2", plain, 1),
        http2(tally, over, "HTTP/2", plain, 4),
        http2(tally, over, "HTTP/2", plain, 16),
        http2(tally, over, "HTTP/2 over TLS", tls("h2"), 4),
        http2(tally, over, "HTTP/2 over TLS", tls("h2"), 16),
        http2(tally, over, "HTTP/2 upload", plain, 2, True),
        http2(tally, over, "HTTP/2 upload over TLS", tls("h2"), 2, True),
        websocket(tally, over, plain),
        websocket(tally, over, plain),
        websocket(tally, over, tls("http/1.1")),
    ]
    tasks = [asyncio.create_task(w) for w in work]

    async def leaving():
        # an address that comes and goes: what is under way there when it goes must not be lost
        while not over.is_set():
            try:
                reader, writer = await extra()
            except OSError:
                await asyncio.sleep(0.05)
                continue
            await Http2(tally, over, "HTTP/2, address that goes", 4, False).run(reader, writer)

    tasks.append(asyncio.create_task(leaving()))
    end, reloads = time.monotonic() + args.duration, 0
    path = os.path.join(served.folder.name, "nginx.conf")
    while time.monotonic() < end:
        await asyncio.sleep(args.interval)
        reloads += 1
        with open(path, "w") as f:
            f.write(conf(args, ports, folder, reloads))
        served.process.send_signal(signal.SIGHUP)
        print(f"{reloads}: {sum(tally.done.values())} done, {sum(tally.lost.values())} lost", flush=True)
    over.set()
    await asyncio.wait(tasks, timeout=LIMIT + 5)
    listening.close()
    return tally, reloads


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--duration", type=float, default=180, help="seconds")
    parser.add_argument("--interval", type=float, default=5, help="seconds between two reloads")
    parser.add_argument("--requests", type=int, default=1000, help="keepalive_requests")
    parser.add_argument("--replace", action="store_true", help="reload_method replace")
    args = parser.parse_args()
    ports = dict(port=free_port(), tls=free_port(), extra=free_port(), origin=free_port())
    with tempfile.TemporaryDirectory(prefix="couloir-soak-") as folder:
        os.chmod(folder, 0o755)
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=localhost",
                        "-addext", "subjectAltName=DNS:localhost"], cwd=folder, check=True, capture_output=True)
        with Served(args.binary, conf(args, ports, folder, 0), ports["port"]) as served:
            tally, reloads = asyncio.run(soak(args, ports, folder, served))
            log = served.log()
    print(f"{reloads} reloads")
    for kind in sorted(tally.done | tally.lost):
        print(f"{kind:28} {tally.done[kind]:9} done {tally.lost[kind]:6} lost")
    for why, n in tally.why.most_common(20):
        print(f"  {n:6} {why}")
    if log:
        print("error.log:", *log.splitlines()[-10:], sep="\n  ")
    sys.exit(bool(tally.lost) or not tally.done)


if __name__ == "__main__":
    main()
