"""Ports of a sprite from outside: what listens only on its localhost, transfers, refusals, and who goes away."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from tests.inside import server
from tests.inside.conftest import Make, agent_of, instance_of, next_agent
from tests.support.nodes import TestNode, shell

pytestmark = [pytest.mark.node, pytest.mark.host]

SERVERS = {"127.0.0.1": 5001, "::1": 5002, "0.0.0.0": 5003, "::": 5004}
NOBODY = 5999
_SECONDS = 60.0


def start_server(sprite: Any, address: str, port: int) -> None:
    """A server of tests/inside/server.py inside, once it listens."""
    program = base64.b64encode(Path(server.__file__).read_bytes()).decode()
    code, said = shell(
        sprite,
        f"echo {program} | base64 -d >/tmp/server.py; "
        f"setsid python3 /tmp/server.py {address} {port} >/tmp/server-{port}.log 2>&1 </dev/null & "
        f"until ss -Hltn 2>/dev/null | grep -q ':{port} ' || (echo >/dev/tcp/{address}/{port}) 2>/dev/null; "
        "do sleep 0.05; done",
    )
    assert code == 0, said


@pytest.fixture(scope="module")
def sprite(make_sprite: Make) -> Iterator[Any]:
    made = make_sprite()
    for address, port in SERVERS.items():
        start_server(made, address, port)
    yield made


def handed(node: TestNode, sprite: Any, port: int | None, **more: Any) -> tuple[dict[str, Any], socket.socket | None]:
    """What the agent answers to the edge's line, and the socket that came with it."""
    path = f"/run/ballpoint/{node.id}/instances/{instance_of(node, sprite)}/http.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_SECONDS)
        sock.connect(path)
        sock.sendall(json.dumps({"connect": {"port": port, **more}}).encode() + b"\n")
        said, fds, _, _ = socket.recv_fds(sock, 4096, 1)
        assert sock.recv(1) == b""
    made = socket.socket(fileno=fds[0]) if fds else None
    if made is not None:
        made.settimeout(_SECONDS)
    return json.loads(said), made


@pytest.mark.parametrize("port", SERVERS.values(), ids=SERVERS.keys())
def test_the_edge_is_handed_a_connection(node: TestNode, sprite: Any, port: int) -> None:
    said, sock = handed(node, sprite, port)
    assert said == {"ok": True, "port": port}
    assert sock is not None
    with sock:
        size = 3 << 20
        sock.sendall(b"take %d\n" % size)
        digest = hashlib.sha256()
        for block in server.blocks(size):
            sock.sendall(block)
            digest.update(block)
        assert sock.recv(100).decode() == digest.hexdigest()


def test_what_was_handed_over_outlives_the_agent(node: TestNode, make_sprite: Make) -> None:
    sprite = make_sprite()
    start_server(sprite, "127.0.0.1", 5070)
    _, sock = handed(node, sprite, 5070)
    assert sock is not None
    with sock:
        sock.sendall(b"echo\n")
        instance = instance_of(node, sprite)
        former = agent_of(node, instance)
        os.kill(former, signal.SIGKILL)
        next_agent(node, instance, former)
        sock.sendall(b"still here")
        assert sock.recv(100) == b"still here"
    # The next agent connects and looks like the one before.
    with proxied(node, sprite, 5070) as client:
        assert client.first["status"] == "connected"
    with websocket(node, sprite, "ports/watch") as watching:
        assert [each["port"] for each in text(watching, "port_list")["ports"]] == [5070]


def test_the_edge_is_told_that_nobody_listens(node: TestNode, sprite: Any) -> None:
    said, sock = handed(node, sprite, NOBODY)
    assert (said["error"], sock) == ("refused", None)
    # Nor does the agent give what listens on the host's own localhost.
    with socket.create_server(("127.0.0.1", 0)) as ours:
        said, sock = handed(node, sprite, ours.getsockname()[1])
        assert (said["error"], sock) == ("refused", None)


def websocket(node: TestNode, sprite: Any, below: str) -> AbstractContextManager[ClientConnection]:
    return connect(
        f"{node.url.replace('http', 'ws', 1)}/v1/sprites/{sprite.name}/{below}",
        additional_headers={"Authorization": f"Bearer {node.token}"}, compression=None, max_size=None, proxy=None,
        ping_interval=None, open_timeout=_SECONDS,
    )  # fmt: skip


def text(client: ClientConnection, kind: str) -> dict[str, Any]:
    """The next text of this type."""
    while True:
        said = client.recv(_SECONDS)
        if isinstance(said, str) and (told := json.loads(said))["type"] == kind:
            return dict(told)


class Proxied:
    """A WebSocket that asked for a port of a sprite.

    Attributes:
        first: what it was answered.
    """

    def __init__(self, client: ClientConnection, host: str, port: int) -> None:
        self.client = client
        self.send = client.send
        client.send(json.dumps({"host": host, "port": port}))
        self.first: dict[str, Any] = json.loads(client.recv(_SECONDS))

    def receive(self) -> bytes:
        data = self.client.recv(_SECONDS)
        assert isinstance(data, bytes)
        return data


@contextmanager
def proxied(node: TestNode, sprite: Any, port: int, host: str = "localhost") -> Iterator[Proxied]:
    with websocket(node, sprite, "proxy") as client:
        yield Proxied(client, host, port)


@pytest.mark.parametrize(("address", "port"), SERVERS.items())
def test_a_port_is_proxied(node: TestNode, sprite: Any, address: str, port: int) -> None:
    with proxied(node, sprite, port) as client:
        assert client.first == {"status": "connected", "target": f"localhost:{port}"}
        client.send(b"echo\n")
        client.send(b"there and back")
        assert client.receive() == b"there and back"


def test_a_server_at_the_sprites_own_address_is_reached_by_it(node: TestNode, sprite: Any) -> None:
    address = shell(sprite, "hostname -I")[1].split()[0]
    start_server(sprite, address, 5010)
    with proxied(node, sprite, 5010, address) as client:
        assert client.first["status"] == "connected"
    with proxied(node, sprite, 5010) as client:
        assert client.first["error"] == "refused"


def test_transfers_are_exact_both_ways(node: TestNode, sprite: Any) -> None:
    size, digest = 100 << 20, hashlib.sha256()
    with proxied(node, sprite, SERVERS["127.0.0.1"]) as client:
        client.send(b"take %d\n" % size)
        for block in server.blocks(size):
            client.send(block)
            digest.update(block)
        assert client.receive() == digest.hexdigest().encode()
        with pytest.raises(ConnectionClosed) as closed:
            client.receive()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1000
    with proxied(node, sprite, SERVERS["::1"]) as client:
        client.send(b"give %d\n" % size)
        got = hashlib.sha256()
        with pytest.raises(ConnectionClosed):
            while True:
                got.update(client.receive())
        assert got.hexdigest() == digest.hexdigest()


def bare(node: TestNode, sprite: Any, port: int) -> socket.socket:
    """A proxied connection of which nothing is read but by the test."""
    address = urlsplit(node.url)
    sock = socket.create_connection((address.hostname, address.port), timeout=_SECONDS)
    sock.sendall(
        f"GET /v1/sprites/{sprite.name}/proxy HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {node.token}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    sock.sendall(Frame(Opcode.TEXT, json.dumps({"port": port}).encode()).serialize(mask=True))
    said = b""
    while b"connected" not in said:
        said += sock.recv(4096)
    return sock


def test_who_does_not_read_takes_no_memory_of_the_agent(node: TestNode, sprite: Any) -> None:
    pid = agent_of(node, instance_of(node, sprite))
    before = memory(pid)
    with ExitStack() as stack:
        for what in (f"give {1 << 30}\n", "stall\n") * 4:
            sock = stack.enter_context(bare(node, sprite, SERVERS["127.0.0.1"]))
            sock.sendall(Frame(Opcode.BINARY, what.encode()).serialize(mask=True))
            sock.settimeout(1)
            sent = 0
            with suppress(TimeoutError):
                while sent < 256 << 20:
                    sock.sendall(Frame(Opcode.BINARY, bytes(1 << 20)).serialize(mask=True))
                    sent += 1 << 20
            assert sent < 256 << 20
        assert memory(pid) < before + (32 << 20)


def memory(pid: int) -> int:
    """What a process has resident, in bytes."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) << 10


def test_a_server_that_is_killed_ends_its_connections(node: TestNode, make_sprite: Make) -> None:
    sprite = make_sprite()
    start_server(sprite, "127.0.0.1", 5020)
    with proxied(node, sprite, 5020) as client:
        client.send(b"stall\n")
        assert shell(sprite, "pkill -9 -f server.py")[0] == 0
        with pytest.raises(ConnectionClosed) as closed:
            client.receive()
        assert closed.value.rcvd is not None


def test_a_sprite_that_restarts_ends_its_connections(node: TestNode, make_sprite: Make) -> None:
    sprite = make_sprite()
    start_server(sprite, "127.0.0.1", 5020)
    with proxied(node, sprite, 5020) as client:
        assert client.first["status"] == "connected"
        assert node.api("POST", f"/v1/sprites/{sprite.name}/restart").status_code < 300
        with pytest.raises(ConnectionClosed):
            client.receive()
    with proxied(node, sprite, 5020) as client:
        assert client.first["error"] == "refused"


def test_a_sprite_that_sleeps_is_woken(node: TestNode, make_sprite: Make) -> None:
    for below in ("proxy", "ports/watch"):
        sprite = make_sprite()
        path = f"/v1/sprites/{sprite.name}"
        assert node.api("POST", f"{path}/sleep").status_code < 300
        assert node.api("GET", path).json()["status"] == "cold"
        with websocket(node, sprite, below):
            assert node.api("GET", path).json()["status"] == "running"


def test_a_connection_is_only_for_who_may(node: TestNode, sprite: Any) -> None:
    url = f"{node.url.replace('http', 'ws', 1)}/v1/sprites/{sprite.name}/proxy"
    fields = {"Authorization": "Bearer nonsense"}
    with pytest.raises(InvalidStatus) as refused, connect(url, proxy=None, additional_headers=fields):
        pass
    assert refused.value.response.status_code == 401


@pytest.mark.slow
def test_other_sprites_and_the_host_are_as_far_as_from_inside(node: TestNode, sprite: Any, make_sprite: Make) -> None:
    """The proxy is no way around the sprite's own network."""
    other = make_sprite()
    start_server(other, "0.0.0.0", 5030)
    theirs = shell(other, "hostname -I")[1].split()[0]
    with socket.create_server(("0.0.0.0", 0)) as ours:
        port = ours.getsockname()[1]
        gateway = shell(sprite, "ip route show default | cut -d' ' -f3")[1].strip()
        for address, wanted in ((theirs, 5030), (gateway, port)):
            with proxied(node, sprite, wanted, address) as client:
                assert client.first["status"] == "error"
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.accept()


def test_what_listens_inside_is_told_by_the_pid_it_has_there(node: TestNode, make_sprite: Make) -> None:
    sprite = make_sprite()
    start_server(sprite, "127.0.0.1", 5040)
    _, said = shell(sprite, "pgrep -f 'server.py 127.0.0.1 5040'")
    with websocket(node, sprite, "ports/watch") as client:
        expected = {"port": 5040, "address": "127.0.0.1", "pid": int(said.split()[0])}
        # Nothing else listens in a new sprite, and nothing of the host or of other sprites is seen.
        assert text(client, "port_list")["ports"] == [expected]
        start_server(sprite, "::", 5041)
        opened = text(client, "port_opened")
        assert (opened["port"], opened["address"]) == (5041, "::")
        assert shell(sprite, "pkill -9 -f 'server.py 127.0.0.1 5040'")[0] == 0
        assert text(client, "port_closed") == {"type": "port_closed", **expected}


def test_an_exec_is_told_of_the_ports_its_command_opens(node: TestNode, sprite: Any) -> None:
    command = "echo $$; python3 -c 'import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=5050)' & wait"
    query = urlencode([("cmd", "bash"), ("cmd", "-c"), ("cmd", command), ("stdin", "true")])
    with websocket(node, sprite, f"exec?{query}") as client:
        opened = text(client, "port_opened")
        assert opened["port"] == 5050
        assert shell(sprite, f"ps -o args= {opened['pid']}")[1].startswith("python3 -c")
        # What other sessions opened before is not its business.
        client.send(json.dumps({"type": "signal", "signal": "TERM"}))


MANY = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (6000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held = [socket.create_server(("127.0.0.%d" % (2 + n % 20), 20000 + n // 20)) for n in range(5000)]
print("up", flush=True)
time.sleep(600)
"""


def test_a_sprite_where_thousands_listen_is_told_of_in_part(node: TestNode, make_sprite: Make) -> None:
    sprite = make_sprite()
    start = f"setsid python3 -c '{MANY}' >/tmp/many 2>&1 </dev/null & until grep -q up /tmp/many; do sleep 0.1; done"
    assert shell(sprite, start)[0] == 0
    with websocket(node, sprite, "ports/watch") as client:
        assert len(text(client, "port_list")["ports"]) == 1000
        # The agent goes on with what it has to do.
        assert shell(sprite, "echo here") == (0, "here\n")
        assert shell(sprite, "pkill -9 python3")[0] == 0
        closed = [text(client, "port_closed") for _ in range(1000)]
        assert len({(each["port"], each["address"]) for each in closed}) == 1000
        start_server(sprite, "127.0.0.1", 5060)
        assert text(client, "port_opened")["port"] == 5060
