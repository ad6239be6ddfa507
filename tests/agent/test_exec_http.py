"""Exec over HTTP: one frame in each chunk; and the listing of sessions."""

from __future__ import annotations

import asyncio
import signal
from itertools import pairwise

import pytest
from websockets.exceptions import InvalidStatus

from ballpoint.agent.server import Connection
from ballpoint.agent.sessions import http_viewer
from ballpoint.agent.sessions.http_viewer import HttpViewer
from ballpoint.core.wire import NOT_STARTED
from tests.agent.world import World, eventually, post_head


async def test_a_command(world: World) -> None:
    heard = await world.post("sh", "-c", "echo out; echo err >&2; exit 3")
    assert heard.told == (b"out\n", b"err\n", [3], b"")


async def test_a_chunk_is_a_frame_and_is_sent_at_once(world: World) -> None:
    gate = world.gate()
    wire = await world.posted("sh", "-c", f"echo one; read x < {gate.path}; echo two >&2; exit 9")
    assert await wire.frame() == b"\1one\n"
    gate.open()
    assert [await wire.frame() for _ in range(3)] == [b"\2two\n", b"\3\x09", None]
    assert await wire.rest() == b""
    wire.close()


async def test_chunks_are_small_and_none_goes_out_together_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of much output, the beginning. Official clients take for a frame what one read gives them."""
    sent: list[bytes] = []
    times: list[float] = []
    ended = asyncio.Event()
    connection = Connection.__new__(Connection)

    def send(_: Connection, *parts: bytes) -> None:
        sent.append(b"".join(parts))
        times.append(asyncio.get_running_loop().time())

    monkeypatch.setattr(Connection, "start_response", lambda *_: None)
    monkeypatch.setattr(Connection, "send", send)
    monkeypatch.setattr(Connection, "close", lambda _: ended.set())
    connection.writable = True
    viewer = HttpViewer(connection)
    output = bytes(40_000)
    for stream, data in ((1, b"a"), (2, b"b"), (1, output), (2, b"c")):
        assert viewer.output(stream, data)
    viewer.exited(7)
    await ended.wait()
    assert sent[0] == b"2\r\n\1a\r\n"
    assert min(later - earlier for earlier, later in pairwise(times)) > 0.9 * http_viewer._PAUSE_SECONDS
    frames = [chunk.partition(b"\r\n")[2].removesuffix(b"\r\n") for chunk in sent[:-1]]
    assert b"".join(frame[1:] for frame in frames if frame[0] == 1) == b"a" + output
    assert b"".join(frame[1:] for frame in frames if frame[0] == 2) == b"bc"
    assert max(map(len, sent)) < 1 << 14  # a TLS record
    assert sent[-1] == b"2\r\n\3\7\r\n0\r\n\r\n"


async def test_who_does_not_take_chunks_holds_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    connection = Connection.__new__(Connection)
    monkeypatch.setattr(Connection, "start_response", lambda *_: None)
    monkeypatch.setattr(Connection, "send", lambda _, *parts: sent.append(b"".join(parts)))
    connection.writable = False
    viewer = HttpViewer(connection)
    assert not viewer.output(1, b"x") and not sent
    connection.writable = True
    viewer.writable()
    assert sent == [b"2\r\n\1x\r\n"]
    assert not viewer.output(1, bytes(1 << 20))
    viewer.lost()


async def test_body_is_input(world: World) -> None:
    data = bytes(range(256)) * 8000
    assert (await world.post("cat", body=data)).told == (data, b"", [0], b"")
    assert (await world.post("cat", body=b"")).told == (b"", b"", [0], b"")


async def test_body_in_chunks_is_input(world: World) -> None:
    wire = await world.wire()
    wire.send(post_head(["cat"], {"stdin": "true"}, "Transfer-Encoding: chunked"))
    assert (await wire.head())[0] == 200
    wire.send(b"4\r\none \r\n")
    assert await wire.frame() == b"\1one "
    wire.send(b"3;note=1\r\ntwo\r\n0\r\n\r\n")
    assert (await wire.frames()).told == (b"two", b"", [0], b"")
    wire.close()


async def test_body_that_is_no_input_is_dropped(world: World) -> None:
    wire = (await world.wire()).send(post_head(["cat"], {}, "Content-Length: 5") + b"12345")
    assert (await wire.head())[0] == 200
    assert (await wire.frames()).told == (b"", b"", [0], b"")
    wire.close()


async def test_large_output_is_whole(world: World) -> None:
    heard = await world.post("sh", "-c", "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2; exit 5")
    assert (len(heard.stdout), len(heard.stderr), heard.terminal) == (3000000, 2000000, [5])


async def test_no_terminal_over_http(world: World) -> None:
    answer = await world.ask("POST /exec?cmd=true&tty=true")
    assert (answer.status, answer.json["error"]) == (400, "invalid")


async def test_an_upgrade_to_something_else(world: World) -> None:
    """Ignored, but beside a body: a parser that expects an upgrade does not read it, and input would be lost."""
    assert (await world.ask("GET /exec", {"Connection": "Upgrade", "Upgrade": "h2c"})).json == {
        "sessions": [],
        "count": 0,
    }
    fields = {"Connection": "Upgrade", "Upgrade": "h2c", "Content-Length": "5"}
    answer = await world.ask("POST /exec?cmd=cat&stdin=true", fields, b"12345")
    assert (answer.status, answer.json["error"]) == (400, "invalid")


async def test_sessions_are_listed_while_they_run(world: World) -> None:
    assert (await world.ask("GET /exec")).json == {"sessions": [], "count": 0}
    gate = world.gate()
    wire = await world.posted("sh", "-c", f"echo ready; read x < {gate.path}")
    assert await wire.frame() == b"\1ready\n"
    listing = (await world.ask("GET /exec")).json
    assert listing["count"] == 1
    (session,) = listing["sessions"]
    assert isinstance(session["id"], str)
    assert (session["command"], session["tty"], session["is_active"]) == (
        f"sh -c echo ready; read x < {gate.path}",
        False,
        True,
    )
    assert session["created"] <= session["last_activity"]
    assert session["workdir"] == "/home/sprite"
    assert session["bytes_per_second"] > 0
    assert (await world.ask(f"GET /exec/{session['id']}")).json["id"] == session["id"]
    gate.open()
    assert (await wire.frames()).terminal == [0]
    wire.close()
    assert (await world.ask("GET /exec")).json == {"sessions": [], "count": 0}
    gone = await world.ask(f"GET /exec/{session['id']}")
    assert (gone.status, gone.json["error"]) == (404, "not_found")


async def test_a_listing_says_where_a_session_was_started(world: World) -> None:
    gate = world.gate()
    wire = await world.posted("sh", "-c", f"pwd; read x < {gate.path}", dir="/usr/share")
    assert await wire.frame() == b"\1/usr/share\n"
    (session,) = (await world.ask("GET /exec")).json["sessions"]
    assert session["workdir"] == "/usr/share"
    gate.open()
    assert (await wire.frames()).terminal == [0]
    wire.close()


async def test_head(world: World) -> None:
    answer = await world.ask("HEAD /exec")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/exec/", "/exec/1", "/exec/1/2", "/exec/%2F", "/exec/..", "//exec", "/%00"]
)
async def test_unknown_paths(world: World, path: str) -> None:
    answer = await world.ask(f"GET {path}")
    assert (answer.status, answer.json["error"]) == (404, "not_found")
    assert answer.fields["connection"] == "close"


async def test_unknown_methods(world: World) -> None:
    answer = await world.ask("DELETE /exec")
    assert (answer.status, answer.json["error"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("body", [b"", b"hello"])
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_while_not_serving_nothing_is_begun_and_the_edge_is_told(world: World, method: str, body: bytes) -> None:
    world.routes.serving = lambda: False
    answer = await world.ask(f"{method} /exec?cmd=true", {"Content-Length": str(len(body))}, body)
    assert (answer.status, answer.json["error"], answer.fields[NOT_STARTED]) == (503, "unavailable", "1")
    assert answer.json["retry_after_seconds"] == int(answer.fields["retry-after"]) > 0
    assert world.started == 0


async def test_a_websocket_is_refused_while_not_serving(world: World) -> None:
    world.routes.serving = lambda: False
    with pytest.raises(InvalidStatus) as refused:
        await world.open("true")
    assert (refused.value.response.status_code, refused.value.response.headers[NOT_STARTED]) == (503, "1")
    assert world.started == 0


async def test_killed_from_outside(world: World) -> None:
    wire = await world.posted("sh", "-c", "echo ready; exec sleep 600")
    assert await wire.frame() == b"\1ready\n"
    await eventually(lambda: len(world.sessions) == 1)
    (state,) = world.saved
    session = world.sessions.get(str(state["pid"]))
    assert session is not None
    session.signal(signal.SIGKILL)
    assert (await wire.frames()).terminal == [128 + signal.SIGKILL]
    wire.close()
