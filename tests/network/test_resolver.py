"""The node's DNS forwarder against upstream servers that behave, lie, keep silent or are gone."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import dns.asyncquery
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.core.errors import InvalidError, UnavailableError
from ballpoint.network.resolver import Resolver
from ballpoint.network.upstream import Servers, parse_resolv_conf, question_of

LOCAL = "127.0.0.1"
Behaviour = Callable[[dns.message.Message], list[bytes]]


def reply(query: dns.message.Message, address: str = "192.0.2.7", *, records: int = 1) -> dns.message.Message:
    """An answer to `query` with `records` addresses."""
    message = dns.message.make_response(query)
    message.flags |= dns.flags.RA
    addresses = [address] if records == 1 else [f"192.0.2.{number}" for number in range(records)]
    message.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", *addresses))
    return message


class Upstream(asyncio.DatagramProtocol):
    """A DNS server on a free local port that answers as `behaviour` says, over UDP and TCP, and keeps the questions."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.seen: list[dns.message.Message] = []
        self.port = 0
        self.transport: asyncio.DatagramTransport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        for answer in self._answers(data):
            self.transport.sendto(answer, addr)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        for answer in self._answers(query):
            writer.write(len(answer).to_bytes(2, "big") + answer)
        await writer.drain()
        writer.close()

    def _answers(self, data: bytes) -> list[bytes]:
        query = dns.message.from_wire(data)
        self.seen.append(query)
        return self.behaviour(query)


@asynccontextmanager
async def upstream(behaviour: Behaviour = lambda query: [reply(query).to_wire()]) -> AsyncIterator[Upstream]:
    server = Upstream(behaviour)
    tcp = await asyncio.start_server(server.connected, LOCAL, 0)
    server.port = tcp.sockets[0].getsockname()[1]
    server.transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: server, local_addr=(LOCAL, server.port)
    )
    try:
        yield server
    finally:
        server.transport.close()
        tcp.close()


@asynccontextmanager
async def resolver(dns: str | None, **settings: object) -> AsyncIterator[int]:
    served = Resolver(dns, **settings)  # type: ignore[arg-type]
    port = await served.start(LOCAL, 0)
    try:
        yield port
    finally:
        await served.close()


def question(name: str = "example.org.") -> dns.message.Message:
    return dns.message.make_query(name, "A", use_edns=True, payload=1232)


async def test_a_question_is_answered_over_udp_and_tcp_under_the_clients_own_identifier() -> None:
    async with upstream() as server, resolver(f"{LOCAL}:{server.port}") as port:
        for ask in (dns.asyncquery.udp, dns.asyncquery.tcp):
            query = question()
            answer = await ask(query, LOCAL, port=port, timeout=10)
            assert answer.id == query.id
            assert answer.answer == reply(query).answer
        assert server.seen[0].payload == query.payload, "the client's EDNS passes through"
        assert len({query.id for query in server.seen} - {query.id}), "upstream sees identifiers of the resolver's own"


async def test_a_connection_may_ask_several_questions() -> None:
    async with upstream() as server, resolver(f"{LOCAL}:{server.port}") as port:
        reader, writer = await asyncio.open_connection(LOCAL, port)
        for name in ("a.example.", "b.example."):
            query = question(name).to_wire()
            writer.write(len(query).to_bytes(2, "big") + query)
            answer = dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
            assert answer.question[0].name.to_text() == name
        writer.close()


async def test_a_truncated_answer_reaches_the_client_which_gets_the_whole_over_tcp() -> None:
    def behaviour(query: dns.message.Message) -> list[bytes]:
        whole = reply(query, records=100)
        if len(server.seen) > 1:
            return [whole.to_wire(max_size=65535)]
        short = dns.message.make_response(query)
        short.flags |= dns.flags.TC
        return [short.to_wire()]

    async with upstream(behaviour) as server, resolver(f"{LOCAL}:{server.port}") as port:
        answer, over_tcp = await dns.asyncquery.udp_with_fallback(question(), LOCAL, port=port, timeout=10)
        assert over_tcp
        assert len(answer.answer[0]) == 100


async def test_a_silent_upstream_is_servfail_within_the_deadline() -> None:
    async with upstream(lambda query: []) as server, resolver(f"{LOCAL}:{server.port}", deadline=0.2) as port:
        for ask in (dns.asyncquery.udp, dns.asyncquery.tcp):
            query = question()
            answer = await ask(query, LOCAL, port=port, timeout=30)
            assert answer.rcode() == dns.rcode.SERVFAIL
            assert answer.question == query.question


async def test_an_absent_upstream_is_servfail_at_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind((LOCAL, 0))
        gone = unused.getsockname()[1]
    async with resolver(f"{LOCAL}:{gone}", deadline=3600) as port:
        for ask in (dns.asyncquery.udp, dns.asyncquery.tcp):
            answer = await ask(question(), LOCAL, port=port, timeout=60)
            assert answer.rcode() == dns.rcode.SERVFAIL


async def test_an_error_of_the_upstream_passes() -> None:
    def refuse(query: dns.message.Message) -> list[bytes]:
        answer = dns.message.make_response(query)
        answer.set_rcode(dns.rcode.NXDOMAIN)
        return [answer.to_wire()]

    async with upstream(refuse) as server, resolver(f"{LOCAL}:{server.port}") as port:
        assert (await dns.asyncquery.udp(question(), LOCAL, port=port, timeout=10)).rcode() == dns.rcode.NXDOMAIN


async def test_forged_and_damaged_answers_are_passed_over_for_the_true_one() -> None:
    def lie(query: dns.message.Message) -> list[bytes]:
        other_question = reply(dns.message.make_query("other.example.", "A", id=query.id), "203.0.113.1")
        other_identifier = reply(query, "203.0.113.2")
        other_identifier.id ^= 1
        return [b"", b"\xff" * 40, other_question.to_wire(), other_identifier.to_wire(), reply(query).to_wire()]

    async with upstream(lie) as server, resolver(f"{LOCAL}:{server.port}") as port:
        query = question()
        assert (await dns.asyncquery.udp(query, LOCAL, port=port, timeout=10)).answer == reply(query).answer


async def test_garbage_is_dropped_and_never_reaches_the_upstream() -> None:
    good = question().to_wire()
    answer = reply(question()).to_wire()
    async with upstream() as server, resolver(f"{LOCAL}:{server.port}") as port:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect((LOCAL, port))
            for data in (b"", b"\0", good[:11], good[:-3], good + b"x", answer, os.urandom(512), bytes(12)):
                client.send(data)
        assert (await dns.asyncquery.udp(question(), LOCAL, port=port, timeout=10)).rcode() == dns.rcode.NOERROR
        reader, writer = await asyncio.open_connection(LOCAL, port)
        writer.write(b"\0\4junk")
        assert await reader.read() == b"", "the connection is closed"
        writer.close()
        assert [query.question[0].name.to_text() for query in server.seen] == ["example.org."]


async def test_a_client_with_too_many_questions_under_way_does_not_stop_another() -> None:
    held: list[dns.message.Message] = []

    def behaviour(query: dns.message.Message) -> list[bytes]:
        if query.question[0].name.to_text().startswith("held"):
            held.append(query)
            return []
        return [reply(query).to_wire()]

    async with upstream(behaviour) as server, resolver(f"{LOCAL}:{server.port}", deadline=60) as port:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooder:
            flooder.bind(("127.0.0.2", 0))
            flooder.connect((LOCAL, port))
            for number in range(300):
                flooder.send(question(f"held{number}.example.").to_wire())
            answer = await dns.asyncquery.udp(question(), LOCAL, port=port, timeout=30)
            assert answer.rcode() == dns.rcode.NOERROR
        assert len({query.question[0].name for query in held}) < 300


def test_the_hosts_servers_are_followed_when_their_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("search example.org\nnameserver 127.0.0.1\n")
    servers = Servers(None, file)
    assert [*servers.current()] == [("127.0.0.1", 53)]
    file.write_text("# moved\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions edns0\n")
    assert [host for host, _ in servers.current()] == ["192.0.2.53", "2001:db8::53"]
    file.unlink()
    assert [host for host, _ in servers.current()] == ["127.0.0.1"], "what resolv.conf(5) says of a missing one"


async def test_an_unreadable_resolv_conf_is_servfail(tmp_path: Path) -> None:
    async with resolver(None, resolv_conf=tmp_path) as port:
        answer = await dns.asyncquery.udp(question(), LOCAL, port=port, timeout=10)
        assert answer.rcode() == dns.rcode.SERVFAIL


async def test_closing_twice_is_closing_once() -> None:
    served = Resolver(f"{LOCAL}:1")
    await served.start(LOCAL, 0)
    await served.close()
    await served.close()


async def test_a_taken_address_is_a_clear_error() -> None:
    with socket.create_server((LOCAL, 0)) as other, pytest.raises(UnavailableError, match="cannot serve DNS"):
        await Resolver(None).start(LOCAL, other.getsockname()[1])


def test_a_resolver_that_is_no_address_is_refused() -> None:
    with pytest.raises(InvalidError):
        Resolver("dns.example.org")


@given(st.binary(max_size=100))
def test_any_bytes_are_a_question_or_none(data: bytes) -> None:
    found = question_of(data)
    assert found is None or found in data


@given(st.lists(st.from_regex(r"[a-z]{1,20}", fullmatch=True), min_size=1, max_size=5), st.binary(max_size=40))
def test_the_question_is_found_whatever_its_name(labels: list[str], junk: bytes) -> None:
    query = question(".".join(labels) + ".")
    wire = query.to_wire()
    assert question_of(wire) == wire[12 : 12 + sum(len(label) + 1 for label in labels) + 1 + 4]
    assert not junk or question_of(wire + junk) is None


@given(st.text())
def test_any_resolv_conf_is_read(text: str) -> None:
    assert len(parse_resolv_conf(text)) <= 3
