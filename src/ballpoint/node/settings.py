"""What callers may change of a sprite while it lives: labels, its URL, its idle timeout, privileges, resources."""

from __future__ import annotations

from typing import Any

import msgspec

from ballpoint.core.errors import InvalidError
from ballpoint.core.types import Caller
from ballpoint.node.lifecycle.running import IDLE_TIMEOUT
from ballpoint.node.node import Node, url_settings
from ballpoint.node.views import DEFAULT_IDLE_TIMEOUT, Privileges, Resources, SpriteChanges, SpriteView


class Settings:
    """The settings of a node's sprites. What is recorded of one goes to the store with its disk."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def update(self, caller: Caller, name: str, changes: SpriteChanges) -> SpriteView:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        values: dict[str, Any] = {}
        if changes.labels is not None:
            values["labels"] = list(changes.labels)
        if changes.url_settings is not None:
            settings = changes.url_settings.applied_to(url_settings(sprite))
            values["url_settings"] = msgspec.to_builtins(settings)
        if changes.idle_timeout is not None:
            asked = None if changes.idle_timeout == DEFAULT_IDLE_TIMEOUT else changes.idle_timeout
            values["config"] = {name: value for name, value in sprite.config.items() if name != IDLE_TIMEOUT}
            if asked is not None:
                values["config"][IDLE_TIMEOUT] = asked
            if (running := self._node.running.get(sprite.id)) is not None:
                running.idle_timeout = asked
        if values:
            sprite = await self._node.registry.update_sprite(sprite.id, **values)
            await self._node.saving.changed(sprite.id, sprite.volume_id)
        return self._node.view(sprite)

    async def privileges(self, caller: Caller, name: str) -> Privileges:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        return msgspec.convert(sprite.privileges, Privileges)

    async def set_privileges(self, caller: Caller, name: str, privileges: Privileges) -> None:
        if privileges.devices:
            raise InvalidError("this node offers no devices", hint="leave devices empty")
        sprite = await self._node.registry.sprite(caller.org_id, name)
        await self._node.registry.update_sprite(sprite.id, privileges=msgspec.to_builtins(privileges))
        await self._node.saving.changed(sprite.id, sprite.volume_id)
        running = self._node.running.get(sprite.id)
        if running is not None:
            await running.instance.runtime.configure(
                {"profile": privileges.profile or "standard", "no_new_privileges": privileges.no_new_privileges}
            )

    async def clear_privileges(self, caller: Caller, name: str) -> None:
        await self.set_privileges(caller, name, Privileges())

    async def resources(self, caller: Caller, name: str) -> Resources:
        sprite = await self._node.registry.sprite(caller.org_id, name)
        return Resources(memory_mb=sprite.config.get("ram_mb"))

    async def set_resources(self, caller: Caller, name: str, resources: Resources) -> None:
        if resources.autoscale:
            raise InvalidError("this node changes no limit by itself", hint="leave autoscale out")
        sprite = await self._node.registry.sprite(caller.org_id, name)
        async with self._node.lock(sprite.id):
            sprite = await self._node.living(sprite.id)
            config = {**sprite.config, "ram_mb": resources.memory_mb}
            running = self._node.running.get(sprite.id)
            if running is not None:
                await self._node.starter.limit(running, config, sprite.config)
            await self._node.registry.update_sprite(sprite.id, config=config)
        await self._node.saving.changed(sprite.id, sprite.volume_id)
