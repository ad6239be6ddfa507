"""Waiting for what a test has no event for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until `condition` holds, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        threading.Event().wait(0.05)


async def eventually_async(condition: Callable[[], Awaitable[object]], seconds: float = 30.0) -> None:
    """As `eventually`, of something that must be awaited."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)
