"""What listens, as it is told: to who watches, to whose command it is, and however many there are."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from ballpoint.agent.ports import listening, owners, watch
from ballpoint.agent.ports.listening import Port, Ports
from ballpoint.agent.ports.network import Network
from ballpoint.host.sockdiag import SockDiag
from tests.agent.world import DEADLINE, World, eventually

Key = tuple[int, str]
OWN = Path("/proc")


class Told:
    """What a watcher of this test was told of the ports it looks at; the machine has others."""

    def __init__(self) -> None:
        self.list: list[Port] | None = None
        self.lists = 0
        self.changes: list[tuple[str, Port]] = []

    def listed(self, ports: list[Port] | None) -> None:
        self.lists += 1
        self.list = ports

    def changed(self, kind: str, port: Port) -> None:
        assert self.lists == 1
        self.changes.append((kind, port))

    def of(self, number: int) -> list[tuple[str, str]]:
        return [(kind, port.address) for kind, port in self.changes if port.port == number]


@pytest.fixture
def ports() -> Ports:
    return Ports(Network(None))


async def message(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE):
        said = await client.recv()
    assert isinstance(said, str)
    told: dict[str, Any] = json.loads(said)
    return told


async def message_of(client: ClientConnection, port: int) -> dict[str, Any]:
    while (told := await message(client)).get("port") != port:
        assert told["type"] in ("port_opened", "port_closed")
    return told


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::", "127.0.0.9", "::ffff:127.0.0.1"])
async def test_a_client_is_told_what_listens_and_what_changes(world: World, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    shown = address.removeprefix("::ffff:")
    with ExitStack() as stack:
        first = stack.enter_context(socket.socket(family))
        first.bind((address, 0))
        first.listen()
        async with world.websocket("/ports/watch") as client:
            told = await message(client)
            assert told["type"] == "port_list"
            number = first.getsockname()[1]
            expected = {"port": number, "address": shown, "pid": os.getpid()}
            assert expected in told["ports"]
            second = stack.enter_context(socket.socket(family))
            second.bind((address, 0))
            second.listen()
            number = second.getsockname()[1]
            expected = {"port": number, "address": shown, "pid": os.getpid()}
            assert await message_of(client, number) == {"type": "port_opened", **expected}
            second.close()
            assert await message_of(client, number) == {"type": "port_closed", **expected}


async def test_only_who_watches_makes_it_look(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    asked = SockDiag.ask

    def count(self: SockDiag, family: int) -> None:
        nonlocal looks
        looks += 1
        asked(self, family)

    monkeypatch.setattr(SockDiag, "ask", count)
    for end in [ports.of_session(1, lambda _: None) for _ in range(5)]:
        end()
        end()
    told = Told()
    await asyncio.sleep(0.7)
    assert looks == 0  # they went before a look was due
    end = ports.watch(told)
    await eventually(lambda: looks == 4)
    end()
    before = looks
    await asyncio.sleep(0.7)
    assert looks == before


async def test_a_second_watcher_gets_its_own_list(ports: Ports) -> None:
    first, second = Told(), Told()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number = sock.getsockname()[1]
        with closing(Ended(ports, first)):
            await eventually(lambda: first.lists)
            with closing(Ended(ports, second)):
                await eventually(lambda: second.lists)
                assert second.list is not None
                assert [each.port for each in second.list if each.port == number] == [number]
                assert second.of(number) == []
    assert first.lists == 1


class Ended:
    """A watch that is to be closed."""

    def __init__(self, ports: Ports, told: Told) -> None:
        self.close = ports.watch(told)


async def test_a_port_that_changed_hands_was_closed_and_opened(ports: Ports) -> None:
    """Between two looks another process may have taken it."""
    told = Told()
    sock = socket.create_server(("127.0.0.1", 0))
    number = sock.getsockname()[1]
    with closing(Ended(ports, told)):
        await eventually(lambda: told.lists)
        sock.close()
        with socket.create_server(("127.0.0.1", number)):
            await eventually(lambda: len(told.of(number)) == 2)
            assert [kind for kind, _ in told.of(number)] == ["port_closed", "port_opened"]


async def test_a_port_that_several_share_is_one(ports: Ports) -> None:
    told = Told()
    with closing(Ended(ports, told)), ExitStack() as stack:
        await eventually(lambda: told.lists)
        shared = [stack.enter_context(socket.socket()) for _ in range(3)]
        number = 0
        for sock in shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("127.0.0.1", number))
            sock.listen()
            number = sock.getsockname()[1]
        await eventually(lambda: told.of(number))
        assert [kind for kind, _ in told.of(number)] == ["port_opened"]
    assert not ports._known  # noqa: SLF001


SERVER = """
import socket, sys
made = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(each.getsockname()[1] for each in made), flush=True)
sys.stdin.read()
"""


async def test_an_exec_is_told_of_its_own_ports(world: World) -> None:
    """Also of those of its children; not of another's, nor of one that left the session."""
    with socket.create_server(("127.0.0.1", 0)):
        async with (
            world.open("sh", "-c", '"$0" -c "$1" 1; :', sys.executable, SERVER, stdin="true") as client,
            world.open("sh", "-c", 'setsid "$0" -c "$1" 1; :', sys.executable, SERVER, stdin="true") as other,
        ):
            await client.recv()
            said = await asyncio.wait_for(client.recv(), DEADLINE)
            assert isinstance(said, bytes)
            told = await message(client)
            assert (told["type"], told["port"]) == ("port_opened", int(said[1:]))
            assert told["address"] == "127.0.0.1" and told["pid"] > 0
            texts = []
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    while True:
                        if isinstance(text := await other.recv(), str):
                            texts.append(json.loads(text)["type"])
            assert texts == ["session_info"]
            await other.send(b"\x04")
            await client.send(b"\x04")
            texts = [json.loads(each)["type"] for each in await rest(client) if isinstance(each, str)]
            assert texts in ([], ["port_closed"])  # the command may have ended before the next look


async def rest(client: ClientConnection) -> list[str | bytes]:
    said: list[str | bytes] = []
    try:
        async with asyncio.timeout(DEADLINE):
            while True:
                said.append(await client.recv())
    except ConnectionClosed:
        return said


async def test_of_very_many_a_bounded_part_is_told(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "KNOWN_MOST", 50)
    told = Told()
    with ExitStack() as stack:
        many = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(700)]
        stack.enter_context(closing(Ended(ports, told)))
        await eventually(lambda: told.lists)
        assert told.list is not None and len(told.list) == 50
        # What is known goes on to be known, and when it goes, there is room for others.
        gone = {each.port for each in told.list}
        for sock in many:
            if sock.getsockname()[1] in gone:
                sock.close()
        await eventually(lambda: len(told.changes) >= 2 * len(gone & {port.port for _, port in told.changes}) > 0)
        # Others of this machine may be given what has just become free.
        opened = {port.port for kind, port in told.changes if kind == "port_opened" and port.pid == os.getpid()}
        assert opened and not opened & gone


async def test_where_the_kernel_does_not_say_nobody_is_told_that_nothing_listens(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: SockDiag, family: int) -> None:
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(SockDiag, "ask", refuse)
    async with world.websocket("/ports/watch") as client:
        assert (await message(client))["error"] == "unavailable"
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(client.recv(), DEADLINE)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == watch.CLOSE_UNAVAILABLE


async def test_a_kernel_that_said_nothing_once_is_asked_again(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing that listened meanwhile is taken for closed."""
    told = Told()
    with socket.create_server(("127.0.0.1", 0)) as sock, closing(Ended(ports, told)):
        number = sock.getsockname()[1]
        await eventually(lambda: told.lists)
        refused = 0

        def refuse(self: SockDiag, family: int) -> None:
            nonlocal refused
            refused += 1
            raise OSError(16, "Device or resource busy")

        with monkeypatch.context() as context:
            context.setattr(SockDiag, "ask", refuse)
            await eventually(lambda: refused >= 2)
        with socket.create_server(("127.0.0.1", 0)) as later:
            await eventually(lambda: told.of(later.getsockname()[1]))
        assert told.of(number) == []


async def test_a_watcher_that_does_not_read_is_cut_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_UNSENT_MAX", -1)
    with socket.create_server(("127.0.0.1", 0)):
        async with world.websocket("/ports/watch") as client:
            with pytest.raises(ConnectionClosed):
                while True:
                    await asyncio.wait_for(client.recv(), DEADLINE)


async def test_a_request_without_an_upgrade_is_told_what_this_is(world: World) -> None:
    assert (await world.ask("GET /ports/watch")).status == 400
    assert (await world.ask("GET /ports")).status == 404


# ---- owners ----


@pytest.fixture
def held() -> Iterator[tuple[int, int]]:
    """Inode of a socket, and its number."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield os.fstat(sock.fileno()).st_ino, sock.getsockname()[1]


def test_the_owner_of_a_socket_is_found(held: tuple[int, int]) -> None:
    found = {inode: owner for step in owners.find({held[0], 1}, OWN) for inode, owner in step.items()}
    assert found == {held[0]: owners.Owner(os.getpid(), os.getsid(0))}


def test_what_is_searched_is_bounded(held: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    real = os.readlink

    def count(*arguments: Any, **more: Any) -> Any:
        nonlocal looked
        looked += 1
        return real(*arguments, **more)

    monkeypatch.setattr(os, "readlink", count)
    monkeypatch.setattr(owners, "DESCRIPTORS_MOST", 3)
    monkeypatch.setattr(owners, "SEARCH_MOST", 30)
    for _ in owners.find({held[0]}, OWN):
        pass
    assert 0 < looked <= 33


@pytest.mark.parametrize(
    ("stat", "session"),
    [
        (b"7 (bash) S 1 7 42 0 -1", 42),
        (b"7 (evil) S 1 1 1 1) S 1 7 42 0 -1", 42),
        (b"7 (\n) S 1 7 42 0", 42),
        (b"7 (x) S", 0),
        (b"", 0),
    ],
)
def test_a_process_name_forges_no_session(stat: bytes, session: int) -> None:
    assert owners.session_of(stat) == session


@pytest.mark.parametrize(
    ("status", "pid"),
    [
        (b"Name:\tx\nNSpid:\t300\t17\nThreads:\t1\n", 17),
        (b"Name:\tx\nNSpid:\t300\t17\t2\n", 17),
        (b"Name:\tx\nNSpid:\t300\n", 300),
        (b"Name:\tNSpid: 1 2\nNSpid:\t300\t17\n", 17),
        (b"Name:\t\rNSpid: 1 2\nNSpid:\t300\t17\n", 17),
        (b"", 300),
    ],
)
def test_the_pid_is_the_one_inside(status: bytes, pid: int) -> None:
    assert owners.inner_pid(status, 300) == pid


@given(st.binary(max_size=200))
def test_garbage_is_nobody(data: bytes) -> None:
    assert owners.session_of(data) >= 0
    assert owners.inner_pid(data, 5) >= 0
