"""What of a request to a sprite's URL is between its sender and us, and what the server inside is to know of him."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any

from ballpoint.core.addresses import Networks, is_within
from ballpoint.core.hosts import PLAIN_COOKIE, SECURE_COOKIE
from ballpoint.edge.head import HOP_BY_HOP, RequestHead

OWN_COOKIES = (SECURE_COOKIE.encode(), PLAIN_COOKIE.encode())
_VALUE = re.compile(rb"[A-Za-z0-9_-]{1,64}")
# Another host below the domain can set cookies of that name for all (RFC 6265 5.3); the right one is found among them.
_VALUES_MAX = 8
_TEXT_MAX = 255
_FORWARDED = b"x-forwarded-"
_OWN = b"x-ballpoint-"
_NEVER = frozenset({b"expect", b"x-request-id", b"forwarded", b"x-real-ip"})
_ONLY_AS_THEMSELVES = HOP_BY_HOP | {b"cookie", b"authorization", b"host", b"content-length"}


def facts(head: RequestHead) -> dict[str, Any]:
    """What the node is told of a request to a sprite's URL beside what it is told of every request."""
    values = [value for value in _own_values(head) if _VALUE.fullmatch(value)]
    found: dict[str, Any] = {"log_ins": [value.decode() for value in values[:_VALUES_MAX]]}
    for key, name in (("origin", b"origin"), ("site", b"sec-fetch-site"), ("mode", b"sec-fetch-mode")):
        if name in head.names:
            found[key] = (head.get(name) or b"")[:_TEXT_MAX].decode("latin-1")
    if wants_html(head):
        found["html"] = True
    if head.upgrade is not None:
        found["upgrade"] = True
    return found


def wants_html(head: RequestHead) -> bool:
    """Whether a person is to read the answer."""
    return b"accept" in head.names and b"text/html" in {each.partition(b";")[0] for each in head.tokens(b"accept")}


def _own_values(head: RequestHead) -> list[bytes]:
    found = []
    for (_, value), name in zip(head.fields, head.names, strict=True):
        if name == b"cookie":
            for pair in value.split(b";"):
                key, equals, content = pair.partition(b"=")
                if equals and key.strip(b" \t") in OWN_COOKIES:
                    found.append(content.strip(b" \t"))
    return found


def without_own_cookies(value: bytes) -> bytes:
    """The field Cookie less what is ours; every other byte stays. Its pairs are between semicolons (RFC 6265 5.4)."""
    pairs = value.split(b";")
    kept = [pair for pair in pairs if pair.partition(b"=")[0].strip(b" \t") not in OWN_COOKIES or b"=" not in pair]
    if len(kept) == len(pairs):
        return value
    if kept and kept[0] is not pairs[0]:
        kept[0] = kept[0].lstrip(b" \t")
    return b";".join(kept)


def fields_for_sprite(head: RequestHead, address: str, trusted: Networks, *, token: bool) -> list[tuple[bytes, bytes]]:
    """The fields that the server in a sprite sees of a request, but for its body's framing.

    Args:
        address: the client's, or of who speaks for it.
        token: the field Authorization is ours.
    """
    fields = []
    for field in head.end_to_end(_NEVER, _OWN):
        name = field[0].lower()
        # To a CGI program or a WSGI application (RFC 3875 4.1.18), X_Forwarded_For is X-Forwarded-For.
        if b"_" in name:
            name = name.replace(b"_", b"-")
            if name in _NEVER or name in _ONLY_AS_THEMSELVES or name.startswith(_OWN):
                continue
        if name.startswith(_FORWARDED) or (token and name == b"authorization"):
            continue
        if name == b"cookie":
            value = without_own_cookies(field[1])
            if not value and field[1]:
                continue
            field = field[0], value
        fields.append(field)
    speaks = is_within(address, trusted)
    client = _client(head, address, trusted) if speaks else address
    scheme = (head.get(b"x-forwarded-proto") or b"").lower() if speaks else b""
    fields += [
        (b"X-Forwarded-For", client.encode()),
        (b"X-Forwarded-Proto", scheme if scheme in (b"http", b"https") else b"http"),
        (b"X-Forwarded-Host", head.host),
    ]
    return fields


def _client(head: RequestHead, address: str, trusted: Networks) -> str:
    """The last address in X-Forwarded-For that is no trusted proxy's: each proxy appends who spoke to it."""
    values = [value for (_, value), name in zip(head.fields, head.names, strict=True) if name == b"x-forwarded-for"]
    for each in reversed(b",".join(values).decode("latin-1").split(",")):
        try:
            found = str(ip_address(each.strip()))
        except ValueError:
            break
        if not is_within(found, trusted):
            return found
        address = found
    return address
