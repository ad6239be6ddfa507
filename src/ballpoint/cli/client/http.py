"""Requests to the control API, and its errors as ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import click
import httpx2

from ballpoint.cli.client import settings
from ballpoint.core.errors import (
    BallpointError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InternalError,
    InvalidError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)

# A create may wait this long for a blank.
_SECONDS = 120.0
_KINDS = {
    400: InvalidError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    413: InvalidError,
    422: InvalidError,
}


class Api:
    """A node's control API, with one token."""

    def __init__(self, selection: settings.Selection) -> None:
        self.selection = selection
        self._client = httpx2.Client(
            base_url=selection.url, headers={"Authorization": f"Bearer {selection.token}"}, timeout=_SECONDS
        )

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """A request; returns the decoded body, None where it is empty.

        Raises:
            BallpointError: of the kind the answer's status says; UnavailableError where there is no answer.
        """
        with self._told():
            response = self._client.request(method, path, **arguments)
        if response.status_code >= 400:
            raise error_of(response.status_code, response.content)
        if response.content and response.headers.get("content-type", "").startswith("application/json"):
            return response.json()
        return response.text or None

    @contextmanager
    def stream(self, method: str, path: str, **arguments: Any) -> Iterator[httpx2.Response]:
        """A request whose answer is read in pieces. Raises as `call` does."""
        with self.answer(method, path, **arguments) as response:
            if response.status_code >= 400:
                raise error_of(response.status_code, response.read())
            yield response

    @contextmanager
    def answer(self, method: str, path: str, **arguments: Any) -> Iterator[httpx2.Response]:
        """The answer to a request whatever it says, to be read in pieces.

        Raises:
            UnavailableError: there is none, or it breaks off.
        """
        with self._told(), self._client.stream(method, path, **arguments) as response:
            yield response

    def lines(self, method: str, path: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Objects of an NDJSON stream, as they come."""
        with self.stream(method, path, timeout=None, **arguments) as response:
            for line in response.iter_lines():
                if line:
                    yield json.loads(line)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as error:
            raise no_answer(self.selection, error) from error


def no_answer(selected: settings.Selection, error: Exception) -> UnavailableError:
    """What to say where a node could not be asked, or broke off."""
    reason = re.sub(r"^\[Errno -?[0-9]+\] ", "", str(error)) or type(error).__name__
    return UnavailableError(
        f"the node at {selected.url} does not answer: {reason}", hint="is it running? (ballpoint up)"
    )


def error_of(status: int, body: bytes) -> BallpointError:
    """The error an answer tells."""
    try:
        content = json.loads(body)
        message, hint = str(content["message"]), content.get("hint")
    except (ValueError, RecursionError, KeyError, TypeError):
        message, hint = f"the node answered {status}", None
    kind = _KINDS.get(status, UnavailableError if status in (429, 502, 503) else InternalError)
    return kind(message, hint=hint)


def api(ctx: click.Context) -> Api:
    """The API the command line's options select."""
    return Api(settings.select(ctx.obj["org"]))


def sprite_path(name: str, below: str = "") -> str:
    return f"/v1/sprites/{quote(name, safe='')}{below}"


def sprite_name(ctx: click.Context, name: str | None) -> str:
    """The sprite to act on: named, selected by -s, or by `use`.

    Raises:
        InvalidError: none is.
    """
    found = name or ctx.obj["sprite"] or settings.selected_sprite()
    if not found:
        raise InvalidError("no sprite is named", hint="name one, pass -s NAME, or select one with ballpoint use NAME")
    return str(found)
