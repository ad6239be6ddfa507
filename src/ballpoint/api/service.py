"""What the control API needs of a node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from ballpoint.core.types import Caller
from ballpoint.node.views import (
    ActivityView,
    CheckpointView,
    CheckView,
    DiskView,
    EventView,
    ListingLine,
    NewFork,
    NewSprite,
    Privileges,
    Progress,
    Resources,
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

    async def destroy(self, caller: Caller, name: str) -> None:
        """Remove the sprite and its disk. A second call finds no sprite; after a crash half-way it is still going."""

    async def restart(self, caller: Caller, name: str) -> SpriteView:
        """Give the sprite a fresh instance over its disk, also where disk or agent no longer answer. Idempotent."""

    async def sleep(self, caller: Caller, name: str) -> SpriteView:
        """End the sprite's processes and keep its disk. Idempotent: one that is cold stays so."""

    async def wake(self, caller: Caller, name: str) -> SpriteView:
        """Start the sprite from its disk where it does not run. Idempotent."""

    async def activity(self, caller: Caller, name: str) -> ActivityView:
        """Why the sprite is awake, or for how long nothing has kept it so. Asking does not wake it."""

    async def check(self, caller: Caller, name: str) -> CheckView:
        """Whether the sprite's agent and disk answer, asked now and within deadlines. Asking does not wake it."""


class ListingService(Protocol):
    """What an organization sees of its sprites. What `NodeService` says of its verbs holds for these, too."""

    async def list(self, caller: Caller, *, prefix: str, limit: int, after: str | None) -> SpritePage:
        """At most `limit` sprites whose names begin with `prefix`, continuing behind the token `after`.

        Raises:
            InvalidError: `after` is no token of an earlier page.
        """

    def watch_list(self, caller: Caller, *, prefix: str) -> AsyncIterator[ListingLine]:
        """The organization's sprites whose names begin with `prefix`, each when it changes; first all as they are.

        Without an end; something comes at once, and every 15 s. The iterator is closed when its reader goes away.
        """

    def events(self, caller: Caller, name: str, *, follow: bool) -> AsyncIterator[EventView]:
        """The sprite's events, oldest first; with `follow` also those to come, until the sprite is destroyed.

        Errors are raised before the first item, which is there at once: every sprite has the event of its creation.
        The iterator is closed when its reader goes away.
        """

    def logs(self, caller: Caller, name: str) -> AsyncIterator[bytes]:
        """The log of the sprite's agent and container as UTF-8 text. Errors are raised before the first item."""


class SettingsService(Protocol):
    """What may be changed of a sprite while it lives. What `NodeService` says of its verbs holds for these, too."""

    async def update(self, caller: Caller, name: str, changes: SpriteChanges) -> SpriteView:
        """Change settings, all or none, and return the sprite with them. Idempotent."""

    async def privileges(self, caller: Caller, name: str) -> Privileges:
        """The sprite's privileges; the default ones where none were set."""

    async def set_privileges(self, caller: Caller, name: str, privileges: Privileges) -> None:
        """Replace the sprite's privileges. Idempotent.

        Raises:
            InvalidError: the node does not offer a device.
        """

    async def clear_privileges(self, caller: Caller, name: str) -> None:
        """Go back to the default privileges. Idempotent."""

    async def resources(self, caller: Caller, name: str) -> Resources:
        """What the sprite may use."""

    async def set_resources(self, caller: Caller, name: str, resources: Resources) -> None:
        """Change what the sprite may use; one that runs, at once. Idempotent.

        Raises:
            InvalidError: the node cannot do that.
            ConflictError: it uses more now, and the kernel cannot take it back.
        """


class LogInService(Protocol):
    """How a browser logs in to a sprite's URL."""

    @property
    def log_in_origin(self) -> str:
        """Origin of the page to log in."""

    def wanted(self, to: str) -> str:
        """The origin of a URL that somebody wants to open.

        Raises:
            InvalidError: it is no URL of a sprite here, or written in another way than ours.
        """

    async def log_in(self, token: str, to: str) -> str:
        """Where a browser goes on to be logged in at the URL `to` by `token`: at its host, once, within a minute.

        Raises:
            InvalidError: as `wanted`.
            UnauthorizedError: the token is not valid.
            NotFoundError: it opens no sprite at that host, whether there is one or not.
        """


class DiskService(Protocol):
    """What a node does with the states of sprites' disks. What `NodeService` says of its verbs holds for these, too.

    The verbs that return `Progress` raise what refuses them before the first item; what fails later they raise in
    place of the next, or tell in an item of kind `error`. The last item of a success is of kind `complete`. The
    iterator is closed when its reader goes away, and the verb goes on. The edge waits 150 s for the first item and
    official clients 300 s for each: what takes longer says from time to time that it goes on.
    """

    def checkpoint(self, caller: Caller, name: str, *, comment: str, wait_durable: bool) -> AsyncIterator[Progress]:
        """Keep the disk's present state under the next id. Not idempotent: each call makes one.

        With `wait_durable` it is complete once the store has it, else once this host has. After a crash half-way it is
        there whole or not at all.
        """

    def restore(self, caller: Caller, name: str, checkpoint_id: str) -> AsyncIterator[Progress]:
        """Give the sprite the disk of that checkpoint, and start it over it.

        The disk it has until then is kept in an automatic checkpoint.
        Not idempotent, as each call replaces what is there. After a failure or a crash half-way the sprite has either
        disk, whole.

        Raises:
            NotFoundError: there is no such checkpoint.
            ConflictError: another restore of the sprite is under way.
        """

    async def checkpoints(self, caller: Caller, name: str, *, include_auto: bool) -> list[CheckpointView]:
        """The sprite's checkpoints, oldest first; automatic ones only with `include_auto`."""

    async def get_checkpoint(self, caller: Caller, name: str, checkpoint_id: str) -> CheckpointView:
        """One checkpoint, also an automatic one.

        Raises:
            NotFoundError: there is no such checkpoint.
        """

    async def forget(self, caller: Caller, name: str, checkpoint_id: str) -> None:
        """Drop a checkpoint; room that nothing else uses is freed later. A second call finds none.

        Raises:
            NotFoundError: there is no such checkpoint.
            ConflictError: the disk came from it last.
        """

    async def upgrade(self, caller: Caller, name: str) -> None:
        """Put the sprite on the node's present standard image, and start it. Idempotent: one that is on it stays so.

        What it was is kept in an automatic checkpoint, which is on the image of before. After a failure or a crash
        half-way the sprite is on either, whole.
        """

    async def fork(self, caller: Caller, name: str, request: NewFork) -> SpriteView:
        """Make a sprite whose disk begins as that of `name`, and return it ready for its first command.

        Not idempotent. After a crash half-way the new sprite is finished or gone; the other one is never changed.

        Raises:
            NotFoundError: there is no such checkpoint.
            ConflictError: the new name is taken.
        """

    async def sync(self, caller: Caller, name: str) -> DiskView:
        """Wait until the store has everything that was written to the disk before the call. Idempotent.

        Raises:
            UnavailableError: the store does not take it in time; what was written stays here and is tried again.
        """

    async def disk(self, caller: Caller, name: str) -> DiskView:
        """Where the disk is, and how far the store is behind it. Wakes nothing and asks the store nothing."""
