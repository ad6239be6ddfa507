"""Where DNS questions go: the servers to ask, and asking one of them over UDP or TCP."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from pathlib import Path

import dns.entropy
import dns.exception
import dns.message
import dns.wire

from ballpoint.core.config import split_host_port
from ballpoint.core.errors import InvalidError

RESOLV_CONF = Path("/etc/resolv.conf")
DNS_PORT = 53
HEADER = 12
# resolv.conf(5): MAXNS, and the server where none is named.
_MAX_SERVERS = 3
_DEFAULT_SERVERS = (("127.0.0.1", DNS_PORT),)

Address = tuple[str, int]


class Servers:
    """The servers to ask, in order of preference.

    Args:
        dns: HOST[:PORT] of the only one; None takes those of `file`.
        file: in the format of resolv.conf(5); read again when it has changed.

    Raises:
        InvalidError: `dns` is not an address.
    """

    def __init__(self, dns: str | None, file: Path = RESOLV_CONF) -> None:
        self._fixed = (_server(dns),) if dns is not None else None
        self._file = file
        self._stamp: tuple[int, ...] | None = None
        self._read: Sequence[Address] = _DEFAULT_SERVERS

    def current(self) -> Sequence[Address]:
        """The servers as of now. OSError where the file is there but cannot be read."""
        if self._fixed is not None:
            return self._fixed
        try:
            status = self._file.stat()
            stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp != self._stamp:
                self._read = parse_resolv_conf(self._file.read_text(errors="replace")) or _DEFAULT_SERVERS
                self._stamp = stamp
        except FileNotFoundError:
            self._stamp, self._read = None, _DEFAULT_SERVERS
        return self._read


def parse_resolv_conf(text: str) -> list[Address]:
    """The name servers of a resolv.conf(5), at most three; lines that make no sense are skipped, as resolvers do."""
    found: list[Address] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                ipaddress.ip_address(words[1])
            except ValueError:
                continue
            found.append((words[1], DNS_PORT))
    return found[:_MAX_SERVERS]


def _server(text: str) -> Address:
    host, port = split_host_port(text, default_port=DNS_PORT)
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise InvalidError(f"the resolver {host!r} is not an IP address", hint="for example 192.0.2.53:53") from error
    return host, port


async def ask_udp(server: Address, query: bytes, question: bytes) -> bytes:
    """Ask `server` and wait for its answer, until cancelled.

    A socket and an identifier of its own for each question make an answer hard to forge (RFC 5452); what does not match
    is passed over.

    Args:
        query: the whole message; its identifier is replaced on the way and put back in the answer.
        question: its question section, which the answer must repeat.

    Raises:
        OSError: the server is not there.
    """
    loop = asyncio.get_running_loop()
    identifier = dns.entropy.random_16().to_bytes(2, "big")
    transport, waiter = await loop.create_datagram_endpoint(
        lambda: _Answer(identifier, question, loop.create_future()), remote_addr=server
    )
    try:
        transport.sendto(identifier + query[2:])
        return query[:2] + (await waiter.answer)[2:]
    finally:
        transport.close()


async def ask_tcp(server: Address, query: bytes, question: bytes) -> bytes:
    """As `ask_udp`, over a connection.

    Raises:
        OSError: the server is not there, or its answer is none to this question.
    """
    identifier = dns.entropy.random_16().to_bytes(2, "big")
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(len(query).to_bytes(2, "big") + identifier + query[2:])
        answer = await read_message(reader)
    finally:
        writer.close()
    if answer is None or not answers(answer, identifier, question):
        raise ConnectionError(f"{server[0]} did not answer the question")
    return query[:2] + answer[2:]


async def read_message(reader: asyncio.StreamReader) -> bytes | None:
    """The next message of a DNS connection (RFC 1035 section 4.2.2), or None at its end."""
    try:
        return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    except asyncio.IncompleteReadError:
        return None


def answers(message: bytes, identifier: bytes, question: bytes) -> bool:
    """Whether `message` answers the `question` asked under `identifier`.

    Names are compared without regard to case, which servers need not keep. An error may come without its question.
    """
    if len(message) < HEADER or message[:2] != identifier or not message[2] & 0x80:
        return False
    repeated = message[HEADER : HEADER + len(question)]
    return repeated.lower() == question.lower() or (message[4:6] == b"\0\0" and message[3] & 0x0F != 0)


def question_of(query: bytes) -> bytes | None:
    """The question section of `query`, or None where it is no well-formed standard query with one question."""
    if len(query) < HEADER or query[2] & 0xF8 or query[4:6] != b"\0\1":
        return None
    try:
        dns.message.from_wire(query)
        parser = dns.wire.Parser(query, HEADER)
        parser.get_name()
    except (dns.exception.DNSException, ValueError):
        return None
    # After the name: type and class, two bytes each.
    return query[HEADER : parser.current + 4]


class _Answer(asyncio.DatagramProtocol):
    def __init__(self, identifier: bytes, question: bytes, answer: asyncio.Future[bytes]) -> None:
        self.answer = answer
        self._identifier = identifier
        self._question = question

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.answer.done() and answers(data, self._identifier, self._question):
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)
