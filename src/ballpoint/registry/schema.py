"""Tables of the registry, as the newest migration leaves them. docs/registry.md explains each column."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, UniqueConstraint

metadata = MetaData()

organizations = Table(
    "organizations",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String, primary_key=True),
    Column("org_id", String, ForeignKey("organizations.id"), nullable=False),
    Column("hash", String, nullable=False),
    Column("description", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)

sprites = Table(
    "sprites",
    metadata,
    Column("id", String, primary_key=True),
    Column("org_id", String, ForeignKey("organizations.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("state", String, nullable=False),
    Column("volume_id", String, nullable=False, unique=True),
    Column("image_digest", String, nullable=False),
    Column("environment", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("config", JSON, nullable=False),
    Column("url_settings", JSON, nullable=False),
    Column("privileges", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("last_running_at", Float),
    Column("last_warming_at", Float),
    UniqueConstraint("org_id", "name"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("sprite_id", String, nullable=False),
    Column("time", Float, nullable=False),
    Column("kind", String, nullable=False),
    Column("cause", String, nullable=False),
    Column("detail", JSON, nullable=False),
    Index("events_of_sprite", "sprite_id", "id"),
)

log_ins = Table(
    "log_ins",
    metadata,
    Column("hash", String, primary_key=True),
    Column("sprite_id", String, nullable=False),
    Column("token_id", String, ForeignKey("tokens.id"), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index("log_ins_of_token", "token_id", "created_at"),
)
