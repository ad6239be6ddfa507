"""What the node answers of requests to hosts below its domain.

Whoever may not see a sprite learns nothing of it: a host of no sprite, of another organization's, and of one's own
without a log-in are answered alike.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import quote

import msgspec

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import (
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)
from ballpoint.core.hosts import OWN_PATH, Place, Site
from ballpoint.core.types import Caller
from ballpoint.node.node import Node
from ballpoint.node.urls.codes import Codes, Pass
from ballpoint.node.urls.visitor import Visitor, first_field
from ballpoint.node.views import UrlSettings
from ballpoint.registry.records import SpriteAtHost

log = logging.getLogger(__name__)

LOG_IN_PATH = f"{OWN_PATH}/log-in"
_LOG_OUT_PATH = f"{OWN_PATH}/log-out"
_LOG_IN_SECONDS = 7 * 24 * 3600
# A server that is started with its sprite listens after so long, or it has a fault.
_STARTING_SECONDS = 5.0
# For so long an edge may give an answer again while nothing has changed.
_LASTS_SECONDS = 2.0
# A longer target is not kept while its sender logs in.
_WANTED_MAX = 2048
_NOBODY = "nobody"
_CLOSED = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


class Urls:
    """Serves one node's URLs.

    Args:
        site: how clients reach them.
    """

    def __init__(self, node: Node, config: NodeConfig, site: Site) -> None:
        self._node = node
        self._site = site
        self._patience = config.wake_seconds
        self._codes = Codes()

    @property
    def site(self) -> Site:
        return self._site

    # ---- requests to hosts below the domain ----

    async def route(self, question: dict[str, Any], place: Place) -> dict[str, Any]:
        """The node's answer to a request whose host is `place` (see node.routing)."""
        visitor = Visitor.of(question)
        if place.kind == "auth":
            return self._log_in_page(visitor)
        if visitor.path == OWN_PATH or visitor.path.startswith(f"{OWN_PATH}/"):
            return await self._own(visitor, place)
        sprite = await self._node.registry.sprite_at(place.label) if place.kind == "sprite" else None
        token = await self._caller(visitor.token)
        if sprite is not None and _settings(sprite).auth == "public":
            cause = "opened by its public URL"
            return await self._to_sprite(visitor, sprite, cause, "", stripped=token is not None, lasts=True)
        caller = token or await self._logged_in(visitor, sprite)
        if caller is None:
            return self._ask_to_log_in(visitor, place)
        if sprite is None or caller.org_id != sprite.org_id:
            raise NotFoundError("there is no sprite here that this token opens", code="sprite_not_found")
        if token is None and not visitor.may_use_log_in(self._site):
            raise ForbiddenError(
                "a log-in is not enough for what another page sends",
                hint=f"send it from a page of {self._site.scheme}://{visitor.host}, or with a token",
            )
        cause = f"opened by its URL with token {caller.token_id}"
        # A log-in that ends by its age is no change.
        lasts = token is not None or await self._logged_in(visitor, sprite, ahead=_LASTS_SECONDS) == caller
        return await self._to_sprite(visitor, sprite, cause, caller.token_id, stripped=token is not None, lasts=lasts)

    async def _caller(self, token: str) -> Caller | None:
        """Who presents a token; None where it is none of ours."""
        try:
            return await self._node.registry.authenticate(token) if token else None
        except UnauthorizedError:
            return None

    async def _logged_in(self, visitor: Visitor, sprite: SpriteAtHost | None, *, ahead: float = 0.0) -> Caller | None:
        if sprite is None:
            return None
        for value in visitor.log_ins:
            caller = await self._node.registry.logged_in(value, sprite.id, ahead=ahead)
            if caller is not None and caller.org_id == sprite.org_id:
                return caller
        return None

    async def _to_sprite(
        self, visitor: Visitor, sprite: SpriteAtHost, cause: str, token_id: str, *, stripped: bool, lasts: bool
    ) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._patience):
                running = await self._node.touch_sprite(sprite.id, sprite.name, cause, visitor.refused)
        except TimeoutError as error:
            raise UnavailableError("the sprite is being started", hint="try again") from error
        since = SYSTEM_CLOCK.monotonic() - running.since
        # The agent knows which port: that of the service which has one, or 8080.
        connect = {"port": None, "retry_seconds": max(0.0, round(_STARTING_SECONDS - since, 3))}
        answer = {
            "to": "sprite",
            "socket": str(running.instance.runtime.socket),
            "preamble": {"v": 1, "org": sprite.org_id, "token": token_id, "connect": connect},
            "token": stripped,
            "what": "url",
        }
        if lasts and not connect["retry_seconds"] and self._node.registry.counted:
            answer["lasts"] = _LASTS_SECONDS
        return answer

    # ---- logging in ----

    def _ask_to_log_in(self, visitor: Visitor, place: Place) -> dict[str, Any]:
        if not visitor.navigates:
            raise UnauthorizedError("this URL asks for a token or a log-in", hint="send Authorization: Bearer TOKEN")
        target = visitor.target if len(visitor.target) <= _WANTED_MAX else "/"
        wanted = self._site.origin(place.label or _NOBODY) + target
        return _redirect(f"{self._site.log_in}/?to={quote(wanted, safe='')}")

    def _log_in_page(self, visitor: Visitor) -> dict[str, Any]:
        path, _, query = visitor.target.partition("?")
        if path != "/":
            raise NotFoundError(f"there is no {path[:200]}")
        return {"to": "api", "caller": {}, "target": f"{LOG_IN_PATH}?{query}"}

    async def _own(self, visitor: Visitor, place: Place) -> dict[str, Any]:
        """A path that sprites' hosts keep for us."""
        if visitor.path == LOG_IN_PATH and visitor.method == "GET":
            code = first_field(visitor.target.partition("?")[2], "code")
            found = self._codes.take(code, place.label)
            if found is None:
                return _redirect(f"{self._site.origin(place.label or _NOBODY)}/")  # from where one is asked to log in
            value = await self._node.registry.log_in(found.caller, found.sprite_id, _LOG_IN_SECONDS)
            headers = {"Set-Cookie": self._cookie(value, _LOG_IN_SECONDS)}
            return _redirect(self._site.origin(place.label) + found.path, headers)
        if visitor.path == _LOG_OUT_PATH and visitor.method == "POST":
            if not visitor.may_use_log_in(self._site):
                raise ForbiddenError("another page may not log you out", hint="send it from a page of this URL")
            for value in visitor.log_ins:
                await self._node.registry.log_out(value)
            return {"answer": {"status": 204, "headers": {**_CLOSED, "Set-Cookie": self._cookie("", 0)}}}
        raise NotFoundError(f"there is no {visitor.path[:200]}", hint=f"{OWN_PATH} is not the sprite's")

    def _cookie(self, value: str, seconds: int) -> str:
        secure = "; Secure" if self._site.secure else ""
        return f"{self._site.cookie}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"

    # ---- what the page to log in needs (api.service.LogInService) ----

    @property
    def log_in_origin(self) -> str:
        return self._site.log_in

    def wanted(self, to: str) -> str:
        """See `LogInService`."""
        read = self._site.read(to)
        if read is None:
            raise InvalidError("this is no URL of a sprite here", hint="open the sprite's URL, and log in from there")
        return self._site.origin(read[0])

    async def log_in(self, token: str, to: str) -> str:
        """See `LogInService`."""
        origin = self.wanted(to)
        label, path = self._site.read(to) or ("", "/")
        caller = await self._node.registry.authenticate(token)
        sprite = await self._node.registry.sprite_at(label)
        if sprite is None or sprite.org_id != caller.org_id:
            raise NotFoundError("there is no sprite here that this token opens", code="sprite_not_found")
        code = self._codes.give(Pass(caller, sprite.id, label, path))
        return f"{origin}{LOG_IN_PATH}?code={code}"

    # ---- certificates ----

    async def has_host(self, host: str) -> bool:
        """Whether something is served at a host below the domain, so that a certificate for it is of use."""
        if host == self._site.domain:
            return True
        if not host.endswith(f".{self._site.domain}"):
            return False
        place = self._site.place(host)
        if place.kind == "sprite":
            return await self._node.registry.sprite_at(place.label) is not None
        return place.kind != "nobody"


def _redirect(to: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    return {"answer": {"status": 303, "headers": {"Location": to, **_CLOSED, **(headers or {})}}}


def _settings(sprite: SpriteAtHost) -> UrlSettings:
    return msgspec.convert(sprite.url_settings, UrlSettings)
