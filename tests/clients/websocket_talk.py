"""WebSockets as the `websockets` package speaks them.

    websocket_talk.py serve             prints its port and serves until its input ends
    websocket_talk.py talk CERTIFICATE URL…   has every kind of conversation, over `ws://…` and `wss://…`
"""

import asyncio
import os
import ssl
import sys
import threading

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

LARGE = 3 << 20
PATIENCE = 30
# codes with which conversations ended, by the name that the client gave them in its path
ENDED = {}


async def answer(ws):
    name = ws.request.path.rpartition("?")[2]
    try:
        async for message in ws:
            words = message.split() if isinstance(message, str) else []
            match words:
                case ["close", code, reason]:
                    await ws.close(int(code), reason)
                case ["ended", other]:
                    await ws.send(str(ENDED.get(other, "")))
                case ["ping"]:
                    await (await ws.ping(b"from the server"))
                    await ws.send("ponged")
                case ["large"]:
                    await ws.send(bytes(LARGE))
                case ["fragments"]:
                    await ws.send(["in ", "three ", "parts"])
                case ["headers"]:
                    await ws.send(f"{ws.request.headers.get('X-Real-IP')} {ws.subprotocol}")
                case _:
                    await ws.send(message)
    except ConnectionClosed:
        pass
    finally:
        await ws.wait_closed()
        ENDED[name] = ws.close_code


def chosen(_, offered):
    return "chat" if "chat" in offered else None


async def serving():
    async with serve(answer, "127.0.0.1", 0, max_size=None, select_subprotocol=chosen, ping_interval=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        # the input ends with whoever started us
        reading = lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set))
        threading.Thread(target=reading, daemon=True).start()
        await ended.wait()


class Talks:
    """Each method is a conversation."""

    def __init__(self, url, context):
        self.url, self.context = url, context

    def to(self, path="/", **options):
        options = dict(max_size=None, ping_interval=None, open_timeout=PATIENCE, close_timeout=PATIENCE) | options
        return connect(self.url + path, ssl=self.context, proxy=None, **options)

    async def ended(self, name):
        async with self.to() as ws:
            while True:
                await ws.send(f"ended {name}")
                if code := await ws.recv():
                    return int(code)
                await asyncio.sleep(0.01)

    async def texts_and_bytes(self):
        for compression in (None, "deflate"):
            async with self.to(compression=compression) as ws:
                for message in ("hello", "", "grüße 🎉", b"", bytes(range(256)), "x" * 125, "x" * 126, b"x" * 65536):
                    await ws.send(message)
                    assert await ws.recv() == message

    async def headers(self):
        async with self.to(subprotocols=["chat"]) as ws:
            await ws.send("headers")
            assert await ws.recv() == "127.0.0.1 chat"
            assert ws.subprotocol == "chat"

    async def fragments(self):
        async with self.to() as ws:
            await ws.send(["one ", "two ", "three"])
            assert await ws.recv() == "one two three"
            await ws.send("fragments")
            assert [part async for part in ws.recv_streaming() if part] == ["in ", "three ", "parts"]

    async def large_messages(self):
        async with self.to(compression=None) as ws:
            large = os.urandom(LARGE)
            await ws.send(large)
            assert await ws.recv() == large
            await ws.send("large")
            assert await ws.recv() == bytes(LARGE)

    async def pings(self):
        async with self.to() as ws:
            await (await ws.ping(b"from the client"))
            await ws.send("ping")
            assert await ws.recv() == "ponged"

    async def closed_by_the_client(self):
        for code in (1000, 4001):
            name = f"client-{code}-{self.url[:3]}"
            async with self.to(f"/?{name}") as ws:
                await ws.send("hello")
                await ws.recv()
                await ws.close(code, "enough")
            assert ws.close_code == code
            assert await self.ended(name) == code

    async def closed_by_the_server(self):
        for code in (1001, 4002):
            async with self.to() as ws:
                await ws.send(f"close {code} why")
                try:
                    await ws.recv()
                    raise AssertionError("it is not closed")
                except ConnectionClosed as e:
                    assert (e.rcvd.code, e.rcvd.reason) == (code, "why"), e

    async def a_client_that_vanishes(self):
        name = f"vanished-{self.url[:3]}"
        async with self.to(f"/?{name}") as ws:
            await ws.send("hello")
            await ws.recv()
            ws.transport.abort()
            assert await self.ended(name) == 1006

    async def a_client_that_only_listens(self):
        # half a close: what it asked for before still comes, or the end does, but nothing hangs
        if self.context:
            return
        name = "half"
        async with self.to(f"/?{name}", compression=None) as ws:
            await ws.send("hello")
            await ws.recv()
            ws.transport.write_eof()
            assert await self.ended(name) == 1006
            await ws.wait_closed()

    async def silence(self):
        async with self.to("/short") as ws:
            await ws.send("hello")
            assert await ws.recv() == "hello"
            await ws.wait_closed()
            assert ws.close_code == 1006

    async def many_at_once(self):
        async def talk(i):
            async with self.to() as ws:
                for n in range(5):
                    await ws.send(f"{i}.{n}")
                    assert await ws.recv() == f"{i}.{n}"

        await asyncio.gather(*(talk(i) for i in range(150)))


async def talking(certificate, urls):
    for url in urls:
        context = ssl.create_default_context(cafile=certificate) if url.startswith("wss:") else None
        if context:
            # the certificate of the tests has a common name alone
            context.check_hostname = False
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        talks = Talks(url, context)
        for name, talk in vars(Talks).items():
            if not name.startswith("_") and name not in ("to", "ended"):
                begun = asyncio.get_running_loop().time()
                await asyncio.wait_for(talk(talks), 2 * PATIENCE)
                print(f"{url[:4]} {name} ({asyncio.get_running_loop().time() - begun:.2f} s)", flush=True)


if __name__ == "__main__":
    asyncio.run(serving() if sys.argv[1] == "serve" else talking(sys.argv[2], sys.argv[3:]))
