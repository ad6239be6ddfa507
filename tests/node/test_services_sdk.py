"""Services by the official SDK, every function that it has, on a real node."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sprites import AsyncSpritesClient
from sprites import services as sdk
from sprites.async_sprite import AsyncSprite
from sprites.exceptions import SpriteError
from sprites.sprite import Sprite

from ballpoint.core import ids
from tests.support.nodes import TestNode

pytestmark = pytest.mark.node

VERBS = {
    "create_service", "delete_service", "get_service", "list_services", "signal_service", "start_service",
    "stop_service",
}  # fmt: skip


@pytest.fixture(scope="module")
def sprite(node: TestNode) -> Iterator[Any]:
    name = f"t-{ids.new_instance_id()}"
    yield node.client().create_sprite(name)
    assert node.api("DELETE", f"/v1/sprites/{name}").status_code == 204


@pytest.mark.parametrize("kind", [sdk, Sprite, AsyncSprite])
def test_no_function_is_left_out(kind: Any) -> None:
    """A later SDK that can do more fails here, until this page covers it."""
    public = {name for name, _ in inspect.getmembers(kind, callable) if "service" in name and not name.startswith("_")}
    assert public == VERBS


# Seconds for which the first output of a service is waited for: a machine with much to do needs some to start one.
_LISTENED = 3.0


def status_of(call: Callable[[], Any]) -> int:
    """Of what the SDK makes an exception of: some of its methods say it in an attribute, others in words."""
    with pytest.raises(SpriteError) as refused:
        call()
    said = getattr(refused.value, "status_code", None) or re.search(r"status (\d+)", str(refused.value))
    return (
        said if isinstance(said, int) else int(said[1]) if said else 404 * ("not found" in str(refused.value).lower())
    )


def kinds(stream: Any) -> list[str]:
    return [event.type for event in stream]


def test_every_function(sprite: Any) -> None:
    said = list(sprite.create_service(
        "web", "bash", ["-c", "echo $A; exec sleep inf"], http_port=3000, duration=_LISTENED, env={"A": "b"}, dir="/tmp"
    ))  # fmt: skip
    assert [event.type for event in said] == ["started", "stdout", "complete"]
    assert (said[1].data, said[2].log_files["combined"]) == ("b", "/.sprite/logs/services/web.log")
    assert said[0].timestamp > 0
    found = sprite.get_service("web")
    assert (found.name, found.cmd, found.args) == ("web", "bash", ["-c", "echo $A; exec sleep inf"])
    assert (found.http_port, found.env, found.dir, found.needs) == (3000, {"A": "b"}, "/tmp", [])
    state = found.state
    assert (state.name, state.status, state.restart_count, state.error) == ("web", "running", 0, None)
    assert state.pid > 0
    assert state.started_at is not None
    sprite.create_service("job", "sleep", ["inf"], needs=["web"], duration=0.1)
    assert [each.name for each in sprite.list_services()] == ["job", "web"]
    assert status_of(lambda: sprite.create_service("other", "sleep", http_port=4000)) == 409
    assert status_of(lambda: sprite.delete_service("web")) == 409
    sprite.signal_service("web", "SIGURG")
    assert status_of(lambda: sprite.signal_service("web", "NONE")) == 400
    assert status_of(lambda: sprite.signal_service("none", "TERM")) == 404
    said = list(sprite.stop_service("web", timeout=5.0))
    assert [event.type for event in said] == ["stopping", "stopped", "complete"]
    assert said[1].exit_code == 143
    assert status_of(lambda: sprite.stop_service("web")) == 409
    assert status_of(lambda: sprite.signal_service("web", "TERM")) == 409
    assert kinds(sprite.start_service("web", duration=_LISTENED)) == ["started", "stdout", "complete"]
    for name in ("job", "web"):
        sprite.delete_service(name)
    assert sprite.list_services() == []
    for verb in (sprite.get_service, sprite.start_service, sprite.stop_service, sprite.delete_service):
        assert status_of(functools.partial(verb, "web")) == 404


async def test_every_function_of_the_async_client(node: TestNode, sprite: Any) -> None:
    async with AsyncSpritesClient(token=node.token, base_url=node.url, timeout=60.0) as client:
        other = client.sprite(sprite.name)
        for each in await other.list_services():  # of a test that failed
            await other.delete_service(each.name)
        said = list(await other.create_service("web", "bash", ["-c", "echo on; exec sleep inf"], duration=_LISTENED))
        assert [event.type for event in said] == ["started", "stdout", "complete"]
        state = (await other.get_service("web")).state
        assert state is not None
        assert state.status == "running"
        assert [each.name for each in await other.list_services()] == ["web"]
        await other.signal_service("web", "SIGURG")
        assert kinds(await other.stop_service("web", timeout=5.0)) == ["stopping", "stopped", "complete"]
        with pytest.raises(SpriteError):
            await other.stop_service("web")
        assert kinds(await other.start_service("web", duration=_LISTENED)) == ["started", "stdout", "complete"]
        await other.delete_service("web")
        assert await other.list_services() == []
        with pytest.raises(SpriteError):
            await other.get_service("web")
