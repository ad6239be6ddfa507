"""The table: which row uses which names of the official Python SDK, and what a row has to work with."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from sprites import AsyncSpritesClient, SpritesClient
from sprites.loop import run_sync

from ballpoint.core import ids
from tests.support.nodes import TestNode

Kind = Literal["sync", "async"]

# What a row may call both halves of the SDK by.
_HALVES = {
    "Client": ("client.SpritesClient", "async_client.AsyncSpritesClient"),
    "Sprite": ("sprite.Sprite", "async_sprite.AsyncSprite"),
    "Cmd": ("exec.Cmd", "async_exec.AsyncCmd"),
    "run": ("exec.run", "async_exec.run"),
    "Filesystem": ("filesystem.SpriteFilesystem", "async_filesystem.AsyncSpriteFilesystem"),
    "Path": ("filesystem.SpritePath", "async_filesystem.AsyncSpritePath"),
}


@dataclass
class Kit:
    """What a row has: a node, and a client of one half of the SDK that is its own.

    Attributes:
        kind: which half.
        control: whether the client is in control mode.
        name: of a sprite that all rows share, so that they clean up what they leave in it.
    """

    node: TestNode
    kind: Kind
    control: bool
    client: Any
    name: str
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def sprite(self) -> Any:
        """A handle of the shared sprite."""
        return self.client.sprite(self.name)

    async def do(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call either half's `function`: the synchronous one in a thread, as whoever calls it has no event loop."""

        def called() -> Any:
            result = function(*args, **kwargs)
            return run_sync(result) if inspect.iscoroutine(result) else result

        if self.kind == "sync":
            return await _in_thread(called)
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    async def all_of(self, iterator: Any) -> list[Any]:
        """What an iterator of either half gives."""
        if self.kind == "sync":
            return list(await _in_thread(lambda: list(iterator)))
        return [each async for each in iterator]

    async def made(self, **settings: Any) -> Any:
        """A sprite of the row's own, destroyed after it unless that is done."""
        made = await self.do(self.client.create_sprite, new_name(), **settings)
        self.stack.callback(destroy, self.node, made.name)
        return made

    def new_client(self, token: str | None = None, url: str | None = None) -> Any:
        """Another client of the same half; whoever asks closes it."""
        kind = SpritesClient if self.kind == "sync" else AsyncSpritesClient
        return kind(
            token=token or self.node.token, base_url=url or self.node.url, timeout=60.0, control_mode=self.control
        )

    async def __aenter__(self) -> Kit:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.do(self.sprite.close_control_connection)  # clients of the first half leave it open
        await self.do(self.client.close if self.kind == "sync" else self.client.aclose)
        await self.stack.aclose()


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Call it in a thread that nobody waits for in the end: one that hangs fails its own test and no other."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def run() -> None:
        try:
            result, error = function(), None
        except Exception as caught:  # noqa: BLE001 - it is the caller's
            result, error = None, caught
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(_tell, done, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await done


def _tell(done: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if done.cancelled():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)


def kit_of(node: TestNode, kind: Kind, control: bool, name: str) -> Kit:
    kit = Kit(node, kind, control, None, name)
    kit.client = kit.new_client()
    return kit


def new_name() -> str:
    return f"t-{ids.new_instance_id()}"


def destroy(node: TestNode, name: str) -> None:
    assert node.api("DELETE", f"/v1/sprites/{name}").status_code in (204, 404)


@dataclass(frozen=True)
class Row:
    """A function that uses names of the SDK and asserts what comes of it.

    Attributes:
        names: as in `surface.public_names`, or for both halves by a key of `_HALVES`.
        kinds: the halves it is for.
        commands: whether it runs commands and so is tried with and without control mode.
    """

    function: Callable[[Kit], Awaitable[None]]
    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    commands: bool

    def names_in(self, kind: Kind) -> set[str]:
        found = set()
        for name in self.names:
            first, dot, rest = name.partition(".")
            found.add(_HALVES[first][kind == "async"] + dot + rest if first in _HALVES else name)
        return found


Use = Callable[[Kit], Awaitable[None]]

ROWS: list[Row] = []


def row(*names: str, kinds: tuple[Kind, ...] = ("sync", "async"), commands: bool = False) -> Callable[[Use], Use]:
    """Use a function into the table."""

    def enter(function: Use) -> Use:
        ROWS.append(Row(function, names, kinds, commands))
        return function

    return enter
