"""gRPC on one connection for long: small messages, cancelled calls, deadlines and pings, as many as one likes.

    grpc_long.py CHECK PORT     runs one check; `grpc_calls.py serve` is the origin
"""

import sys
import threading
import time

import grpc

from grpc_calls import PATIENCE, failure, until

# cancelled and late calls that are under way at once, for an origin of 64 threads
AT_ONCE = 50


def channel(port, *options):
    # one connection: what a broken one would be replaced by must not hide that it broke
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), *options]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options)


class Checks:
    """Each method is a check."""

    def __init__(self, port):
        self.port = port

    def talk(self, size, count, pace=0.0, ahead=200, options=()):
        """Sends messages and takes an answer to each; at most `ahead` are on their way."""
        room = threading.Semaphore(ahead)

        def messages():
            for _ in range(count):
                assert room.acquire(timeout=PATIENCE)
                time.sleep(pace)
                yield bytes(size)

        with channel(self.port, *options) as c:
            call = c.stream_stream("/test.Test/talk")(messages())
            got = 0
            for message in call:
                assert len(message) == size + 4
                got += 1
                room.release()
            assert (got, call.code()) == (count, grpc.StatusCode.OK)

    def small_messages(self):
        for size in (0, 10, 20):
            self.talk(size, 10000)

    def one_message_at_a_time(self):
        # each one in a frame of its own, and followed by whatever the client thinks fit
        for size in (0, 10, 20):
            self.talk(size, 4000, ahead=1)

    def paced_messages(self):
        self.talk(20, 3000, pace=0.001)

    def a_stream_of_messages(self):
        with channel(self.port) as c:
            got = sum(1 for _ in c.unary_stream("/test.Test/count")(b"50000"))
            assert got == 50000

    def messages_with_probes(self):
        # small windows: acknowledgements and probes of the bandwidth all the time
        options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 1)]
        self.talk(400, 5000, options=options)

    def calls_cancelled_at_once(self):
        with channel(self.port) as c:
            hang = c.unary_unary("/test.Test/hang")
            # before the first one the connection is not there yet
            assert c.unary_unary("/test.Test/echo")(b"x", timeout=PATIENCE) == b"x"
            for _ in range(1500):
                hang.future(b"x").cancel()
            assert c.unary_unary("/test.Test/echo")(b"x", timeout=PATIENCE) == b"x"

    def calls_cancelled_at_the_origin(self):
        with channel(self.port) as c:
            hang = c.unary_stream("/test.Test/hang_late")
            for _ in range(1500 // AT_ONCE):
                calls = [hang(b"x", timeout=PATIENCE) for _ in range(AT_ONCE)]
                for call in calls:
                    assert next(call) == b"begun"
                for call in calls:
                    call.cancel()
                for call in calls:
                    assert failure(lambda: next(call)).code() == grpc.StatusCode.CANCELLED
            assert c.unary_unary("/test.Test/echo")(b"x", timeout=PATIENCE) == b"x"

    def short_deadlines(self):
        with channel(self.port) as c:
            hang = c.unary_unary("/test.Test/hang")
            assert c.unary_unary("/test.Test/echo")(b"x", timeout=PATIENCE) == b"x"
            for _ in range(3000 // AT_ONCE):
                calls = [hang.future(b"x", timeout=0.05) for _ in range(AT_ONCE)]
                for call in calls:
                    assert call.exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED, call.exception()
            assert c.unary_unary("/test.Test/echo")(b"x", timeout=PATIENCE) == b"x"

    def pings_of_an_idle_connection(self):
        options = [("grpc.keepalive_time_ms", 10), ("grpc.keepalive_timeout_ms", 1000 * PATIENCE),
                   ("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.max_pings_without_data", 0),
                   ("grpc.http2.min_time_between_pings_ms", 10)]
        with channel(self.port, *options) as c:
            states = []
            c.subscribe(states.append)
            assert c.unary_unary("/test.Test/echo")(b"x", timeout=PATIENCE) == b"x"
            time.sleep(3)
            assert c.unary_unary("/test.Test/echo")(b"x", timeout=PATIENCE) == b"x"
            # and while a call is under way
            call = c.unary_stream("/test.Test/hang_late")(b"x", timeout=PATIENCE)
            assert next(call) == b"begun"
            time.sleep(1)
            call.cancel()
            until("it is not ready", lambda: states and states[-1] == grpc.ChannelConnectivity.READY)
            assert grpc.ChannelConnectivity.TRANSIENT_FAILURE not in states


def main(check, port):
    begun = time.monotonic()
    getattr(Checks(port), check)()
    print(f"{check} ({time.monotonic() - begun:.2f} s)", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
