"""The bodies of the contract: what requests may hold, and what responses look like.

Unknown keys are ignored, since newer clients send more; null means the same as leaving a key out.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    computed_field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ballpoint.api.parameters import CheckpointId
from ballpoint.core.clock import rfc3339
from ballpoint.core.duration import DURATION, DURATION_MAX, parse_duration
from ballpoint.core.errors import InvalidError
from ballpoint.core.ids import NAME_MAX, check_name
from ballpoint.node import views

# MAX_ARG_STRLEN of linux/binfmts.h, 32 pages: execve(2) takes no longer `NAME=value` with its final NUL.
MAX_ENVIRONMENT_STRING = 32 * 4096
MAX_LABELS = 64
MAX_DEVICES = 64
# A checkpoint's comment comes back in one line of a stream, for which a client takes 64 KiB.
MAX_COMMENT = 1024
MAX_IDLE_SECONDS = 10 * 365 * 86400.0


def _sprite_name(name: str) -> str:
    try:
        return check_name(name)
    except InvalidError as error:
        raise PydanticCustomError("name", "{message}", {"message": error.message, "hint": error.hint}) from error


def _environment(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if len(f"{name}={value}".encode()) >= MAX_ENVIRONMENT_STRING:
            raise PydanticCustomError(
                "environment",
                "the variable {name} is too long",
                {"name": name[:80], "hint": f"a variable may hold less than {MAX_ENVIRONMENT_STRING} bytes"},
            )
    return variables


def _whole(value: object) -> object:
    """30.0 is an integer to JSON Schema, and so to who reads the document."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_whole)]
SpriteName = Annotated[
    str,
    AfterValidator(_sprite_name),
    Field(
        description=f"1-{NAME_MAX} lower-case letters, digits and inner hyphens.",
        json_schema_extra={"maxLength": NAME_MAX, "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"},
    ),
]
Label = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
Labels = Annotated[list[Label], Field(max_length=MAX_LABELS)]
Comment = Annotated[str, StringConstraints(max_length=MAX_COMMENT, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$")]
VariableName = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^=\x00]*$")]
VariableValue = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
Environment = Annotated[dict[VariableName, VariableValue], AfterValidator(_environment)]
Timestamp = Annotated[
    AwareDatetime,
    PlainSerializer(rfc3339, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


def _idle_timeout(value: object) -> float:
    if value == "default":
        return views.DEFAULT_IDLE_TIMEOUT
    try:
        seconds = parse_duration(value) if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, InvalidError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 <= seconds <= MAX_IDLE_SECONDS:
        raise PydanticCustomError(
            "idle_timeout",
            "the idle timeout is no time",
            {"hint": "seconds, a Go duration such as 5m, 0 for never, or default"},
        )
    return seconds


IdleTimeout = Annotated[
    float,
    BeforeValidator(_idle_timeout),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": MAX_IDLE_SECONDS},
                {"type": "string", "pattern": f"^(default|{DURATION})$", "maxLength": DURATION_MAX},
            ]
        }
    ),
]
_IDLE = (
    "After so long without use it is frozen: seconds, a duration such as 5m, 0 for never, `default` as the node has it."
)


class _Request(BaseModel):
    model_config = ConfigDict(strict=True)


class _Response(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class Config(_Request):
    """What a sprite asks of the hardware; what is left out takes the node's default."""

    model_config = ConfigDict(from_attributes=True)

    ram_mb: Count | None = Field(
        None, validation_alias=AliasChoices("ram_mb", "ramMB"), description="Limit of its memory in MiB."
    )
    cpus: Count | None = Field(None, description="Limit in whole processors.")
    region: Label | None = Field(None, description="Recorded, as a node is one place.")
    storage_gb: Count | None = Field(
        None, validation_alias=AliasChoices("storage_gb", "storageGB"), description="Size of its disk in GiB."
    )


class UrlSettingsRequest(_Request):
    """Who may open the sprite's URL; what is left out stays as it is."""

    auth: views.UrlAuth | None = None
    private_access: views.PrivateAccess | None = None

    def change(self) -> views.UrlSettingsChange:
        return views.UrlSettingsChange(auth=self.auth, private_access=self.private_access)


class CreateSprite(_Request):
    """A sprite to make."""

    name: SpriteName
    config: Config | None = None
    environment: Environment | None = Field(None, description="Variables of every command run in the sprite.")
    url_settings: UrlSettingsRequest | None = None
    labels: Labels | None = None
    wait_for_capacity: bool | None = Field(
        None, description="Wait while the node has nothing left for one more sprite."
    )
    runtime: Literal["default", "dev"] | None = Field(None, description="Accepted; both mean the same here.")
    idle_timeout: IdleTimeout | None = Field(None, description=_IDLE)

    def request(self) -> views.NewSprite:
        change = (self.url_settings or UrlSettingsRequest()).change()
        return views.NewSprite(
            name=self.name,
            config=views.SpriteConfig(**self.config.model_dump()) if self.config else views.SpriteConfig(),
            environment=self.environment or {},
            url_settings=change.applied_to(views.UrlSettings()),
            labels=_distinct(self.labels or []),
            wait_for_capacity=bool(self.wait_for_capacity),
            idle_timeout=None if self.idle_timeout == views.DEFAULT_IDLE_TIMEOUT else self.idle_timeout,
        )


class UpdateSprite(_Request):
    """Settings to change; what is left out stays as it is."""

    url_settings: UrlSettingsRequest | None = None
    labels: Labels | None = Field(None, description="Replaces all labels; an empty list removes them.")
    clear_labels: bool | None = Field(
        None, description="Removes all labels, for clients that cannot send an empty list."
    )
    idle_timeout: IdleTimeout | None = Field(None, description=_IDLE)

    @model_validator(mode="after")
    def _one_wish(self) -> Self:
        if self.clear_labels and self.labels:
            raise PydanticCustomError("labels", "labels and clear_labels contradict each other")
        return self

    def changes(self) -> views.SpriteChanges:
        labels = [] if self.clear_labels else self.labels
        return views.SpriteChanges(
            labels=None if labels is None else _distinct(labels),
            url_settings=self.url_settings.change() if self.url_settings else None,
            idle_timeout=self.idle_timeout,
        )


def _distinct(labels: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(labels))


class UrlSettings(_Response):
    """Who may open a sprite's URL: the organization (`sprite`), or everybody (`public`)."""

    auth: views.UrlAuth
    private_access: views.PrivateAccess | None


class Sprite(_Response):
    """A durable computer."""

    id: str = Field(description="`sprite-` and a UUID; never used again.")
    name: str
    organization: str
    status: views.Status
    health: views.Health = Field(description="`degraded` where disk or agent do not answer; `restart` mends it.")
    health_reason: str | None
    url: str
    url_settings: UrlSettings
    created_at: Timestamp
    updated_at: Timestamp
    config: Config
    environment: dict[str, str]
    labels: list[str]
    last_running_at: Timestamp | None
    last_warming_at: Timestamp | None
    durable_at: Timestamp | None = Field(
        description="Up to when its disk is in the store; null where nothing of it is, as right after its creation."
    )
    version: str = Field(description="Digest of the standard image it runs on.")
    idle_timeout: float | None = Field(
        description="Seconds after which it is frozen when nobody uses it; 0 is never, null as the node has it."
    )

    @computed_field(description="The same as `organization`, which older clients read here.")  # type: ignore[prop-decorator]
    @property
    def org_slug(self) -> str:
        return self.organization


class Counts(_Response):
    """An organization's sprites by state; a limit of null is none."""

    running: int
    warm: int
    cold: int
    running_limit: int | None
    warm_limit: int | None


class OrganizationCounts(Counts):
    """The counters once more, where some clients look for them."""

    name: str


class SpriteList(OrganizationCounts):
    """One page of sprites, and the counters of the whole organization."""

    sprites: list[Sprite]
    has_more: bool
    next_continuation_token: str | None
    org: OrganizationCounts


class Restarted(BaseModel):
    """A restart that is done."""

    sprite_name: str
    machine_id: str
    message: str


class Reason(_Response):
    """Something that keeps a sprite awake."""

    kind: str = Field(description="`request`, a connection to it; `task`, a lease from inside; `change`, a verb.")
    what: str
    since: Timestamp | None
    until: Timestamp | None = Field(description="When it ends by itself; null where it does not.")


class Activity(_Response):
    """Why a sprite is awake."""

    status: views.Status
    reasons: list[Reason] = Field(description="What keeps it awake now.")
    idle_seconds: float | None = Field(description="For how long nothing has; null where something does.")
    sleeps_in: float | None = Field(description="Seconds until it is frozen if nobody comes; null where it is not.")
    idle_timeout: float | None = Field(description="How long it may be idle; null for ever.")


class Check(BaseModel):
    """Whether a sprite is well."""

    sprite_name: str
    sprite_id: str
    status: views.CheckStatus = Field(description="`hibernated`: it sleeps, and nothing is known to be wrong.")
    reason: str | None = Field(description="What is wrong.")
    checked_at: Timestamp
    elapsed: str = Field(description="How long it took to find out, as a Go duration.")


class ListingChange(BaseModel):
    """A line of the listing that is watched."""

    type: Literal["sprite", "removed", "heartbeat"]
    name: str | None = None
    status: views.Status | None = None
    health: views.Health | None = None
    running_version: str | None = None
    last_running_at: Timestamp | None = None
    last_warming_at: Timestamp | None = None
    timestamp: Timestamp
    org: OrganizationCounts


class Info(BaseModel):
    """What a sprite is told of itself.

    Attributes:
        version: of Ballpoint. image: digest of the standard image its disk belongs to.
    """

    name: str
    id: str
    org: str
    sprite_url: str
    version: str
    image: str


class Event(BaseModel):
    """Something that happened to a sprite: one line of the stream."""

    time: Timestamp
    kind: str
    cause: str = Field(description="Why it happened.")
    detail: dict[str, object] | None = Field(None, description="Further facts; absent where there are none.")


class Organization(BaseModel):
    """The caller's organization; a limit of null is none."""

    slug: str
    sprites_enabled: bool
    active_sprites: list[str] = Field(description="Names of the sprites that run now.")
    max_sprites: int | None
    active_sprite_limit: int | None


class OrganizationBody(BaseModel):
    """An envelope, as older clients expect it."""

    organization: Organization


class Privileges(_Request):
    """What code inside a sprite may do beyond the ordinary."""

    profile: views.Profile | None = Field(None, description="A named set; empty is the node's default.")
    devices: Annotated[list[Label], Field(max_length=MAX_DEVICES)] | None = Field(
        None, description="Device files shown inside."
    )
    no_new_privileges: bool | None = Field(
        None,
        alias="noNewPrivileges",
        description="Whether sudo and its like have no effect in commands started from now on.",
    )

    @classmethod
    def of(cls, view: views.Privileges) -> Self:
        return cls(profile=view.profile, devices=list(view.devices), noNewPrivileges=view.no_new_privileges)

    def view(self) -> views.Privileges:
        return views.Privileges(
            profile=self.profile or "",
            devices=tuple(self.devices or ()),
            no_new_privileges=bool(self.no_new_privileges),
        )


class Memory(_Request):
    """A limit of memory."""

    limit_mb: Count | None = Field(None, description="In MiB.")
    autoscale: bool | None = Field(None, description="Whether it grows by itself; a node offers only false.")


class Resources(_Request):
    """What a sprite may use; what is left out takes the node's default."""

    memory: Memory | None = None

    @classmethod
    def of(cls, view: views.Resources) -> Self:
        if view.memory_mb is None:
            return cls()
        return cls(memory=Memory(limit_mb=view.memory_mb, autoscale=view.autoscale))

    def view(self) -> views.Resources:
        if self.memory is None:
            return views.Resources()
        return views.Resources(memory_mb=self.memory.limit_mb, autoscale=bool(self.memory.autoscale))


class NewCheckpoint(_Request):
    """A checkpoint to make."""

    comment: Comment | None = Field(
        None, description="What it is for; tabs and line feeds are its only control characters."
    )


class Checkpoint(_Response):
    """A state of a sprite's disk that is kept."""

    id: str = Field(description="`v0`, `v1`, ... in the order of their making, or `auto-...`.")
    create_time: Timestamp
    comment: str
    is_auto: bool = Field(description="Made by the node itself, before it replaced that state.")
    durable: bool = Field(description="Whether the store has it, so that it outlives this host.")
    source_id: str | None = Field(description="The checkpoint that the disk had last come from.")
    health: views.CheckpointHealth = Field(
        description="Empty while it can be read; `mount_failed` where it cannot be shown inside the sprite."
    )
    history: list[str] = Field(description="Checkpoints whose states went before this one, oldest first.")


class Progress(BaseModel):
    """A step of a verb that takes its time: one line of the stream.

    The last line is of type `complete` or `error`; a stream without it was cut by a failure.
    """

    type: views.ProgressKind
    data: str | None = Field(None, description="A sentence for people, with the new checkpoint's id; not in an error.")
    error: str | None = Field(None, description="What went wrong, as a sentence; in an error only.")
    hint: str | None = Field(None, description="What to do about the error; absent where there is nothing to add.")
    request_id: str | None = Field(None, description="With an internal error: what to look for in the node's log.")
    time: Timestamp


class NewFork(_Request):
    """A sprite to make whose disk begins as another's."""

    name: SpriteName
    checkpoint: CheckpointId | None = Field(
        None, description="The other's checkpoint to begin with; else its present state, which is kept as one."
    )

    def request(self) -> views.NewFork:
        return views.NewFork(name=self.name, checkpoint=self.checkpoint)


class Disk(_Response):
    """Where a sprite's disk is, and how much of it would survive its host. Sizes are in bytes."""

    place: views.DiskPlace = Field(
        description="`local`: whole on the host; `partly`: being fetched; `store`: only there."
    )
    size: int = Field(description="What it can hold.")
    bytes_written: int = Field(description="How much of it holds anything.")
    bytes_stored: int = Field(description="What it takes in the store, with what it shares with its forks.")
    checkpoints: int = Field(description="How many there are, automatic ones included.")
    lag_seconds: float | None = Field(
        description="How long its oldest change that the store lacks has waited; null where the store lacks nothing."
    )
    durable_at: Timestamp | None = Field(description="When the latest state in the store was taken.")
