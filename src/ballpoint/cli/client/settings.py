"""The client's configuration: which node, which organization, which sprite, and the tokens.

`~/.sprites/sprites.json` has the shape the original's command line uses; tokens are in `~/.sprites/tokens.json`, mode
0600, and nowhere else. A file `.sprite` in the working directory or above selects a sprite.

Commands take an organization as `[API:]ORG`, where API is the URL of a node or the alias it was given at `login`. An
alias is the key `alias` of the node's entry in `urls`, where the original has none.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ballpoint.core.errors import InvalidError, UnauthorizedError

_ALIAS = re.compile(r"[A-Za-z0-9._-]+")
_HINT = "ballpoint up on this machine, or ballpoint login URL"


@dataclass(frozen=True)
class Selection:
    """Where requests go.

    Attributes:
        url: of the node, without a trailing slash.
        org: organization.
        token: secret; never printed.
    """

    url: str
    org: str
    token: str


def home() -> Path:
    """Directory of the configuration."""
    return Path(os.environ.get("HOME", "/root")) / ".sprites"


def select(choice: str | None) -> Selection:
    """The node and token to use, from the environment first, then from the configuration.

    Args:
        choice: `[API:]ORG`; an API goes before the environment's.

    Raises:
        InvalidError: the API is neither a URL nor a known alias.
        UnauthorizedError: there is no token.
    """
    api, org = split_choice(choice)
    current = _read(home() / "sprites.json").get("current_selection", {})
    url = api or os.environ.get("SPRITES_API_URL") or current.get("url")
    if not url:
        raise UnauthorizedError("no node is configured", hint=_HINT)
    url = _address(url)
    token = os.environ.get("SPRITE_TOKEN")
    if token:
        return Selection(url, org or token.split("/", maxsplit=1)[0], token)
    tokens = _read(home() / "tokens.json").get(url, {})
    wanted = org or current.get("org") or next(iter(tokens), None)
    if wanted is None or wanted not in tokens:
        raise UnauthorizedError(f"there is no token for {wanted or 'any organization'} at {url}", hint=_HINT)
    return Selection(url, wanted, tokens[wanted])


def split_choice(choice: str | None) -> tuple[str | None, str | None]:
    """`[API:]ORG` as its two parts, None for those it lacks.

    Raises:
        InvalidError: nothing is on one side of the colon.
    """
    if not choice:  # the variable may be set and empty
        return None, None
    api, colon, org = choice.rpartition(":")
    if not org or (colon and not api):
        raise InvalidError(f"{choice!r} is not [API:]ORG", hint="for example acme, or http://127.0.0.1:7070:acme")
    return api or None, org


def _address(api: str) -> str:
    """The URL of a node that is named by URL or alias."""
    urls = _read(home() / "sprites.json").get("urls", {})
    found = next((url for url, node in urls.items() if node.get("alias") == api), None)
    if found is None and _ALIAS.fullmatch(api):
        raise InvalidError(f"no node has the alias {api!r}", hint=f"ballpoint -o {api}:ORG login URL gives it one")
    return _checked(found or api)


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an address that is none
        good = False
    if not good:
        raise InvalidError(f"{url!r} is not the address of a node", hint="for example http://127.0.0.1:7070")
    return url.rstrip("/")


def selection(api: str, token: str) -> Selection:
    """The node with the URL or alias `api`, with the organization that `token` names.

    Raises:
        InvalidError: there is no such URL or alias, or the token has not the shape org/orgid/tokenid/value.
    """
    url, token = _address(api), token.strip()
    hint = "ballpoint token create prints one, on the node"
    if not token:
        raise InvalidError("no token was given", hint=hint)
    parts = token.split("/")
    if len(parts) != 4 or not all(parts):
        raise InvalidError("a token has the shape org/orgid/tokenid/value", hint=hint)
    return Selection(url, parts[0], token)


def checked_alias(alias: str) -> str:
    """`alias`, which a node can be given.

    Raises:
        InvalidError: it would not be told from a URL.
    """
    if not _ALIAS.fullmatch(alias):
        raise InvalidError(f"{alias!r} is no alias", hint="letters, digits, '.', '_' and '-', for example prod:acme")
    return alias


def remember(selected: Selection, alias: str | None = None) -> None:
    """Store a node and its token, and select them from now on.

    Args:
        alias: of the node from now on, and of no other; None leaves it the one it has.
    """
    url, org = selected.url, selected.org
    config = _read(home() / "sprites.json")
    config["version"] = "1"
    config["current_selection"] = {"url": url, "org": org}
    urls = config.setdefault("urls", {})
    node = urls.setdefault(url, {"url": url, "orgs": {}})
    if alias is not None:
        for each in urls.values():
            if each.get("alias") == alias:
                del each["alias"]
        node["alias"] = alias
    node["orgs"][org] = {"name": org, "keyring_key": "", "use_keyring": False, "sprites": {}}
    tokens = _read(home() / "tokens.json")
    tokens.setdefault(url, {})[org] = selected.token
    home().mkdir(mode=0o700, exist_ok=True)
    _write(home() / "tokens.json", tokens)
    _write(home() / "sprites.json", config)


def known() -> list[dict[str, object]]:
    """The organizations there are tokens for: `name`, `url` and `alias` of the node, whether it is `selected`."""
    config = _read(home() / "sprites.json")
    current = config.get("current_selection")
    return [
        {
            "name": org,
            "url": url,
            "alias": config.get("urls", {}).get(url, {}).get("alias"),
            "selected": current == {"url": url, "org": org},
        }
        for url, orgs in sorted(_read(home() / "tokens.json").items())
        for org in sorted(orgs)
    ]


def forget(token: str) -> list[str]:
    """Forget `token` where it is remembered, and the directory with the last one. Returns the nodes it was for."""
    config, tokens = _read(home() / "sprites.json"), _read(home() / "tokens.json")
    found = [(url, org) for url, orgs in tokens.items() for org, each in orgs.items() if each == token.strip()]
    for url, org in found:
        known = config.get("urls", {})
        for content, orgs in ((tokens, tokens[url]), (known, known.get(url, {}).get("orgs", {}))):
            orgs.pop(org, None)
            if not orgs:
                content.pop(url, None)
        if config.get("current_selection") == {"url": url, "org": org}:
            del config["current_selection"]
    if found and tokens:
        _write(home() / "tokens.json", tokens)
        _write(home() / "sprites.json", config)
    elif found:
        for name in ("tokens.json", "sprites.json"):
            (home() / name).unlink(missing_ok=True)
        with suppress(OSError):  # it holds something of somebody else's
            home().rmdir()
    return [url for url, _ in found]


def sprite_file() -> Path | None:
    """The file that selects a sprite for this directory: in it, or in the nearest one above that has any."""
    here = Path.cwd()
    return next((file for each in (here, *here.parents) if (file := each / ".sprite").is_file()), None)


def selected_sprite() -> str | None:
    """The sprite that `use` selected for this directory or one above."""
    file = sprite_file()
    name = _read(file).get("sprite") if file else None
    return str(name) if name else None


def use_sprite(org: str, name: str) -> None:
    """Select a sprite for this directory."""
    (Path.cwd() / ".sprite").write_text(json.dumps({"organization": org, "sprite": name}) + "\n")


def use_no_sprite() -> bool:
    """Take back what `use_sprite` did here. Returns whether there was anything; a selection from above stays."""
    file = Path.cwd() / ".sprite"
    there = file.exists()
    file.unlink(missing_ok=True)
    return there


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidError(f"{file} cannot be read", hint="mend or remove it") from error
    return content if isinstance(content, dict) else {}


def _write(file: Path, content: dict[str, Any]) -> None:
    partial = file.with_name(f".{file.name}.new")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as stream:
        json.dump(content, stream, indent=2)
    partial.replace(file)
