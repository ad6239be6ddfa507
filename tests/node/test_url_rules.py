"""What the node answers of a request to a URL, where a real node would take too long to be brought there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import ConflictError, UnavailableError
from ballpoint.core.hosts import Place
from ballpoint.core.types import Caller
from ballpoint.node.urls.codes import _MOST, _SECONDS, Codes, Pass
from ballpoint.node.urls.urls import _STARTING_SECONDS, Urls
from ballpoint.registry.registry import Registry
from tests.registry.world import StandingClock, add

PUBLIC = {"url_settings": {"auth": "public"}}
QUESTION = {"method": "GET", "target": "/", "host": "web-acme.sprites.localhost", "token": "", "peer": "127.0.0.1"}
PLACE = Place("sprite", "web-acme")


class World:
    """A registry, and a node whose sprites start when `started` is set."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.started = asyncio.Event()
        self.failure: Exception | None = None
        self.since = SYSTEM_CLOCK.monotonic()
        self.touched: list[tuple[str, str, str | None]] = []
        config = NodeConfig(wake_seconds=1)
        self.urls = Urls(cast(Any, self), config, config.site(80))

    async def touch_sprite(self, sprite_id: str, name: str, cause: str, refused: str | None = None) -> Any:
        self.touched.append((name, cause, refused))
        if self.failure is not None:
            raise self.failure
        await self.started.wait()
        runtime = SimpleNamespace(socket=Path("/run/agent.sock"))
        return SimpleNamespace(since=self.since, instance=SimpleNamespace(runtime=runtime))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    registry = await Registry.open(f"sqlite:///{tmp_path / 'registry.db'}")
    info, _ = await registry.create_token("acme", "")
    await add(registry, info.org_id, "web", **PUBLIC)
    yield World(registry)
    await registry.close()


async def test_a_start_that_takes_longer_than_a_client_waits_is_answered(world: World) -> None:
    with pytest.raises(UnavailableError, match="being started"):
        await world.urls.route(QUESTION, PLACE)
    world.started.set()
    answer = await world.urls.route({**QUESTION, "refused": "/run/other.sock"}, PLACE)
    assert (answer["to"], answer["socket"], answer["token"]) == ("sprite", "/run/agent.sock", False)
    assert world.touched[-1] == ("web", "opened by its public URL", "/run/other.sock")


async def test_what_the_node_says_of_a_sprite_is_passed_on(world: World) -> None:
    world.failure = ConflictError("it is being destroyed")
    with pytest.raises(ConflictError):
        await world.urls.route(QUESTION, PLACE)


@pytest.mark.parametrize(("age", "low", "high"), [(0, 0, _STARTING_SECONDS), (3600, 0, 0), (float("inf"), 0, 0)])
async def test_a_server_is_waited_for_only_where_it_may_be_starting(
    world: World, age: float, low: float, high: float
) -> None:
    world.started.set()
    world.since -= age
    connect = (await world.urls.route(QUESTION, PLACE))["preamble"]["connect"]
    assert connect["port"] is None  # the agent knows which
    assert low <= connect["retry_seconds"] <= high
    assert (connect["retry_seconds"] > 0) == (high > 0)


async def test_who_may_not_open_it_wakes_nothing(world: World) -> None:
    sprite = await world.registry.sprite_at("web-acme")
    assert sprite is not None
    await world.registry.update_sprite(sprite.id, url_settings={"auth": "sprite"})
    answer = await world.urls.route({**QUESTION, "html": True}, PLACE)
    assert answer["answer"]["status"] == 303
    assert world.touched == []


async def test_a_long_target_is_not_kept_while_its_sender_logs_in(world: World) -> None:
    sprite = await world.registry.sprite_at("web-acme")
    assert sprite is not None
    await world.registry.update_sprite(sprite.id, url_settings={})
    answer = await world.urls.route({**QUESTION, "html": True, "target": "/" + "x" * 4000}, PLACE)
    assert answer["answer"]["headers"]["Location"].endswith("web-acme.sprites.localhost%2F")


def test_a_code_ends_by_time_and_the_oldest_go_first() -> None:
    clock = StandingClock()
    codes = Codes(clock)
    good_for = Pass(Caller(org_id="o", org="acme", token_id="t"), "sprite-1", "web-acme", "/")
    early = codes.give(good_for)
    clock.pass_by(_SECONDS - 1)
    late = codes.give(good_for)
    clock.pass_by(1)
    assert codes.take(early, "web-acme") is None
    assert codes.take(late, "other-acme") is None
    assert codes.take(late, "web-acme") is None  # who tried it elsewhere has used it up
    first = codes.give(good_for)
    for _ in range(_MOST):
        codes.give(good_for)
    assert codes.take(first, "web-acme") is None
    assert len(codes._passes) == _MOST
