"""Hosts: what a name below the node's domain means. The only place that makes such a name, or reads one.

    <name>-<organization's label>.<domain>    a sprite
    <name>.<domain>                           a sprite, while there is one organization
    auth.<domain>                             the page to log in
    api.<domain>, www.<domain>, and whatever is not below the domain    the control API

An organization's label has no hyphen, so the last hyphen of a sprite's label is the one before it: no two sprites have
one label. Names have at most 48 characters and organizations' labels 14, so all have at most 63 (RFC 1035 2.3.4).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Literal

import msgspec

# One that is a label itself stands for itself, and is shorter than any that stands for another name.
_SLUG = re.compile(r"[a-z0-9]{1,13}")
_OTHER_LENGTH = 14
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DOMAIN = re.compile(r"(?=.{1,180}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_API = frozenset({"api", "www"})
_AUTH = "auth"
USUAL_PORT = {"http": 80, "https": 443}

# What sprites' hosts keep for us: nothing below it ever reaches a sprite.
OWN_PATH = "/.ballpoint"
# The log-in's cookie: with TLS, and without. Browsers take the first over TLS alone, for one host (RFC 6265bis 4.1.3).
SECURE_COOKIE, PLAIN_COOKIE = "__Host-ballpoint", "ballpoint"


class Place(msgspec.Struct, frozen=True):
    """Where a host leads.

    Attributes:
        kind: `nobody` is a name below the domain that no sprite can have.
        label: of a sprite.
    """

    kind: Literal["api", "auth", "sprite", "nobody"]
    label: str = ""


API, AUTH, NOBODY = Place("api"), Place("auth"), Place("nobody")


def is_domain(text: str) -> bool:
    """Whether sprites' hosts can be below `text`: two labels or more, in lower case, the last no number."""
    return _DOMAIN.fullmatch(text) is not None


def place(host: str, domain: str) -> Place:
    """Where the field Host leads, its port and the case of its letters aside.

    A name may end with a dot, as an absolute one does (RFC 1034 3.1).
    """
    if not host.isascii() or host.startswith("["):
        return API
    name = host.lower().partition(":")[0].removesuffix(".")
    label = name.removesuffix(f".{domain}")
    if label == name or label in _API:
        return API
    if label == _AUTH:
        return AUTH
    return Place("sprite", label) if _LABEL.fullmatch(label) else NOBODY


def organization_label(organization: str) -> str:
    """What stands for an organization in its sprites' hosts: its name, or a hash where that is no short plain word."""
    if _SLUG.fullmatch(organization):
        return organization
    return base64.b32encode(sha256(organization.encode()).digest()).decode().lower()[:_OTHER_LENGTH]


def sprite_label(name: str, organization: str) -> str:
    """The label of a sprite, which is its own for ever."""
    return f"{name}-{organization_label(organization)}"


def meaning(label: str, organizations: Sequence[str]) -> tuple[str, str] | None:
    """The name and the organization of the sprite that `label` may stand for, whether or not it exists."""
    name, _, last = label.rpartition("-")
    owners = [each for each in organizations if organization_label(each) == last] if name else []
    if owners:
        return (name, owners[0]) if len(owners) == 1 else None  # two of one hash: neither has it
    return (label, organizations[0]) if len(organizations) == 1 else None


class Site(msgspec.Struct, frozen=True):
    """How clients reach what is below the domain.

    Attributes:
        port: that clients connect to.
    """

    domain: str
    scheme: str
    port: int

    @property
    def secure(self) -> bool:
        return self.scheme == "https"

    @property
    def cookie(self) -> str:
        """The name of the log-in's cookie."""
        return SECURE_COOKIE if self.secure else PLAIN_COOKIE

    def place(self, host: str) -> Place:
        return place(host, self.domain)

    def origin(self, label: str) -> str:
        """Scheme, host and port of what `label` stands for (RFC 6454 6.2)."""
        port = "" if USUAL_PORT[self.scheme] == self.port else f":{self.port}"
        return f"{self.scheme}://{label}.{self.domain}{port}"

    @property
    def log_in(self) -> str:
        """Origin of the page to log in."""
        return self.origin(_AUTH)

    def read(self, url: str) -> tuple[str, str] | None:
        """A URL of a sprite as its label and its path with the query; None where it is anything else.

        Of the many ways to write a URL only the one that `origin` writes is taken, with visible ASCII behind it: what
        a browser could read as another host is none.
        """
        head, slash, rest = url.partition("://")
        authority, _, path = rest.partition("/")
        label = authority.partition(".")[0]
        if not slash or not _LABEL.fullmatch(label) or f"{head}://{authority}" != self.origin(label):
            return None
        if self.place(authority).kind != "sprite" or not re.fullmatch(r"[!-~]*", path):
            return None
        return label, f"/{path}"
