"""The way of a question from inside, from the agent's end of the control connection to an application of the API."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from ballpoint.agent.control import Control
from ballpoint.core import peer
from ballpoint.core.peer import Peer
from ballpoint.node.inside import Inside
from ballpoint.node.lifecycle.running import Running
from ballpoint.runtime.container.instance import ContainerInstance
from tests.support.waiting import eventually_async


class Sprites:
    """A registry of one sprite."""

    async def sprite_by_id(self, sprite_id: str) -> Any:
        assert sprite_id == "sprite-1"
        return type("Sprite", (), {"name": "one", "org_id": "o1", "org": "acme"})()


class World:
    """An agent's control socket and the instance that is connected to it, without processes.

    Attributes:
        app: what answers, once `connected`.
    """

    def __init__(self, folder: Path, app: Any) -> None:
        listener = peer.listen(folder / "control.sock", mode=0o600)
        self.control = Control(listener, cast(Any, self))
        self.app = app
        self.inside = Inside(cast(Any, Sprites()))
        self.instance = ContainerInstance(cast(Any, self), "i1", 0, "n")
        self.running = Running(
            "sprite-1", cast(Any, type("Instance", (), {"id": "i1"})()), cast(Any, None), org_id="o1"
        )
        self.instance.on_question = lambda question: self.inside.answer(self.running, question)
        self.connection = Peer(
            peer.connect(folder / "control.sock"),
            serve=lambda message, _: self.instance._asked(self.connection, message),
            on_notice=self.instance._noticed,
        )
        self.listener = listener

    def instance_directory(self, instance_id: str) -> Path:
        return Path("/nonexistent")

    def instance_cgroup(self, instance_id: str) -> Any:
        return None

    async def connected(self) -> None:
        """Wait until the agent knows its node, which answers from now on."""
        await eventually_async(lambda: asyncio.sleep(0, bool(self.control._peers)))
        self.inside.open(self.app)

    async def close(self) -> None:
        self.connection.close()
        asyncio.get_running_loop().remove_reader(self.listener)
        self.listener.close()
        await eventually_async(lambda: asyncio.sleep(0, not self.control._peers))
