"""What the registry returns."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

SpriteState = Literal["creating", "cold", "warm", "running", "deleting"]


class TokenInfo(msgspec.Struct, frozen=True):
    """A token without its secret."""

    id: str
    org_id: str
    org: str
    description: str
    created_at: datetime
    revoked_at: datetime | None


class Sprite(msgspec.Struct, frozen=True):
    """A sprite as recorded. Times are None while the thing never happened."""

    id: str
    org_id: str
    org: str
    name: str
    state: SpriteState
    volume_id: str
    image_digest: str
    environment: dict[str, str]
    labels: list[str]
    config: dict[str, Any]
    url_settings: dict[str, Any]
    privileges: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    last_running_at: datetime | None
    last_warming_at: datetime | None


class Event(msgspec.Struct, frozen=True):
    """Something that happened to a sprite, and why. Ids grow with time."""

    id: int
    sprite_id: str
    time: datetime
    kind: str
    cause: str
    detail: dict[str, Any]


class SpriteAtHost(msgspec.Struct, frozen=True):
    """The sprite that a label below the domain means, as far as a request to its URL needs it."""

    id: str
    name: str
    org: str
    org_id: str
    url_settings: dict[str, Any]
