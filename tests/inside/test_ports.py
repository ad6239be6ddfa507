"""Ports of a sprite from outside: what listens only on its localhost, transfers, refusals, and who goes away."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.inside import server
from tests.inside.conftest import Make, instance_of
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


def handed(node: TestNode, sprite: Any, port: int, **more: Any) -> tuple[dict[str, Any], socket.socket | None]:
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
    assert said == {"ok": True}
    assert sock is not None
    with sock:
        size = 3 << 20
        sock.sendall(b"take %d\n" % size)
        digest = hashlib.sha256()
        for block in server.blocks(size):
            sock.sendall(block)
            digest.update(block)
        assert sock.recv(100).decode() == digest.hexdigest()


def test_the_edge_is_told_that_nobody_listens(node: TestNode, sprite: Any) -> None:
    said, sock = handed(node, sprite, NOBODY)
    assert (said["error"], sock) == ("refused", None)
    # Nor does the agent give what listens on the host's own localhost.
    with socket.create_server(("127.0.0.1", 0)) as ours:
        said, sock = handed(node, sprite, ours.getsockname()[1])
        assert (said["error"], sock) == ("refused", None)
