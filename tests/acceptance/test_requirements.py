"""The ten requirements that a team of orchestrator builders published for any sandbox platform, by their names.

`egress-deny` is not here: it comes with the network policy. The README says which are met.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sprites.exceptions import NetworkError
from websockets.exceptions import ConnectionClosed

from ballpoint.core import ids
from tests.inside.conftest import instance_of
from tests.node.test_idling import scene
from tests.support.checkpoints import checkpoint, content, new_sprite, post, restore, write
from tests.support.nodes import TestNode, shell
from tests.support.raw import Cursors, exec_http, exec_websocket, watch
from tests.support.waiting import eventually

pytestmark = pytest.mark.node


@pytest.fixture
def name(node: TestNode) -> Iterator[str]:
    made = f"t-{ids.new_instance_id()}"
    node.client().create_sprite(made)
    yield made
    node.api("DELETE", f"/v1/sprites/{made}")


def to_the_end(node: TestNode, name: str, session: str | None, cursors: Cursors, **query: Any) -> Cursors:
    with watch(node, name, session, cursors, **query) as connection, suppress(ConnectionClosed):
        while True:
            cursors.take(connection.recv(timeout=60))
    return cursors


def test_exit_truth(node: TestNode, name: str) -> None:
    """A command that exits 3 says so, blocking and streaming; a killed instance is an error of the transport."""
    for way in (exec_http, exec_websocket):
        heard = way(node, name, "sh", "-c", "echo out; exit 3")
        assert (heard.stdout, heard.terminal) == (b"out\n", [3])
    sprite = node.client().get_sprite(name)
    assert sprite.run("sh", "-c", "exit 3").returncode == 3
    group = node.id, instance_of(node, sprite)
    raised: list[Exception] = []

    def run() -> None:
        try:
            sprite.run("sh", "-c", "touch began; sleep 600")
        except Exception as error:  # noqa: BLE001 - it is what is looked at
            raised.append(error)

    running = threading.Thread(target=run)
    running.start()
    eventually(lambda: sprite.run("test", "-e", "began").returncode == 0)
    kill = Path("/sys/fs/cgroup", f"ballpoint-{group[0]}", group[1], "cgroup.kill")
    if not kill.exists():  # where v2 is mounted beside v1
        kill = Path("/sys/fs/cgroup/unified", f"ballpoint-{group[0]}", group[1], "cgroup.kill")
    kill.write_text("1")
    running.join(60)
    assert [type(error) for error in raised] == [NetworkError]


def test_replay_cursor(node: TestNode, name: str) -> None:
    """Two reads of a running session, from byte 0 and from a cursor, are one uninterrupted read, streams apart."""
    first = Cursors()
    script = "for i in $(seq 2000); do echo out $i; echo err $i >&2; done; read x; exit 4"
    with watch(node, name, None, first, cmd=["bash", "-c", script], stdin="true") as creator:
        while not (first.stdout.endswith(b"out 2000\n") and first.stderr.endswith(b"err 2000\n")):
            first.take(creator.recv(timeout=60))
        session = str(first.info["session_id"])
        whole, later = Cursors(), Cursors(stdout=first.stdout[:7777], stderr=first.stderr[:4321])
        threads = [threading.Thread(target=to_the_end, args=(node, name, session, each)) for each in (whole, later)]
        for thread in threads:
            thread.start()
        creator.send(b"\0\n")
        for thread in threads:
            thread.join(60)
    out = b"".join(b"out %d\n" % number for number in range(1, 2001))
    err = b"".join(b"err %d\n" % number for number in range(1, 2001))
    for each in (whole, later):
        assert (bytes(each.stdout), bytes(each.stderr), each.terminal) == (out, err, [4])


_CLIENT = """
import sys
from sprites import SpritesClient
client = SpritesClient(token=sys.argv[1], base_url=sys.argv[2])
print("begun", flush=True)
client.get_sprite(sys.argv[3]).run("sh", "-c", "echo one; until [ -e go ]; do sleep 0.1; done; echo two; exit 6")
"""


def test_detached_sessions(node: TestNode, name: str) -> None:
    """The client is killed in the middle; the session is listed, rejoined by its id, and ends with its true code."""
    arguments = [sys.executable, "-c", _CLIENT, node.token, node.url, name]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as client:
        eventually(lambda: node.api("GET", f"/v1/sprites/{name}/exec").json()["count"] == 1)
        client.kill()
    (listed,) = node.api("GET", f"/v1/sprites/{name}/exec").json()["sessions"]
    assert shell(node.client().sprite(name), "touch go")[0] == 0
    heard = to_the_end(node, name, listed["id"], Cursors())
    assert (bytes(heard.stdout), heard.terminal) == (b"one\ntwo\n", [6])


def test_absence_definitive(own_node: TestNode) -> None:
    """While the control plane is away nothing says that a sprite is not there. 404 and 410 are said of what is gone."""
    own_node.start()
    own_node.options += ["--listen", own_node.url.removeprefix("http://")]
    own_node.client().create_sprite("there")
    paths = ["", "/events", "/exec", "/checkpoints", "/disk", "/activity", "/check", "/fs/list?path=/", "/logs"]
    said: set[int] = set()
    stop = threading.Event()

    def ask(path: str) -> None:
        while not stop.is_set():
            with suppress(httpx2.TransportError):
                said.add(own_node.api("GET", f"/v1/sprites/there{path}").status_code)

    def run() -> None:
        while not stop.is_set():
            with suppress(httpx2.TransportError):
                said.add(own_node.api("POST", "/v1/sprites/there/exec?cmd=true").status_code)

    threads = [threading.Thread(target=ask, args=(path,)) for path in paths] + [threading.Thread(target=run)]
    for thread in threads:
        thread.start()
    assert own_node.process is not None
    for lasts in (False, True):
        (former,) = own_node.processes("node")
        os.kill(former, signal.SIGSTOP)  # it does not answer
        threading.Event().wait(1)
        if lasts:  # nobody starts the next
            os.kill(own_node.process.pid, signal.SIGSTOP)
            said.clear()
        os.kill(former, signal.SIGKILL)  # it is gone
        if lasts:  # for longer than anybody waits for it
            eventually(lambda: 503 in said, 60)
            os.kill(own_node.process.pid, signal.SIGCONT)
        eventually(lambda former=former: own_node.processes("node") not in ([], [former]))  # type: ignore[misc]
        eventually(lambda: own_node.api("GET", "/v1/sprites/there").status_code == 200, 60)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert said == {200, 503}
    assert own_node.api("GET", "/v1/sprites/never").status_code == 404
    assert own_node.api("DELETE", "/v1/sprites/there").status_code == 204
    assert own_node.api("GET", "/v1/sprites/there").status_code == 404


def test_stdin_total(node: TestNode, name: str) -> None:
    """`cat` ends when its input is closed and not before; who writes on after an exit is told of the exit."""
    heard = Cursors()
    with watch(node, name, None, heard, cmd=["cat"], stdin="true") as connection:
        for number in range(3):
            connection.send(b"\0%d\n" % number)
            while not heard.stdout.endswith(b"%d\n" % number):
                heard.take(connection.recv(timeout=60))
        with pytest.raises(TimeoutError):
            while True:
                heard.take(connection.recv(timeout=2))
        assert heard.terminal == []
        connection.send(b"\4")
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                heard.take(connection.recv(timeout=60))
    assert (bytes(heard.stdout), heard.terminal) == (b"0\n1\n2\n", [0])
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1000

    late = Cursors()
    with watch(node, name, None, late, cmd=["sh", "-c", "exit 5"], stdin="true") as connection:
        with suppress(ConnectionClosed):
            for _ in range(500):
                connection.send(b"\0" + bytes(65000))
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                late.take(connection.recv(timeout=60))
    assert late.terminal == [5]
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1000


def create(node: TestNode, name: str) -> httpx2.Response:
    return node.api("POST", "/v1/sprites", json={"name": name})


def test_named_create(node: TestNode) -> None:
    """Two concurrent creates of one name give one sprite."""
    for _ in range(5):
        made = f"t-{ids.new_instance_id()}"
        with ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(partial(create, node), [made, made]))
        assert sorted(answer.status_code for answer in answers) == [201, 409]
        assert [each["name"] for each in node.api("GET", f"/v1/sprites?prefix={made}").json()["sprites"]] == [made]
        assert node.api("DELETE", f"/v1/sprites/{made}").status_code == 204


async def test_park_not_expire() -> None:
    """Nothing is destroyed by a timer: after a year of nobody, the sprite is there, cold."""
    async with scene() as at:
        await at.sprite("one")
        for _ in range(365):
            await at.pass_time(86_400)
            await at.settle()
        sprite = await at.node.registry.sprite_by_id("one")
        assert sprite.state == "cold"
        assert {kind for kind, _ in await at.kinds("one")} == {"created", "warm", "cold"}


def test_park_not_expire_keeps_its_files(own_node: TestNode) -> None:
    """What it has on its disk and in its checkpoints stays, also where garbage is removed without any delay."""
    own_node.start()
    sprite = new_sprite(own_node)
    write(sprite, "earlier")
    assert checkpoint(own_node, sprite, params={"wait": "durable"}) == "v0"
    write(sprite, "kept")
    for step in range(3):
        assert post(own_node, sprite, "sync").is_success
        assert post(own_node, sprite, "sleep").json()["status"] == "cold"
        gc = [*own_node.program, "store", "gc", "--data", str(own_node.data), "--retention", "0"]
        done = subprocess.run(gc, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert content(sprite) == "kept", step
    restore(own_node, sprite, "v0")
    assert content(sprite) == "earlier"


def test_honest_listing(own_node: TestNode) -> None:
    """A listing that is interrupted is an error, and never a short one that looks whole."""
    own_node.start()
    own_node.options += ["--listen", own_node.url.removeprefix("http://")]
    names = [f"t-{number}" for number in range(3)]
    for each in names:
        own_node.client().create_sprite(each)
    headers = {"Authorization": f"Bearer {own_node.token}", "Accept": "application/x-ndjson"}
    with httpx2.stream("GET", f"{own_node.url}/v1/sprites", headers=headers, timeout=60) as answer:
        lines = answer.iter_lines()
        assert [json.loads(next(lines))["name"] for _ in names] == names
        (former,) = own_node.processes("node")
        os.kill(former, signal.SIGKILL)
        with pytest.raises(httpx2.TransportError):
            for _ in lines:
                pass
    whole = errors = 0
    for _ in range(200):
        try:
            page = own_node.api("GET", "/v1/sprites")
        except httpx2.TransportError:
            errors += 1
            continue
        if page.status_code == 200:
            assert [each["name"] for each in page.json()["sprites"]] == names
            whole += 1
            if whole > 20:
                break
        else:
            assert page.status_code == 503
            errors += 1
    assert whole > 20


_SERVER = (
    "import http.server as h\n"
    "class P(h.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers(); self.wfile.write(b'a page')\n"
    "h.HTTPServer(('127.0.0.1', 8080), P).serve_forever()\n"
)


def test_url_or_nothing(node: TestNode, name: str) -> None:
    """What is served on a port is at the URL that is told, without an account where that is public."""
    begun = Cursors()
    with watch(node, name, None, begun, cmd=["python3", "-c", _SERVER], max_run_after_disconnect="0") as connection:
        begun.take(connection.recv(timeout=60))
    shown = node.api("PUT", f"/v1/sprites/{name}", json={"url_settings": {"auth": "public"}}).json()
    url = httpx2.URL(shown["url"])
    # As a browser resolves it: whatever ends with .localhost is this machine (RFC 6761 section 6.3).
    assert url.host.endswith(".localhost")
    address = httpx2.URL(node.url)
    assert (url.scheme, url.port) == (address.scheme, address.port)

    def page() -> str:
        answer = httpx2.get(f"{node.url}/", headers={"Host": f"{url.host}:{url.port}"}, timeout=60)
        return answer.text if answer.status_code == 200 else ""

    eventually(lambda: page() == "a page")
    with socket.create_connection((address.host, address.port or 80)):
        pass
