"""Between a store and its server: passes requests on, loses answers, and gives its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Fate:
    """What becomes of a request.

    Attributes:
        forward: whether the server gets it, and answers, before anything else happens.
        answer: what the client gets: "theirs", "none" (the connection ends), "never" (it stays open), or of our own.
    """

    forward: bool
    answer: str


PASS = Fate(forward=True, answer="theirs")
LOST_ANSWER = Fate(forward=True, answer="none")
LOST_REQUEST = Fate(forward=False, answer="none")
SILENCE = Fate(forward=False, answer="never")


def says(status: int, code: str = "", message: str = "on purpose", *, forward: bool = False) -> Fate:
    """An answer of our own, as S3 gives it."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    # Azure has the word in a header, too.
    return Fate(forward, f"{head}x-ms-error-code: {code}\r\n\r\n{body}")


@dataclass
class Proxy:
    """One that runs.

    Attributes:
        endpoint: its URL.
        fates: of the next requests, in order; then `after`.
        requests: the methods of those that came.
    """

    endpoint: str = ""
    fates: list[Fate] = field(default_factory=list)
    after: Fate = PASS
    requests: list[str] = field(default_factory=list)


@asynccontextmanager
async def proxied(server: str) -> AsyncIterator[Proxy]:
    """A proxy before the endpoint `server`."""
    proxy = Proxy()
    to = urlsplit(server)
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(lengths[0].split(b":")[1]) if lengths else 0)
            proxy.requests.append(head.split(b" ")[0].decode())
            fate = proxy.fates.pop(0) if proxy.fates else proxy.after
            theirs = await forward(head, body) if fate.forward else b""
            if fate.answer == "never":
                await over.wait()
            elif fate.answer != "none":
                writer.write(theirs if fate.answer == "theirs" else fate.answer.encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone, as it may
        finally:
            writer.close()

    async def forward(head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(to.hostname, to.port)
        # Of HTTP/1.0 the end of the answer is the end of the connection.
        writer.write(head.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1) + body)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        proxy.endpoint = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield proxy
        over.set()
