"""Small values that several layers pass on."""

from __future__ import annotations

from typing import Annotated

import msgspec

_Given = Annotated[str, msgspec.Meta(min_length=1)]


class Caller(msgspec.Struct, frozen=True):
    """Who makes a request, as the edge has proved it.

    Attributes:
        org_id: identifier of the organization whose sprites the caller may see and change.
        org: the organization's slug, as sprites show it.
        token_id: identifier (never the value) of the token used.
    """

    org_id: _Given
    org: _Given
    token_id: _Given
