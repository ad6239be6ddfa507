"""The edge as a process: how it ends, what it is allowed, and what it writes down."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from ballpoint.edge.journal import Journal
from tests.edge.test_upgrades import SWITCH, UPGRADE, echo
from tests.edge.wires import Wire, get, post
from tests.edge.world import TOKEN, World
from tests.support.waiting import eventually


def test_an_idle_edge_ends_at_once_when_it_is_told_to(world: World) -> None:
    edge = world.start_edge({"__main__._STOP_SECONDS": 1000})
    with edge.connect() as fresh, edge.connect() as used:
        assert used.send(get("/")).response().status == 200
        assert edge.terminate() == 0
        assert fresh.rest() == used.rest() == b""


def test_a_request_under_way_is_finished_first(world: World) -> None:
    edge = world.start_edge({"__main__._STOP_SECONDS": 1000})
    began, go_on = threading.Event(), threading.Event()

    def wait(connection: Wire) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        began.set()
        go_on.wait(30)
        connection.send(b"whole")

    world.api.handler = wait
    with edge.connect() as client:
        client.send(get("/"))
        assert began.wait(30)
        stopping = threading.Thread(target=edge.terminate)
        stopping.start()
        eventually(lambda: not _listens(edge.address))
        go_on.set()
        assert client.response().body == b"whole"
        assert client.rest() == b""
        stopping.join()
    assert edge.process.returncode == 0


def _listens(address: tuple[str, int]) -> bool:
    port = f":{address[1]:04X} "
    return any(port in line and " 0A " in line for line in Path("/proc/net/tcp").read_text().splitlines())


@pytest.mark.parametrize("reads", [True, False])
def test_a_stream_is_given_its_time_and_no_more(world: World, reads: bool) -> None:
    edge = world.start_edge({"__main__._STOP_SECONDS": 0.2})
    ended = threading.Event()

    def pour(connection: Wire) -> None:
        connection.head()
        connection.send(SWITCH)
        try:
            while True:
                connection.send(bytes(65_536))
        except OSError:
            ended.set()

    world.agent.handler = echo if reads else pour
    with edge.connect() as client:
        client.send(get("/agent/exec", *UPGRADE))
        assert client.head().status == 101
        if reads:
            assert client.send(b"hello").exactly(5) == b"hello"
        assert edge.terminate() == 0
        assert reads or ended.wait(30)


def test_an_edge_owns_nothing() -> None:
    uid = 1_999_999_999
    world = World(uid)
    try:
        with world.connect() as client:
            for target in ("/", "/agent/exec"):
                assert client.send(get(target)).response().status == 200
        process = Path(f"/proc/{world.edge.process.pid}")
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
        assert status["Uid"].split() == status["Gid"].split() == [str(uid)] * 4
        assert status["Groups"].strip() == ""
        assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"
        assert os.stat(process / "mem").st_uid == 0  # not dumpable: nobody of its uid reads its memory
        assert world.edge.terminate() == 0
    finally:
        world.close()


@pytest.mark.parametrize("target", ["/", "/agent/exec", "/refuse", "/agent/exec-upgrade"])
def test_a_request_is_logged_without_secrets(world: World, target: str) -> None:
    edge = world.start_edge()
    secret = "hidden-in-the-query"
    fields = UPGRADE if target.endswith("upgrade") else ()
    with edge.connect() as client:
        answer = client.send(get(f"{target}?key={secret}", f"Authorization: Bearer {TOKEN}", *fields)).response()
    assert edge.terminate() == 0
    log = edge.log.read_text()
    (line,) = [line for line in log.splitlines() if answer.get("x-request-id") in line.split()]
    assert line.endswith(f"127.0.0.1 GET {target} {answer.status} {answer.get('x-request-id')}")
    assert secret not in log
    assert TOKEN not in log


def test_nothing_a_client_sends_fills_the_log_with_tracebacks(world: World) -> None:
    edge = world.start_edge()
    for data in (b"\0" * 1000, post("/", b"x")[:-1], get("/agent/exec", *UPGRADE)):
        edge.connect().send(data).reset()
    with edge.connect() as client:
        assert client.send(get("/")).response().status == 200
    assert edge.terminate() == 0
    assert "Traceback" not in edge.log.read_text()


async def test_a_log_that_nobody_takes_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    log = os.fdopen(write, "w", buffering=1)
    monkeypatch.setattr("sys.stderr", log)
    try:
        with pytest.raises(BrokenPipeError):
            log.write("line\n")
        journal = Journal()
        for _ in range(1000):
            journal.served("192.0.2.1", "GET", "/", 200, "1bd1da24")
            journal.flush()
    finally:
        with suppress(BrokenPipeError):
            log.close()
