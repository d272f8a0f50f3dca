"""gRPC as grpcio speaks it, without generated code: messages are bytes.

    grpc_calls.py serve CERTIFICATE KEY     prints its ports (cleartext, TLS) and serves until its input ends
    grpc_calls.py call CERTIFICATE TARGET…  makes every kind of call; a target is `plain:PORT` or `tls:PORT`
"""

import concurrent.futures
import sys
import threading
import time

import grpc

LARGE = 6 << 20
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
# for whatever ought to take milliseconds, on a machine that may be busy
PATIENCE = 30


class Origin:
    """Methods of the service `test.Test`."""

    def __init__(self):
        self.cancelled = 0
        self.lock = threading.Lock()

    def watched(self, context):
        """An event that is set when the call has ended; what was cancelled is counted."""
        ended = threading.Event()

        def end():
            with self.lock:
                self.cancelled += 1
            ended.set()

        context.add_callback(end)
        return ended

    def echo(self, request, context):
        sent = dict(context.invocation_metadata())
        context.send_initial_metadata([("x-initial", sent.get("x-asked", "none"))])
        context.set_trailing_metadata([("x-trailing", "behind"), ("x-bytes-bin", sent.get("x-asked-bin", b"\0\xff"))])
        return request

    def remaining(self, request, context):
        left = context.time_remaining()
        return b"none" if left is None or left > 10**6 else b"%d" % left

    def count(self, request, context):
        for i in range(int(request)):
            yield b"%d" % i

    def total(self, requests, context):
        return b"%d" % sum(int(r) for r in requests)

    def talk(self, requests, context):
        for request in requests:
            yield b"re: " + request

    def fail(self, request, context):
        context.set_trailing_metadata([("x-why", "because")])
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not so: 50 % über")

    def fail_late(self, request, context):
        yield b"one"
        context.abort(grpc.StatusCode.DATA_LOSS, "after one")

    def hang(self, request, context):
        self.watched(context).wait(PATIENCE)
        return b""

    def hang_late(self, request, context):
        ended = self.watched(context)
        yield b"begun"
        ended.wait(PATIENCE)

    def seen(self, request, context):
        return b"%d" % self.cancelled


def serve(certificate, key):
    origin = Origin()
    methods = {name: grpc.unary_unary_rpc_method_handler(getattr(origin, name))
               for name in ("echo", "remaining", "fail", "hang", "seen")}
    methods |= {name: grpc.unary_stream_rpc_method_handler(getattr(origin, name))
                for name in ("count", "fail_late", "hang_late")}
    methods["total"] = grpc.stream_unary_rpc_method_handler(origin.total)
    methods["talk"] = grpc.stream_stream_rpc_method_handler(origin.talk)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(64), options=OPTIONS)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Test", methods)])
    pair = (open(key, "rb").read(), open(certificate, "rb").read())
    ports = [server.add_insecure_port("127.0.0.1:0"),
             server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))]
    server.start()
    print(*ports, flush=True)
    sys.stdin.read()
    server.stop(None)


def failure(call):
    try:
        call()
    except grpc.RpcError as e:
        return e
    raise AssertionError("it did not fail")


def until(what, ready):
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end, what
        time.sleep(0.01)


class Calls:
    """Each method is a check."""

    def __init__(self, channel):
        path = lambda name: f"/test.Test/{name}"
        self.unary = lambda name: channel.unary_unary(path(name))
        self.stream = lambda name: channel.unary_stream(path(name))
        self.total_of = channel.stream_unary(path("total"))
        self.talking = channel.stream_stream(path("talk"))

    def unary_with_metadata(self):
        asked = [("x-asked", "it"), ("x-asked-bin", bytes(range(256)))]
        answer, call = self.unary("echo").with_call(b"hello", metadata=asked, timeout=PATIENCE)
        assert answer == b"hello"
        assert ("x-initial", "it") in call.initial_metadata()
        trailing = dict(call.trailing_metadata())
        assert trailing["x-trailing"] == "behind" and trailing["x-bytes-bin"] == bytes(range(256)), trailing
        assert self.unary("echo")(b"", timeout=PATIENCE) == b""

    def a_stream_from_the_server(self):
        got = [int(m) for m in self.stream("count")(b"500", timeout=PATIENCE)]
        assert got == list(range(500))
        assert list(self.stream("count")(b"0", timeout=PATIENCE)) == []

    def a_stream_from_the_client(self):
        assert self.total_of((b"%d" % i for i in range(500)), timeout=PATIENCE) == b"%d" % sum(range(500))
        assert self.total_of(iter(()), timeout=PATIENCE) == b"0"

    def streams_both_ways(self):
        # the next message is sent once the answer to the one before has come
        go = [threading.Event() for _ in range(20)]

        def messages():
            for i, event in enumerate(go):
                assert event.wait(PATIENCE)
                yield b"%d" % i

        call = self.talking(messages(), timeout=PATIENCE)
        for i, event in enumerate(go):
            event.set()
            assert next(call) == b"re: %d" % i
        assert list(call) == [] and call.code() == grpc.StatusCode.OK

    def large_messages(self):
        large = bytes(range(256)) * (LARGE // 256)
        assert self.unary("echo")(large, timeout=PATIENCE) == large
        got = list(self.talking(iter([large, b"", large]), timeout=PATIENCE))
        assert got == [b"re: " + large, b"re: ", b"re: " + large]

    def compressed_messages(self):
        text = b"abc" * 100000
        assert self.unary("echo")(text, timeout=PATIENCE, compression=grpc.Compression.Gzip) == text

    def errors(self):
        e = failure(lambda: self.unary("fail")(b"x", timeout=PATIENCE))
        assert (e.code(), e.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not so: 50 % über"), e
        assert ("x-why", "because") in e.trailing_metadata()
        call = self.stream("fail_late")(b"x", timeout=PATIENCE)
        assert next(call) == b"one"
        e = failure(lambda: next(call))
        assert (e.code(), e.details()) == (grpc.StatusCode.DATA_LOSS, "after one"), e
        e = failure(lambda: self.unary("nothing")(b"x", timeout=PATIENCE))
        assert e.code() == grpc.StatusCode.UNIMPLEMENTED, e

    def deadlines(self):
        left = int(self.unary("remaining")(b"", timeout=1000))
        assert 900 < left < 1100, left
        assert self.unary("remaining")(b"") == b"none"
        before = int(self.unary("seen")(b"", timeout=PATIENCE))
        e = failure(lambda: self.unary("hang")(b"x", timeout=0.3))
        assert e.code() == grpc.StatusCode.DEADLINE_EXCEEDED, e
        until("the origin is not told", lambda: int(self.unary("seen")(b"", timeout=PATIENCE)) > before)

    def cancellation(self):
        before = int(self.unary("seen")(b"", timeout=PATIENCE))
        call = self.stream("hang_late")(b"x", timeout=PATIENCE)
        assert next(call) == b"begun"
        call.cancel()
        e = failure(lambda: next(call))
        assert e.code() == grpc.StatusCode.CANCELLED, e
        until("the origin is not told", lambda: int(self.unary("seen")(b"", timeout=PATIENCE)) > before)

    def many_at_once(self):
        calls = [self.unary("echo").future(b"%d" % i * 100, timeout=PATIENCE) for i in range(100)]
        assert [c.result() for c in calls] == [b"%d" % i * 100 for i in range(100)]


def call(certificate, targets):
    root = open(certificate, "rb").read()
    for target in targets:
        kind, port = target.split(":")
        if kind == "tls":
            channel = grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(root), OPTIONS)
        else:
            channel = grpc.insecure_channel(f"127.0.0.1:{port}", OPTIONS)
        with channel:
            calls = Calls(channel)
            for name, check in vars(Calls).items():
                if not name.startswith("_"):
                    begun = time.monotonic()
                    check(calls)
                    print(f"{kind}: {name} ({time.monotonic() - begun:.2f} s)", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        call(sys.argv[2], sys.argv[3:])
