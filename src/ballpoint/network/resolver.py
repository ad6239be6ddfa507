"""The node's DNS server for its instances: it passes questions on and answers back, over UDP and TCP.

Messages pass as they are, so whatever client and server agree on (EDNS, DNSSEC, sizes) holds. A truncated answer
reaches the client, which asks again over TCP, and so does the resolver.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from ballpoint.core.errors import UnavailableError
from ballpoint.core.tasks import Tasks
from ballpoint.network.upstream import (
    DNS_PORT,
    RESOLV_CONF,
    Address,
    Servers,
    ask_tcp,
    ask_udp,
    question_of,
    read_message,
)

Ask = Callable[[Address, bytes, bytes], Awaitable[bytes]]

log = logging.getLogger(__name__)

# A stub resolver asks again after five seconds (resolv.conf(5), timeout): by then it has been told. Seconds.
DEADLINE = 4.5
# One lost datagram must not use it up.
_ATTEMPT = 1.5
# What a client may have under way, and all of them together: each holds a descriptor of the node.
_PER_CLIENT = 64
_TOTAL = 4096
# RFC 7766 section 6.2.3: a few seconds. A connection on which nothing is asked for so long is closed.
_IDLE = 10.0

# Bytes: room for what all clients may send in the 50 ms for which a busy event loop may not look. The kernel's default
# holds 277 questions. SO_RCVBUFFORCE (asm-generic/socket.h) goes beyond the host's limit for plain users.
_RECEIVE_BUFFER = 4 << 20
_SO_RCVBUFFORCE = 33

_SERVFAIL = 2


class Resolver:
    """A forwarder, used by one event loop.

    Args:
        dns: HOST[:PORT] of the resolver to ask; None asks those of the host, following its file.
        resolv_conf: that file.
        deadline: seconds within which every question that is let in is answered.

    Raises:
        InvalidError: `dns` is not an address.
    """

    def __init__(self, dns: str | None = None, *, resolv_conf: Path = RESOLV_CONF, deadline: float = DEADLINE) -> None:
        self._servers = Servers(dns, resolv_conf)
        self._deadline = deadline
        self._tasks = Tasks()
        self._under_way: Counter[str] = Counter()
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    async def start(self, address: str, port: int = DNS_PORT) -> int:
        """Serve at `address`. Returns the port, the same for UDP and TCP; 0 chooses one.

        Raises:
            UnavailableError: the address is not there, or another server has it.
        """
        try:
            self._tcp = await asyncio.start_server(self._connected, address, port)
            bound = int(self._tcp.sockets[0].getsockname()[1])
            self._udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Questions(self), local_addr=(address, bound)
            )
            self._udp.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except OSError as error:
            await self.close()
            raise UnavailableError(
                f"cannot serve DNS at {address}, port {port}: {error.strerror}",
                hint="another DNS server may listen on every address; bind it to its own",
            ) from error
        return bound

    async def close(self) -> None:
        """Stop serving; questions under way get no answer. Idempotent."""
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
        await self._tasks.close()
        self._udp = self._tcp = None

    def received(self, query: bytes, client: tuple[str, int]) -> None:
        """A datagram came in: answer it in the background, unless it is malformed or its client has too many."""
        if (question := question_of(query)) is not None:
            self._admit(client[0], self._answer_datagram(query, question, client))

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._admit(writer.get_extra_info("peername")[0], self._serve_connection(reader, writer)):
            writer.close()

    def _admit(self, client: str, work: Coroutine[Any, Any, None]) -> bool:
        """Start `work` for `client`, unless it or all clients together have too much under way."""
        if self._under_way[client] >= _PER_CLIENT or self._under_way.total() >= _TOTAL:
            work.close()
            return False
        self._under_way[client] += 1
        self._tasks.start(work, f"dns for {client}").add_done_callback(lambda _: self._leave(client))
        return True

    def _leave(self, client: str) -> None:
        self._under_way[client] -= 1
        if not self._under_way[client]:
            del self._under_way[client]

    async def _answer_datagram(self, query: bytes, question: bytes, client: tuple[str, int]) -> None:
        answer = await self._resolve(query, question, ask_udp)
        if self._udp is not None:
            self._udp.sendto(answer, client)

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question after the other, until the client leaves, falls silent or sends what is no question."""
        try:
            while True:
                async with asyncio.timeout(_IDLE):
                    query = await read_message(reader)
                if query is None or (question := question_of(query)) is None:
                    return
                answer = await self._resolve(query, question, ask_tcp)
                writer.write(len(answer).to_bytes(2, "big") + answer)
                async with asyncio.timeout(_IDLE):
                    await writer.drain()
        except (TimeoutError, ConnectionError):
            return
        finally:
            writer.close()

    async def _resolve(self, query: bytes, question: bytes, ask: Ask) -> bytes:
        """The answer of the first server that gives one, or SERVFAIL."""
        try:
            async with asyncio.timeout(self._deadline):
                if (answer := await self._asked(query, question, ask)) is not None:
                    return answer
        except TimeoutError:
            log.debug("no DNS server answered in time")
        except OSError as error:
            log.error("cannot learn the host's DNS servers: %s", error)
        # QR and the client's RD; RA and the code; the one question and nothing else (RFC 1035 section 4.1.1).
        return query[:2] + bytes([query[2] & 1 | 0x80, 0x80 | _SERVFAIL]) + b"\0\1" + bytes(6) + question

    async def _asked(self, query: bytes, question: bytes, ask: Ask) -> bytes | None:
        """Ask each server, and again those that kept silent: datagrams get lost. None where all refuse to answer."""
        servers = list(self._servers.current())
        while servers:
            silent = []
            for server in servers:
                try:
                    async with asyncio.timeout(_ATTEMPT):
                        return await ask(server, query, question)
                except TimeoutError:
                    silent.append(server)
                except OSError as error:
                    log.debug("DNS server %s: %s", server[0], error)
            servers = silent
        return None


class _Questions(asyncio.DatagramProtocol):
    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._resolver.received(data, addr)
