"""What the control API asks of the node and gets back: values only, none of them tied to HTTP or to the registry."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

Status = Literal["cold", "warm", "running"]
Health = Literal["ok", "degraded"]
UrlAuth = Literal["sprite", "public"]
PrivateAccess = Literal["admins", "org_users"]
Profile = Literal["", "minimal", "standard", "privileged"]
CheckpointHealth = Literal["", "mount_failed"]
ProgressKind = Literal["info", "error", "complete"]
CheckStatus = Literal["healthy", "hibernated", "unhealthy", "error"]
DiskPlace = Literal["local", "partly", "store"]


# In a `SpriteChanges`: as the node has it.
DEFAULT_IDLE_TIMEOUT = -1.0


class SpriteConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a sprite asks of the hardware; None takes the node's default.

    Attributes:
        ram_mb: limit of its memory in MiB.
        cpus: limit in whole processors.
        region: where it shall run; recorded, as a node is one place.
        storage_gb: apparent size of its volume in GiB.
    """

    ram_mb: int | None = None
    cpus: int | None = None
    region: str | None = None
    storage_gb: int | None = None


class UrlSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Who may open a sprite's URL.

    Attributes:
        auth: `sprite` asks for the organization's log-in or token, `public` for nothing.
        private_access: which members of the organization pass; None means all.
    """

    auth: UrlAuth = "sprite"
    private_access: PrivateAccess | None = None


class UrlSettingsChange(msgspec.Struct, frozen=True, kw_only=True):
    """A partial `UrlSettings`: what is None stays as it is."""

    auth: UrlAuth | None = None
    private_access: PrivateAccess | None = None

    def applied_to(self, settings: UrlSettings) -> UrlSettings:
        """`settings` with this change made."""
        return UrlSettings(
            auth=self.auth or settings.auth, private_access=self.private_access or settings.private_access
        )


class NewSprite(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a sprite.

    Attributes:
        name: already checked by `core.ids.check_name`.
        environment: variables of every command run in it.
        wait_for_capacity: wait while the host has nothing left for one more, instead of failing.
        idle_timeout: seconds after which it is frozen when nobody uses it; 0 is never, None as the node has it.
    """

    name: str
    config: SpriteConfig = SpriteConfig()
    environment: dict[str, str] = {}
    url_settings: UrlSettings = UrlSettings()
    labels: tuple[str, ...] = ()
    wait_for_capacity: bool = False
    idle_timeout: float | None = None


class SpriteChanges(msgspec.Struct, frozen=True, kw_only=True):
    """A partial update: what is None stays as it is. Empty `labels` remove all labels.

    `idle_timeout` is in seconds; 0 is never, DEFAULT_IDLE_TIMEOUT as the node has it.
    """

    labels: tuple[str, ...] | None = None
    url_settings: UrlSettingsChange | None = None
    idle_timeout: float | None = None


class SpriteView(msgspec.Struct, frozen=True, kw_only=True):
    """A sprite as its owner sees it.

    Attributes:
        id: `sprite-<uuid>`.
        organization: slug of the organization it belongs to.
        status: what state its instance is in; never `running` while `health` is `degraded`.
        health, health_reason: whether disk and agent answer within their deadlines, and if not, which does not and why.
        url: where its port 8080 is reached.
        version: digest of the standard image its volume belongs to.
        last_running_at, last_warming_at: when it last started and last fell asleep; None where it never did.
        durable_at: when the newest state of its disk was taken that the store has; None where it has none.
        idle_timeout: seconds after which it is frozen when nobody uses it; 0 is never, None as the node has it.
    """

    id: str
    name: str
    organization: str
    status: Status
    url: str
    created_at: datetime
    updated_at: datetime
    version: str
    health: Health = "ok"
    health_reason: str | None = None
    url_settings: UrlSettings = UrlSettings()
    config: SpriteConfig = SpriteConfig()
    environment: dict[str, str] = {}
    labels: tuple[str, ...] = ()
    last_running_at: datetime | None = None
    last_warming_at: datetime | None = None
    durable_at: datetime | None = None
    idle_timeout: float | None = None


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Something that keeps a sprite awake.

    Attributes:
        kind: `request`, a connection to it; `task`, a lease from inside; `change`, a verb of the API.
        what: which, as a word.
        since, until: when it began, and when it ends by itself; None where that is not known.
    """

    kind: Literal["request", "task", "change"]
    what: str
    since: datetime | None = None
    until: datetime | None = None


class ActivityView(msgspec.Struct, frozen=True, kw_only=True):
    """Why a sprite is awake.

    Attributes:
        reasons: what keeps it so now.
        idle_seconds: for how long nothing has; None where something does, or it sleeps.
        sleeps_in: seconds until it is frozen if nobody comes; None where it is not going to be.
        idle_timeout: how long it may be idle, in seconds; None for ever, or where it sleeps.
    """

    status: Status
    reasons: tuple[Reason, ...] = ()
    idle_seconds: float | None = None
    sleeps_in: float | None = None
    idle_timeout: float | None = None


class CheckView(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a sprite is well, as found out for whoever asks.

    Attributes:
        status: `hibernated` where it sleeps, warm or cold, and nothing is known to be wrong.
        reason: what is wrong; None where nothing is.
        elapsed: seconds that finding out took.
    """

    sprite: SpriteView
    status: CheckStatus
    reason: str | None
    checked_at: datetime
    elapsed: float


class ListingLine(msgspec.Struct, frozen=True, kw_only=True):
    """Something that has changed in the listing of an organization's sprites, or that nothing has for a while.

    Attributes:
        kind: `sprite`, which is new or has changed; `removed`; `heartbeat`.
        counts: of the whole organization, now.
    """

    kind: Literal["sprite", "removed", "heartbeat"]
    counts: Counts
    name: str | None = None
    sprite: SpriteView | None = None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How many sprites an organization has in each state, and how many it may have (None: no limit)."""

    running: int
    warm: int
    cold: int
    running_limit: int | None = None
    warm_limit: int | None = None


class SpritePage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an organization's sprites in a stable order.

    Attributes:
        next: opaque token that continues behind this page; None at the end.
        counts: of the whole organization, whatever the page shows.
    """

    sprites: tuple[SpriteView, ...]
    next: str | None
    counts: Counts


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a sprite, and why.

    Attributes:
        kind: a word such as `created` or `running`.
        cause: what made it happen, as a short sentence.
        detail: further facts; must encode as JSON.
    """

    time: datetime
    kind: str
    cause: str
    detail: dict[str, Any] | None = None


class Privileges(msgspec.Struct, frozen=True, kw_only=True):
    """What code inside a sprite may do beyond the ordinary.

    Attributes:
        profile: a named set; empty means the node's default.
        devices: device files shown inside.
        no_new_privileges: whether set-user-ID programs (sudo) lose their effect.
    """

    profile: Profile = ""
    devices: tuple[str, ...] = ()
    no_new_privileges: bool = False


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What a sprite may use, as far as it can be changed.

    Attributes:
        memory_mb: limit of its memory in MiB, `ram_mb` of its configuration; None means the node's default.
        autoscale: whether the limit grows by itself.
    """

    memory_mb: int | None = None
    autoscale: bool = False


class CheckpointView(msgspec.Struct, frozen=True, kw_only=True):
    """A state of a sprite's disk that is kept.

    Attributes:
        id: `v0`, `v1`, ... in the order of their making, or `auto-...`; never used again for another state.
        comment: what its maker said of it; empty where nothing was said.
        is_auto: made by the node itself, before it replaced that state.
        durable: whether it is in the store, so that it outlives this host.
        source_id: checkpoint that the disk had last come from when this one was made; None where it had from none.
        health: empty while it can be read; `mount_failed` where it cannot be shown inside the sprite.
        history: checkpoints whose state went before this one, oldest first, up to `source_id`.
    """

    id: str
    create_time: datetime
    comment: str
    is_auto: bool
    durable: bool
    source_id: str | None = None
    health: CheckpointHealth = ""
    history: tuple[str, ...] = ()


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a verb that takes its time.

    Attributes:
        kind: `info` where there is more to come; `complete` and `error` are the last, after success and failure.
        data: a sentence for people, with the new checkpoint's id where one was made.
    """

    kind: ProgressKind
    data: str
    time: datetime


class NewFork(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a sprite whose disk begins as another's.

    Attributes:
        name: of the new sprite; already checked by `core.ids.check_name`.
        checkpoint: state of the other's disk to begin with; None takes the present one, by an automatic checkpoint.
    """

    name: str
    checkpoint: str | None = None


class DiskView(msgspec.Struct, frozen=True, kw_only=True):
    """Where a sprite's disk is, and how much of it would survive its host.

    Attributes:
        place: `local`, whole on this host; `partly`, while it is being fetched; `store`, only there.
        bytes_written: bytes of it that hold anything.
        bytes_stored: bytes that its objects take in the store, those shared with its forks included.
        checkpoints: how many it has, automatic ones included.
        lag_seconds: for how long its oldest change that the store lacks has waited; None where the store lacks nothing.
        durable_at: when the latest state in the store was taken; None where the store holds none.
        size: bytes it can hold.
    """

    place: DiskPlace
    bytes_written: int
    bytes_stored: int
    checkpoints: int
    lag_seconds: float | None
    durable_at: datetime | None
    size: int
