"""The registry's operations. Each is one transaction."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    RowMapping,
    Select,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from ballpoint.core import hosts, ids
from ballpoint.core.clock import SYSTEM_CLOCK, Clock
from ballpoint.core.errors import ConflictError, InvalidError, NotFoundError, UnauthorizedError
from ballpoint.core.types import Caller
from ballpoint.registry.database import Database
from ballpoint.registry.records import Event, Sprite, SpriteAtHost, SpriteState, TokenInfo
from ballpoint.registry.schema import events, log_ins, organizations, sprites, tokens

_TOKEN_MAX = 1024
_ORG_MAX = 63
_TOKEN_PART = re.compile(r"[!-.0-~]+")  # printable ASCII but for the space and the slash
_LOG_INS_KEPT = 1_000  # of one token; the oldest go first
_EVENTS_KEPT = 10_000  # of one sprite; the oldest go first
_EVENTS_KEPT_OF_ALL = 1_000_000  # those of deleted sprites included
_CHANGEABLE = frozenset({"labels", "url_settings", "environment", "config", "privileges", "image_digest"})

# In the place of a sprite's id: whoever watches all of them.
_ALL = ""
_COUNTED = ("running", "warm", "cold")
_TIMES = ("created_at", "updated_at", "last_running_at", "last_warming_at")


# Built once: what a statement costs is the building, more than the running.
_ORG = organizations.c.name.label("org")
_TOKENS = select(tokens, _ORG).join(organizations)
_TOKEN = _TOKENS.where(tokens.c.id == bindparam("of"))
_SPRITES = select(sprites, _ORG).join(organizations)
_SPRITE = _SPRITES.where(sprites.c.id == bindparam("of"))
_SPRITE_NAMED = _SPRITES.where(sprites.c.org_id == bindparam("org"), sprites.c.name == bindparam("name"))
_INSERT_SPRITE = insert(sprites)
_UPDATE_SPRITE = update(sprites).where(sprites.c.id == bindparam("of"))
_NAMED = select(sprites.c.id).where(sprites.c.org_id == bindparam("org"), sprites.c.name == bindparam("name"))
_ORGS = select(organizations).order_by(organizations.c.created_at, organizations.c.id)
_LOG_IN = (
    select(log_ins, tokens.c.org_id, tokens.c.revoked_at, _ORG)
    .join(tokens, tokens.c.id == log_ins.c.token_id)
    .join(organizations, organizations.c.id == tokens.c.org_id)
    .where(log_ins.c.hash == bindparam("of"))
)
_DROP_LOG_INS = delete(log_ins).where(
    log_ins.c.token_id == bindparam("of"),
    log_ins.c.created_at
    <= select(log_ins.c.created_at)
    .where(log_ins.c.token_id == bindparam("of"))
    .order_by(log_ins.c.created_at.desc())
    .offset(bindparam("kept"))
    .limit(1)
    .scalar_subquery(),
)
_INSERT_EVENT = insert(events)
_DROP_EVENTS = delete(events).where(events.c.id <= bindparam("last"))
_DROP_EVENTS_OF_SPRITE = delete(events).where(
    events.c.sprite_id == bindparam("of"),
    events.c.id
    <= select(events.c.id)
    .where(events.c.sprite_id == bindparam("of"))
    .order_by(events.c.id.desc())
    .offset(bindparam("kept"))
    .limit(1)
    .scalar_subquery(),
)


class Registry:
    """Organizations, tokens, sprites and events of one installation."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)

    @classmethod
    async def open(cls, url: str, *, clock: Clock = SYSTEM_CLOCK) -> Registry:
        """Open the database at `url`, migrated to this version; made, and empty, where there is none.

        Raises:
            ConflictError: a newer version wrote it.
            UnavailableError: it cannot be reached, or another process keeps it locked.
            CorruptError: it is no database, or a damaged one.
        """
        return cls(await asyncio.to_thread(Database.open, url), clock)

    async def close(self) -> None:
        await asyncio.to_thread(self._database.close)

    @property
    def counted(self) -> bool:
        """Whether its changes are counted where other processes see them (database.py)."""
        return self._database.counted

    # ---- organizations and tokens ----

    async def organizations(self) -> list[str]:
        """The names of all, oldest first."""
        query = select(organizations.c.name).order_by(organizations.c.created_at, organizations.c.name)
        return await self._database.read(lambda connection: [str(name) for name in connection.execute(query).scalars()])

    async def create_token(self, org: str, description: str) -> tuple[TokenInfo, str]:
        """A new token of `org` (made if new). The text is returned once; only its value's hash is kept.

        Raises:
            InvalidError: no token can name an organization so.
        """
        if len(org) > _ORG_MAX or not _TOKEN_PART.fullmatch(org):
            raise InvalidError(
                f"{org[:80]!r} cannot name an organization",
                hint=f"use 1-{_ORG_MAX} printable ASCII characters without space and slash",
            )
        token_id, value = ids.new_instance_id(), ids.new_secret()

        def work(connection: Connection) -> tuple[TokenInfo, str]:
            org_id = self._ensure_org(connection, org, None)
            info = self._insert_token(connection, org_id, org, token_id, value, description)
            return info, f"{org}/{org_id}/{token_id}/{value}"

        return await self._database.run(work)

    async def import_token(self, text: str) -> TokenInfo:
        """Make a token known that was made elsewhere. Idempotent.

        Raises:
            InvalidError: it has not the shape org/orgid/tokenid/value.
            ConflictError: its organization or token id means something else here.
        """
        org, org_id, token_id, value = split_token(text)

        def work(connection: Connection) -> TokenInfo:
            self._ensure_org(connection, org, org_id)
            row = connection.execute(_TOKEN, {"of": token_id}).mappings().first()
            if row is None:
                return self._insert_token(connection, org_id, org, token_id, value, "imported")
            if row["hash"] != _hash(value) or row["org_id"] != org_id:
                raise ConflictError(f"the token id {token_id} is taken by another token")
            return _token(row)

        return await self._database.run(work)

    async def authenticate(self, text: str) -> Caller:
        """Who presents the token `text`.

        Raises:
            UnauthorizedError: it is malformed, unknown or revoked; which one is not said.
        """
        try:
            org, org_id, token_id, value = split_token(text)
        except InvalidError as error:
            raise UnauthorizedError("the token is not valid", hint="log in again") from error
        proof = _hash(value)

        def work(connection: Connection) -> Caller:
            row = connection.execute(_TOKEN, {"of": token_id}).mappings().first()
            known = row["hash"] if row is not None else _hash("")
            good = hmac.compare_digest(known, proof) and row is not None and row["revoked_at"] is None
            if not good or row is None or (row["org"], row["org_id"]) != (org, org_id):
                raise UnauthorizedError("the token is not valid", hint="log in again")
            return Caller(org_id=org_id, org=org, token_id=token_id)

        return await self._database.recall(("token", org, org_id, token_id, proof), work)

    async def tokens(self, org: str | None = None) -> list[TokenInfo]:
        """All tokens, or those of `org`, oldest first."""
        query = _TOKENS.order_by(tokens.c.created_at)
        if org is not None:
            query = query.where(organizations.c.name == org)
        return await self._database.read(
            lambda connection: [_token(row) for row in connection.execute(query).mappings()]
        )

    async def revoke_token(self, token_id: str) -> bool:
        """Make a token worthless at once. Returns whether it was of worth."""
        change = (
            update(tokens).where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None)).values(revoked_at=self._now())
        )
        return await self._database.run(lambda connection: connection.execute(change).rowcount > 0)

    def _ensure_org(self, connection: Connection, name: str, org_id: str | None) -> str:
        found = connection.execute(select(organizations.c.id).where(organizations.c.name == name)).scalar()
        if found is not None:
            if org_id is not None and found != org_id:
                raise ConflictError(f"the organization {name!r} has another id here")
            return str(found)
        made = org_id or ids.new_instance_id()
        try:
            connection.execute(insert(organizations).values(id=made, name=name, created_at=self._now()))
        except IntegrityError as error:
            raise ConflictError(f"the organization id {made} is taken") from error
        return made

    def _insert_token(
        self, connection: Connection, org_id: str, org: str, token_id: str, value: str, description: str
    ) -> TokenInfo:
        now = self._now()
        row = {"id": token_id, "org_id": org_id, "hash": _hash(value), "description": description, "created_at": now}
        connection.execute(insert(tokens).values(**row))
        return TokenInfo(token_id, org_id, org, description, _time(now), None)

    async def refresh(self) -> None:
        """Look up anew what was asked for lately: what is asked for next need not wait for it after a change."""
        await self._database.refresh()

    # ---- sprites ----

    def new_sprite(
        self,
        caller: Caller,
        name: str,
        *,
        sprite_id: str,
        volume_id: str,
        image_digest: str,
        environment: dict[str, str],
        labels: list[str],
        config: dict[str, Any],
        url_settings: dict[str, Any],
    ) -> Sprite:
        """A running sprite of the caller's organization as `create_sprite` records it. Nothing is recorded yet."""
        now = _time(self._now())
        return Sprite(
            id=sprite_id,
            org_id=caller.org_id,
            org=caller.org,
            name=name,
            state="running",
            volume_id=volume_id,
            image_digest=image_digest,
            environment=environment,
            labels=labels,
            config=config,
            url_settings=url_settings,
            privileges={},
            created_at=now,
            updated_at=now,
            last_running_at=now,
            last_warming_at=None,
        )

    async def require_free(self, org_id: str, name: str) -> None:
        """Refuse a name that is taken now; `create_sprite` is who decides.

        Raises:
            ConflictError: the organization has a sprite of that name.
        """
        named = {"org": org_id, "name": name}
        if await self._database.read(lambda connection: connection.execute(_NAMED, named).scalar()) is not None:
            raise _taken(name)

    async def create_sprite(self, sprite: Sprite, cause: str) -> None:
        """Record `sprite`, with the event of its creation. From here on its name is taken.

        Raises:
            ConflictError: the organization has a sprite of that name.
        """
        await self._database.run(lambda connection: self._insert_sprite(connection, sprite, "created", cause, {}))
        self._notify(sprite.id)

    async def recover_sprite(self, sprite: Sprite, cause: str, detail: dict[str, Any]) -> None:
        """Record a sprite that was known elsewhere, with its organization where that is not known here.

        Raises:
            ConflictError: the organization has a sprite of that name, or its name or id means another one here.
        """

        def work(connection: Connection) -> None:
            self._ensure_org(connection, sprite.org, sprite.org_id)
            self._insert_sprite(connection, sprite, "recovered", cause, detail)

        await self._database.run(work)
        self._notify(sprite.id)

    def _insert_sprite(
        self, connection: Connection, sprite: Sprite, kind: str, cause: str, detail: dict[str, Any]
    ) -> None:
        row = {name: value for name, value in msgspec.structs.asdict(sprite).items() if name != "org"}
        for name in _TIMES:
            row[name] = None if row[name] is None else row[name].timestamp()
        try:
            connection.execute(_INSERT_SPRITE, row)
        except IntegrityError as error:
            raise _taken(sprite.name) from error
        self._insert_event(connection, sprite.id, kind, cause, detail)

    async def sprite(self, org_id: str, name: str) -> Sprite:
        """The sprite `name` of an organization. NotFoundError where there is none."""

        def work(connection: Connection) -> Sprite:
            row = connection.execute(_SPRITE_NAMED, {"org": org_id, "name": name}).mappings().first()
            if row is None:
                raise _no_sprite(name)
            return _sprite(row)

        return await self._database.read(work)

    async def sprite_id(self, org_id: str, name: str) -> str:
        """The id of the sprite `name` of an organization. NotFoundError where there is none."""

        def work(connection: Connection) -> str:
            found = connection.execute(_NAMED, {"org": org_id, "name": name}).scalar()
            if found is None:
                raise _no_sprite(name)
            return str(found)

        return await self._database.recall(("sprite", org_id, name), work)

    async def sprite_at(self, label: str) -> SpriteAtHost | None:
        """The sprite that `label` below the domain means (core/hosts.py); None where it means none that is there."""

        def work(connection: Connection) -> SpriteAtHost | None:
            orgs = connection.execute(_ORGS).mappings().all()
            meant = hosts.meaning(label, [row["name"] for row in orgs])
            if meant is None:
                return None
            name, org = meant
            if len(orgs) > 1 and org != orgs[0]["name"]:
                # While the first organization was alone, this was the short host of a sprite of its own, if there is
                # one of that name: what browsers and scripts sent there is never another's.
                former = {"org": orgs[0]["id"], "name": label}
                row = connection.execute(_SPRITE_NAMED, former).mappings().first()
                if row is not None and row["created_at"] < orgs[1]["created_at"]:
                    return None
            org_id = next(row["id"] for row in orgs if row["name"] == org)
            row = connection.execute(_SPRITE_NAMED, {"org": org_id, "name": name}).mappings().first()
            if row is None or row["state"] == "deleting":
                return None
            return SpriteAtHost(row["id"], name, org, org_id, row["url_settings"])

        return await self._database.recall(("host", label), work)

    async def sprite_by_id(self, sprite_id: str) -> Sprite:
        return await self._database.read(lambda connection: _one(connection, sprite_id))

    async def list_sprites(
        self, org_id: str, *, prefix: str = "", limit: int = 50, after: str | None = None
    ) -> tuple[list[Sprite], str | None]:
        """A page of an organization's sprites in the order of their names, and the token for the next page.

        Raises:
            InvalidError: `after` is no such token.
        """
        query = _SPRITES.where(sprites.c.org_id == org_id, sprites.c.state != "deleting")
        if prefix:
            # A range, so that the index is used. What a name consists of sorts before DEL.
            query = query.where(sprites.c.name >= prefix, sprites.c.name < prefix + "\x7f")
        if after is not None:
            query = query.where(sprites.c.name > _decode_page(after))
        query = query.order_by(sprites.c.name).limit(limit + 1)
        found = await self._database.read(
            lambda connection: [_sprite(row) for row in connection.execute(query).mappings()]
        )
        more = _encode_page(found[limit - 1].name) if len(found) > limit else None
        return found[:limit], more

    async def counts(self, org_id: str, *, apart: Collection[str] = ()) -> tuple[dict[str, int], list[str]]:
        """How many of an organization's sprites are recorded as running, warm and cold, at one moment.

        Args:
            apart: ids of sprites that are not counted. Those of them that were there then are given beside.
        """
        mine = select(sprites.c.state, func.count()).where(sprites.c.org_id == org_id).group_by(sprites.c.state)
        if not apart:
            return dict(await self._database.recall(("counts", org_id), lambda c: _counted(c, mine))), []
        others = mine.where(sprites.c.id.not_in(apart))
        named = select(sprites.c.id).where(
            sprites.c.org_id == org_id, sprites.c.id.in_(apart), sprites.c.state.in_(_COUNTED)
        )
        return await self._database.read(lambda c: (_counted(c, others), [row[0] for row in c.execute(named)]))

    async def all_sprites(self) -> list[Sprite]:
        """Every sprite of every organization, for recovery."""
        query = _SPRITES.order_by(sprites.c.created_at)
        return await self._database.read(
            lambda connection: [_sprite(row) for row in connection.execute(query).mappings()]
        )

    async def update_sprite(self, sprite_id: str, **changes: Any) -> Sprite:
        """Change labels, url_settings, environment, config, privileges or image_digest."""
        if not changes.keys() <= _CHANGEABLE:
            raise InvalidError(f"not changeable: {', '.join(sorted(changes.keys() - _CHANGEABLE))}")
        change = update(sprites).where(sprites.c.id == sprite_id).values(**changes, updated_at=self._now())

        def work(connection: Connection) -> Sprite:
            connection.execute(change)
            return _one(connection, sprite_id)

        return await self._database.run(work)

    async def set_state(self, sprite_id: str, state: SpriteState, *, kind: str, cause: str) -> Sprite:
        """Change its state, with the event that says why."""
        now = self._now()
        values: dict[str, Any] = {"state": state, "updated_at": now}
        if state == "running":
            values["last_running_at"] = now
        elif state == "warm":
            values["last_warming_at"] = now

        def work(connection: Connection) -> Sprite:
            connection.execute(_UPDATE_SPRITE, {"of": sprite_id, **values})
            self._insert_event(connection, sprite_id, kind, cause, {})
            return _one(connection, sprite_id)

        sprite = await self._database.run(work)
        self._notify(sprite_id)
        return sprite

    async def delete_sprite(self, sprite_id: str, cause: str) -> bool:
        """Forget a sprite; its events stay. Returns whether it was there."""

        def work(connection: Connection) -> bool:
            found = connection.execute(delete(sprites).where(sprites.c.id == sprite_id)).rowcount > 0
            connection.execute(delete(log_ins).where(log_ins.c.sprite_id == sprite_id))
            if found:
                self._insert_event(connection, sprite_id, "deleted", cause, {})
            return found

        found = await self._database.run(work)
        self._notify(sprite_id)
        return found

    # ---- browsers ----

    async def log_in(self, caller: Caller, sprite_id: str, seconds: float) -> str:
        """Let a browser be `caller` at the URL of one sprite for `seconds`. The value is returned once.

        Raises:
            UnauthorizedError: the caller's token has been revoked.
        """
        value = ids.new_secret()

        def work(connection: Connection) -> str:
            now = self._now()
            row = connection.execute(_TOKEN, {"of": caller.token_id}).mappings().first()
            if row is None or row["revoked_at"] is not None:
                raise UnauthorizedError("the token is not valid", hint="log in again")
            made = {"hash": _hash(value), "sprite_id": sprite_id, "token_id": caller.token_id}
            connection.execute(delete(log_ins).where(log_ins.c.expires_at <= now))
            connection.execute(insert(log_ins).values(**made, created_at=now, expires_at=now + seconds))
            connection.execute(_DROP_LOG_INS, {"of": caller.token_id, "kept": _LOG_INS_KEPT})
            return value

        return await self._database.run(work)

    async def logged_in(self, value: str, sprite_id: str, *, ahead: float = 0.0) -> Caller | None:
        """Who logged in with the value that `log_in` gave for that sprite; None where it is no good (any more).

        Args:
            ahead: so many seconds from now it must still be good.
        """
        proof = _hash(value)

        def work(connection: Connection) -> tuple[Caller, str, float] | None:
            row = connection.execute(_LOG_IN, {"of": proof}).mappings().first()
            if row is None or row["revoked_at"] is not None:
                return None
            caller = Caller(org_id=row["org_id"], org=row["org"], token_id=row["token_id"])
            return caller, row["sprite_id"], row["expires_at"]

        found = await self._database.recall(("log-in", proof), work)
        if found is None or found[1] != sprite_id or found[2] <= self._now() + ahead:
            return None
        return found[0]

    async def log_out(self, value: str) -> bool:
        """Make a log-in worthless. Returns whether it was there."""
        gone = delete(log_ins).where(log_ins.c.hash == _hash(value))
        return await self._database.run(lambda connection: connection.execute(gone).rowcount > 0)

    # ---- events ----

    async def add_event(self, sprite_id: str, kind: str, cause: str, detail: dict[str, Any] | None = None) -> Event:
        event = await self._database.run(
            lambda connection: self._insert_event(connection, sprite_id, kind, cause, detail or {})
        )
        self._notify(sprite_id)
        return event

    async def events(self, sprite_id: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """Events of a sprite later than the one with id `after`, oldest first."""
        query = (
            select(events)
            .where(events.c.sprite_id == sprite_id, events.c.id > after)
            .order_by(events.c.id)
            .limit(limit)
        )
        return await self._database.read(
            lambda connection: [_event(row) for row in connection.execute(query).mappings()]
        )

    @asynccontextmanager
    async def watch(self, sprite_id: str) -> AsyncIterator[Callable[[], Any]]:
        """Gives a function that waits until something has happened to the sprite since it was last called."""
        changed = asyncio.Event()
        self._watchers[sprite_id].add(changed)

        async def wait() -> None:
            await changed.wait()
            changed.clear()

        try:
            yield wait
        finally:
            self._watchers[sprite_id].discard(changed)
            if not self._watchers[sprite_id]:
                del self._watchers[sprite_id]

    def watch_all(self) -> AbstractAsyncContextManager[Callable[[], Any]]:
        """As `watch`, for all sprites."""
        return self.watch(_ALL)

    def _notify(self, sprite_id: str) -> None:
        for name in (sprite_id, _ALL):
            for changed in self._watchers.get(name, ()):
                changed.set()

    def _insert_event(
        self, connection: Connection, sprite_id: str, kind: str, cause: str, detail: dict[str, Any]
    ) -> Event:
        now = self._now()
        row = {"sprite_id": sprite_id, "time": now, "kind": kind, "cause": cause, "detail": detail}
        made = connection.execute(_INSERT_EVENT, row).inserted_primary_key
        assert made is not None
        number = int(made[0])
        connection.execute(_DROP_EVENTS_OF_SPRITE, {"of": sprite_id, "kept": _EVENTS_KEPT})
        connection.execute(_DROP_EVENTS, {"last": number - _EVENTS_KEPT_OF_ALL})
        return Event(number, sprite_id, _time(now), kind, cause, detail)

    def _now(self) -> float:
        return self._clock.now().timestamp()


def _taken(name: str) -> ConflictError:
    return ConflictError(f"there is a sprite {name!r} already", hint="choose another name", code="sprite_exists")


def split_token(text: str) -> tuple[str, str, str, str]:
    """Organization, its id, token id and value of a token.

    Raises:
        InvalidError: it has another shape. The text is not in the message.
    """
    parts = text.strip().split("/")
    if len(text) > _TOKEN_MAX or len(parts) != 4 or not all(map(_TOKEN_PART.fullmatch, parts)):
        raise InvalidError("a token has the shape org/orgid/tokenid/value")
    return parts[0], parts[1], parts[2], parts[3]


def _hash(value: str) -> str:
    return sha256(value.encode()).hexdigest()


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _maybe_time(seconds: float | None) -> datetime | None:
    return None if seconds is None else _time(seconds)


def _token(row: RowMapping) -> TokenInfo:
    return TokenInfo(
        row["id"],
        row["org_id"],
        row["org"],
        row["description"],
        _time(row["created_at"]),
        _maybe_time(row["revoked_at"]),
    )


def _sprite(row: RowMapping) -> Sprite:
    values = dict(row)
    for name in _TIMES:
        values[name] = _maybe_time(values[name])
    return Sprite(**values)


def _event(row: RowMapping) -> Event:
    return Event(row["id"], row["sprite_id"], _time(row["time"]), row["kind"], row["cause"], row["detail"])


def _no_sprite(name: str) -> NotFoundError:
    return NotFoundError(f"there is no sprite {name!r}", hint="list shows those there are", code="sprite_not_found")


def _one(connection: Connection, sprite_id: str) -> Sprite:
    row = connection.execute(_SPRITE, {"of": sprite_id}).mappings().first()
    if row is None:
        raise NotFoundError("there is no such sprite", code="sprite_not_found")
    return _sprite(row)


def _counted(connection: Connection, query: Select[Any]) -> dict[str, int]:
    """The counts of a query of states and how many there are of each."""
    found = {row[0]: row[1] for row in connection.execute(query)}
    return {state: found.get(state, 0) for state in _COUNTED}


def _encode_page(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def _decode_page(token: str) -> str:
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidError("the continuation token is not one of ours", hint="start the listing again") from error
