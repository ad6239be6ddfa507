"""A process of its own on the same database: `python -m tests.registry.rival URL` obeys lines of JSON.

`["open"]`, `["create", org_id, names]` answers which names it got, `["token", org]` answers the token's org id,
`["authenticate", token]` whether it is good, `["events", sprite_id, count]` adds that many.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from ballpoint.core.errors import ConflictError, UnauthorizedError
from ballpoint.registry.registry import Registry

from .world import add


async def _obey(registry: Registry, what: str, *arguments: Any) -> Any:
    if what == "create":
        org_id, wanted = arguments
        got = []
        for name in wanted:
            try:
                await add(registry, org_id, name)
            except ConflictError:
                continue
            got.append(name)
        return got
    if what == "token":
        return (await registry.create_token(arguments[0], ""))[0].org_id
    if what == "events":
        sprite_id, count = arguments
        return [(await registry.add_event(sprite_id, "tick", str(os.getpid()))).id for _ in range(count)]
    assert what == "authenticate"
    try:
        await registry.authenticate(arguments[0])
    except UnauthorizedError:
        return False
    return True


async def _main(url: str) -> None:
    registry: Registry | None = None
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        if order == ["open"]:
            registry = await Registry.open(url)
            answer = None
        else:
            assert registry is not None
            answer = await _obey(registry, *order)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    if registry is not None:
        await registry.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
