#!/usr/bin/env python3
"""What floods of HTTP/2 frames cost: each must end in GOAWAY or a close, or cost less than 250 ms of CPU time for
20,000 frames, and memory must not grow by 15 MB.

    benches/floods.py target/release/couloir [/usr/sbin/nginx …]

Ends with 1 where the first binary misses one of these.
"""

import argparse
import select
import socket
import struct
import sys
import time

from measured import Served, free_port

FRAMES = 20000
CONF = """daemon off; worker_processes 1; pid nginx.pid; error_log error.log info;
events { worker_connections 1024; }
http { access_log off; client_body_temp_path body_temp; proxy_temp_path proxy_temp; %(http2)s
  client_max_body_size 0; client_header_timeout 60s; send_timeout 60s; keepalive_requests 1000000;
  server { listen 127.0.0.1:%(port)d %(listen)s;
    location / { root .; }
    location /small { return 200 "small"; }
    location /wait { proxy_pass http://127.0.0.1:%(origin)d; proxy_request_buffering off; } } }
"""

DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def text(s):
    return bytes([len(s)]) + s


def block(path, method=0x82):
    # GET or POST and http from the static table, path and authority as they are
    return bytes([method, 0x86, 0x04]) + text(path) + b"\x01" + text(b"localhost")


def request(stream, path, flags=END_HEADERS | END_STREAM, method=0x82):
    return frame(HEADERS, flags, stream, block(path, method))


def streams():
    return range(3, 2**31, 2)


def resets(path):
    for n in streams():
        yield request(n, path) + frame(RESET, 0, n, struct.pack(">I", 8))


def continuations(payload):
    yield frame(HEADERS, END_STREAM, 3, block(b"/small"))
    while True:
        yield frame(CONTINUATION, 0, 3, payload)


def again(one):
    while True:
        yield one


def referring():
    # one field of 4000 bytes is kept in the table, then every request names it as often as a frame has room
    name = b"\x40" + text(b"x") + b"\x7f\xa1\x1e" + b"v" * 4000
    yield frame(HEADERS, END_HEADERS | END_STREAM, 3, block(b"/small") + name)
    for n in range(5, 2**31, 2):
        yield frame(HEADERS, END_HEADERS | END_STREAM, n, block(b"/small") + b"\xbe" * 8000)


def table_sizes():
    for n in streams():
        yield frame(HEADERS, END_HEADERS | END_STREAM, n, b"\x20\x3f\xe1\x1f" * 500 + block(b"/small"))


def stalled(path):
    # windows of nothing: responses that can never be sent
    yield frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
    for n in streams():
        yield request(n, path)


def trickled():
    # windows of one byte at a time
    yield frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)) + request(3, b"/big")
    while True:
        yield frame(WINDOW, 0, 3, struct.pack(">I", 1))


def settings_storm():
    # changes of every stream's window, with many streams open
    for n in range(3, 203, 2):
        yield request(n, b"/wait", END_HEADERS, 0x83)
    while True:
        for size in (1, 65535):
            yield frame(SETTINGS, 0, 0, struct.pack(">HI", 4, size) * 100)


FLOODS = {
    "rapid reset, to an origin": lambda: resets(b"/wait"),
    "rapid reset, answered at once": lambda: resets(b"/small"),
    "CONTINUATION, empty": lambda: continuations(b""),
    "CONTINUATION, 1 kB each": lambda: continuations(b"\x00" + text(b"x" * 100) + b"\x7f\x82\x06" + b"v" * 897),
    "SETTINGS": lambda: again(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535))),
    "SETTINGS, empty": lambda: again(frame(SETTINGS, 0, 0)),
    "SETTINGS, 100 each, 100 streams": settings_storm,
    "PING": lambda: again(frame(PING, 0, 0, bytes(8))),
    "PING, answers not read": lambda: again(frame(PING, 0, 0, bytes(8))),
    "empty DATA": lambda: again(frame(DATA, 0, 1)),
    "padded DATA": lambda: again(frame(DATA, 8, 1, b"\xff" + bytes(255))),
    "PRIORITY": lambda: again(frame(PRIORITY, 0, 1, bytes(5))),
    "WINDOW_UPDATE": lambda: again(frame(WINDOW, 0, 1, struct.pack(">I", 1))),
    "unknown frames": lambda: again(frame(77, 0, 0)),
    "RST_STREAM of closed streams": lambda: again(frame(RESET, 0, 1, struct.pack(">I", 8))),
    "window stalls": lambda: stalled(b"/big"),
    "window stalls, trickled": trickled,
    "HPACK bomb": referring,
    "HPACK table sizes": table_sizes,
}


def flood(port, name, frames):
    """Sends the frames; how many were taken, and how it ended."""
    s = socket.create_connection(("127.0.0.1", port), 10)
    reads = "not read" not in name
    s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0) + request(1, b"/wait", END_HEADERS, 0x83))
    got, out, sent, end = b"", b"", 0, None
    s.setblocking(False)
    deadline = time.monotonic() + 30
    while end is None and time.monotonic() < deadline:
        while len(out) < 65536 and sent < FRAMES:
            out += next(frames)
            sent += 1
        if not out:
            # what is under way settles; a server that has said nothing till now lives with it
            if not select.select([s], [], [], 1.5)[0]:
                break
        readable, writable, _ = select.select([s] if reads else [], [s] if out else [], [], 1)
        try:
            if writable:
                out = out[s.send(out):]
            if readable:
                more = s.recv(65536)
                if not more:
                    end = "close"
                got += more
                while len(got) >= 9 and len(got) >= 9 + (length := int.from_bytes(got[:3], "big")):
                    if got[3] == GOAWAY:
                        end = f"GOAWAY {int.from_bytes(got[13:17], 'big')}"
                    got = got[9 + length:]
            if not readable and not writable and not reads:
                # nothing is taken any more: the server waits for us to read
                end = "stall"
        except (ConnectionResetError, BrokenPipeError):
            end = "reset"
    return s, sent, end


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binaries", nargs="+")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    # an origin that takes everything and says nothing
    origin = socket.create_server(("127.0.0.1", 0), backlog=4096)
    missed = False
    for binary in args.binaries:
        old = "nginx" in binary
        conf = dict(port=free_port(), origin=origin.getsockname()[1],
                    listen="http2" if old else "", http2="" if old else "http2 on;")
        print(binary)
        with Served(binary, CONF % conf, conf["port"]) as served:
            with open(f"{served.folder.name}/big", "wb") as f:
                f.write(b"x" * (4 << 20))
            for name, make in FLOODS.items():
                if args.only not in name:
                    continue
                before, cpu = served.memory("Rss"), served.cpu()
                s, sent, end = flood(served.port, name, make())
                time.sleep(0.1)
                grown, spent = served.memory("Rss") - before, served.cpu() - cpu
                s.close()
                fine = (end or spent < 0.25) and grown < 15 * 1024
                missed |= not fine and binary == args.binaries[0]
                print(f"  {name:34} {end or 'goes on':10} {sent:6} frames {spent * 1000:6.0f} ms {grown:7} KiB"
                      f"{'' if fine else '   MISSED'}", flush=True)
    sys.exit(missed)


if __name__ == "__main__":
    main()
