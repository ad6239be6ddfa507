"""Services."""

from __future__ import annotations

from typing import Any

import pytest
from sprites import services
from sprites.exceptions import APIError

from tests.sdk.table import Kit, row

_SERVER = ["-c", "exec sleep 600"]


@row(
    "Sprite.create_service", "Sprite.list_services", "Sprite.get_service", "Sprite.stop_service",
    "Sprite.start_service", "Sprite.signal_service", "Sprite.delete_service", "services.ServiceStream",
    "types.ServiceLogEvent", "types.ServiceState", "types.ServiceWithState",
)  # fmt: skip
async def the_life_of_services(kit: Kit) -> None:
    sprite = await kit.made()
    # What ends is watched no longer, whatever the duration.
    events = list(
        await kit.do(
            sprite.create_service,
            "once",
            "sh",
            ["-c", 'echo "$A"; pwd; exit 3'],
            duration=60.0,
            env={"A": "b"},
            dir="/usr",
        )
    )
    assert_stream(events, "started", "stdout", "exit", "complete")
    assert [event.data for event in events if event.type == "stdout"] == ["b", "/usr"]
    assert [event.exit_code for event in events if event.type == "exit"] == [3]
    await kit.do(sprite.delete_service, "once")
    assert_stream(await kit.do(sprite.create_service, "base", "sh", _SERVER, duration=0.1), "started", "complete")
    settings = {"env": {"A": "b"}, "dir": "/usr"}
    await kit.do(sprite.create_service, "web", "sleep", ["600"], ["base"], 8080, 0.1, **settings)
    base, web = sorted(await kit.do(sprite.list_services), key=lambda service: service.name)
    assert (base.name, base.cmd, base.args, base.needs, base.http_port) == ("base", "sh", _SERVER, [], None)
    assert (web.needs, web.http_port, web.env, web.dir) == (["base"], 8080, {"A": "b"}, "/usr")
    assert (web.state.name, web.state.status, web.state.restart_count) == ("web", "running", 0)
    assert web.state.pid and web.state.started_at.tzinfo is not None
    assert_stream(await kit.do(sprite.stop_service, "web", timeout=5.0), "stopping", "stopped", "complete")
    assert (await kit.do(sprite.get_service, "web")).state.status == "stopped"
    assert_stream(await kit.do(sprite.start_service, "web", duration=0.1), "started", "complete")
    assert (await kit.do(sprite.get_service, "web")).state.status == "running"
    assert await kit.do(sprite.signal_service, "web", "SIGCONT") is None
    await kit.do(sprite.delete_service, "web")
    assert [each.name for each in await kit.do(sprite.list_services)] == ["base"]
    for attempt in (sprite.get_service, sprite.delete_service, sprite.start_service, sprite.stop_service):
        with pytest.raises(Exception, match="404|not found"):
            await kit.do(attempt, "web")


@row(
    *(f"services.{verb}_service" for verb in ("create", "get", "start", "stop", "signal", "delete")),
    "services.list_services", "services.ServiceStream.process_all", "services.ServiceStream.close", kinds=("sync",),
)  # fmt: skip
async def functions_of_the_module(kit: Kit) -> None:
    sprite = await kit.made()
    with await kit.do(services.create_service, sprite, "one", "sh", _SERVER, duration=0.1, http_port=8080) as stream:
        heard: list[Any] = []
        stream.process_all(heard.append)
        assert_stream(heard, "started", "complete")
        assert heard[-1].log_files["combined"].startswith("/.sprite/logs/services/")
    assert [each.name for each in await kit.do(services.list_services, sprite)] == ["one"]
    assert (await kit.do(services.get_service, sprite, "one")).state.status == "running"
    with pytest.raises(APIError) as refused:
        await kit.do(services.create_service, sprite, "two", "sh", http_port=8080)
    assert refused.value.status_code == 409
    with pytest.raises(APIError) as refused:
        await kit.do(services.signal_service, sprite, "one", "NO-SUCH")
    assert refused.value.status_code == 400
    assert_stream(await kit.do(services.stop_service, sprite, "one", timeout=5.0), "stopping", "stopped", "complete")
    with pytest.raises(APIError) as refused:
        await kit.do(services.signal_service, sprite, "one", "SIGHUP")
    assert refused.value.status_code == 409
    assert_stream(await kit.do(services.start_service, sprite, "one", duration=0.1), "started", "complete")
    await kit.do(services.signal_service, sprite, "one", "HUP")
    await kit.do(services.delete_service, sprite, "one")
    assert await kit.do(services.list_services, sprite) == []


def assert_stream(stream: Any, *kinds: str) -> None:
    """Assert that events of these kinds came in that order, others among them, with `complete` at the end."""
    heard = [event.type for event in stream]
    rest = iter(heard)
    assert all(kind in rest for kind in kinds), heard
    assert heard[-1] == "complete", heard
