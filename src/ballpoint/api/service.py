"""What the control API needs of a node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from ballpoint.core.types import Caller
from ballpoint.node.views import (
    EventView,
    NewSprite,
    Privileges,
    SpriteChanges,
    SpritePage,
    SpriteView,
)


class NodeService(Protocol):
    """The node's verbs, each on behalf of a caller whose organization owns the sprite.

    Every verb that names a sprite raises `NotFoundError` where the caller's organization has none of that name,
    whoever else may have one, and `UnavailableError` where it cannot be done now. A request that is refused changes
    nothing. A caller that goes away does not end a verb it began.
    """

    async def create(self, caller: Caller, request: NewSprite) -> SpriteView:
        """Make a sprite and return it ready for its first command.

        Not idempotent: `ConflictError` where the name is taken. After a crash half-way the sprite is finished or gone.
        """

    async def get(self, caller: Caller, name: str) -> SpriteView:
        """The sprite as it is now."""

    async def list(self, caller: Caller, *, prefix: str, limit: int, after: str | None) -> SpritePage:
        """At most `limit` sprites whose names begin with `prefix`, continuing behind the token `after`.

        Raises:
            InvalidError: `after` is no token of an earlier page.
        """

    async def update(self, caller: Caller, name: str, changes: SpriteChanges) -> SpriteView:
        """Change settings, all or none, and return the sprite with them. Idempotent."""

    async def destroy(self, caller: Caller, name: str) -> None:
        """Remove the sprite and its disk. A second call finds no sprite; after a crash half-way it is still going."""

    async def restart(self, caller: Caller, name: str) -> SpriteView:
        """Give the sprite a fresh instance over its disk, also where disk or agent no longer answer. Idempotent."""

    def events(self, caller: Caller, name: str, *, follow: bool) -> AsyncIterator[EventView]:
        """The sprite's events, oldest first; with `follow` also those to come, until the sprite is destroyed.

        Errors are raised before the first item, which is there at once: every sprite has the event of its creation.
        The iterator is closed when its reader goes away.
        """

    def logs(self, caller: Caller, name: str) -> AsyncIterator[bytes]:
        """The log of the sprite's agent and container as UTF-8 text. Errors are raised before the first item."""

    async def privileges(self, caller: Caller, name: str) -> Privileges:
        """The sprite's privileges; the default ones where none were set."""

    async def set_privileges(self, caller: Caller, name: str, privileges: Privileges) -> None:
        """Replace the sprite's privileges. Idempotent.

        Raises:
            InvalidError: the node does not offer a device.
        """

    async def clear_privileges(self, caller: Caller, name: str) -> None:
        """Go back to the default privileges. Idempotent."""
