"""What a service is: as clients say it, and as it is kept on the sprite's disk.

The file is JSON: `{"version": 1, "services": [...]}`, each service with its `name`, `cmd`, `args`, `needs`,
`http_port`, `env`, `dir`, and `stopped`, which says that somebody has stopped it. It is the sprite's to damage or to
forge: whatever is in it, it is read whole or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ballpoint.core.errors import ConflictError, InvalidError, NotFoundError

VERSION = 1
FILE_MAX = 1 << 20
SERVICES_MAX = 64
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
# Of a path below /services: no service can have it.
_RESERVED = frozenset({"signal"})
_TEXT_MAX = 32 * 1024
_ITEMS_MAX = 1000


@dataclass(frozen=True)
class Definition:
    """What is to run.

    Attributes:
        cmd: the program, looked up on PATH unless it has a slash; no shell looks at it.
        needs: services that run before it is started.
        http_port: where it serves what comes by the sprite's URL; None where it serves no such thing.
        env: added to the sprite's environment.
        dir: its working directory; None is the user's home.
    """

    name: str
    cmd: str
    args: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    http_port: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    dir: str | None = None

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "args": list(self.args), "needs": list(self.needs)}


def check_name(name: object) -> str:
    """`name`, if a service may have it. Raises InvalidError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
        raise InvalidError(
            f"{str(name)[:80]!r} is no name of a service",
            hint="1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit; not 'signal'",
        )
    return name


def parse_definition(name: object, said: object) -> Definition:
    """A service as a client or the file says it; what is not known of it is ignored.

    Raises:
        InvalidError: it is none.
    """
    if not isinstance(said, Mapping):
        raise InvalidError("a service is a JSON object", hint='for example {"cmd": "python3", "args": ["app.py"]}')
    checked = check_name(name)
    needs = tuple(dict.fromkeys(check_name(each) for each in _texts(said, "needs")))
    if checked in needs:
        raise InvalidError(f"the service {checked!r} needs itself", hint="leave it out of needs")
    directory = said.get("dir")
    if directory in (None, ""):
        directory = None
    elif not _text(directory, "dir").startswith("/"):
        raise InvalidError("dir is no absolute path", hint="for example /home/sprite/app")
    cmd = _text(said.get("cmd"), "cmd")
    if not cmd:
        raise InvalidError("cmd is missing", hint='the program to run, for example {"cmd": "python3"}')
    return Definition(checked, cmd, tuple(_texts(said, "args")), needs, _port(said), _environment(said), directory)


def _text(value: object, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value or len(value) > _TEXT_MAX:
        raise InvalidError(f"{what} is no text of at most {_TEXT_MAX} characters without NUL")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can name
        raise InvalidError(f"{what} is no text") from error
    return value


def _texts(said: Mapping[str, Any], what: str) -> list[str]:
    value = said.get(what)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > _ITEMS_MAX or any(each is None for each in value):
        raise InvalidError(f"{what} is no list of at most {_ITEMS_MAX} texts")
    return [_text(each, what) for each in value]


def _port(said: Mapping[str, Any]) -> int | None:
    value = said.get("http_port", said.get("httpPort"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 16:
        raise InvalidError("http_port is a number from 1 to 65535")
    return value


def _environment(said: Mapping[str, Any]) -> dict[str, str]:
    value = said.get("env")
    if value is None:
        return {}
    if not isinstance(value, Mapping) or len(value) > _ITEMS_MAX:
        raise InvalidError(f"env is no object of at most {_ITEMS_MAX} variables")
    found = {}
    for name, content in value.items():
        if not _text(name, "env") or "=" in name or content is None:
            raise InvalidError(f"{str(name)[:80]!r} is no name of a variable, or has no value")
        found[name] = _text(content, f"env {name[:80]}")
    return found


# ---- all of them ----


def check_all(definitions: Mapping[str, Definition]) -> None:
    """Check what no single one can show.

    Raises:
        InvalidError: one needs what is not there, or they need one another in a circle; or there are too many.
        ConflictError: two have an HTTP port.
    """
    if len(definitions) > SERVICES_MAX:
        raise InvalidError(f"a sprite has at most {SERVICES_MAX} services", hint="delete some")
    for each in definitions.values():
        for needed in each.needs:
            if needed not in definitions:
                raise InvalidError(
                    f"{each.name!r} needs {needed!r}, which is no service", hint=f"create {needed!r} first"
                )
    start_order(definitions)
    serving = [each for each in definitions.values() if each.http_port is not None]
    if len(serving) > 1:
        first, second = serving[0], serving[1]
        raise ConflictError(
            f"the service {first.name!r} has the sprite's HTTP port already ({first.http_port}), not {second.name!r}",
            hint=f"delete {first.name!r}, or put it again without http_port",
        )


def start_order(definitions: Mapping[str, Definition]) -> list[str]:
    """All names, each behind those that it needs; otherwise as they come.

    Raises:
        InvalidError: there is a circle.
    """
    order: dict[str, None] = {}
    for name in definitions:
        _visit(definitions, name, (), order)
    return list(order)


def _visit(definitions: Mapping[str, Definition], name: str, path: tuple[str, ...], order: dict[str, None]) -> None:
    if name in path:
        circle = " needs ".join([*path[path.index(name) :], name])
        raise InvalidError(f"services need one another in a circle: {circle}", hint="take one out of needs")
    if name in order:
        return
    for needed in definitions[name].needs:
        _visit(definitions, needed, (*path, name), order)
    order[name] = None


def needed_by(definitions: Mapping[str, Definition], name: str) -> list[str]:
    """Names of those that need `name` themselves."""
    return [each.name for each in definitions.values() if name in each.needs]


def all_needs(definitions: Mapping[str, Definition], name: str) -> list[str]:
    """Names of what `name` needs, and what that needs, in the order of their start."""
    order: dict[str, None] = {}
    _visit(definitions, name, (), order)
    del order[name]
    return list(order)


def no_such(name: str) -> NotFoundError:
    return NotFoundError(f"there is no service {name[:80]!r}", hint="GET /services lists those there are")


# ---- the file ----


def dump(services: Iterable[tuple[Definition, bool]]) -> bytes:
    """The file of these: each with whether it was stopped.

    Raises:
        InvalidError: they are too large together.
    """
    items = [{**definition.json(), "stopped": stopped} for definition, stopped in services]
    data = json.dumps({"version": VERSION, "services": items}, indent=1).encode() + b"\n"
    if len(data) > FILE_MAX:
        raise InvalidError(f"all services together are larger than {FILE_MAX} bytes", hint="make them smaller")
    return data


def load(data: bytes) -> dict[str, tuple[Definition, bool]]:
    """What `dump` has written: each by its name, with whether it was stopped.

    Raises:
        InvalidError: it is no such file; ConflictError: as `check_all`.
    """
    if len(data) > FILE_MAX:
        raise InvalidError(f"it is larger than {FILE_MAX} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidError("it is no JSON") from error
    if not isinstance(value, dict) or value.get("version") != VERSION or not isinstance(value.get("services"), list):
        raise InvalidError(f"it is no list of services of version {VERSION}")
    if len(value["services"]) > SERVICES_MAX:
        raise InvalidError(f"it has more than {SERVICES_MAX} services")
    found: dict[str, tuple[Definition, bool]] = {}
    for item in value["services"]:
        definition = parse_definition(item.get("name") if isinstance(item, dict) else None, item)
        if definition.name in found:
            raise InvalidError(f"it has the service {definition.name!r} twice")
        found[definition.name] = definition, item.get("stopped") is True
    check_all({name: definition for name, (definition, _) in found.items()})
    return found
