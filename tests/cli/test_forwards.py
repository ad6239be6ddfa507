"""What a sprite says of its ports, and what is made of it on this machine."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.cli.client.forward import Forwards
from ballpoint.cli.client.http import Api
from tests.support.ports import free_port


class Said:
    """Forwards of a node that is not there, and what they showed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        nowhere = SimpleNamespace(selection=SimpleNamespace(url="http://127.0.0.1:1", token="none"))
        self.forwards = Forwards(cast(Api, nowhere), "demo", self.lines.append)

    def place(self, port: int) -> int:
        """Where `port` is said to be."""
        found = [re.fullmatch(rf"port {port} of demo is at 127\.0\.0\.1:(\d+)", line) for line in self.lines]
        (match,) = (each for each in found if each is not None)
        return int(match[1])

    async def tell(self, kind: str, port: object, address: object = "127.0.0.1") -> None:
        await self.forwards.told({"type": kind, "port": port, "address": address, "pid": 1})


@pytest.fixture
async def said() -> AsyncIterator[Said]:
    made = Said()
    yield made
    await made.forwards.close()


def listens(port: int, address: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((address, port)).close()
    except ConnectionRefusedError:
        return False
    return True


async def test_a_port_is_there_until_nobody_listens_at_any_address(said: Said) -> None:
    port = free_port()
    await said.tell("port_opened", port)
    await said.tell("port_opened", port, "::1")
    assert said.place(port) == port
    assert listens(port) and listens(port, "::1")
    await said.tell("port_closed", port)
    assert listens(port)
    await said.tell("port_closed", port, "::1")
    assert not listens(port) and not listens(port, "::1")
    await said.tell("port_opened", port)
    assert listens(port)


async def test_a_port_that_is_taken_or_a_systems_is_elsewhere(said: Said) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        await said.tell("port_opened", port)
        assert said.place(port) != port and listens(said.place(port))
    await said.tell("port_opened", 53)
    assert said.place(53) >= 1024 and listens(said.place(53))


async def test_only_so_many_are_forwarded(said: Said) -> None:
    for port in range(100, 200):
        await said.tell("port_opened", port)
    assert len(said.lines) == 32
    await said.tell("port_closed", 100)
    await said.tell("port_opened", 500)
    assert len(said.lines) == 33


async def test_the_end_of_the_command_is_the_end_of_all(said: Said) -> None:
    port = free_port()
    await said.tell("port_opened", port)
    await said.forwards.close()
    assert not listens(port)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["port_opened", "port_closed", "other"]) | JSON,
            "port": st.integers(max_value=0)
            | st.integers(min_value=65536)
            | JSON.filter(lambda each: type(each) is not int),
            "address": st.text() | JSON,
        },
    )
)
async def test_what_is_no_port_is_ignored(message: dict[str, Any]) -> None:
    said = Said()
    await said.forwards.told(message)
    assert said.lines == []
