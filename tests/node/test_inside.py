"""Questions from inside, from the agent's end of the control connection to the API's application and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from ballpoint.core import peer
from ballpoint.core.errors import InternalError, InvalidError, UnavailableError
from ballpoint.core.peer import Peer
from ballpoint.node import inside
from ballpoint.node.inside import QUESTIONS_MAX, SCOPE_KEY, TOKEN_ID
from ballpoint.runtime.container import instance
from tests.node.questions import World
from tests.support.waiting import eventually_async

DEADLINE = 30.0
Send = Callable[[Any], Awaitable[None]]


class Told:
    """What came back of one question.

    Attributes:
        room: while it is not set, its reader takes nothing more.
        reads: False where its reader has gone without a word.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.room = asyncio.Event()
        self.room.set()
        self.reads = True

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.status, self.headers = status, headers

    async def write(self, data: bytes) -> bool:
        await self.room.wait()
        self.body += data
        return self.reads


class App:
    """An application whose answer a test gives.

    Attributes:
        scopes, bodies: what it was asked.
        serve: answers.
        left: how many askers went before their answer's end.
    """

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.left = 0
        self.ended = 0
        self.serve: Callable[[Send], Awaitable[None]] = self.fine

    async def fine(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": [
            (b"Content-Type", b"application/json"), (b"content-length", b"2"), (b"x-request-id", b"r")]})  # fmt: skip
        await send({"type": "http.response.body", "body": b"{}", "more_body": False})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.bodies.append((await receive())["body"])
        gone = asyncio.ensure_future(receive())
        work = asyncio.ensure_future(cast(Any, self.serve(send)))
        try:
            await asyncio.wait([gone, work], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            else:
                assert gone.result() == {"type": "http.disconnect"}
                self.left += 1
        finally:
            self.ended += 1
            for each in (gone, work):
                each.cancel()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, App())
    await made.connected()
    yield made
    await made.close()


async def ask(world: World, target: str = "/v1/info", *, told: Told | None = None) -> Told:
    told = told or Told()
    async with asyncio.timeout(DEADLINE):
        await world.control.ask("GET", target, b"", told)
    return told


async def test_a_question_becomes_a_request_about_its_own_sprite(world: World) -> None:
    told = Told()
    body = bytes(range(256))
    await world.control.ask("POST", "/v1/a%2Fb?c=%C3%A9", body, told)
    (scope,) = world.app.scopes
    name, caller = scope[SCOPE_KEY]
    assert (name, caller.org_id, caller.org, caller.token_id) == ("one", "o1", "acme", TOKEN_ID)
    assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/v1/a/b", b"c=%C3%A9")
    assert dict(scope["headers"])[b"content-length"] == b"256"
    assert world.app.bodies == [body]
    assert (told.status, told.body) == (201, b"{}")
    assert told.headers == {"content-type": "application/json", "x-request-id": "r"}


async def test_an_answer_of_any_size_and_any_bytes_comes_whole(world: World) -> None:
    data = bytes(range(256)) * 4096

    async def serve(send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": data[:3]})

    world.app.serve = serve
    assert (await ask(world)).body == data + data[:3]


async def test_a_reader_that_waits_holds_its_answer_back_and_no_other(world: World) -> None:
    sent: list[int] = []

    async def serve(send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(100):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            sent.append(number)

    world.app.serve = serve
    told = Told()
    told.room.clear()
    slow = asyncio.ensure_future(ask(world, told=told))
    await eventually_async(lambda: asyncio.sleep(0, told.status))
    assert len((await ask(world)).body) == 100
    assert len(sent) == 100  # the other's alone
    told.room.set()
    assert len((await slow).body) == 100


async def test_who_goes_ends_his_answer(world: World) -> None:
    begun = asyncio.Event()

    async def serve(send: Send) -> None:
        begun.set()
        await asyncio.Event().wait()

    world.app.serve = serve
    asked = asyncio.ensure_future(ask(world))
    await begun.wait()
    asked.cancel()
    await eventually_async(lambda: asyncio.sleep(0, world.app.left))


async def test_who_goes_without_a_word_is_found_out_by_the_next_part(world: World) -> None:
    async def serve(send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0)

    world.app.serve = serve
    told = Told()
    told.reads = False
    await ask(world, told=told)
    assert (told.body, world.app.left) == (b"x", 1)


async def test_an_agent_that_dies_ends_its_questions(world: World) -> None:
    begun = asyncio.Event()

    async def serve(send: Send) -> None:
        begun.set()
        await asyncio.Event().wait()

    world.app.serve = serve
    asked = asyncio.ensure_future(ask(world))
    await begun.wait()
    world.connection.close()
    with pytest.raises(UnavailableError):
        await asked
    await eventually_async(lambda: asyncio.sleep(0, world.app.ended))
    with pytest.raises(UnavailableError):
        await ask(world)  # there is no node


async def test_one_sprite_has_so_many_questions_answered_at_once(world: World) -> None:
    let = asyncio.Event()

    async def serve(send: Send) -> None:
        await let.wait()
        await world.app.fine(send)

    world.app.serve = serve
    asked = [asyncio.ensure_future(ask(world)) for _ in range(QUESTIONS_MAX)]
    await eventually_async(lambda: asyncio.sleep(0, len(world.app.scopes) == QUESTIONS_MAX))
    told = await ask(world)
    assert (told.status, json.loads(told.body)["error"]) == (503, "unavailable")
    let.set()
    assert [each.status for each in await asyncio.gather(*asked)] == [201] * QUESTIONS_MAX
    assert (await ask(world)).status == 201


async def test_an_application_that_fails_is_no_answer(world: World) -> None:
    async def serve(send: Send) -> None:
        raise ValueError("a defect")

    world.app.serve = serve
    with pytest.raises(InternalError, match="a defect"):
        await ask(world)


async def test_an_answer_that_takes_for_ever_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(send: Send) -> None:
        await asyncio.Event().wait()

    world.app.serve = serve
    monkeypatch.setattr(inside, "_ANSWER_SECONDS", 0.1)
    with pytest.raises(InternalError, match="no answer"):
        await ask(world)


async def test_a_node_that_starts_or_a_sprite_that_stops_answers_nothing(world: World) -> None:
    world.inside._app = None
    with pytest.raises(InternalError, match="no questions now"):
        await ask(world)
    world.inside.open(world.app)
    world.running.ends.set()
    with pytest.raises(InternalError, match="no questions now"):
        await ask(world)
    world.instance.on_question = None
    with pytest.raises(InternalError, match="does not take"):
        await ask(world)
    assert world.app.scopes == []


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"question": "1", "method": "GET", "target": "/", "body": ""},
        {"question": 1, "method": 5, "target": "/", "body": ""},
        {"question": 1, "method": "GET", "target": ["/"], "body": ""},
        {"question": 1, "method": "GET", "target": "/", "body": None},
        {"question": 1, "method": "GET", "target": "/", "body": "\u20ac"},
    ],
)
async def test_an_agent_that_was_taken_over_asks_nothing_strange(world: World, message: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        await world.instance._asked(world.connection, {"op": "ask", **message})
    strange: list[Any] = [None, [], "x", 77]
    for number in strange:
        world.instance._noticed({"notice": "gone", "question": number})
    assert (await ask(world)).status == 201


async def test_what_is_no_text_is_asked_as_one(world: World) -> None:
    await ask(world, "/v1/\ud800?\udc80")
    (scope,) = world.app.scopes
    assert (scope["path"], scope["query_string"]) == ("/v1/?", b"?")


async def test_an_agent_asks_so_many_questions_at_once_and_no_more(world: World) -> None:
    go_on = asyncio.Event()

    async def wait(question: Any) -> None:
        await go_on.wait()

    def asked(number: int) -> Awaitable[Any]:
        message = {"op": "ask", "question": number, "method": "GET", "target": "/", "body": ""}
        return world.instance._asked(world.connection, message)

    world.instance.on_question = wait
    async with asyncio.TaskGroup() as group:
        for number in range(instance.QUESTIONS_MAX):
            group.create_task(asked(number))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError):
            await asked(instance.QUESTIONS_MAX)
        go_on.set()
    await asked(0)


async def test_the_node_that_came_last_is_asked(world: World, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    async def serve(message: dict[str, Any], _: list[int]) -> tuple[Any, list[int]]:
        asked.append(message)
        return {}, []

    later = Peer(peer.connect(tmp_path / "control.sock"), serve=serve)
    await eventually_async(lambda: asyncio.sleep(0, len(world.control._peers) == 2))
    await ask(world, "/v1/one")
    assert [message["target"] for message in asked] == ["/v1/one"]
    later.close()
    await eventually_async(lambda: asyncio.sleep(0, len(world.control._peers) == 1))
    await ask(world, "/v1/two")
    assert [scope["path"] for scope in world.app.scopes] == ["/v1/two"]


async def test_an_agent_may_only_ask(world: World) -> None:
    with pytest.raises(InvalidError):
        message = {"op": "claim", "question": 1, "method": "GET", "target": "/", "body": ""}
        await world.instance._asked(world.connection, message)
