"""Tasks: what code inside may say of them, and what the node makes of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.core.errors import NotFoundError
from ballpoint.node.inside import SCOPE_KEY
from ballpoint.node.lifecycle.holds import HOLDS_MAX, SECONDS_MAX, Holds
from ballpoint.node.lifecycle.running import Running
from tests.api.double import ALICE, NodeDouble, app_of

START = datetime(2026, 1, 1, tzinfo=UTC)


class HandClock:
    def __init__(self) -> None:
        self.at = START

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return (self.at - START).total_seconds()

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody sleeps here")


class Runtime:
    """An instance's, which has a note."""

    def __init__(self, note: dict[str, Any]) -> None:
        self.note = note

    async def set_note(self, note: dict[str, Any]) -> None:
        self.note = json.loads(json.dumps(note))


class World:
    """A node where the sprite `one` runs, and `cold` does not."""

    def __init__(self) -> None:
        self.registry: Any = self
        self.clock = HandClock()
        self.start()

    def start(self, note: dict[str, Any] | None = None) -> None:
        """Its instance is another, or the node is."""
        self.runtime = Runtime(note or {"sprite": "s-one", "disk": 5})
        instance = cast(Any, type("Instance", (), {"runtime": self.runtime, "id": "i1"})())
        self.running = {"s-one": Running("s-one", instance, cast(Any, None), org_id="o1")}
        self.holds = Holds(self, self.clock)
        node = NodeDouble()
        self.app = app_of(node, tasks=self.holds)

    async def sprite_id(self, org_id: str, name: str) -> str:
        if org_id != ALICE.org_id:
            raise NotFoundError("no such sprite")
        return f"s-{name}"

    async def ask(
        self, method: str, path: str = "", body: Any = None, *, inside: bool = True, sprite: str = "one"
    ) -> tuple[int, Any]:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        said: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: Any) -> None:
            said.append(message)

        full = f"/v1/tasks{path}"
        scope: dict[str, Any] = {
            "type": "http", "method": method, "path": full, "raw_path": full.encode(), "query_string": b"",
            "headers": [(b"content-length", str(len(data)).encode())], "root_path": "", "scheme": "http",
            "http_version": "1.1", "client": None, "server": None,
        }  # fmt: skip
        if inside:
            scope[SCOPE_KEY] = (sprite, ALICE)
        await self.app(scope, receive, send)
        answer = b"".join(each.get("body", b"") for each in said[1:])
        return said[0]["status"], json.loads(answer) if answer else None


_WORLD = World()


@pytest.fixture
def world() -> World:
    return World()


def moment(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def test_a_task_from_its_beginning_to_its_end(world: World) -> None:
    assert await world.ask("GET") == (200, {"tasks": []})
    task = {"name": "build", "started_at": moment(0), "expires_at": moment(600)}
    assert await world.ask("POST", body={"name": "build", "expire": "10m"}) == (201, task)
    assert await world.ask("GET") == (200, {"tasks": [task]})
    assert await world.ask("GET", "/build") == (200, task)
    assert [each.name for each in world.holds.holds("s-one")] == ["build"]
    world.clock.at += timedelta(seconds=100)
    task["expires_at"] = moment(130)
    assert await world.ask("PUT", "/build", {"expire": 30}) == (200, task)
    assert await world.ask("PUT", body={"name": "build", "expire": 30}) == (200, task)
    world.clock.at += timedelta(seconds=30)
    assert await world.ask("GET") == (200, {"tasks": []})
    assert world.holds.holds("s-one") == []
    assert (await world.ask("GET", "/build"))[0] == 404
    assert (await world.ask("DELETE", "/build"))[0] == 404
    assert (await world.ask("POST", body={"name": "build", "expire": 1.5}))[0] == 201
    assert await world.ask("DELETE", "/build") == (204, None)
    assert (await world.ask("DELETE", "/build"))[0] == 404


async def test_an_upsert_begins_what_is_not_there(world: World) -> None:
    assert (await world.ask("PUT", "/one", {"expire": "1h"}))[0] == 200
    assert (await world.ask("PUT", body={"name": "two", "expire": 5}))[0] == 200
    _, said = await world.ask("GET")
    assert [each["name"] for each in said["tasks"]] == ["one", "two"]


async def test_what_is_there_is_not_begun_again(world: World) -> None:
    await world.ask("POST", body={"name": "build", "expire": 10})
    status, said = await world.ask("POST", body={"name": "build", "expire": 20})
    assert (status, said["error"]) == (409, "conflict")
    assert (await world.ask("GET", "/build"))[1]["expires_at"] == moment(10)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", {}, {"name": "x"}, {"expire": 5}, {"name": 5, "expire": 5}, {"name": "", "expire": 5},
        {"name": "a/b", "expire": 5}, {"name": "x" * 129, "expire": 5}, {"name": "x", "expire": 0},
        {"name": "x", "expire": -1}, {"name": "x", "expire": SECONDS_MAX + 1}, {"name": "x", "expire": "61m"},
        {"name": "x", "expire": "soon"}, {"name": "x", "expire": True}, {"name": "x", "expire": None},
        b'{"name": "\\ud800", "expire": 5}',
        b'{"name": "x", "expire": NaN}', b'{"name": "x", "expire": 1' + b"0" * 400 + b"}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_what_is_wrong_is_refused_and_changes_nothing(world: World, method: str, body: Any) -> None:
    status, said = await world.ask(method, body=body)
    assert (status, said["error"]) == (400, "invalid")
    assert world.runtime.note == {"sprite": "s-one", "disk": 5}


async def test_so_many_there_are_at_once(world: World) -> None:
    for number in range(HOLDS_MAX):
        assert (await world.ask("POST", body={"name": f"t{number}", "expire": 1 + number}))[0] == 201
    assert (await world.ask("POST", body={"name": "more", "expire": 5}))[0] == 400
    assert (await world.ask("PUT", "/t5", {"expire": 5}))[0] == 200
    world.clock.at += timedelta(seconds=1)
    assert (await world.ask("POST", body={"name": "more", "expire": 5}))[0] == 201


async def test_the_next_node_knows_them_and_the_next_instance_does_not(world: World) -> None:
    await world.ask("POST", body={"name": "build", "expire": 60})
    assert world.runtime.note["sprite"] == "s-one"
    world.start(world.runtime.note)
    _, said = await world.ask("GET")
    assert said["tasks"] == [{"name": "build", "started_at": moment(0), "expires_at": moment(60)}]
    world.start()
    assert await world.ask("GET") == (200, {"tasks": []})


async def test_only_a_sprite_that_runs_has_any_and_nobody_outside_asks(world: World) -> None:
    assert await world.ask("GET", sprite="cold") == (200, {"tasks": []})
    assert (await world.ask("POST", body={"name": "x", "expire": 5}, sprite="cold"))[0] == 503
    assert world.holds.holds("s-cold") == []
    for method, path in (("GET", ""), ("POST", ""), ("PUT", "/x"), ("DELETE", "/x"), ("GET", "/x")):
        status, _ = await world.ask(method, path, {"name": "x", "expire": 5}, inside=False)
        assert status in (401, 404), (method, path)
    assert (await world.ask("PATCH"))[0] == 405
    assert (await world.ask("GET", "/a/b"))[0] == 404


@given(
    st.none()
    | st.dictionaries(
        st.text(), st.none() | st.text() | st.lists(st.integers() | st.floats() | st.text() | st.none(), max_size=3)
    )
)
def test_whatever_is_in_a_note_is_tasks_or_nothing(noted: Any) -> None:
    world = _WORLD
    world.runtime.note["tasks"] = noted
    for hold in world.holds.holds("s-one"):
        assert hold.expires_at > START
