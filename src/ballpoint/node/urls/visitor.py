"""What a request to a sprite's URL says of its sender, and what may be concluded from it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import msgspec

from ballpoint.core.hosts import Site

# RFC 9110 9.2.1. They may be sent for another site's page, which cannot read the answer.
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
# Fetch Metadata: the page itself sent it, or nobody's page did (the address bar, a bookmark).
_OWN_SITES = frozenset({"same-origin", "none"})
# No query of ours has more.
_FIELDS_MAX = 8


def first_field(query: str, name: str) -> str:
    """The first value of a field of a query; "" where there is none, or where the query is none of ours."""
    try:
        return parse_qs(query, max_num_fields=_FIELDS_MAX).get(name, [""])[0]
    except ValueError:  # there are more
        return ""


class Visitor(msgspec.Struct, frozen=True):
    """A request, as the edge tells it.

    Attributes:
        log_ins: values of our cookie.
        origin, site, mode: the fields Origin, Sec-Fetch-Site and Sec-Fetch-Mode; None where they are not there.
        html: its sender takes HTML. upgrade: it wants to be upgraded, as WebSockets do.
        refused: see `Node.touch`.
    """

    method: str
    target: str
    host: str
    token: str
    peer: str
    log_ins: tuple[str, ...] = ()
    origin: str | None = None
    site: str | None = None
    mode: str | None = None
    html: bool = False
    upgrade: bool = False
    refused: str | None = None

    @classmethod
    def of(cls, question: dict[str, Any]) -> Visitor:
        return msgspec.convert(question, cls)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def navigates(self) -> bool:
        """Whether a person opens a page."""
        return self.method == "GET" and self.html and not self.upgrade and self.mode in (None, "navigate")

    def may_use_log_in(self, site: Site) -> bool:
        """Whether a cookie is enough for it. A browser sends cookies along with whatever any page asks it to send.

        What changes nothing may come from anywhere, but for a WebSocket, whose answers any page could read. The rest
        must come from a page of this very host: other hosts below the domain, whose cookies the browser takes for
        those of the same site, are other sprites. Every browser says where such a request comes from; who does not is
        none, and has no use for a cookie.
        """
        if self.method in _SAFE and not self.upgrade:
            return True
        if self.site is not None and self.site not in _OWN_SITES:
            return False
        if self.origin is None:
            return self.site is not None
        # Said of a form on a page that tells nobody its address (Fetch, "append a request Origin header"), as many do.
        # Of a page of no origin, as in a sandboxed frame, it is said too, but that is of another site than any.
        if self.origin == "null":
            return self.site == "same-origin"
        return self.origin.lower() == f"{site.scheme}://{self.host.lower()}"
