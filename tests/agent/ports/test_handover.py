"""A connection to a port, handed to the edge as a descriptor."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.agent.ports import connect, handover
from ballpoint.core.errors import ConflictError, InvalidError, UnavailableError
from tests.agent.ports.servers import full_queue
from tests.agent.world import DEADLINE, World, eventually
from tests.support.ports import free_port


@pytest.fixture(params=["127.0.0.1", "::1", "0.0.0.0"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as made:
        yield made


@pytest.fixture
def free() -> int:
    return free_port()


class Asked:
    """The edge's side of one hand-over."""

    def __init__(self, world: World, connect: Any) -> None:
        self.sock = world.connected_raw()
        self.sock.settimeout(DEADLINE)
        self.sock.sendall(json.dumps({"v": 1, "connect": connect}).encode() + b"\n")

    async def answer(self) -> tuple[dict[str, Any], list[socket.socket]]:
        """What was said, to the end, and the sockets that came with it."""
        return await asyncio.to_thread(self._answer)

    def _answer(self) -> tuple[dict[str, Any], list[socket.socket]]:
        said, sockets = b"", []
        with self.sock:
            while True:
                data, fds, flags, _ = socket.recv_fds(self.sock, 4096, 4)
                assert not flags & socket.MSG_CTRUNC
                sockets += [socket.socket(fileno=fd) for fd in fds]
                said += data
                if not data:
                    break
        assert said.endswith(b"\n") and said.count(b"\n") == 1
        return json.loads(said), sockets


async def test_the_connection_is_the_servers(world: World, listener: socket.socket) -> None:
    said, (sock,) = await Asked(world, {"port": listener.getsockname()[1]}).answer()
    assert said == {"ok": True, "port": listener.getsockname()[1]}
    with sock, listener.accept()[0] as server:
        sock.sendall(b"from the edge")
        assert server.recv(100) == b"from the edge"
        server.sendall(b"from the sprite")
        sock.setblocking(True)
        assert sock.recv(100) == b"from the sprite"
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        # The agent keeps nothing of it: with the edge's copy, the connection ends.
        sock.close()
        assert server.recv(100) == b""


async def test_a_port_nobody_listens_on_is_refused(world: World, free: int) -> None:
    said, sockets = await Asked(world, {"port": free}).answer()
    assert (said["error"], sockets) == ("refused", [])
    assert str(free) in said["message"]


async def test_a_server_that_starts_late_is_waited_for(world: World, free: int) -> None:
    asked = Asked(world, {"port": free, "retry_seconds": 20})
    answer = asyncio.ensure_future(asked.answer())
    done, _ = await asyncio.wait([answer], timeout=0.2)
    assert not done
    with socket.create_server(("127.0.0.1", free)):
        said, (sock,) = await answer
    sock.close()
    assert said == {"ok": True, "port": free}


async def test_the_wait_for_a_late_server_ends(world: World, free: int) -> None:
    said, _ = await Asked(world, {"port": free, "retry_seconds": 0.05}).answer()
    assert said["error"] == "refused"


async def test_who_hangs_up_waits_no_more(world: World, free: int) -> None:
    with Asked(world, {"port": free, "retry_seconds": 60}).sock:
        # The next answer comes after the first line was read.
        assert (await Asked(world, {"port": free}).answer())[0]["error"] == "refused"
    await eventually(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("connect to")])


async def test_a_server_whose_queue_is_full_does_not_answer_in_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "_CONNECT_SECONDS", 0.3)
    with full_queue() as port:
        said, _ = await Asked(world, {"port": port}).answer()
        assert said["error"] == "timeout"


async def test_a_sprite_that_does_not_run_is_told_so(world: World, listener: socket.socket) -> None:
    world.routes.serving = lambda: False
    said, sockets = await Asked(world, {"port": listener.getsockname()[1], "retry_seconds": 60}).answer()
    assert (said["error"], sockets) == ("not_running", [])
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize(
    "wanted",
    [
        *(None, 80, "80", [], {}),
        *({"port": port} for port in (0, 65536, -1, "80", True, 80.0)),
        *({"port": 80, "retry_seconds": seconds} for seconds in (-1, 61, "1", True, None, float("nan"))),
    ],
)
async def test_nonsense_is_refused(world: World, wanted: Any) -> None:
    said, sockets = await Asked(world, wanted).answer()
    assert (said["error"], sockets) == ("invalid", [])


async def test_what_follows_the_line_is_dropped(world: World, free: int) -> None:
    asked = Asked(world, {"port": free, "retry_seconds": 0.3})
    asked.sock.sendall(b"GET /exec?cmd=true HTTP/1.1\r\nHost: agent\r\n\r\n" * 100)
    assert (await asked.answer())[0]["error"] == "refused"
    assert world.started == 0


async def test_many_at_once_get_their_own(world: World, listener: socket.socket) -> None:
    listener.listen(200)
    port = listener.getsockname()[1]
    answers = await asyncio.gather(*(Asked(world, {"port": port}).answer() for _ in range(60)))
    peers = set()
    for said, (sock,) in answers:
        assert said == {"ok": True, "port": port}
        peers.add(sock.getsockname())
        sock.close()
    assert len(peers) == 60


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["port", "retry_seconds", "x"]) | st.text(), inner),
)


@given(JSON | st.fixed_dictionaries({"port": JSON, "retry_seconds": JSON}))
def test_whatever_is_wanted_is_a_port_or_refused(wanted: Any) -> None:
    try:
        port, seconds = handover.parse(wanted)
    except InvalidError:
        return
    assert (port is None or 1 <= port <= 65535) and 0 <= seconds <= handover.RETRY_MOST_SECONDS
    assert isinstance(wanted, dict) and wanted["port"] == port


class HttpPort:
    """A sprite's own, which a test chooses."""

    def __init__(self) -> None:
        self.port = 0
        self.failure: Exception | None = None

    async def __call__(self) -> int:
        if self.failure is not None:
            raise self.failure
        return self.port


async def test_without_a_number_the_http_port_is_meant(
    world: World, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    http_port = HttpPort()
    http_port.port = listener.getsockname()[1]
    monkeypatch.setattr(world.handover, "_http_port", http_port)
    said, (sock,) = await Asked(world, {"port": None}).answer()
    sock.close()
    assert said == {"ok": True, "port": http_port.port}
    http_port.failure = ConflictError("it was stopped")
    assert await Asked(world, {"port": None}).answer() == ({"error": "stopped", "message": "it was stopped"}, [])
    http_port.failure = UnavailableError("it does not start")
    assert await Asked(world, {"port": None}).answer() == ({"error": "unavailable", "message": "it does not start"}, [])
    said, _ = await Asked(world, {}).answer()
    assert said["error"] == "invalid"
    assert await handover.default_http_port() == 8080


async def test_without_room_for_a_descriptor_it_says_so(
    world: World, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> socket.socket:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr(world.network, "socket", none)
    said, _ = await Asked(world, {"port": listener.getsockname()[1]}).answer()
    assert said["error"] == "unavailable"
