"""What the node is asked of a request (see node.routing)."""

from __future__ import annotations

from typing import Any

from ballpoint.core import hosts
from ballpoint.edge.head import FramingError, RequestHead
from ballpoint.edge.visitor import facts

# No token is longer; what is said to be one is no more worth than none.
_TOKEN_MAX = 1024


def is_of_sprite(head: RequestHead, domain: str) -> bool:
    """Whether its host is below the domain. Whatever is not the API's may be a browser's."""
    return hosts.place(head.host.decode(), domain) != hosts.API


def question_of(head: RequestHead, address: str, domain: str) -> dict[str, Any]:
    """The question of a request that the client at `address` sent.

    Raises:
        FramingError: who its sender is could be read in two ways.
    """
    question: dict[str, Any] = {"method": head.method.decode(), "target": head.target.decode()}
    question |= {"host": head.host.decode(), "token": _bearer(head), "peer": address}
    return question | facts(head) if is_of_sprite(head, domain) else question


def _bearer(head: RequestHead) -> str:
    if head.names.count(b"authorization") > 1:
        raise FramingError("there are two Authorization")
    scheme, _, token = (head.get(b"authorization") or b"").partition(b" ")
    token = token.strip()
    return token.decode() if scheme.lower() == b"bearer" and token.isascii() and len(token) <= _TOKEN_MAX else ""
