"""Whether a sprite is well, asked by several at once."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

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
