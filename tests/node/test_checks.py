"""Whether a sprite is well, asked by several at once."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ballpoint.core.errors import UnavailableError
from ballpoint.node.watch.health import Health


async def ping(seconds: float) -> dict[str, Any]:
    return {}


async def asked_at_once(mount: int) -> list[str | None]:
    """What three hear of a disk, and one who comes later."""
    device = next(Path("/sys/block").iterdir())  # whose counts do not matter here
    volume = SimpleNamespace(id="v", mount=mount, device=f"/dev/{device.name}")
    running: Any = SimpleNamespace(instance=SimpleNamespace(runtime=SimpleNamespace(ping=ping)), volume=volume)
    health = Health(cast(Any, None))
    heard = await asyncio.gather(*(health.check(running, now=True) for _ in range(3)))
    return [*heard, await health.check(running, now=True)]


async def test_all_who_ask_at_once_have_an_answer(tmp_path: Path) -> None:
    mount = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert await asked_at_once(mount) == [None] * 4
        (tmp_path / ".health").unlink()
        (tmp_path / ".health").mkdir()  # so that a write is refused
        assert await asked_at_once(mount) == ["the disk refuses a write (Is a directory)"] * 4
    finally:
        os.close(mount)


@pytest.mark.parametrize("frozen", [False, True])
async def test_one_whose_writers_are_made_to_wait_meanwhile_is_not_said_to_hang(frozen: bool) -> None:
    """It would not be well for the wrong reason: the one with the right one has been told already."""
    told: list[str | None] = []
    one_round = asyncio.Event()

    async def silent(seconds: float) -> dict[str, Any]:
        running.frozen = frozen
        raise UnavailableError("it is silent")

    async def report_trouble(_: object, trouble: str | None) -> None:
        told.append(trouble)

    async def sleep(_: float) -> None:
        one_round.set()
        await asyncio.Event().wait()

    running: Any = SimpleNamespace(frozen=False, instance=SimpleNamespace(runtime=SimpleNamespace(ping=silent)))
    node = SimpleNamespace(running={"one": running}, report_trouble=report_trouble)
    watching = asyncio.create_task(Health(cast(Any, node), cast(Any, SimpleNamespace(sleep=sleep))).run())
    await asyncio.wait_for(one_round.wait(), 60)
    watching.cancel()
    assert told == ([] if frozen else ["the agent does not answer (it is silent)"])
